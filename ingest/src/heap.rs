//! How this system's allocator is told to give memory back: peaks are then what is held, not what was held before.
//!
//! In: nothing. Out: two settings of glibc; nothing on systems with another allocator. Never: after the first thread, in the
//! library: an allocator belongs to a program.

/// glibc makes a heap for each new thread, up to eight a core, and no heap gives back what lies below a block that is in use.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const N_HEAPS: std::ffi::c_int = 2;
/// Blocks of this size on are mapped one by one, and unmapped when they are freed. Left alone, glibc raises this limit to the
/// largest block that was freed, up to 32 MiB: decoded pictures then lie in heaps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: std::ffi::c_int = 1 << 20;

/// To be called first in `main`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn settle() {
    // SAFETY: both calls write settings of glibc and nothing else, and no other thread runs yet. An answer of 0, that a setting is
    // not known, leaves it as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, N_HEAPS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
    }
}

/// To be called first in `main`.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn settle() {}
