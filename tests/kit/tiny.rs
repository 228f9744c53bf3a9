//! The smallest run that has every part: three corpora, four contrastive tasks at mixed resolutions, one softmax task,
//! a model of 40 thousand parameters, evaluations of all three media.

use std::path::Path;

/// The run file for the world that [`crate::world::write`] laid out below `root`. `store` and `run` are addresses as
/// configs have them.
pub fn run_file(root: &Path, store: &str, run: &str, steps: u64, checkpoint_every: u64) -> String {
    // TOML literal strings: a path may hold backslashes, never a quote that `tempfile` or a user's home would have.
    let root = root.display();
    format!(
        r#"
store = '{store}'
run = '{run}'

[ingest]
root = '{root}'
tokenizer = {{ train = {{ vocab_size = 320 }} }}

[[ingest.corpus]]
name = "world-image"
kind = "image-text"
path = "world-image/captions.csv"

[[ingest.corpus]]
name = "world-video"
kind = "video-text"
path = "world-video/*.tar"
split = {{ from_path = {{ train = "world-video-train-*", test = "world-video-test-*" }} }}

[[ingest.corpus]]
name = "world-audio"
kind = "audio-text"
path = "world-audio"
split = {{ from_path = {{ train = "train/*", test = "test/*" }} }}

[train]
steps = {steps}
checkpoint_every = {checkpoint_every}
keep_checkpoints = 2

[train.model]
depth = 2
width = 32
heads = 4
text_table = 16

[train.schedule]
peak_lr = 1e-3
warmup_steps = 2
decay_steps = 40

[train.loader]
decode_threads = 2
prefetch_batches = 2
max_buffered_mib = 64
decoded_cache_mib = 8

[train.mixture]
seed = 11
patching = {{ tube = [4, 8, 8], spectrogram = [16, 16] }}
spectrogram = {{ window = 512, hop = 256, n_mels = 32 }}

[[train.mixture.tasks]]
name = "image-text"
corpora = ["world-image"]
modalities = ["image", "text"]
objective = "nce"
weight = 2.0
token_budget = 256
augment = {{ crop_area = [0.8, 1.0], crop_aspect = [0.9, 1.1] }}
views = [
  {{ height = 32, width = 32, text_tokens = 8 }},
  {{ height = 48, width = 48, text_tokens = 8, drop_rate = 0.5 }},
]

[[train.mixture.tasks]]
name = "image-class"
corpora = ["world-image"]
modalities = ["image"]
objective = "softmax"
batch = 6
views = [{{ height = 32, width = 32 }}]

[[train.mixture.tasks]]
name = "video-text"
corpora = ["world-video"]
modalities = ["video", "text"]
objective = "nce"
batch = 4
views = [{{ frames = 8, height = 32, width = 32, text_tokens = 8, drop_rate = 0.5 }}]

[[train.mixture.tasks]]
name = "audio-text"
corpora = ["world-audio"]
modalities = ["audio", "text"]
objective = "nce"
batch = 6
views = [{{ spectrogram_frames = 32, text_tokens = 8 }}]

[[train.mixture.tasks]]
name = "waveform-text"
corpora = ["world-audio"]
modalities = ["audio", "text"]
objective = "nce"
batch = 4
views = [{{ waveform_samples = 4096, text_tokens = 8, drop_rate = 0.25 }}]

[[train.eval]]
name = "images"
corpus = "world-image"
kind = "zero-shot"
prompt_set = "image"
ensemble = 3
modalities = ["image"]
view = {{ height = 32, width = 32, text_tokens = 8 }}

[[train.eval]]
name = "clips"
corpus = "world-video"
kind = "zero-shot"
modalities = ["video"]
windows = 2
view = {{ frames = 8, height = 32, width = 32, text_tokens = 8 }}

[[train.eval]]
name = "sounds"
corpus = "world-audio"
kind = "retrieval"
modalities = ["audio"]
view = {{ spectrogram_frames = 32, text_tokens = 8 }}

[[train.eval]]
name = "sounds as waveforms"
corpus = "world-audio"
kind = "zero-shot"
modalities = ["audio"]
windows = 2
view = {{ waveform_samples = 4096, text_tokens = 8 }}

[[train.eval]]
name = "images by a probe"
corpus = "world-image"
kind = "linear-probe"
modalities = ["image"]
view = {{ height = 32, width = 32 }}
"#
    )
}
