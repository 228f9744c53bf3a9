//! Any bytes are a picture of at most the limits, or an error.
#![no_main]

use imp_fuzz::{LIMITS, let_caught_panics_pass};
use imp_schemas::media::read_image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let_caught_panics_pass();
    if let Ok((meta, picture)) = read_image(bytes, &LIMITS) {
        assert_eq!((meta.width, meta.height), (picture.width, picture.height));
        assert_eq!(picture.rgb.len(), 3 * meta.width * meta.height);
        assert!((meta.width * meta.height) as u64 <= LIMITS.max_pixels);
    }
});
