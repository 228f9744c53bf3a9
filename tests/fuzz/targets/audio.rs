//! Any bytes are a sound of at most the limits, every sample a number, or an error.
#![no_main]

use imp_fuzz::{LIMITS, held};
use imp_schemas::media::read_audio;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    held(|| {
        if let Ok((meta, sound)) = read_audio(bytes, &LIMITS) {
            assert_eq!(meta.num_samples, sound.samples.len() as u64);
            assert_eq!(meta.sampling_rate, sound.sampling_rate);
            assert!(meta.num_samples * meta.channels as u64 <= LIMITS.max_samples);
            assert!(sound.samples.iter().all(|s| s.is_finite()));
        }
    });
});
