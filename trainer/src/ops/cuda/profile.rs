//! Where a step's time on the device goes, by kernel.
//!
//! In: launches. Out: how often and how long, when asked. Never: a cost when nobody asks. While it is on, the host waits for each
//! kernel, so that a step takes longer than its parts.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cudarc::driver::CudaDevice;
use dfdx::prelude::{Cuda, CudaError};

use super::context::Context;

/// Times and seconds by name, while it is on.
#[derive(Default)]
pub(super) struct Profile(Mutex<Option<BTreeMap<String, (usize, f64)>>>);

impl Profile {
    pub fn time(
        &self,
        device: &Arc<CudaDevice>,
        name: impl Display,
        launch: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let mut on = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(seconds) = on.as_mut() else { return launch() };
        device.synchronize()?;
        let begin = Instant::now();
        launch()?;
        device.synchronize()?;
        let of_name = seconds.entry(name.to_string()).or_default();
        *of_name = (of_name.0 + 1, of_name.1 + begin.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Begins to time every kernel of ours on the device.
///
/// # Errors
/// The device cannot be reached.
pub fn begin_profile(dev: &Cuda) -> Result<(), CudaError> {
    *Context::of(dev)?.profile.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(BTreeMap::new());
    Ok(())
}

/// Ends it: name, launches and seconds of each kernel, the longest first.
///
/// # Errors
/// The device cannot be reached.
pub fn end_profile(dev: &Cuda) -> Result<Vec<(String, usize, f64)>, CudaError> {
    let seconds = Context::of(dev)?.profile.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut list: Vec<_> = seconds.unwrap_or_default().into_iter().map(|(name, (n, s))| (name, n, s)).collect();
    list.sort_by(|a, b| b.2.total_cmp(&a.2));
    Ok(list)
}
