//! Progress of a run: a bar in a terminal, a line now and then in a log, JSON lines for programs.
//!
//! In: what was just done. Out: text on stderr, or JSON on stdout. Never: anything that changes what is written.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use imp_schemas::reject::RejectReason;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Seconds between two plain or JSON lines.
const EVERY: Duration = Duration::from_secs(5);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProgressMode {
    /// A bar in a terminal, else JSON lines.
    #[default]
    Auto,
    Plain,
    Json,
    Silent,
}

/// Shows how far a run is.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    now: Option<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Plain,
    Json,
    Silent,
}

#[derive(Debug)]
struct Phase {
    corpus: String,
    n_units: usize,
    n_units_done: usize,
    /// Inputs expected; 0 if nobody knows.
    total: u64,
    /// Inputs of units that were done before this run, which took no time.
    n_skipped: u64,
    /// Inputs of this run: kept or rejected.
    n_done: u64,
    n_of_unit: u64,
    n_bytes: u64,
    rejects: BTreeMap<RejectReason, u64>,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(mode: ProgressMode) -> Self {
        let style = match mode {
            ProgressMode::Auto if std::io::stderr().is_terminal() => Style::Bar,
            ProgressMode::Plain => Style::Plain,
            ProgressMode::Auto | ProgressMode::Json => Style::Json,
            ProgressMode::Silent => Style::Silent,
        };
        Self { style, now: None }
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        Self::new(ProgressMode::Silent)
    }

    /// Something that has no count.
    pub(crate) fn note(&self, what: &str) {
        match self.style {
            Style::Bar | Style::Plain => eprintln!("{what}"),
            Style::Json => println!("{}", serde_json::json!({ "event": "note", "text": what })),
            Style::Silent => {}
        }
    }

    /// The `n_units` units of `corpus` are about to be done; they have `total` inputs, 0 if that is not known.
    pub(crate) fn begin(&mut self, corpus: &str, n_units: usize, total: u64) {
        let bar = (self.style == Style::Bar).then(|| {
            let style = ProgressStyle::with_template("{prefix:>14} {bar:24} {msg}");
            let bar = ProgressBar::new(total.max(n_units as u64)).with_prefix(corpus.to_owned());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        self.now = Some(Phase {
            corpus: corpus.to_owned(),
            n_units,
            n_units_done: 0,
            total,
            n_skipped: 0,
            n_done: 0,
            n_of_unit: 0,
            n_bytes: 0,
            rejects: BTreeMap::new(),
            started: now,
            told: now,
            bar,
        });
    }

    /// One more input is a record with a medium of `n_bytes`.
    pub(crate) fn kept(&mut self, n_bytes: u64) {
        self.input(|phase| phase.n_bytes += n_bytes);
    }

    /// One more input is rejected.
    pub(crate) fn rejected(&mut self, reason: RejectReason) {
        self.input(|phase| *phase.rejects.entry(reason).or_insert(0) += 1);
    }

    /// A unit of `n_inputs` is done, in this run or an earlier one.
    pub(crate) fn unit_done(&mut self, n_inputs: u64) {
        let Some(phase) = &mut self.now else { return };
        phase.n_units_done += 1;
        if phase.n_of_unit == 0 {
            phase.n_skipped += n_inputs;
        }
        phase.n_of_unit = 0;
        phase.show(self.style);
    }

    fn input(&mut self, count: impl FnOnce(&mut Phase)) {
        let Some(phase) = &mut self.now else { return };
        phase.n_done += 1;
        phase.n_of_unit += 1;
        count(phase);
        phase.show(self.style);
    }

    /// The corpus is read.
    pub(crate) fn end(&mut self) {
        if let Some(phase) = self.now.take() {
            if let Some(bar) = &phase.bar {
                bar.finish_with_message(phase.text());
            } else {
                phase.tell(self.style);
            }
        }
    }
}

impl Phase {
    fn show(&mut self, style: Style) {
        if let Some(bar) = &self.bar {
            let n = if self.total > 0 { self.n_done + self.n_skipped } else { self.n_units_done as u64 };
            bar.set_position(n);
            bar.set_message(self.text());
        } else if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            self.tell(style);
        }
    }

    fn per_second(&self, n: u64) -> f64 {
        n as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// Seconds, by inputs if their number is known, else by units; `None` before there is anything to go by.
    fn left(&self) -> Option<f64> {
        let seconds = self.started.elapsed().as_secs_f64();
        if self.total > 0 {
            let rest = self.total.saturating_sub(self.n_done + self.n_skipped);
            return (self.n_done > 0).then(|| seconds * rest as f64 / self.n_done as f64);
        }
        let rest = self.n_units.saturating_sub(self.n_units_done);
        (self.n_units_done > 0).then(|| seconds * rest as f64 / self.n_units_done as f64)
    }

    fn text(&self) -> String {
        let n_inputs = self.n_done + self.n_skipped;
        let of = if self.total > 0 { format!("/{}", self.total) } else { String::new() };
        let (rate, mb) = (self.per_second(self.n_done), self.per_second(self.n_bytes) / 1e6);
        let mut text =
            format!("{n_inputs}{of} inputs, {rate:.0}/s, {mb:.1} MB/s, unit {}/{}", self.n_units_done, self.n_units);
        if !self.rejects.is_empty() {
            let by_reason: Vec<String> = self.rejects.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
            text += &format!(", rejected {}", by_reason.join(" "));
        }
        if let Some(left) = self.left() {
            text += &format!(", {} left", HumanDuration(Duration::from_secs_f64(left.min(1e9))));
        }
        text
    }

    fn tell(&self, style: Style) {
        match style {
            Style::Plain => eprintln!("{}: {}", self.corpus, self.text()),
            Style::Json => println!(
                "{}",
                serde_json::json!({
                    "event": "progress", "corpus": self.corpus, "n_inputs": self.n_done + self.n_skipped,
                    "n_expected": self.total, "n_units_done": self.n_units_done, "n_units": self.n_units,
                    "n_bytes": self.n_bytes, "n_rejected": self.rejects, "inputs_per_s": self.per_second(self.n_done),
                    "mb_per_s": self.per_second(self.n_bytes) / 1e6,
                    "seconds": self.started.elapsed().as_secs_f64(), "seconds_left": self.left(),
                })
            ),
            Style::Bar | Style::Silent => {}
        }
    }
}
