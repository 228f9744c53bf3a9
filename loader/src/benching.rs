//! The door of the stage benches (`benches/stages.rs`): one call for each thing that a stage does to an example.
//!
//! In: encoded media of the bench's own making. Out: what the pipeline would have made of them. Never: another way than that of a
//! run; a part of a build without the feature `benching`.

use std::collections::BTreeMap;
use std::sync::Arc;

use imp_schemas::media::{MediaLimits, Needed, Picture, Planes, Waveform, read_image, read_planes};
use imp_schemas::spectrogram::SpectrogramSpec;
use imp_schemas::task::{Mixture, Task};

use crate::augment::CropBox;
use crate::buckets::TaskRows;
use crate::decode::audio::{Placement, Sounds, place};
use crate::decode::image::Pixels;
use crate::decode::log_mel::MelTables;
use crate::decode::planes::PlaneResizer;
use crate::plan::{Plan, PlanState};
use crate::shuffle::{ShuffleQuality, quality};

/// Tools of one decoding thread.
pub struct Bench {
    pixels: Pixels,
    planes: PlaneResizer,
    sounds: Sounds,
}

impl Default for Bench {
    fn default() -> Self {
        let spec = SpectrogramSpec::default();
        let tables = Arc::new(MelTables::new(&spec, f64::from(spec.sample_rate)));
        Self { pixels: Pixels::default(), planes: PlaneResizer::default(), sounds: Sounds::new(&tables) }
    }
}

#[expect(clippy::expect_used, reason = "a bench whose input is not what it made itself measures nothing")]
impl Bench {
    /// Every pixel.
    pub fn decode(jpeg: &[u8]) -> Picture {
        read_image(jpeg, &MediaLimits::default()).expect("a JPEG").1
    }

    /// Planes, at least `side` pixels on each side, into `planes`.
    pub fn decode_planes(jpeg: &[u8], side: usize, planes: &mut Planes) {
        let needed = |w, h| Some(Needed { at_least: (side, side), columns: 0..w, rows: 0..h });
        read_planes(jpeg, &MediaLimits::default(), planes, needed).expect("a JPEG").expect("planes");
    }

    /// The whole picture at `side` × `side`.
    pub fn resize(&mut self, picture: &Picture, side: usize, out: &mut [u8]) {
        let crop = CropBox { left: 0, top: 0, width: picture.width, height: picture.height };
        self.pixels.crop_resize(picture, crop, side, side, out).expect("a size");
    }

    /// The same of planes.
    pub fn resize_planes(&mut self, planes: &Planes, side: usize, out: &mut [u8]) {
        let crop = CropBox { left: 0, top: 0, width: planes.width, height: planes.height };
        self.planes.crop_resize(&planes.view(), crop, side, side, out).expect("a size");
    }

    /// At the spectrogram's rate.
    pub fn resample(&mut self, sampling_rate: u32, samples: &[f32]) -> Vec<f32> {
        self.sounds.resample(Waveform { sampling_rate, samples: samples.to_vec() }).expect("a rate")
    }

    /// `[frames, mels]`.
    pub fn log_mel(&mut self, samples: &[f32], frames: usize) -> Vec<f32> {
        self.sounds.log_mel(&place(samples, self.sounds.n_samples(frames), Placement::Cut(0), 1.0))
    }
}

/// A plan, step by step.
pub struct Steps {
    plan: Plan,
    state: PlanState,
}

impl Steps {
    /// Each task over one corpus of `n_rows` rows.
    pub fn new(mixture: Mixture, n_rows: u64) -> Self {
        let tasks = mixture.tasks().iter().map(|task| TaskRows::whole(vec![n_rows], task.views().len())).collect();
        let plan = Plan::new(mixture, tasks);
        let state = plan.start();
        Self { plan, state }
    }

    /// Rows of the next step's examples.
    pub fn advance(&mut self) -> Vec<u64> {
        self.plan.advance(&mut self.state).examples.iter().map(|example| example.row).collect()
    }

    /// How well the first task is shuffled.
    pub fn quality(&self, task: &Task, radius: Option<u64>) -> ShuffleQuality {
        quality(&self.plan, task, 0, radius)
    }

    /// Bytes of the cursor's JSON.
    pub fn cursor_bytes(&self) -> usize {
        serde_json::to_vec(&self.plan.cursor_of(&self.state, &BTreeMap::new())).map_or(0, |bytes| bytes.len())
    }
}
