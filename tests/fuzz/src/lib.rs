//! What the targets share.
//!
//! In: nothing. Out: limits small enough for thousands of inputs a second, a corpus's folder, and a process that only a
//! panic that nobody caught ends. Never: a target's own code.

pub mod tars;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use imp_ingest::fuzzing::Bench;
use imp_schemas::media::MediaLimits;

/// Small enough that no input takes long or holds much; a decoder that passes them has a fault.
pub const LIMITS: MediaLimits = MediaLimits { max_pixels: 1 << 20, max_frames: 200, max_samples: 1 << 20 };

/// Runs a target on one input. libFuzzer ends the process at every panic, by a hook. `media` and `corpus` catch those of the
/// libraries that they call and make an error of them, which is their promise; one that leaves `target` is told, and still
/// ends the process.
pub fn held(target: impl FnOnce()) {
    static LAST: Mutex<String> = Mutex::new(String::new());
    static ONCE: Once = Once::new();
    let last = || LAST.lock().unwrap_or_else(PoisonError::into_inner);
    ONCE.call_once(|| std::panic::set_hook(Box::new(move |panic| *last() = panic.to_string())));
    if catch_unwind(AssertUnwindSafe(target)).is_err() {
        eprintln!("{}", last());
        std::process::abort();
    }
}

/// The folder that the files of a process's inputs lie in, one after the other.
pub fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| Bench::new().expect("the folder of temporary files takes a few"))
}
