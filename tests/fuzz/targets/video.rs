//! Any bytes are a clip of at most the limits, whose first and last frame can be had, or an error.
#![no_main]

use imp_fuzz::{LIMITS, held};
use imp_schemas::media::{read_frames, read_video};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    held(|| {
        if let Ok(meta) = read_video(bytes, &LIMITS) {
            assert!((1..=LIMITS.max_frames).contains(&(meta.num_frames as u64)));
            let wanted = [0, meta.num_frames - 1];
            let mut taken = Vec::new();
            let read = read_frames(bytes, &wanted, &LIMITS, &mut |frame_idx, picture| {
                assert_eq!(picture.rgb.len(), 3 * picture.width * picture.height);
                taken.push(frame_idx);
            });
            assert!(read.is_err() || taken == wanted);
        }
    });
});
