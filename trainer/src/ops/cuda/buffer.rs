//! Memory on the device that is no tensor.

use std::sync::Arc;

use cudarc::driver::{CudaDevice, DeviceSlice, DriverError, result, sys};

use super::context::Values;

/// Bytes on the device, freed in the order of the stream.
#[derive(Debug)]
pub(super) struct Buf {
    ptr: sys::CUdeviceptr,
    n_bytes: usize,
    device: Arc<CudaDevice>,
    /// dfdx's, whose memory it is then.
    owner: Option<Values>,
}

impl Buf {
    /// A vector of dfdx's, as it is.
    pub fn owning(values: Values) -> Self {
        let (device, n_bytes) = (values.device(), values.num_bytes());
        Self { ptr: super::context::address(&values), n_bytes, device, owner: Some(values) }
    }

    /// Uninitialised memory.
    pub fn new(device: &Arc<CudaDevice>, n_bytes: usize) -> Result<Self, DriverError> {
        device.bind_to_thread()?;
        // SAFETY: the context is current; `Drop` frees it once.
        let ptr = unsafe { result::malloc_async(*device.cu_stream(), n_bytes.max(16)) }?;
        Ok(Self { ptr, n_bytes, device: device.clone(), owner: None })
    }

    /// A copy of the host's values.
    pub fn of<T: Copy>(device: &Arc<CudaDevice>, values: &[T]) -> Result<Self, DriverError> {
        let made = Self::new(device, std::mem::size_of_val(values))?;
        if !values.is_empty() {
            // SAFETY: as many bytes as were asked for; the copy is done with the host's when it returns.
            unsafe { result::memcpy_htod_sync(made.ptr, values) }?;
        }
        Ok(made)
    }

    /// All bytes become `value`.
    pub fn fill(&self, value: u8) -> Result<(), DriverError> {
        // SAFETY: within the allocation.
        unsafe { result::memset_d8_async(self.ptr, value, self.n_bytes, *self.device.cu_stream()) }
    }

    /// A copy on the host of the first `n` values; waits for the device.
    pub fn read<T: Copy + Default>(&self, n: usize) -> Result<Vec<T>, DriverError> {
        let mut values = vec![T::default(); n];
        if n > 0 && n * size_of::<T>() <= self.n_bytes {
            // SAFETY: within the allocation.
            unsafe { result::memcpy_dtoh_sync(&mut values, self.ptr) }?;
        }
        Ok(values)
    }

    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// The address of byte `n`.
    pub fn at(&self, n: usize) -> u64 {
        self.ptr + n as u64
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if self.owner.is_some() {
            return;
        }
        // Nothing can be done about a failure here; the next call meets it too.
        // SAFETY: allocated by `new`, freed once.
        let _ = unsafe { result::free_async(self.ptr, *self.device.cu_stream()) };
    }
}

impl From<&Buf> for super::context::Arg {
    fn from(buf: &Buf) -> Self {
        Self::Wide(buf.ptr)
    }
}

impl From<Option<&Buf>> for super::context::Arg {
    fn from(buf: Option<&Buf>) -> Self {
        Self::Wide(buf.map_or(0, Buf::ptr))
    }
}
