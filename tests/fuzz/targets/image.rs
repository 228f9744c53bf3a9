//! Any bytes are a picture of at most the limits, or an error.
#![no_main]

use imp_fuzz::{LIMITS, held};
use imp_schemas::media::{Needed, Planes, read_image, read_planes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    held(|| {
        if let Ok((meta, picture)) = read_image(bytes, &LIMITS) {
            assert_eq!((meta.width, meta.height), (picture.width, picture.height));
            assert_eq!(picture.rgb.len(), 3 * meta.width * meta.height);
            assert!((meta.width * meta.height) as u64 <= LIMITS.max_pixels);
        }
        // Every input at one scale, all scales over many inputs.
        let divisor = 1 << (bytes.len() % 4);
        // And over many inputs, every share of the rows.
        let n_sixteenths = bytes.len() % 17;
        let needed = |w: usize, h: usize| {
            let rows = h * n_sixteenths / 32..(h * n_sixteenths).div_ceil(16);
            Some(Needed { at_least: (w / divisor, h / divisor), columns: w / 8..w / 2 + 1, rows })
        };
        let mut planes = Planes::default();
        if let Ok(Some(meta)) = read_planes(bytes, &LIMITS, &mut planes, needed) {
            assert_eq!((meta.width, meta.height), (planes.width, planes.height));
            for plane in planes.planes {
                assert!(plane.stride >= plane.width && plane.values.len() >= plane.stride * plane.height);
                assert!(plane.width * plane.step.0 >= meta.width && plane.height * plane.step.1 * 16 >= meta.height * n_sixteenths);
            }
        }
    });
});
