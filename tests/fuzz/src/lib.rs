//! What the targets share.
//!
//! In: nothing. Out: limits small enough for thousands of inputs a second, and a process that a caught panic does not end.
//! Never: a target's own code.

use std::sync::Once;

use imp_schemas::media::MediaLimits;

/// Small enough that no input takes long or holds much; a decoder that passes them has a fault.
pub const LIMITS: MediaLimits = MediaLimits { max_pixels: 1 << 20, max_frames: 200, max_samples: 1 << 20 };

/// libFuzzer ends the process at every panic, by a hook. `media` catches those of the libraries that it calls and makes an
/// error of them, which is its promise; one that leaves it still ends the process.
pub fn let_caught_panics_pass() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}
