//! Progress of a run: a bar in a terminal, a line now and then in a log, JSON lines for programs.
//!
//! In: what was just done. Out: text on stderr, or JSON on stdout. Never: anything that changes what is written.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Seconds between two plain or JSON lines.
const EVERY: Duration = Duration::from_secs(5);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProgressMode {
    /// A bar in a terminal, else plain lines.
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
    total: u64,
    n_done: u64,
    n_bytes: u64,
    n_rejected: u64,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(mode: ProgressMode) -> Self {
        let style = match mode {
            ProgressMode::Auto if std::io::stderr().is_terminal() => Style::Bar,
            ProgressMode::Auto | ProgressMode::Plain => Style::Plain,
            ProgressMode::Json => Style::Json,
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

    /// `total` inputs of `corpus` are about to be read, `n_rejected` are rejected already.
    pub(crate) fn begin(&mut self, corpus: &str, total: u64, n_rejected: u64) {
        let bar = (self.style == Style::Bar).then(|| {
            let style = ProgressStyle::with_template("{prefix:>14} {bar:32} {pos}/{len} {msg}, {eta} left");
            let bar = ProgressBar::new(total).with_prefix(corpus.to_owned());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        let (corpus, started, told) = (corpus.to_owned(), now, now);
        self.now = Some(Phase { corpus, total, n_done: n_rejected, n_bytes: 0, n_rejected, started, told, bar });
    }

    /// One more input of `n_bytes` is done.
    pub(crate) fn step(&mut self, n_bytes: u64, is_rejected: bool) {
        let Some(phase) = &mut self.now else { return };
        phase.n_done += 1;
        phase.n_bytes += n_bytes;
        phase.n_rejected += u64::from(is_rejected);
        if let Some(bar) = &phase.bar {
            bar.set_position(phase.n_done);
            bar.set_message(phase.rates());
        } else if phase.told.elapsed() >= EVERY {
            phase.told = Instant::now();
            phase.tell(self.style);
        }
    }

    /// The corpus is read.
    pub(crate) fn end(&mut self) {
        if let Some(phase) = self.now.take() {
            if let Some(bar) = &phase.bar {
                bar.finish_with_message(phase.rates());
            } else {
                phase.tell(self.style);
            }
        }
    }
}

impl Phase {
    fn per_second(&self, n: u64) -> f64 {
        n as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn rates(&self) -> String {
        let mb = self.per_second(self.n_bytes) / 1e6;
        format!("{:.0} records/s, {mb:.1} MB/s, {} rejected", self.per_second(self.n_done), self.n_rejected)
    }

    fn tell(&self, style: Style) {
        let left = (self.total - self.n_done.min(self.total)) as f64 / self.per_second(self.n_done).max(1e-9);
        match style {
            Style::Plain => {
                let Self { corpus, n_done, total, .. } = self;
                eprintln!("{corpus}: {n_done}/{total}, {}, {left:.0} s left", self.rates());
            }
            Style::Json => println!(
                "{}",
                serde_json::json!({
                    "event": "progress", "corpus": self.corpus, "n_done": self.n_done, "n_inputs": self.total,
                    "n_bytes": self.n_bytes, "n_rejected": self.n_rejected,
                    "seconds": self.started.elapsed().as_secs_f64(), "seconds_left": left,
                })
            ),
            Style::Bar | Style::Silent => {}
        }
    }
}
