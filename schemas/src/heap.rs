//! How this system's allocator is told to give memory back, so that peaks are what is held, not what was held before; or to keep it, for a
//! program that makes the same blocks in every step.
//!
//! In: nothing. Out: a setting of glibc; nothing on systems with another allocator. Never: after the first thread, in the
//! library: an allocator belongs to a program.
//!
//! glibc makes a heap for each new thread, up to eight a core, and a heap gives nothing back that lies below a block in use: eight
//! threads that decode in turn hold a picture each. One heap would hold least, and every thread would wait for it. If large
//! blocks were mapped one by one whatever was freed before (`M_MMAP_THRESHOLD`), a fifth less would be held, and clearing their pages
//! would take half as long again as decoding them as pictures of 8 megapixels. Figures: `ops/benches/README.md`.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
const N_HEAPS: std::ffi::c_int = 2;

/// To be called first in `main`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn settle() {
    // SAFETY: it writes a setting of glibc and nothing else, and no other thread runs yet. An answer of 0, that the setting is not
    // known, leaves it as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, N_HEAPS);
    }
}

/// To be called first in `main`.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn settle() {}

/// For a program that makes the same large blocks in every step, after [`settle`]: what is given back stays for the next step.
/// glibc would unmap it, each page would be cleared anew, and every unmapping stops all threads: a third of a training step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep() {
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, std::ffi::c_int::MAX);
    }
}

/// See above.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep() {}
