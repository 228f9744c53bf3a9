//! Large pages under the memory that every step uses again.
//!
//! In: nothing. Out: advice to Linux. Never: an error: a kernel that does not follow it leaves pages as they are. Only a program asks for it,
//! with [`begin`]: a heap does not belong to a library.
//!
//! An update reads parameters, gradients and two moments side by side, and a product rows that lie kilobytes apart: with pages of 4 KiB the processor looks up
//! addresses all the time. glibc has a switch for it that it reads from the environment before `main` (`glibc.malloc.hugetlb`), and
//! where pages are already there Linux replaces them at its leisure; here they are replaced when the heap has grown, once in a run as a rule.

use std::sync::atomic::{AtomicBool, Ordering};

static BEGUN: AtomicBool = AtomicBool::new(false);

/// From now on [`follow`] does something. To be called before the first thread, by a program whose memory stays with it
/// ([`imp_schemas::heap::keep`]).
pub fn begin() {
    // One heap for all threads: it is the one that is followed, and what a thread gives back is there for the others.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it writes a setting of glibc and nothing else, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    BEGUN.store(true, Ordering::Relaxed);
}

/// To be called after a step: what the heap has grown by since gets large pages.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn follow() {
    use std::sync::atomic::AtomicUsize;

    /// A large page.
    const PAGE: usize = 2 << 20;
    /// Where the last time ended; 0 before the first.
    static END: AtomicUsize = AtomicUsize::new(0);

    if !BEGUN.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: it asks where the heap ends and moves nothing.
    let end = unsafe { libc::sbrk(0) } as usize / PAGE * PAGE;
    let before = END.swap(end, Ordering::Relaxed);
    if end <= before {
        return;
    }
    let Some(start) = heap_start().map(|start| start.next_multiple_of(PAGE).max(before)).filter(|&start| start < end)
    else {
        return;
    };
    // SAFETY: the range is inside the heap, and neither advice changes what lies there. Whether the kernel follows is its own affair.
    unsafe {
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE);
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_COLLAPSE);
    }
}

/// Elsewhere nothing is known to help.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn follow() {}

/// Where the heap begins.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn heap_start() -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[heap]"))?;
    usize::from_str_radix(line.split('-').next()?, 16).ok()
}
