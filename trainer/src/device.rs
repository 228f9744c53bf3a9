//! The device is named once, here; everything below is generic over it.

use dfdx::tensor::Cpu;
#[cfg(feature = "cuda")]
use dfdx::tensor::Cuda;
use imp_loader::Watch;
use imp_schemas::store::Store;

use crate::config::TrainConfig;
use crate::eval::{self, EvalError, Score, Scores};
use crate::ops;
use crate::search::{self, Embeddings, Found, Query, SearchError};
use crate::train::{self, Fitted, TrainError};

/// A device that this build or machine does not have.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("`train.device` is `{0}`, must be `cpu` or `cuda:N`")]
    Unknown(String),
    #[error("`train.device` is `{0}`, but this build has no CUDA; build with `--features cuda` (ops/cuda)")]
    NoCuda(String),
    #[error("device `{device}` cannot be opened: {detail}")]
    Open { device: String, detail: String },
    #[error(transparent)]
    Threads(#[from] ops::ThreadsError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Search(#[from] SearchError),
}

enum Device {
    Cpu(Cpu),
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

fn open(config: &TrainConfig) -> Result<Device, DeviceError> {
    ops::set_threads(config.threads)?;
    let name = config.device.as_str();
    if name == "cpu" {
        return Ok(Device::Cpu(Cpu::seed_from_u64(config.mixture.seed())));
    }
    match name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse::<usize>().ok()) {
        None => Err(DeviceError::Unknown(name.to_owned())),
        #[cfg(not(feature = "cuda"))]
        Some(_) => Err(DeviceError::NoCuda(name.to_owned())),
        #[cfg(feature = "cuda")]
        Some(ordinal) => {
            let opened = Cuda::try_build(ordinal, config.mixture.seed());
            let failed = |e| DeviceError::Open { device: name.to_owned(), detail: format!("{e:?}") };
            Ok(Device::Cuda(opened.map_err(failed)?))
        }
    }
}

/// [`train::fit`] on the config's device.
///
/// # Errors
/// The device cannot be had, or training stopped.
pub fn fit(
    config: &TrainConfig,
    store: &Store,
    run: &Store,
    opened: &mut dyn FnMut(&Watch),
) -> Result<Fitted, DeviceError> {
    match open(config)? {
        Device::Cpu(dev) => Ok(train::fit(config, store, run, &dev, opened)?),
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => Ok(train::fit(config, store, run, &dev, opened)?),
    }
}

/// [`eval::run`] on the config's device.
///
/// # Errors
/// The device cannot be had, or the evaluation stopped.
pub fn eval(
    config: &TrainConfig,
    store: &Store,
    run: &Store,
    say: &mut dyn FnMut(&Score),
) -> Result<Scores, DeviceError> {
    match open(config)? {
        Device::Cpu(dev) => Ok(eval::run(config, store, run, &dev, say)?),
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => Ok(eval::run(config, store, run, &dev, say)?),
    }
}

/// [`search::embed`] on the config's device.
///
/// # Errors
/// The device cannot be had, or the corpus not embedded.
pub fn embed(config: &TrainConfig, store: &Store, run: &Store, eval: &str) -> Result<Embeddings, DeviceError> {
    match open(config)? {
        Device::Cpu(dev) => Ok(search::embed(config, store, run, &dev, eval)?),
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => Ok(search::embed(config, store, run, &dev, eval)?),
    }
}

/// [`search::search`] on the config's device.
///
/// # Errors
/// The device cannot be had, or the query not embedded.
pub fn search(
    config: &TrainConfig,
    store: &Store,
    run: &Store,
    among: &Embeddings,
    query: &Query,
    n: usize,
) -> Result<Found, DeviceError> {
    match open(config)? {
        Device::Cpu(dev) => Ok(search::search(config, store, run, &dev, among, query, n)?),
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => Ok(search::search(config, store, run, &dev, among, query, n)?),
    }
}
