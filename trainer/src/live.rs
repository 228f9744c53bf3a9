//! The live view of `imp-train data`: rate, and how busy each stage was in the last second.

use std::time::{Duration, Instant};

use imp_loader::{Stages, Watch};
use imp_schemas::batch::Batch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where there is no terminal, nothing is shown.
pub struct Live {
    bar: ProgressBar,
    watch: Option<Watch>,
    shown: Stages,
    at: Instant,
    n_examples: usize,
}

const EVERY: Duration = Duration::from_secs(1);

impl Live {
    pub fn new(n_steps: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(n_steps), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:28.cyan/dim} {pos}/{len} steps, {eta} left  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, watch: None, shown: Stages::default(), at: Instant::now(), n_examples: 0 }
    }

    pub fn opened(&mut self, watch: &Watch) {
        self.watch = Some(watch.clone());
    }

    pub fn took(&mut self, batch: &Batch) {
        self.bar.inc(1);
        self.n_examples += batch.n();
        let (Some(watch), passed) = (&self.watch, self.at.elapsed()) else { return };
        if passed < EVERY || self.bar.is_hidden() {
            return;
        }
        let stages = watch.stats().stages;
        let last = stages.since(&self.shown);
        let busy = |name: &str, stage: imp_loader::StageSeconds| format!("{name} {:.0} %", 100.0 * stage.busy());
        self.bar.set_message(format!(
            "{:.0} examples/s  busy: {}, {}, {}; trainer waits {:.0} %; batches wait for {}",
            self.n_examples as f64 / passed.as_secs_f64(),
            busy("fetch", last.fetch),
            busy("decode", last.decode),
            busy("assemble", last.assemble),
            100.0 * (1.0 - last.trainer.busy()),
            format!("{:?}", last.bound()).to_lowercase(),
        ));
        (self.shown, self.at, self.n_examples) = (stages, Instant::now(), 0);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
