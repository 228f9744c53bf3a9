//! The device is named once, here; everything below is generic over it.

use dfdx::tensor::Cpu;
#[cfg(feature = "cuda")]
use dfdx::tensor::Cuda;
use imp_loader::Watch;
use imp_schemas::store::Store;

use crate::bench::{self, BenchLine, BenchOptions, Probe};
use crate::config::TrainConfig;
use crate::eval::{self, EvalError, Score, Scores};
use crate::model::ModelError;
use crate::ops::{self, Precision};
use crate::plan::{Ceiling, Keeping};
use crate::search::{self, Embeddings, Found, Query, SearchError};
use crate::selftest::{self, Check};
use crate::steps::{self, StepsOptions, StepsReport};
use crate::train::{self, Fitted, TrainError};

/// A device that this build or machine does not have.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("`train.device` is `{0}`, must be `cpu` or `cuda:N`")]
    Unknown(String),
    #[error("`train.device` is `{0}`, but this build has no CUDA; build with `--features cuda` (ops/cuda)")]
    NoCuda(String),
    #[error("`bf16` is for CUDA; on the CPU `precision` is `f32`")]
    Bf16OnCpu,
    #[error(transparent)]
    Model(#[from] ModelError),
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
    open_as(&config.device, config.precision, config.threads, config.mixture.seed())
}

/// Opens a device by name; on the CPU there is f32 only.
fn open_as(name: &str, precision: Precision, threads: usize, seed: u64) -> Result<Device, DeviceError> {
    ops::set_threads(threads)?;
    if name == "cpu" {
        return match precision {
            Precision::F32 => Ok(Device::Cpu(Cpu::seed_from_u64(seed))),
            Precision::Bf16 => Err(DeviceError::Bf16OnCpu),
        };
    }
    match name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse::<usize>().ok()) {
        None => Err(DeviceError::Unknown(name.to_owned())),
        #[cfg(not(feature = "cuda"))]
        Some(_) => Err(DeviceError::NoCuda(name.to_owned())),
        #[cfg(feature = "cuda")]
        Some(ordinal) => {
            let opened = ops::cuda::open(ordinal, seed, precision);
            let failed = |e| DeviceError::Open { device: name.to_owned(), detail: format!("{e:?}") };
            Ok(Device::Cuda(opened.map_err(failed)?))
        }
    }
}

/// [`bench::run`] on the device of that name.
///
/// # Errors
/// The device cannot be had, the sizes cannot be, or a step failed.
pub fn bench(name: &str, precision: Precision, options: &BenchOptions) -> Result<BenchLine, DeviceError> {
    let label = match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let peer = format!("imp-{}-{label}", name.split(':').next().unwrap_or(name));
    let keeping = Keeping { precision, recompute: false, on_cpu: name == "cpu" };
    match open_as(name, precision, options.threads, options.seed)? {
        Device::Cpu(dev) => Ok(bench::run(&dev, options, peer, keeping, &Host)?),
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => Ok(bench::run(&dev, options, peer, keeping, &dev)?),
    }
}

/// Greatest memory of this process, MiB; 0 where the system does not tell.
fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib >> 10)
}

/// The CPU tells its memory only.
struct Host;

impl Probe for Host {
    fn peak_mib(&self) -> u64 {
        peak_rss_mib()
    }
}

#[cfg(feature = "cuda")]
impl Probe for Cuda {
    fn peak_mib(&self) -> u64 {
        ops::cuda::peak_mib(self).unwrap_or(0)
    }

    fn begin(&self) {
        // A device that cannot be reached says so at the next step.
        let _ = ops::cuda::begin_profile(self);
    }

    fn end(&self) -> Vec<(String, usize, f64)> {
        ops::cuda::end_profile(self).unwrap_or_default()
    }
}

/// What the device of that name does at most: the ceiling of a step. Takes about a second.
///
/// # Errors
/// The device cannot be had, or failed.
pub fn ceiling(name: &str, threads: usize) -> Result<Ceiling, DeviceError> {
    match open_as(name, Precision::F32, threads, 0)? {
        Device::Cpu(_) => {
            let (gflops, gb_per_s) = (ops::ceiling::gflops(threads), ops::ceiling::gb_per_s(threads));
            Ok(Ceiling { gflops, gb_per_s: Some(gb_per_s) })
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => {
            let found = ops::cuda::ceiling(&dev);
            let gflops = found.map_err(|e| DeviceError::Open { device: name.to_owned(), detail: format!("{e:?}") })?;
            Ok(Ceiling { gflops, gb_per_s: None })
        }
    }
}

/// [`selftest::run`] on the device of that name.
///
/// # Errors
/// The device cannot be had, or failed.
pub fn selftest(
    name: &str,
    precision: Precision,
    threads: usize,
    say: &mut dyn FnMut(&Check),
) -> Result<Vec<Check>, DeviceError> {
    match open_as(name, precision, threads, 0)? {
        Device::Cpu(dev) => Ok(selftest::run(&dev, precision, say)?),
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => Ok(selftest::run(&dev, precision, say)?),
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

/// [`steps::measure`] on the config's device.
///
/// # Errors
/// The device cannot be had, or a step failed.
pub fn steps(config: &TrainConfig, store: &Store, options: StepsOptions) -> Result<StepsReport, DeviceError> {
    match open(config)? {
        Device::Cpu(dev) => Ok(steps::measure(config, store, &dev, options)?),
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => Ok(steps::measure(config, store, &dev, options)?),
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
