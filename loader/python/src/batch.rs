//! A batch whose arrays are NumPy's, over the memory that the loader filled.
//!
//! In: a batch of the loader. Out: its arrays, each owner of its `Vec`. Never: a copy of an array of media or text.

use imp_schemas::batch::{Batch, ExampleId};
use imp_schemas::resolution::Resolution;
use numpy::ndarray::ArrayD;
use numpy::{Element, PyArrayDyn};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::error::WheelError;

/// One step's examples: one task at one view, without padding between examples. A stream that the task does not have is None.
///
/// The arrays are the loader's own memory and belong to whoever holds them: writing into one changes nothing else.
#[pyclass(name = "Batch", module = "imp_loader", frozen, get_all)]
pub struct PyBatch {
    /// The step that this batch is of, from 0.
    step: u64,
    /// Name of the task.
    task: Py<PyString>,
    /// Index into `Loader.tasks()`.
    task_idx: usize,
    /// Index into the task's views.
    view: usize,
    /// Number of examples.
    n: usize,
    /// `[n, 3]`, int64: index into the task's corpora, row of the split, epoch.
    examples: Py<PyArrayDyn<i64>>,
    /// `[n, frames, height, width, 3]`, uint8, sRGB; a picture has one frame.
    pixels: Option<Py<PyArrayDyn<u8>>>,
    /// DropToken: `[n, n_kept]`, uint32, positions of visual tokens in raster order (t, h, w), rising; None keeps all.
    vision_kept: Option<Py<PyArrayDyn<u32>>>,
    /// `[n, frames, mels]`, float32, natural logarithm.
    log_mel: Option<Py<PyArrayDyn<f32>>>,
    /// `[n, samples]`, float32, in [-1, 1] but for what a gain or a filter adds.
    waveform: Option<Py<PyArrayDyn<f32>>>,
    /// As `vision_kept`, positions of sound tokens in raster order (time, frequency), or in time.
    audio_kept: Option<Py<PyArrayDyn<u32>>>,
    /// `[n, n_tokens]`, or `[n, captions, n_tokens]` at a view with several, int32; 0 is padding.
    text: Option<Py<PyArrayDyn<i32>>>,
    /// `[n]`, uint32, index into the corpus's classes, the first one of several; None unless every example has one.
    labels: Option<Py<PyArrayDyn<u32>>>,
    /// All labels of each example, the first one first; None unless an example of the batch has several.
    label_sets: Option<Vec<Vec<u32>>>,
}

impl PyBatch {
    /// Takes the arrays over.
    ///
    /// # Errors
    /// An array that is not of its resolution, which the loader never makes.
    pub fn new(py: Python<'_>, batch: Batch, task: &str) -> Result<Self, WheelError> {
        let n = batch.n();
        let ids = ids(&batch.examples)?;
        let (mut pixels, mut vision_kept, mut text, mut labels) = Default::default();
        let (mut log_mel, mut waveform, mut audio_kept) = Default::default();
        if let Some(vision) = batch.vision {
            pixels = Some(array(py, "pixels", vision.pixels, shape_of(n, vision.resolution))?);
            vision_kept = kept(py, "vision_kept", vision.kept, n)?;
        }
        if let Some(audio) = batch.audio {
            let name = name_of(audio.resolution);
            let sound = if name == "waveform" { &mut waveform } else { &mut log_mel };
            *sound = Some(array(py, name, audio.values, shape_of(n, audio.resolution))?);
            audio_kept = kept(py, "audio_kept", audio.kept, n)?;
        }
        if let Some(of_text) = batch.text {
            let shape = match of_text.ids.len() / (n * of_text.n_tokens).max(1) {
                n_captions @ 2.. => vec![n, n_captions, of_text.n_tokens],
                _ => vec![n, of_text.n_tokens],
            };
            text = Some(array(py, "text", of_text.ids, shape)?);
        }
        if let Some(of_examples) = &batch.labels {
            labels =
                Some(array(py, "labels", of_examples.iter().flat_map(|all| all.first().copied()).collect(), vec![n])?);
        }
        Ok(Self {
            step: batch.step,
            task: PyString::intern(py, task).unbind(),
            task_idx: batch.task_idx,
            view: batch.view_idx,
            n,
            examples: array(py, "examples", ids, vec![n, 3])?,
            pixels,
            vision_kept,
            log_mel,
            waveform,
            audio_kept,
            text,
            labels,
            label_sets: batch.labels.filter(|of_examples| of_examples.iter().any(|all| all.len() > 1)),
        })
    }
}

#[pymethods]
impl PyBatch {
    /// The arrays of the streams that the task has, by name, without `examples`.
    fn arrays<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let arrays = PyDict::new(py);
        let put = |name: &str, array: Option<Bound<'py, PyAny>>| match array {
            Some(array) => arrays.set_item(name, array),
            None => Ok(()),
        };
        put("pixels", self.pixels.as_ref().map(|a| a.bind(py).clone().into_any()))?;
        put("vision_kept", self.vision_kept.as_ref().map(|a| a.bind(py).clone().into_any()))?;
        put("log_mel", self.log_mel.as_ref().map(|a| a.bind(py).clone().into_any()))?;
        put("waveform", self.waveform.as_ref().map(|a| a.bind(py).clone().into_any()))?;
        put("audio_kept", self.audio_kept.as_ref().map(|a| a.bind(py).clone().into_any()))?;
        put("text", self.text.as_ref().map(|a| a.bind(py).clone().into_any()))?;
        put("labels", self.labels.as_ref().map(|a| a.bind(py).clone().into_any()))?;
        Ok(arrays)
    }

    fn __len__(&self) -> usize {
        self.n
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let task = self.task.bind(py).to_str()?;
        Ok(format!("<Batch of step {}: {} examples of `{task}`, view {}>", self.step, self.n, self.view))
    }
}

/// Name of the array of examples of `resolution`.
pub fn name_of(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::Image { .. } | Resolution::Video { .. } => "pixels",
        Resolution::Audio { .. } => "log_mel",
        Resolution::Waveform { .. } => "waveform",
        Resolution::Text { .. } => "text",
    }
}

/// Shape of the array of `n` examples of `resolution`.
pub fn shape_of(n: usize, resolution: Resolution) -> Vec<usize> {
    match resolution {
        Resolution::Image { height, width } => vec![n, 1, height, width, 3],
        Resolution::Video { frames, height, width } => vec![n, frames, height, width, 3],
        Resolution::Audio { frames, mels } => vec![n, frames, mels],
        Resolution::Waveform { samples } => vec![n, samples],
        Resolution::Text { tokens } => vec![n, tokens],
    }
}

/// `values` as an array of `shape`, which frees them.
fn array<T: Element>(
    py: Python<'_>,
    array: &'static str,
    values: Vec<T>,
    shape: Vec<usize>,
) -> Result<Py<PyArrayDyn<T>>, WheelError> {
    let n_values = values.len();
    let made = ArrayD::from_shape_vec(shape.clone(), values);
    let made = made.map_err(|_| WheelError::Shape { array, n_values, shape })?;
    Ok(PyArrayDyn::from_owned_array(py, made).unbind())
}

fn kept(
    py: Python<'_>,
    name: &'static str,
    kept: Option<Vec<u32>>,
    n: usize,
) -> Result<Option<Py<PyArrayDyn<u32>>>, WheelError> {
    let Some(kept) = kept else { return Ok(None) };
    let n_kept = kept.len() / n.max(1);
    Ok(Some(array(py, name, kept, vec![n, n_kept])?))
}

/// `[n, 3]`.
fn ids(examples: &[ExampleId]) -> Result<Vec<i64>, WheelError> {
    let mut ids = Vec::with_capacity(3 * examples.len());
    for &ExampleId { corpus_idx, row, epoch } in examples {
        let (Ok(a), Ok(b)) = (i64::try_from(row), i64::try_from(epoch)) else {
            return Err(WheelError::Id { row, epoch });
        };
        ids.extend([i64::from(corpus_idx), a, b]);
    }
    Ok(ids)
}
