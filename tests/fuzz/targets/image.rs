//! Any bytes are a picture of at most the limits, or an error.
#![no_main]

use imp_fuzz::{LIMITS, held};
use imp_schemas::media::read_image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    held(|| {
        if let Ok((meta, picture)) = read_image(bytes, &LIMITS) {
            assert_eq!((meta.width, meta.height), (picture.width, picture.height));
            assert_eq!(picture.rgb.len(), 3 * meta.width * meta.height);
            assert!((meta.width * meta.height) as u64 <= LIMITS.max_pixels);
        }
    });
});
