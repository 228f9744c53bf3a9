//! The Huffman codes of a sequential JPEG → its coefficients: libjpeg's reader of them takes half of the time in which a picture
//! becomes planes, so here is one that takes less. Everything else, from the markers to the inverse transform, stays libjpeg's.
//!
//! In: the scan, and a decompressor that has read what stands before it. Out: the coefficients that libjpeg would have read, to the bit, or
//! none where nobody wants them ([`Kept`]). Never: a judgement. What is not plain, be it coded otherwise, damaged or cut, is left to libjpeg from the start, with what it says of it.
//!
//! Three things make the difference. Bytes are freed of their stuffing once, so that eight of them are taken at a time and not one. A look
//! into a table gives most codes together with the values behind them, two at a time where they are short. And units that nobody wants are
//! neither written nor transformed.
//! Source: ITU-T T.81, F.2.2 (decoding), B.2.4.2 (tables), E.2.4 (restarts).

mod headers;
mod scan;
mod table;

use std::ffi::c_int;
use std::mem::offset_of;
use std::ops::Range;
use std::ptr::NonNull;

use mozjpeg_sys::{JPEG_LIB_VERSION, jpeg_component_info, jpeg_decompress_struct, jpeg_has_multiple_scans};

use super::MediaError;
use super::jpeg::broken;
use super::libjpeg;
use scan::{Block, Scan};

/// Decodes with our reader; once more with libjpeg's, if what ours came to is not for it to judge. `decode` gives `None` if
/// [`Attached::is_clean`] says so, and unwinds as under [`libjpeg::guarded`].
///
/// # Errors
/// Those of `decode`, and what libjpeg refuses.
pub(super) fn with_either<T>(mut decode: impl FnMut(ReadBy) -> Result<Option<T>, MediaError>) -> Result<T, MediaError> {
    let mut decode = |by| libjpeg::guarded(|| decode(by)).unwrap_or_else(|refused| Err(broken(refused)));
    if let Some(decoded) = decode(ReadBy::UsIfWeCan)? {
        return Ok(decoded);
    }
    let lost = || MediaError::Corrupt { detail: "libjpeg's own reader was not asked".to_owned() };
    decode(ReadBy::Libjpeg)?.ok_or_else(lost)
}

/// Units of coding whose values are wanted, in a scan of all components: what lies around them is read and not transformed.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) columns: Range<usize>,
    pub(super) first_row: usize,
}

/// Who reads the codes of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadBy {
    UsIfWeCan,
    Libjpeg,
}

impl ReadBy {
    /// Puts the reader into its place; what it gives is to be kept as long as rows are read. Of units that are not in `kept`, ours may leave
    /// the values as they were.
    ///
    /// # Safety
    /// `info` has just started to decompress `bytes`, and has not given a row yet; it gives none after what this gives is dropped.
    pub(super) unsafe fn attach(self, info: &mut jpeg_decompress_struct, bytes: &[u8], kept: Option<Kept>) -> Attached {
        // SAFETY: as above.
        Attached(if self == Self::UsIfWeCan { unsafe { Ours::attach(info, bytes, kept) } } else { None })
    }
}

/// What reads the codes of `info`.
pub(super) struct Attached(Option<Ours>);

impl Attached {
    /// Whether all that was read so far, and is kept, is what libjpeg would have read. If not, rows are wrong from somewhere on.
    pub(super) fn is_clean(&self) -> bool {
        self.0.as_ref().is_none_or(Ours::is_clean)
    }
}

/// Our reader in the place of libjpeg's.
struct Ours(NonNull<Reader>);

impl Ours {
    /// `None` if the scan is not one for ours. What `info` then points to is freed before it is: destroying it does not look there.
    ///
    /// # Safety
    /// As [`ReadBy::attach`].
    unsafe fn attach(info: &mut jpeg_decompress_struct, bytes: &[u8], kept: Option<Kept>) -> Option<Self> {
        // SAFETY: as above, the header has been read, up to the bytes that are left.
        let scan = unsafe {
            if jpeg_has_multiple_scans(info) != 0 || info.comp_info.is_null() || info.src.is_null() {
                return None;
            }
            Scan::read(info, bytes, kept)?
        };
        let reader = Box::new(Reader { start_pass: None, decode_mcu: Some(decode_mcu), insufficient_data: 0, scan });
        let reader = NonNull::from(Box::leak(reader));
        // SAFETY: the place is that of a pointer to what `Reader` begins with; what it pointed to is freed with `info`.
        unsafe { place_of_reader(info).write(reader.as_ptr()) };
        Some(Self(reader))
    }

    fn is_clean(&self) -> bool {
        // SAFETY: made in `attach` and freed in `drop`; libjpeg, which changes it, is not running.
        unsafe { self.0.as_ref() }.scan.is_clean
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // SAFETY: leaked in `attach`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Where `info` says who reads the codes: a private field, the fifth from the end.
fn place_of_reader(info: *mut jpeg_decompress_struct) -> *mut *mut Reader {
    const FROM_END: usize = 5 * size_of::<*mut Reader>();
    // A struct of another length is one that somebody has to look at: `jpeglib.h`, from `unread_marker` on.
    #[cfg(target_pointer_width = "64")]
    const _: () = assert!(size_of::<jpeg_decompress_struct>() == 632);
    info.wrapping_byte_add(size_of::<jpeg_decompress_struct>() - FROM_END).cast()
}

/// Where a component says whether it is to be transformed, which libjpeg looks up after every unit: a private field, the fifth behind its width in
/// blocks.
fn place_of_need(component: *mut jpeg_component_info) -> *mut c_int {
    const AT: usize = offset_of!(jpeg_component_info, width_in_blocks) + 5 * size_of::<c_int>();
    // Later interfaces have one field more before it, and a struct of another length is one that somebody has to look at: `jpeglib.h`, from
    // `height_in_blocks` on.
    const _: () = assert!(JPEG_LIB_VERSION == 62);
    #[cfg(target_pointer_width = "64")]
    const _: () = assert!(size_of::<jpeg_component_info>() == 96);
    component.wrapping_byte_add(AT).cast()
}

/// What libjpeg calls, and what is ours behind it.
#[repr(C)]
struct Reader {
    // `struct jpeg_entropy_decoder` of its `jpegint.h`. The first was called before ours came.
    start_pass: Option<unsafe extern "C-unwind" fn(*mut jpeg_decompress_struct)>,
    decode_mcu: Option<unsafe extern "C-unwind" fn(*mut jpeg_decompress_struct, *const *mut Block) -> c_int>,
    insufficient_data: c_int,
    scan: Scan,
}

/// Reads the blocks of one unit, which are zero; libjpeg's to call.
unsafe extern "C-unwind" fn decode_mcu(info: *mut jpeg_decompress_struct, blocks: *const *mut Block) -> c_int {
    // SAFETY: libjpeg calls the reader that stands in `info`, which is ours, with as many blocks as a unit has, if rows are read and not
    // passed over. `Scan::read` has counted them as it does. Nobody else looks at them or at the reader meanwhile, and at what components say
    // not before this returns.
    unsafe {
        let reader = &mut **place_of_reader(info);
        let n_blocks = reader.scan.blocks.len();
        let blocks = if blocks.is_null() { &[] } else { std::slice::from_raw_parts(blocks, n_blocks) };
        let is_ours = reader.scan.is_clean && !blocks.is_empty();
        let read = if is_ours { reader.scan.next_unit(blocks.iter().map(|&block| &mut *block)) } else { None };
        if reader.scan.has_others() {
            for i in 0..(*info).num_components as usize {
                place_of_need((*info).comp_info.add(i)).write(c_int::from(read == Some(true)));
            }
        }
        reader.scan.is_clean = read.is_some();
        reader.insufficient_data = c_int::from(read.is_none());
    }
    1
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    use mozjpeg::{ColorSpace, Compress};
    use mozjpeg_sys::jpeg_start_decompress;
    use proptest::prelude::*;

    use super::super::jpeg::decode;
    use super::super::libjpeg::Decompressor;
    use super::*;
    use crate::media::MediaLimits;

    /// What a picture is like and how it is coded.
    #[derive(Debug, Clone)]
    struct Coding {
        width: u16,
        height: u16,
        /// Levels by which pixels differ from their neighbours at most.
        noise: u8,
        seed: u32,
        quality: u8,
        /// Values of brightness for one of colour, across and down.
        sampling: (u8, u8),
        restart_interval: u16,
        /// Then without restarts, and never progressive.
        has_own_tables: bool,
        is_progressive: bool,
    }

    fn coding() -> impl Strategy<Value = Coding> {
        let samplings = [(1, 1), (2, 1), (1, 2), (2, 2)];
        let size = (1_u16..90, 1_u16..90);
        let picture = (size, any::<u8>(), any::<u32>());
        let how = (1_u8..=100, proptest::sample::select(samplings.to_vec()), 0_u16..7, any::<bool>());
        (picture, how).prop_map(
            |(((width, height), noise, seed), (quality, sampling, restart_interval, has_own_tables))| {
                let is_progressive = false;
                Coding {
                    width,
                    height,
                    noise,
                    seed,
                    quality,
                    sampling,
                    restart_interval,
                    has_own_tables,
                    is_progressive,
                }
            },
        )
    }

    impl Coding {
        fn jpeg(&self) -> Vec<u8> {
            let mut state = u64::from(self.seed) | 1;
            let mut noise = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) % (u64::from(self.noise) + 1)) as u8
            };
            let (width, height) = (usize::from(self.width), usize::from(self.height));
            let rgb: Vec<u8> = (0..width * height)
                .flat_map(|i| [i % width, i / width, i].map(|level| (level as u8).wrapping_add(noise())))
                .collect();
            if self.has_own_tables {
                let (h, v) = self.sampling;
                let mut encoder = Compress::new(ColorSpace::JCS_RGB);
                encoder.set_fastest_defaults();
                encoder.set_optimize_coding(true);
                encoder.set_size(width, height);
                encoder.set_quality(f32::from(self.quality));
                encoder.set_chroma_sampling_pixel_sizes((h, v), (h, v));
                let mut encoder = encoder.start_compress(Vec::new()).unwrap();
                encoder.write_scanlines(&rgb).unwrap();
                return encoder.finish().unwrap();
            }
            let mut bytes = Vec::new();
            let mut encoder = Encoder::new(&mut bytes, self.quality);
            encoder.set_sampling_factor(SamplingFactor::from_factors(self.sampling.0, self.sampling.1).unwrap());
            encoder.set_progressive(self.is_progressive);
            if self.restart_interval > 0 {
                encoder.set_restart_interval(self.restart_interval);
            }
            encoder.encode(&rgb, self.width, self.height, ColorType::Rgb).unwrap();
            bytes
        }
    }

    fn by_either(bytes: &[u8]) -> Result<RgbImage, MediaError> {
        with_either(|by| decode(bytes, &MediaLimits::default(), by))
    }

    fn by_libjpeg(bytes: &[u8]) -> Result<RgbImage, MediaError> {
        with_either(|_| decode(bytes, &MediaLimits::default(), ReadBy::Libjpeg))
    }

    /// Where the first segment of this kind begins.
    fn first(bytes: &[u8], marker: u8) -> usize {
        bytes.windows(2).position(|two| two == [0xFF, marker]).unwrap()
    }

    /// Whether the scan is one for our reader.
    fn is_ours(bytes: &[u8]) -> bool {
        let mut decompressor = Decompressor::open(bytes);
        // SAFETY: no row is asked for.
        unsafe {
            let info = decompressor.info();
            jpeg_start_decompress(info);
            ReadBy::UsIfWeCan.attach(info, bytes, None).0.is_some()
        }
    }

    proptest! {
        #[test]
        fn coefficients_are_those_that_libjpeg_reads(coding in coding()) {
            let bytes = coding.jpeg();
            prop_assert!(is_ours(&bytes));
            let decoded = libjpeg::guarded(|| decode(&bytes, &MediaLimits::default(), ReadBy::UsIfWeCan)).unwrap().unwrap();
            prop_assert_eq!(decoded, Some(by_libjpeg(&bytes).unwrap()), "not clean, or not the same");
        }

        #[test]
        fn of_damaged_scans_libjpeg_is_the_judge(
            coding in coding(),
            at in any::<proptest::sample::Index>(),
            flipped in 0_u8..,
            n_cut in 0_usize..20,
        ) {
            let mut bytes = coding.jpeg();
            // From the tables on: other codes are other sizes of values.
            let (tables, scan) = (first(&bytes, 0xC4), first(&bytes, 0xDA));
            let damaged = tables + at.index(bytes.len() - tables);
            bytes[damaged] ^= flipped;
            let n_left = bytes.len() - n_cut.min(bytes.len() - scan);
            prop_assert_eq!(by_either(&bytes[..n_left]), by_libjpeg(&bytes[..n_left]));
        }
    }

    #[test]
    fn units_have_as_many_blocks_as_libjpeg_says_whatever_the_components() {
        let values: Vec<u8> = (0..50_u32 * 40 * 4).map(|i| (i * i / 7) as u8).collect();
        for (kind, n_components) in [(ColorType::Luma, 1), (ColorType::Cmyk, 4)] {
            let mut bytes = Vec::new();
            Encoder::new(&mut bytes, 90).encode(&values[..50 * 40 * n_components], 50, 40, kind).unwrap();
            assert!(is_ours(&bytes));
            assert_eq!(by_either(&bytes), by_libjpeg(&bytes));
            // Another sampling of the first component. A component alone is not interleaved, so its picture stays what it was.
            let frame = bytes.windows(2).position(|two| two == [0xFF, 0xC0]).unwrap();
            for (h, v) in (1..=4).flat_map(|h| (1..=4).map(move |v| (h, v))) {
                bytes[frame + 11] = h << 4 | v;
                assert_eq!(by_either(&bytes), by_libjpeg(&bytes), "{h} x {v} of {n_components}");
                assert!(n_components > 1 || is_ours(&bytes) && by_either(&bytes).is_ok());
            }
        }
    }

    #[test]
    fn what_is_not_one_sequential_scan_is_left_to_libjpeg() {
        let coding = Coding {
            width: 50,
            height: 40,
            noise: 30,
            seed: 1,
            quality: 90,
            sampling: (2, 2),
            restart_interval: 2,
            has_own_tables: false,
            is_progressive: true,
        };
        let progressive = coding.jpeg();
        assert!(!is_ours(&progressive));
        assert_eq!(by_either(&progressive), by_libjpeg(&progressive));
        // A marker that is missing, and one too many.
        let bytes = Coding { is_progressive: false, ..coding }.jpeg();
        let marker = bytes.windows(2).position(|two| two == [0xFF, 0xD1]).unwrap();
        for damaged in [
            [&bytes[..marker], &bytes[marker + 2..]].concat(),
            [&bytes[..marker], &[0xFF, 0xD1], &bytes[marker..]].concat(),
            [&bytes[..marker], &[0x00], &bytes[marker..]].concat(),
        ] {
            assert_eq!(by_either(&damaged), by_libjpeg(&damaged));
            assert!(by_either(&damaged).is_err());
        }
    }
}
