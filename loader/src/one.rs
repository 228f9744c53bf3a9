//! One file that lies outside of any corpus → batches of one, as an evaluation would make them.
//!
//! In: the bytes of a picture, a clip or a sound, and what the evaluation reads. Out: a batch without text for each window. Never: a shard, a
//! thread.

use std::sync::Arc;

use arrow::array::BinaryArray;
use imp_schemas::batch::{AudioBatch, Batch, ExampleId, VisionBatch};
use imp_schemas::media::{MediaLimits, read_video};
use imp_schemas::modality::Modality;

use crate::cache::Cache;
use crate::decode::Workbench;
use crate::decode::log_mel::MelTables;
use crate::error::ContentFault;
use crate::eval::EvalSpec;
use crate::pool::Pool;
use crate::recipe::Window;
use crate::record::{Meta, Place, Record};

/// The windows of the file's `medium`, at the size of the evaluation's view; its corpus, split and batch size are not used.
///
/// # Errors
/// Why the file cannot make an example.
pub fn batches_of_file(bytes: &[u8], medium: Modality, spec: &EvalSpec<'_>) -> Result<Vec<Batch>, ContentFault> {
    if i32::try_from(bytes.len()).is_err() {
        return Err(ContentFault::Impossible { what: "a file of", found: format!("{} bytes", bytes.len()) });
    }
    let mut meta = Meta::default();
    if medium == Modality::Video {
        let video = read_video(bytes, &MediaLimits::default())?;
        (meta.num_frames, meta.fps) = (Some(video.num_frames), Some(f64::from(video.fps)));
        (meta.width, meta.height) = (Some(video.width), Some(video.height));
        meta.has_audio = Some(video.has_audio);
    }
    let place = Place { corpus: 0, row: 0, shard: Arc::from("file"), row_in_shard: 0 };
    let media = BinaryArray::from_vec(vec![bytes]);
    let record = Record::new(place, Arc::new(meta), Vec::new()).with_medium(&media, 0);
    let tables = Arc::new(MelTables::new(spec.spectrogram, f64::from(spec.spectrogram.sample_rate)));
    let mut workbench = Workbench::new(&tables, &Arc::new(Cache::new(0)), &Arc::new(Pool::new(1, 0)));
    let id = ExampleId { corpus_idx: 0, row: 0, epoch: 0 };
    let of = spec.n_windows.max(1);
    let window = |nth| {
        let recipe = spec.recipe("a file".to_owned(), vec![medium], Window { nth, of });
        let example = workbench.example(&recipe, spec.view, &id, &record)?;
        let vision = recipe.vision(spec.view).zip(example.pixels);
        let audio = recipe.audio(spec.view).zip(example.sound);
        Ok(Batch {
            step: 0,
            task_idx: nth,
            view_idx: 0,
            examples: vec![id],
            vision: vision.map(|(resolution, pixels)| VisionBatch { resolution, pixels, kept: None }),
            audio: audio.map(|(resolution, values)| AudioBatch { resolution, values, kept: None }),
            text: None,
            labels: None,
        })
    };
    (0..of).map(window).collect()
}
