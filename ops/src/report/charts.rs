//! Curves over steps, as SVG that fits a light and a dark page.
//!
//! In: a run's steps. Out: SVG text. Never: a point that is not in the run; smoothing is named where it happens.

use plotters::prelude::*;

use super::metrics::{StepMetrics, tasks};
use crate::error::OpsError;

const SIZE: (u32, u32) = (560, 260);
/// Mid tones, told apart by lightness too, on white and on near-black.
const COLOURS: [RGBColor; 6] = [
    RGBColor(47, 128, 237),
    RGBColor(235, 110, 60),
    RGBColor(39, 160, 110),
    RGBColor(187, 94, 208),
    RGBColor(200, 160, 30),
    RGBColor(120, 130, 145),
];
/// Axes and labels: readable on both grounds.
const GREY: RGBColor = RGBColor(136, 136, 136);

/// One line of a chart.
struct Line<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

/// Loss of each task, smoothed over about twenty of its steps.
///
/// # Errors
/// [`OpsError::Chart`] if the drawing fails.
pub fn loss(steps: &[StepMetrics]) -> Result<String, OpsError> {
    by_task("loss", steps, SeriesLabelPosition::UpperRight, |step| step.loss)
}

/// Tokens per second of each task, in thousands, smoothed as the loss.
///
/// # Errors
/// As [`loss`].
pub fn speed(steps: &[StepMetrics]) -> Result<String, OpsError> {
    by_task("thousand tokens a second", steps, SeriesLabelPosition::LowerRight, |step| {
        step.tokens as f64 / 1e3 / step.seconds.max(1e-9)
    })
}

/// Learning rate of every step, in thousandths.
///
/// # Errors
/// As [`loss`].
pub fn learning_rate(steps: &[StepMetrics]) -> Result<String, OpsError> {
    let points = steps.iter().map(|s| (s.step as f64, s.lr * 1e3)).collect();
    draw("learning rate × 1000", &[Line { name: "learning rate", points }], SeriesLabelPosition::UpperRight)
}

fn by_task(
    chart: &'static str,
    steps: &[StepMetrics],
    legend: SeriesLabelPosition,
    value: fn(&StepMetrics) -> f64,
) -> Result<String, OpsError> {
    let lines = tasks(steps).into_iter().map(|task| {
        let of_task = steps.iter().filter(|step| step.task == task);
        Line { name: task, points: smooth(of_task.map(|step| (step.step as f64, value(step)))) }
    });
    draw(chart, &lines.collect::<Vec<_>>(), legend)
}

/// Exponential mean with weight 1/20, started without bias.
fn smooth(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut mean = |(x, y): (f64, f64)| {
        sum = 0.95 * sum + y;
        weight = 0.95 * weight + 1.0;
        (x, sum / weight)
    };
    points.filter(|(_, y)| y.is_finite()).map(&mut mean).collect()
}

fn draw(chart: &'static str, lines: &[Line<'_>], legend: SeriesLabelPosition) -> Result<String, OpsError> {
    let points = || lines.iter().flat_map(|line| &line.points);
    if points().next().is_none() {
        return Ok(String::new());
    }
    let last = points().map(|(x, _)| *x).fold(1.0, f64::max);
    let high = points().map(|(_, y)| *y).fold(f64::MIN_POSITIVE, f64::max) * 1.05;
    let failed = |detail: String| OpsError::Chart { chart, detail };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut context = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..last, 0.0..high)
            .map_err(|e| failed(e.to_string()))?;
        let label = ("sans-serif", 13).into_font().color(&GREY);
        context
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .axis_style(GREY.mix(0.6))
            .label_style(label.clone())
            .x_desc("step")
            .y_desc(chart)
            .x_labels(8)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_labels(6)
            .draw()
            .map_err(|e| failed(e.to_string()))?;
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let series = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2));
            let drawn = context.draw_series(series).map_err(|e| failed(e.to_string()))?;
            if lines.len() > 1 {
                let mark = |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3));
                drawn.label(line.name).legend(mark);
            }
        }
        if lines.len() > 1 {
            context
                .configure_series_labels()
                .position(legend)
                .label_font(label)
                .draw()
                .map_err(|e| failed(e.to_string()))?;
        }
        area.present().map_err(|e| failed(e.to_string()))?;
    }
    // The page scales the picture; the view box keeps its proportions.
    let sized = format!("width=\"{}\" height=\"{}\"", SIZE.0, SIZE.1);
    Ok(svg.replacen(&sized, "role=\"img\"", 1))
}
