//! What came out of an experiment: a table, a plot, the numbers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use imp_schemas::store::Store;
use plotters::prelude::*;

use super::Outcome;
use super::arms::Experiment;
use crate::error::OpsError;
use crate::report::metrics;
use crate::report::scores::{Measure, Scores};

/// Scores by evaluation, of what `imp-train eval --json` wrote.
pub fn scores(path: &Path) -> Result<BTreeMap<String, f64>, OpsError> {
    let bytes = std::fs::read(path).map_err(|source| OpsError::File { what: "read", path: path.to_owned(), source })?;
    let malformed =
        |source| OpsError::Malformed { run: path.display().to_string(), key: "scores".into(), line: 1, source };
    let scores: Scores = serde_json::from_slice(&bytes).map_err(malformed)?;
    let value = |measure: &Measure| match measure {
        Measure::ZeroShot(classified) | Measure::LinearProbe(classified) => classified.top1,
        Measure::Retrieval { r_at_10, .. } => *r_at_10,
    };
    Ok(scores.scores.iter().map(|score| (score.name.clone(), value(&score.measure))).collect())
}

/// Share of tokens without an expert, and entropy of the experts' use: means over the last tenth of a run.
pub fn routing(run: &Path) -> Result<(Option<f64>, Option<f64>), OpsError> {
    let steps = metrics::read(&Store::open(&run.to_string_lossy())?)?;
    let last = &steps[steps.len() - steps.len().div_ceil(10)..];
    let routing: Vec<_> = last.iter().filter_map(|step| step.routing).collect();
    if routing.is_empty() {
        return Ok((None, None));
    }
    let mean = |of: fn(&metrics::Routing) -> f64| routing.iter().map(of).sum::<f64>() / routing.len() as f64;
    Ok((Some(mean(|r| r.unrouted)), Some(mean(|r| r.usage_entropy))))
}

/// Mean and standard deviation of a sample.
fn spread(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// Writes `NAME.md`, `NAME.svg` and `NAME.json`.
pub fn write(path: &Path, experiment: &Experiment, outcomes: &[Outcome]) -> Result<(), OpsError> {
    let file = |extension: &str, text: &str| {
        let path = PathBuf::from(format!("{}.{extension}", path.display()));
        std::fs::write(&path, text).map_err(|source| OpsError::File { what: "write", path, source })
    };
    let table = table(experiment, outcomes);
    print!("{table}");
    file("md", &table)?;
    file("svg", &plot(experiment, outcomes)?)?;
    file("json", &serde_json::to_string_pretty(outcomes).map_err(|e| OpsError::Lost(e.to_string()))?)
}

fn of_arm<'a>(outcomes: &'a [Outcome], arm: &str) -> Vec<&'a Outcome> {
    outcomes.iter().filter(|o| o.arm == arm).collect()
}

/// A score of an arm by seed.
fn by_seed(outcomes: &[&Outcome], eval: &str) -> Vec<f64> {
    outcomes.iter().filter_map(|o| o.scores.get(eval)).map(|v| 100.0 * v).collect()
}

fn table(experiment: &Experiment, outcomes: &[Outcome]) -> String {
    let mut text = format!("# {}\n\nClaim: {}\n\n", experiment.title, experiment.claim);
    let sparse = outcomes.iter().any(|o| o.usage_entropy.is_some());
    let more = if sparse { " without an expert | entropy of use |" } else { "" };
    let heads: String = experiment.evals.iter().map(|eval| format!(" {eval} |")).collect();
    // Formatting a string cannot fail.
    let _ = writeln!(text, "| arm |{heads} mean | parameters | steps | TFLOP | seconds |{more}");
    let columns = experiment.evals.len() + 6 + if sparse { 2 } else { 0 };
    let _ = writeln!(text, "|{}", " --- |".repeat(columns));
    for arm in &experiment.arms {
        let runs = of_arm(outcomes, &arm.name);
        let Some(first) = runs.first() else { continue };
        let shown = |values: &[f64]| match spread(values) {
            _ if values.is_empty() => "–".to_owned(),
            (mean, _) if values.len() == 1 => format!("{mean:.1}"),
            (mean, std) => format!("{mean:.1} ± {std:.1}"),
        };
        let cells: String =
            experiment.evals.iter().map(|eval| format!(" {} |", shown(&by_seed(&runs, eval)))).collect();
        let whole = |o: &&&Outcome| experiment.evals.iter().all(|eval| o.scores.contains_key(eval));
        let of_run = |o: &&Outcome| {
            let scores = experiment.evals.iter().filter_map(|eval| o.scores.get(eval)).map(|v| 100.0 * v);
            spread(&scores.collect::<Vec<_>>()).0
        };
        let means: Vec<f64> = runs.iter().filter(whole).map(of_run).collect();
        let seconds = spread(&runs.iter().map(|o| o.seconds).collect::<Vec<_>>()).0;
        let _ = write!(
            text,
            "| {} |{cells} {} | {} | {} | {:.1} | {seconds:.0} |",
            arm.name,
            shown(&means),
            first.parameters,
            first.steps,
            first.flops / 1e12
        );
        if sparse {
            let of = |value: fn(&Outcome) -> Option<f64>| {
                let values: Vec<f64> = runs.iter().filter_map(|o| value(o)).collect();
                if values.is_empty() { "–".to_owned() } else { format!("{:.3}", spread(&values).0) }
            };
            let _ = write!(text, " {} | {} |", of(|o| o.unrouted), of(|o| o.usage_entropy));
        }
        text.push('\n');
    }
    let seeds = outcomes.iter().map(|o| o.seed).collect::<std::collections::BTreeSet<_>>().len();
    let _ = writeln!(
        text,
        "\nPercent, mean ± standard deviation over {seeds} seeds. The numbers by seed are in the JSON file beside this one."
    );
    text
}

/// Every run a point, every arm a column, by evaluation.
fn plot(experiment: &Experiment, outcomes: &[Outcome]) -> Result<String, OpsError> {
    /// Of an arm, which its name has to fit into.
    const WIDTH: u32 = 165;
    const COLOURS: [RGBColor; 4] =
        [RGBColor(47, 128, 237), RGBColor(235, 110, 60), RGBColor(39, 160, 110), RGBColor(187, 94, 208)];
    const GREY: RGBColor = RGBColor(136, 136, 136);
    let failed = |detail: String| OpsError::Chart { chart: "experiment", detail };
    let arms = experiment.arms.len();
    // The legend has a column of its own.
    let size = (70 + WIDTH * (arms as u32 + 1), 320);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let label = ("sans-serif", 12).into_font().color(&GREY);
        let mut context = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(48)
            .build_cartesian_2d(-0.5..arms as f64 + 0.5, 0.0..100.0)
            .map_err(|e| failed(e.to_string()))?;
        let name = |x: &f64| {
            let i = x.round();
            let at = (x - i).abs() < 0.01 && i >= 0.0;
            let arm = at.then(|| experiment.arms.get(i as usize)).flatten();
            arm.map_or_else(String::new, |arm| arm.name.chars().take(28).collect())
        };
        context
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(GREY.mix(0.6))
            .bold_line_style(GREY.mix(0.25))
            .light_line_style(TRANSPARENT)
            .label_style(label.clone())
            .x_labels(arms * 2 + 3)
            .x_label_formatter(&name)
            .y_desc("%")
            .draw()
            .map_err(|e| failed(e.to_string()))?;
        for (i, (eval, colour)) in experiment.evals.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let aside = (i as f64 - (experiment.evals.len() as f64 - 1.0) / 2.0) * 0.12;
            let points = experiment.arms.iter().enumerate().flat_map(|(x, arm)| {
                let values = by_seed(&of_arm(outcomes, &arm.name), eval);
                values.into_iter().map(move |y| Circle::new((x as f64 + aside, y), 4, colour.filled()))
            });
            let drawn = context.draw_series(points).map_err(|e| failed(e.to_string()))?;
            drawn.label(eval).legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
        }
        context
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .label_font(label)
            .draw()
            .map_err(|e| failed(e.to_string()))?;
        area.present().map_err(|e| failed(e.to_string()))?;
    }
    Ok(svg)
}
