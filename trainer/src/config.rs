//! The `[train]` table: read once, checked once.
//!
//! In: the run file. Out: [`TrainConfig`], whose parts hold what their types promise. Never: reads the environment, opens a
//! store; what depends on the corpora (vocabulary, classes) is checked when the run opens them.

use imp_loader::LoaderSettings;
use imp_schemas::modality::Modality;
use imp_schemas::task::{Decode, Mixture, Objective, RawMixture, RawTask, RawView, Task, TaskError};
use serde::{Deserialize, Serialize};

use crate::eval::PromptSet;
use crate::model::{ModelError, RawModel};
use crate::ops::Precision;
use crate::optim::{AdamWSettings, Moments};
use crate::schedule::{RawSchedule, Schedule, ScheduleError};

/// The `[train]` table as it stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTrain {
    /// Updates of the whole run.
    pub steps: u64,
    /// Threads of the matrix products and fused ops. Losses do not depend on it.
    #[serde(default = "two")]
    pub threads: usize,
    /// `cpu` or `cuda:N`.
    #[serde(default = "cpu")]
    pub device: String,
    /// What products compute in: `f32`, or `bf16` on CUDA, with f32 parameters, sums and moments.
    #[serde(default)]
    pub precision: Precision,
    /// Most examples in the encoder at a time; absent: the whole batch. Contrastive losses still see every vector of the batch: it is
    /// embedded once without gradients, and once more, part by part, with them. Experts choose among the tokens of a part.
    pub micro_batch: Option<usize>,
    /// Keep the input of each block alone and make the rest again on the way back (activation checkpointing): a third of what the encoder of S keeps, for
    /// one more way forward. On the CPU only; experts keep what they keep.
    #[serde(default)]
    pub recompute: bool,
    /// Consecutive steps whose gradients one update takes the mean of: 1 is AGD; of as many as there are tasks each has, on average, its
    /// share.
    #[serde(default = "one")]
    pub accumulate: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept.
    #[serde(default = "three")]
    pub keep_checkpoints: usize,
    pub model: RawModel,
    pub schedule: RawSchedule,
    #[serde(default)]
    pub optimizer: AdamWSettings,
    #[serde(default)]
    pub loader: LoaderSettings,
    pub mixture: RawMixture,
    #[serde(default)]
    pub eval: Vec<RawEval>,
}

fn one() -> u64 {
    1
}

fn two() -> usize {
    2
}

fn three() -> usize {
    3
}

fn cpu() -> String {
    "cpu".to_owned()
}

/// What an evaluation measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvalKind {
    /// Class names in sentences against media: top-1, top-5.
    ZeroShot,
    /// Captions against media, both ways: R@1, R@5, R@10, median rank.
    Retrieval,
    /// A linear classifier on the encoder's features, which stay as they are: trained on one split, top-1 and top-5 on another.
    LinearProbe,
}

/// Which classes stand to choose from in a zero-shot evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Candidates {
    /// Those that occur in the split.
    #[default]
    Split,
    /// All that the corpus lists.
    All,
}

/// One evaluation, as the config spells it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEval {
    pub name: String,
    pub corpus: String,
    #[serde(default = "test_split")]
    pub split: String,
    /// The split that a linear probe's classifier is trained on.
    pub train_split: Option<String>,
    pub kind: EvalKind,
    /// Media whose scores against the text are added: one, or video and audio of the same clip. A linear probe has one.
    pub modalities: Vec<Modality>,
    /// The size of the examples; `text_tokens` is the length of the sentences, absent in a linear probe.
    pub view: RawView,
    pub working_side: Option<usize>,
    /// Sentences with `{}` where the class name goes; their embeddings are averaged. Absent without a `prompt_set`: the bare name.
    pub prompts: Option<Vec<String>>,
    /// Sentences that come with the trainer, instead of `prompts`.
    pub prompt_set: Option<PromptSet>,
    /// How many of these sentences, from the first on, make a class; absent: all. The release's default is one (IMP.md, trap T11).
    pub ensemble: Option<usize>,
    /// Windows of each clip or sound, evenly spaced over it, whose vectors are averaged; the release takes 4. One stands in the middle.
    #[serde(default = "one_window")]
    pub windows: usize,
    #[serde(default)]
    pub candidates: Candidates,
    #[serde(default = "sixty_four")]
    pub batch: usize,
}

fn train_split() -> String {
    "train".to_owned()
}

fn test_split() -> String {
    "test".to_owned()
}

const MOST_WINDOWS: usize = 1000;

fn one_window() -> usize {
    1
}

fn sixty_four() -> usize {
    64
}

/// One evaluation, checked. `mixture` has exactly one task with one view, the one to embed with.
#[derive(Debug, Clone)]
pub struct Eval {
    pub name: String,
    pub kind: EvalKind,
    /// Of a linear probe's classifier.
    pub train_split: String,
    /// Without text.
    pub media: Vec<Modality>,
    /// At least one.
    pub prompts: Vec<String>,
    /// At least one.
    pub n_windows: usize,
    /// Examples in the encoder at a time.
    pub batch: usize,
    pub candidates: Candidates,
    mixture: Mixture,
}

impl Eval {
    /// Corpus, split and view, in the form of a task.
    pub fn task(&self) -> &Task {
        &self.mixture.tasks()[0]
    }

    /// Patching and spectrogram of the run, with the evaluation's one task.
    pub fn mixture(&self) -> &Mixture {
        &self.mixture
    }
}

/// The `[train]` table, checked. Holds: `steps`, `threads`, `checkpoint_every`, `keep_checkpoints` at least 1.
#[derive(Debug, Clone)]
pub struct TrainConfig {
    pub steps: u64,
    pub threads: usize,
    pub device: String,
    /// `bf16` on CUDA only.
    pub precision: Precision,
    /// At least 1.
    pub micro_batch: Option<usize>,
    /// On the CPU only.
    pub recompute: bool,
    /// At least 1; divides `steps` and `checkpoint_every`.
    pub accumulate: u64,
    pub checkpoint_every: u64,
    pub keep_checkpoints: usize,
    pub model: RawModel,
    pub schedule: Schedule,
    pub optimizer: AdamWSettings,
    pub loader: LoaderSettings,
    pub mixture: Mixture,
    pub evals: Vec<Eval>,
    /// The table as it was read, for the checkpoint.
    pub raw: serde_json::Value,
}

/// A `[train]` table that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("`train.{key}` is {found}, must be {rule}")]
    Value { key: String, found: String, rule: &'static str },
    #[error("in `[train.mixture]`: {0}")]
    Mixture(TaskError),
    #[error("in `[[train.eval]]` `{name}`: {source}")]
    Eval { name: String, source: TaskError },
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl TryFrom<RawTrain> for TrainConfig {
    type Error = ConfigError;

    fn try_from(raw: RawTrain) -> Result<Self, ConfigError> {
        let at_least_one = |key: &str, value: u64| {
            let wrong = || ConfigError::Value { key: key.to_owned(), found: value.to_string(), rule: "at least 1" };
            if value == 0 { Err(wrong()) } else { Ok(()) }
        };
        at_least_one("steps", raw.steps)?;
        at_least_one("threads", raw.threads as u64)?;
        at_least_one("micro_batch", raw.micro_batch.unwrap_or(1) as u64)?;
        at_least_one("checkpoint_every", raw.checkpoint_every)?;
        at_least_one("keep_checkpoints", raw.keep_checkpoints as u64)?;
        at_least_one("accumulate", raw.accumulate)?;
        for (key, value) in [("steps", raw.steps), ("checkpoint_every", raw.checkpoint_every)] {
            if !value.is_multiple_of(raw.accumulate) {
                let rule = "a multiple of `train.accumulate`: a checkpoint holds no gradients";
                return Err(ConfigError::Value { key: key.to_owned(), found: value.to_string(), rule });
            }
        }
        if let (Some(found), 2..) = (raw.micro_batch, raw.accumulate) {
            let rule = "absent where `train.accumulate` is above 1";
            return Err(ConfigError::Value { key: "micro_batch".to_owned(), found: found.to_string(), rule });
        }
        if raw.optimizer.moments == Moments::PerTask && raw.accumulate > 1 {
            let rule = "shared where `train.accumulate` is above 1: an update then has gradients of several tasks";
            return Err(ConfigError::Value { key: "optimizer.moments".to_owned(), found: "per-task".to_owned(), rule });
        }
        raw.optimizer.check()?;
        if raw.precision == Precision::Bf16 && raw.device == "cpu" {
            let rule = "f32 where `train.device` is `cpu`; bf16 products need tensor cores";
            return Err(ConfigError::Value { key: "precision".to_owned(), found: "bf16".to_owned(), rule });
        }
        if raw.recompute && raw.device != "cpu" {
            let rule = "false where `train.device` is not `cpu`: on CUDA everything is kept; a smaller `micro_batch` saves memory there";
            return Err(ConfigError::Value { key: "recompute".to_owned(), found: "true".to_owned(), rule });
        }
        let saved = serde_json::to_value(&raw).unwrap_or_default();
        for (i, eval) in raw.eval.iter().enumerate() {
            if raw.eval[..i].iter().any(|before| before.name == eval.name) {
                let (key, found) = ("eval.name".to_owned(), eval.name.clone());
                return Err(ConfigError::Value { key, found, rule: "another name for each evaluation" });
            }
        }
        let evals = raw.eval.iter().map(|eval| check_eval(eval, &raw.mixture)).collect::<Result<_, _>>()?;
        Ok(Self {
            steps: raw.steps,
            threads: raw.threads,
            device: raw.device,
            precision: raw.precision,
            micro_batch: raw.micro_batch,
            recompute: raw.recompute,
            accumulate: raw.accumulate,
            checkpoint_every: raw.checkpoint_every,
            keep_checkpoints: raw.keep_checkpoints,
            model: raw.model,
            schedule: raw.schedule.try_into()?,
            optimizer: raw.optimizer,
            loader: raw.loader,
            mixture: raw.mixture.try_into().map_err(ConfigError::Mixture)?,
            evals,
            raw: saved,
        })
    }
}

/// An evaluation is checked as the task that would train what it measures.
fn check_eval(raw: &RawEval, mixture: &RawMixture) -> Result<Eval, ConfigError> {
    let wrong = |key: &str, found: String, rule| {
        Err(ConfigError::Value { key: format!("eval[{}].{key}", raw.name), found, rule })
    };
    if raw.modalities.is_empty() || raw.modalities.contains(&Modality::Text) {
        let found = raw.modalities.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
        return wrong("modalities", format!("[{found}]"), "one or more of image, video, audio; text is the other side");
    }
    let zero_shot = raw.kind == EvalKind::ZeroShot;
    for (key, found) in [
        ("prompts", raw.prompts.is_some()),
        ("prompt_set", raw.prompt_set.is_some()),
        ("ensemble", raw.ensemble.is_some()),
    ] {
        if found && !zero_shot {
            return wrong(key, "set".to_owned(), "absent unless `kind = \"zero-shot\"`");
        }
    }
    let mut prompts = match (&raw.prompts, raw.prompt_set) {
        (Some(_), Some(set)) => {
            return wrong("prompt_set", format!("{set:?}").to_lowercase(), "absent where there are `prompts`");
        }
        (Some(prompts), None) => prompts.clone(),
        (None, Some(set)) => set.sentences(),
        (None, None) => vec!["{}".to_owned()],
    };
    if prompts.is_empty() || prompts.iter().any(|p| !p.contains("{}")) {
        return wrong("prompts", format!("{prompts:?}"), "sentences with `{}` where the class name goes");
    }
    if let Some(n) = raw.ensemble {
        if !(1..=prompts.len()).contains(&n) {
            return wrong("ensemble", n.to_string(), "at least 1 and at most the number of prompts");
        }
        prompts.truncate(n);
    }
    if raw.batch == 0 {
        return wrong("batch", "0".to_owned(), "at least 1");
    }
    if !(1..=MOST_WINDOWS).contains(&raw.windows) {
        return wrong("windows", raw.windows.to_string(), "at least 1 and at most 1000");
    }
    if raw.windows > 1 && raw.modalities.contains(&Modality::Image) {
        return wrong("windows", raw.windows.to_string(), "absent for pictures, which have one");
    }
    if raw.view.drop_rate != 0.0 {
        return wrong("view.drop_rate", raw.view.drop_rate.to_string(), "0: tokens are dropped in training only");
    }
    if raw.view.captions != 1 {
        return wrong("view.captions", raw.view.captions.to_string(), "absent: every caption of a record is looked at");
    }
    let probe = raw.kind == EvalKind::LinearProbe;
    if let (Some(found), false) = (&raw.train_split, probe) {
        return wrong("train_split", found.clone(), "absent unless `kind = \"linear-probe\"`");
    }
    let train_split = raw.train_split.clone().unwrap_or_else(train_split);
    if probe && train_split == raw.split {
        return wrong("train_split", train_split, "another than `split`, or the classifier knows its examples");
    }
    let mut modalities = raw.modalities.clone();
    modalities.extend((!probe).then_some(Modality::Text));
    let task = RawTask {
        name: raw.name.clone(),
        corpora: vec![raw.corpus.clone()],
        split: raw.split.clone(),
        modalities,
        objective: if probe { Objective::Softmax } else { Objective::Nce }.into(),
        label_smoothing: 0.0,
        weight: None,
        interval: None,
        // Nothing is contrasted here: one example is as good as two.
        batch: Some(raw.batch.max(2)),
        token_budget: None,
        views: vec![raw.view],
        augment: Default::default(),
        working_side: raw.working_side,
        decode: Decode::Full,
        aspect_buckets: false,
    };
    // Without what the run changes while it goes on: an evaluation has no steps.
    let mixture = RawMixture {
        alternation: Default::default(),
        tasks: vec![task],
        phases: Vec::new(),
        skip: Vec::new(),
        ..mixture.clone()
    };
    let mixture = mixture.try_into().map_err(|source| ConfigError::Eval { name: raw.name.clone(), source })?;
    Ok(Eval {
        name: raw.name.clone(),
        kind: raw.kind,
        train_split,
        media: raw.modalities.clone(),
        prompts,
        n_windows: raw.windows,
        batch: raw.batch,
        candidates: raw.candidates,
        mixture,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The tiny run's table with a line put in front of `keep_checkpoints`.
    fn with(line: &str) -> Result<TrainConfig, ConfigError> {
        let text = testkit::tiny::run_file(Path::new("corpora"), "store", "run", 60, 2);
        let text = text.replace("keep_checkpoints", &format!("{line}\nkeep_checkpoints"));
        let file: toml::Table = toml::from_str(&text).unwrap();
        RawTrain::deserialize(file["train"].clone()).unwrap().try_into()
    }

    #[test]
    fn gradients_accumulate_over_whole_groups_of_steps_only() {
        assert_eq!(with("accumulate = 2").unwrap().accumulate, 2);
        assert_eq!(with("").unwrap().accumulate, 1);
        let cases = [
            ("accumulate = 0", "`train.accumulate` is 0"),
            ("accumulate = 7", "`train.steps` is 60, must be a multiple of `train.accumulate`"),
            ("accumulate = 4", "`train.checkpoint_every` is 2, must be a multiple of `train.accumulate`"),
            (
                "accumulate = 2\noptimizer.moments = \"per-task\"",
                "`train.optimizer.moments` is per-task, must be shared",
            ),
            ("accumulate = 2\nmicro_batch = 3", "`train.micro_batch` is 3, must be absent"),
        ];
        for (line, wanted) in cases {
            let message = with(line).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn evaluations_that_cannot_be_are_refused_with_key_value_and_rule() {
        let of = |from: &str, to: &str| -> Result<TrainConfig, ConfigError> {
            let text = testkit::tiny::run_file(Path::new("corpora"), "store", "run", 60, 2);
            assert!(text.contains(from), "{from}");
            let file: toml::Table = toml::from_str(&text.replace(from, to)).unwrap();
            RawTrain::deserialize(file["train"].clone()).unwrap().try_into()
        };
        let evals = of("ensemble = 3", "").unwrap().evals;
        assert_eq!((evals[0].prompts.len(), evals[1].prompts.as_slice()), (16, &["{}".to_owned()][..]));
        assert_eq!(
            of("keep_checkpoints = 2", "keep_checkpoints = 2").unwrap().evals[0].prompts,
            PromptSet::Image.sentences()[..3]
        );
        assert_eq!(evals.iter().map(|eval| eval.n_windows).collect::<Vec<_>>(), [1, 2, 1, 2, 1]);
        assert_eq!(of("windows = 2", "batch = 1").unwrap().evals[1].batch, 1);
        let cases = [
            ("ensemble = 3", "ensemble = 17", "`train.eval[images].ensemble` is 17, must be at least 1 and at most"),
            ("ensemble = 3", "prompts = [\"{}\"]", "prompt_set` is image, must be absent where there are `prompts`"),
            ("ensemble = 3", "windows = 4", "`train.eval[images].windows` is 4, must be absent for pictures"),
            ("windows = 2", "windows = 0", "`train.eval[clips].windows` is 0, must be at least 1"),
            ("windows = 2", "windows = 100000000000", "windows` is 100000000000, must be at least 1 and at most 1000"),
            ("name = \"clips\"", "name = \"images\"", "`train.eval.name` is images, must be another name"),
            ("windows = 2", "batch = 0", "`train.eval[clips].batch` is 0, must be at least 1"),
            ("kind = \"retrieval\"", "kind = \"retrieval\"\nensemble = 1", "ensemble` is set, must be absent unless"),
            (
                "kind = \"linear-probe\"",
                "kind = \"linear-probe\"\ntrain_split = \"test\"",
                "train_split` is test, must be",
            ),
            (
                "kind = \"retrieval\"",
                "kind = \"retrieval\"\ntrain_split = \"test\"",
                "must be absent unless `kind = \"linear",
            ),
            ("windows = 2", "prompts = [\"a thing\"]", "prompts` is [\"a thing\"], must be sentences with `{}`"),
        ];
        for (from, to, wanted) in cases {
            let message = of(from, to).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn bf16_is_for_devices_with_tensor_cores() {
        let message = with("precision = \"bf16\"").unwrap_err().to_string();
        assert!(message.contains("`train.precision` is bf16, must be f32"), "{message}");
        let message = with("recompute = true\ndevice = \"cuda:0\"").unwrap_err().to_string();
        assert!(message.contains("`train.recompute` is true, must be false where"), "{message}");
        let on_cuda = with("precision = \"bf16\"\ndevice = \"cuda:0\"").unwrap();
        assert_eq!(on_cuda.precision, Precision::Bf16);
    }
}
