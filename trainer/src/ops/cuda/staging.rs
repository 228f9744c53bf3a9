//! From the host to the device through memory that stays where it is, so that the copy runs at the bus's speed.

use std::ffi::c_void;

use cudarc::driver::{CudaDevice, DriverError, result, sys};
use rayon::prelude::*;

/// Bytes below which a plain copy is as good.
pub(super) const LEAST: usize = 1 << 20;

/// Bytes of a copy that go together.
const PIECE: usize = 8 << 20;

/// Page-locked memory, as large as the largest copy so far, and when it is free again.
pub(super) struct Staging {
    at: *mut u8,
    n_bytes: usize,
    free: sys::CUevent,
}

// SAFETY: the memory is reached behind a mutex only.
unsafe impl Send for Staging {}

impl Staging {
    pub fn new() -> Result<Self, DriverError> {
        let free = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        Ok(Self { at: std::ptr::null_mut(), n_bytes: 0, free })
    }

    /// Copies `bytes` to the device's address `to`, in the order of the stream; the host's may change when this returns.
    ///
    /// # Safety
    /// There is room for the bytes.
    pub unsafe fn copy(&mut self, device: &CudaDevice, bytes: &[u8], to: u64) -> Result<(), DriverError> {
        // SAFETY: the event was made by `new`, and is recorded or has nothing to wait for.
        unsafe { sys::cuEventSynchronize(self.free).result() }?;
        if self.n_bytes < bytes.len() {
            self.grow(bytes.len())?;
        }
        // SAFETY: `grow` made room for as many bytes, and nobody else reads or writes them until the event.
        let staged = unsafe { std::slice::from_raw_parts_mut(self.at, bytes.len()) };
        let stream = *device.cu_stream();
        // While one piece is on the bus the next is staged.
        for (i, (staged, bytes)) in staged.chunks_mut(PIECE).zip(bytes.chunks(PIECE)).enumerate() {
            staged.par_chunks_mut(LEAST).zip(bytes.par_chunks(LEAST)).for_each(|(to, from)| to.copy_from_slice(from));
            // SAFETY: the caller's promise; the memory is not written before the event.
            unsafe { result::memcpy_htod_async(to + (i * PIECE) as u64, staged, stream) }?;
        }
        // SAFETY: the event is alive.
        unsafe { result::event::record(self.free, stream) }
    }

    fn grow(&mut self, n_bytes: usize) -> Result<(), DriverError> {
        let mut at: *mut c_void = std::ptr::null_mut();
        // SAFETY: what was there is in use by nobody: the event was waited for.
        unsafe {
            if !self.at.is_null() {
                sys::cuMemFreeHost(self.at.cast()).result()?;
                (self.at, self.n_bytes) = (std::ptr::null_mut(), 0);
            }
            sys::cuMemHostAlloc(&mut at, n_bytes, 0).result()?;
        }
        (self.at, self.n_bytes) = (at.cast(), n_bytes);
        Ok(())
    }
}
