//! The rules that a mixture must hold, each broken one named with task, key, value and rule.
//!
//! In: [`RawMixture`]. Out: [`Mixture`]. Never: looks at a corpus; what depends on one is checked when it is opened.

use super::phases::{check_phases, check_skip};
use super::{Alternation, Decode, Mixture, RawMixture, RawTask, RawView, Task, View};
use crate::modality::Modality;
use crate::resolution::{Patching, Resolution, ShapeError};
use crate::spectrogram::{SpectrogramError, SpectrogramSpec};

/// A mixture that cannot be: key, value found, rule.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TaskError {
    #[error("`train.mixture.tasks` is empty, must list at least one task")]
    NoTasks,
    #[error("task `{task}`: `{key}` is {found}, must be {rule}")]
    Value { task: String, key: String, found: String, rule: String },
    #[error("task `{task}`, view {view_idx}: {source}")]
    Shape { task: String, view_idx: usize, source: ShapeError },
    #[error("`train.mixture.{place}` is {found}, must be {rule}")]
    Change { place: String, found: String, rule: String },
    #[error("{0}")]
    Spectrogram(#[from] SpectrogramError),
    #[error("two tasks are named `{0}`; metrics and the cursor go by name")]
    DuplicateName(String),
    #[error("`train.mixture.shuffle_radius` is 0, must be at least 1 row; leave it out to shuffle the whole split")]
    ZeroRadius,
    #[error("`train.mixture.patching` is {0:?}, every side must be at least 1")]
    ZeroPatch(Patching),
}

impl TryFrom<RawMixture> for Mixture {
    type Error = TaskError;

    fn try_from(raw: RawMixture) -> Result<Self, TaskError> {
        raw.spectrogram.check()?;
        if raw.tasks.is_empty() {
            return Err(TaskError::NoTasks);
        }
        if raw.shuffle_radius == Some(0) {
            return Err(TaskError::ZeroRadius);
        }
        let Patching { tube, spectrogram, waveform } = raw.patching;
        if tube.iter().chain(&spectrogram).chain([&waveform]).any(|&side| side == 0) {
            return Err(TaskError::ZeroPatch(raw.patching));
        }
        let mut tasks: Vec<Task> = Vec::new();
        for task in raw.tasks {
            let task = check_task(task, raw.alternation, &raw.patching, &raw.spectrogram)?;
            if tasks.iter().any(|t| t.name == task.name) {
                return Err(TaskError::DuplicateName(task.name));
            }
            tasks.push(task);
        }
        let phases = check_phases(&raw.phases, &tasks, raw.alternation)?;
        check_skip(&raw.skip)?;
        Ok(Self {
            seed: raw.seed,
            alternation: raw.alternation,
            shuffle_radius: raw.shuffle_radius,
            patching: raw.patching,
            spectrogram: raw.spectrogram,
            tasks,
            phases,
            skip: raw.skip,
        })
    }
}

/// Names the task and key of whatever breaks a rule.
struct Rules<'a>(&'a str);

impl Rules<'_> {
    fn hold(&self, holds: bool, key: &str, found: impl std::fmt::Display, rule: &str) -> Result<(), TaskError> {
        if holds {
            return Ok(());
        }
        let (task, key) = (self.0.to_owned(), key.to_owned());
        Err(TaskError::Value { task, key, found: found.to_string(), rule: rule.to_owned() })
    }
}

fn check_task(
    raw: RawTask,
    alternation: Alternation,
    patching: &Patching,
    spectrogram: &SpectrogramSpec,
) -> Result<Task, TaskError> {
    let rules = Rules(&raw.name);
    rules.hold(!raw.name.is_empty(), "name", "empty", "a name")?;
    rules.hold(!raw.corpora.is_empty(), "corpora", "empty", "at least one corpus")?;
    rules.hold(!raw.views.is_empty(), "views", "empty", "at least one view")?;
    let listed = || raw.modalities.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
    let n_of = |wanted: &[Modality]| raw.modalities.iter().filter(|m| wanted.contains(m)).count();
    let n_media = n_of(&[Modality::Image, Modality::Video]) + n_of(&[Modality::Audio]);
    rules.hold(
        n_of(&[Modality::Image, Modality::Video]) <= 1 && n_of(&[Modality::Audio]) <= 1 && n_of(&[Modality::Text]) <= 1,
        "modalities",
        listed(),
        "at most one of image and video, one audio, one text",
    )?;
    let objectives = &raw.objective;
    let n_over_classes = objectives.all().iter().filter(|o| o.is_over_classes()).count();
    rules.hold(
        !objectives.all().is_empty() && n_over_classes <= 1 && objectives.all().len() - n_over_classes <= 1,
        "objective",
        format!("[{}]", objectives.listed()),
        "`nce`, one of `softmax` and `sigmoid`, or `nce` and one of these",
    )?;
    if objectives.has_nce() {
        rules.hold(raw.modalities.len() >= 2, "modalities", listed(), "at least two under `nce`, which pairs them")?;
    }
    if let Some(over_classes) = objectives.over_classes() {
        let name = over_classes.name();
        let one_medium = n_media == 1 && (objectives.has_nce() || raw.modalities.len() == 1);
        let beside = if objectives.has_nce() { " beside text" } else { "" };
        let rule = format!("one of image, video, audio{beside} under `{name}`");
        rules.hold(one_medium, "modalities", listed(), &rule)?;
        let rule = format!("one corpus under `{name}`: classes are a corpus's own");
        rules.hold(raw.corpora.len() == 1, "corpora", raw.corpora.join(", "), &rule)?;
    }
    let smoothing = raw.label_smoothing;
    rules.hold((0.0..1.0).contains(&smoothing), "label_smoothing", smoothing, "at least 0 and below 1")?;
    rules.hold(
        smoothing == 0.0 || n_over_classes > 0,
        "label_smoothing",
        smoothing,
        "absent under `nce`, which reads no labels",
    )?;
    let weight = raw.weight.unwrap_or(1.0);
    rules.hold(weight.is_finite() && weight > 0.0, "weight", weight, "a number above 0")?;
    let interval = raw.interval.unwrap_or(1);
    rules.hold(interval > 0, "interval", interval, "at least 1")?;
    match alternation {
        Alternation::Intervals => {
            rules.hold(
                raw.weight.is_none(),
                "weight",
                weight,
                "absent when `alternation = \"intervals\"`; use `interval`",
            )?;
        }
        Alternation::Weights | Alternation::Random => {
            rules.hold(
                raw.interval.is_none(),
                "interval",
                interval,
                "absent unless `alternation = \"intervals\"`; use `weight`",
            )?;
        }
    }
    let a = &raw.augment;
    let rising = |[low, high]: [f64; 2]| low > 0.0 && low <= high && high.is_finite();
    rules.hold(
        rising(a.crop_area) && a.crop_area[1] <= 1.0,
        "augment.crop_area",
        format!("{:?}", a.crop_area),
        "rising, above 0, at most 1",
    )?;
    rules.hold(rising(a.crop_aspect), "augment.crop_aspect", format!("{:?}", a.crop_aspect), "rising and above 0")?;
    rules.hold((0.0..=1.0).contains(&a.jitter), "augment.jitter", a.jitter, "a probability")?;
    rules.hold((0.0..=60.0).contains(&a.gain_db), "augment.gain_db", a.gain_db, "between 0 and 60 dB")?;
    rules.hold(raw.working_side != Some(0), "working_side", 0, "at least 1 pixel")?;
    let mut task = Task {
        name: raw.name.clone(),
        corpora: raw.corpora.clone(),
        split: raw.split.clone(),
        modalities: raw.modalities.clone(),
        objective: raw.objective.clone(),
        label_smoothing: raw.label_smoothing,
        weight,
        interval,
        views: Vec::new(),
        augment: raw.augment,
        working_side: raw.working_side,
        decode: raw.decode,
        aspect_buckets: raw.aspect_buckets,
    };
    let visual = n_of(&[Modality::Image, Modality::Video]) > 0;
    rules.hold(
        raw.decode == Decode::Full || visual,
        "decode",
        "scaled",
        "absent, because the task has neither image nor video",
    )?;
    for (view_idx, view) in raw.views.iter().enumerate() {
        let mut view = check_view(&raw, view_idx, view, patching, spectrogram)?;
        let per_example = task.n_tokens_per_example(&view, patching);
        view.n = match (raw.batch, raw.token_budget) {
            (Some(batch), None) => batch,
            (None, Some(budget)) => budget / per_example.max(1),
            (batch, _) => {
                let found = if batch.is_some() { "both" } else { "neither" };
                rules.hold(false, "batch, token_budget", found, "exactly one of the two")?;
                0
            }
        };
        let least = if raw.objective.has_nce() { 2 } else { 1 };
        let found = format!("{} examples at view {view_idx} of {per_example} tokens each", view.n);
        rules.hold(view.n >= least, "batch, token_budget", found, "at least 2 examples under `nce`, 1 otherwise")?;
        task.views.push(view);
    }
    let n_waveforms = raw.views.iter().filter(|view| view.waveform_samples.is_some()).count();
    let n_others = raw.views.len() - n_waveforms;
    rules.hold(
        n_waveforms == 0 || n_others == 0,
        "views",
        format!("{n_others} with `spectrogram_frames` and {n_waveforms} with `waveform_samples`"),
        "all of one kind: they are two streams of the model; give each a task",
    )?;
    let n_shapes = task.view_buckets().len();
    rules.hold(
        !raw.aspect_buckets || (visual && n_shapes > 1),
        "aspect_buckets",
        format!("true with {n_shapes} shape"),
        "false, or the task's views be pictures or clips of at least two shapes",
    )?;
    Ok(task)
}

fn check_view(
    task: &RawTask,
    view_idx: usize,
    raw: &RawView,
    patching: &Patching,
    spectrogram: &SpectrogramSpec,
) -> Result<View, TaskError> {
    let rules = Rules(&task.name);
    let has = |modality| task.modalities.contains(&modality);
    let key = |name: &str| format!("views[{view_idx}].{name}");
    // A key for a stream that the task does not have is a mistake, not a default.
    let wanted = |name: &str, value: Option<usize>, want: bool, why: &str| {
        let found = value.map_or("absent".to_owned(), |v| v.to_string());
        let rule = if want {
            format!("set, because the task has {why}")
        } else {
            format!("absent, because the task has no {why}")
        };
        rules.hold(value.is_some() == want, &key(name), found, &rule)
    };
    let visual = has(Modality::Image) || has(Modality::Video);
    wanted("frames", raw.frames, has(Modality::Video), "video")?;
    wanted("height", raw.height, visual, "image or video")?;
    wanted("width", raw.width, visual, "image or video")?;
    let (frames, samples) = (raw.spectrogram_frames, raw.waveform_samples);
    if has(Modality::Audio) {
        let found = if frames.is_some() { "both" } else { "neither" };
        let rule = "exactly one of the two, because the task has audio";
        let key = key("spectrogram_frames, waveform_samples");
        rules.hold(frames.is_some() != samples.is_some(), &key, found, rule)?;
    } else {
        wanted("spectrogram_frames", frames, false, "audio")?;
        wanted("waveform_samples", samples, false, "audio")?;
    }
    wanted("text_tokens", raw.text_tokens, has(Modality::Text), "text")?;
    rules.hold((0.0..1.0).contains(&raw.drop_rate), &key("drop_rate"), raw.drop_rate, "at least 0 and below 1")?;
    rules.hold(raw.weight.is_finite() && raw.weight > 0.0, &key("weight"), raw.weight, "a number above 0")?;
    rules.hold(raw.stride > 0, &key("stride"), raw.stride, "at least 1")?;
    // More than any medium has, and little enough that sizes of batches are numbers.
    for (name, size, most) in [
        ("frames", raw.frames, 1 << 16),
        ("height", raw.height, 1 << 16),
        ("width", raw.width, 1 << 16),
        ("spectrogram_frames", frames, 1 << 20),
        ("waveform_samples", samples, 1 << 28),
        ("text_tokens", raw.text_tokens, 1 << 16),
    ] {
        let found = size.unwrap_or(0);
        rules.hold(found <= most, &key(name), found, &format!("at most {most}"))?;
    }
    let bags = has(Modality::Text) && task.objective.has_nce();
    let rule = if bags { "at least 1" } else { "absent, because the task does not pair media with text" };
    rules.hold(raw.captions == 1 || (bags && raw.captions > 0), &key("captions"), raw.captions, rule)?;
    let vision = match (raw.frames, raw.height, raw.width) {
        (Some(frames), Some(height), Some(width)) => Some(Resolution::Video { frames, height, width }),
        (None, Some(height), Some(width)) => Some(Resolution::Image { height, width }),
        _ => None,
    };
    let audio = frames
        .map(|frames| Resolution::Audio { frames, mels: spectrogram.n_mels })
        .or(samples.map(|samples| Resolution::Waveform { samples }));
    let text = raw.text_tokens.map(|tokens| Resolution::Text { tokens });
    for resolution in [vision, audio, text].into_iter().flatten() {
        resolution.grid(patching).map_err(|source| TaskError::Shape { task: task.name.clone(), view_idx, source })?;
    }
    let (weight, stride, captions, drop_rate) = (raw.weight, raw.stride, raw.captions, raw.drop_rate);
    Ok(View { weight, vision, stride, audio, text, captions, drop_rate, n: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = r#"
        seed = 1
        patching = { tube = [4, 8, 8], spectrogram = [16, 16] }
        spectrogram = { n_mels = 64 }
        [[tasks]]
        name = "captions"
        corpora = ["photos"]
        modalities = ["image", "text"]
        objective = "nce"
        token_budget = 800
        views = [{ height = 64, width = 64, text_tokens = 16 }, { height = 64, width = 64, text_tokens = 16, drop_rate = 0.5 }]
    "#;

    fn check(config: &str) -> Result<Mixture, TaskError> {
        toml::from_str::<RawMixture>(config).unwrap().try_into()
    }

    #[test]
    fn the_batch_size_follows_from_the_token_budget() {
        let mixture = check(TASK).unwrap();
        let sizes: Vec<usize> = mixture.tasks()[0].views().iter().map(View::n).collect();
        assert_eq!(sizes, [800 / (64 + 16), 800 / (32 + 16)]);
    }

    #[test]
    fn changes_count_from_their_step_on() {
        let phase = "[[phases]]\nfrom_step = 100\n[phases.tasks.captions]\nview_weights = [0.0, 1.0]\n";
        let plain = check(TASK).unwrap();
        let changed = check(&format!("skip = [[50, 60]]\n{TASK}{phase}")).unwrap();
        assert_eq!(changed.phases()[0].shares[0].views, [0.0, 1.0]);
        assert_eq!([49, 50, 51].map(|step| changed.n_left_out_at(step)), [0, 10, 0]);
        assert_eq!(changed.digest_before(50), plain.digest_before(1000), "neither has happened yet");
        assert_ne!(changed.digest_before(51), plain.digest_before(51));
        assert_eq!(changed.digest_before(51), changed.digest_before(100));
        assert_ne!(changed.digest_before(101), changed.digest_before(100));
        // The digest of a mixture without changes is that of before there were any.
        assert!(!serde_json::to_string(&plain).unwrap().contains("phases"));

        let cases = [
            (phase.replace("100", "0"), "phases[0].from_step` is 0, must be above 0"),
            (phase.replace("captions", "caption"), "must be among the tasks: `captions`"),
            (phase.replace("[0.0, 1.0]", "[1.0]"), "must be 2 numbers of at least 0"),
            (phase.replace("[0.0, 1.0]", "[0.0, 0.0]"), "a view keeps a share"),
            (phase.replace("view_weights = [0.0, 1.0]", "weight = 0.0"), "every task paused"),
            (phase.replace("view_weights = [0.0, 1.0]", "interval = 2"), "absent unless `alternation = \"intervals\"`"),
        ];
        for (phase, want) in cases {
            let message = check(&format!("{TASK}{phase}")).unwrap_err().to_string();
            assert!(message.contains(want), "{phase}: {message}");
        }
        let message = check(&format!("skip = [[60, 60]]\n{TASK}")).unwrap_err().to_string();
        assert!(message.contains("skip[0]` is [60, 60]"), "{message}");
    }

    #[test]
    fn an_objective_is_a_word_or_a_list_and_stays_one() {
        let one = check(TASK).unwrap();
        assert!(serde_json::to_string(&one).unwrap().contains(r#""objective":"nce","weight""#), "as of before");
        let both = check(&TASK.replace("\"nce\"", "[\"nce\", \"softmax\"]\nlabel_smoothing = 0.1")).unwrap();
        let task = &both.tasks()[0];
        assert!(task.objectives().has_nce() && task.label_smoothing() == 0.1);
        assert_eq!(task.objectives().over_classes(), Some(super::super::Objective::Softmax));
        assert!(serde_json::to_string(&both).unwrap().contains(r#"["nce","softmax"]"#));
        let message = toml::from_str::<RawMixture>(&TASK.replace("\"nce\"", "\"nse\"")).unwrap_err().to_string();
        assert!(message.contains("unknown variant `nse`"), "{message}");
    }

    #[test]
    fn views_of_one_shape_are_one_bucket() {
        let views = "[{ height = 64, width = 64, text_tokens = 16 }, { height = 32, width = 64, text_tokens = 16 }, \
            { height = 16, width = 16, text_tokens = 16 }]";
        let at = TASK.find("[{ height").unwrap();
        let config = format!("{}{views}\naspect_buckets = true\n", &TASK[..at]);
        assert_eq!(check(&config).unwrap().tasks()[0].view_buckets(), [vec![0, 2], vec![1]]);
        let message = check(&format!("{TASK}\naspect_buckets = true\n")).unwrap_err().to_string();
        assert!(message.contains("at least two shapes"), "{message}");
    }

    const SOUNDS: &str = r#"
        seed = 1
        [[tasks]]
        name = "sounds"
        corpora = ["sounds"]
        modalities = ["audio", "text"]
        objective = "nce"
        token_budget = 1100
        views = [{ waveform_samples = 131072, text_tokens = 16 }]
    "#;

    #[test]
    fn a_waveform_is_cut_into_patches_of_its_own() {
        let mixture = check(SOUNDS).unwrap();
        let view = &mixture.tasks()[0].views()[0];
        assert_eq!(view.audio(), Some(Resolution::Waveform { samples: 131_072 }));
        assert_eq!(view.resolution(Modality::Audio), view.audio());
        assert_eq!((view.resolution(Modality::Image), view.n()), (None, 1100 / (512 + 16)));
        // The digest of a mixture with the release's patch is that of before there was one.
        assert!(!serde_json::to_string(mixture.patching()).unwrap().contains("waveform"));
        let smaller = check(&format!("patching = {{ waveform = 128 }}\n{SOUNDS}").replace("1100", "3000")).unwrap();
        assert_eq!(smaller.tasks()[0].views()[0].n(), 3000 / (1024 + 16));
        assert_ne!(smaller.digest_before(1), check(&SOUNDS.replace("1100", "3000")).unwrap().digest_before(1));

        let two = "}, { spectrogram_frames = 128, text_tokens = 16 }]";
        let cases = [
            ("131072", "131000", "waveform_samples is 131000, must be a positive multiple of 256"),
            ("waveform_samples = 131072, ", "", "`views[0].spectrogram_frames, waveform_samples` is neither, must be"),
            ("{ wave", "{ spectrogram_frames = 128, wave", "is both, must be exactly one of the two"),
            ("}]", two, "`views` is 1 with `spectrogram_frames` and 1 with `waveform_samples`"),
            ("seed = 1", "seed = 1\npatching = { waveform = 0 }", "every side must be at least 1"),
        ];
        for (from, to, want) in cases {
            let message = check(&SOUNDS.replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(want), "{to}: {message}");
        }
        let message = check(&TASK.replace("drop_rate = 0.5", "waveform_samples = 256")).unwrap_err().to_string();
        assert!(message.contains("`views[1].waveform_samples` is 256, must be absent, because the task has no audio"));
    }

    #[test]
    fn a_mixture_that_cannot_be_is_refused_with_key_value_and_rule() {
        let cases = [
            ("height = 64", "height = 60", "height is 60, must be a positive multiple of 8"),
            ("token_budget = 800", "batch = 1", "at least 2 examples under `nce`"),
            ("token_budget = 800", "", "exactly one of the two"),
            ("[\"image\", \"text\"]", "[\"image\"]", "at least two under `nce`"),
            ("token_budget = 800", "token_budget = 800\nweight = -1.0", "`weight` is -1, must be a number above 0"),
            ("drop_rate = 0.5", "drop_rate = 1.0", "below 1"),
            ("height = 64", "height = 34359738368", "`views[0].height` is 34359738368, must be at most 65536"),
            ("drop_rate = 0.5", "frames = 8", "must be absent, because the task has no video"),
            ("\"nce\"", "[\"softmax\", \"sigmoid\"]", "`objective` is [softmax, sigmoid], must be `nce`, one of"),
            ("\"nce\"", "[]", "`objective` is [], must be"),
            ("drop_rate = 0.5", "captions = 0", "`views[1].captions` is 0, must be at least 1"),
            (
                "\"nce\"",
                "\"sigmoid\"",
                "`modalities` is image, text, must be one of image, video, audio under `sigmoid`",
            ),
            ("\"nce\"", "\"nce\"\nlabel_smoothing = 0.1", "absent under `nce`"),
            ("\"nce\"", "[\"nce\", \"softmax\"]\nlabel_smoothing = 1.0", "`label_smoothing` is 1, must be at least 0"),
        ];
        for (from, to, want) in cases {
            let message = check(&TASK.replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(want), "{to}: {message}");
        }
    }
}
