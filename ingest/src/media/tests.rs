//! What may be done to a medium keeps what it promises to keep: on made-up media here, on public ones in `real`.

#[cfg(real_data)]
mod real;

use image::RgbImage;
use imp_schemas::media::{MediaLimits, Picture, read_audio, read_frames, read_image, read_video};
use imp_schemas::modality::RecordKind;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use testkit::media::{mp4_bytes, png_bytes, wav_bytes, webp_bytes};

use super::config::{Clip, JpegRule, MediaRules, MetadataRule, Normalise, PictureFormat, Reencode, Side, VideoRule};
use super::pixels::Pixels;
use super::{Facts, Stored, coefficients, exif, prepare, remux, shrink};

fn limits() -> MediaLimits {
    MediaLimits::default()
}

fn prepared(kind: RecordKind, bytes: &[u8], rules: &MediaRules) -> Vec<Stored> {
    prepare(kind, bytes, rules, &limits(), &mut |_| Ok(())).unwrap()
}

fn normalise(jpeg: JpegRule, metadata: MetadataRule) -> MediaRules {
    MediaRules { normalise: Normalise { jpeg, metadata, video: VideoRule::Keep }, ..MediaRules::default() }
}

/// Smooth colours with a hard edge, so that every frequency occurs.
fn photo(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let edge = if (x / 7 + y / 5) % 3 == 0 { 90 } else { 0 };
        image::Rgb([(x * 5) as u8, (y * 3 + edge) as u8, ((x ^ y) + edge) as u8])
    })
}

/// A JPEG of `photo`, and what is done to its encoder first.
fn jpeg(width: u16, height: u16, color: ColorType, setup: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let picture = photo(width.into(), height.into());
    let pixels: Vec<u8> = match color {
        ColorType::Luma => picture.pixels().map(|p| p[1]).collect(),
        ColorType::Cmyk | ColorType::CmykAsYcck => picture.pixels().flat_map(|p| [p[0], p[1], p[2], 40]).collect(),
        _ => picture.into_raw(),
    };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 88);
    setup(&mut encoder);
    encoder.encode(&pixels, width, height, color).unwrap();
    bytes
}

fn pixels(bytes: &[u8]) -> Picture {
    read_image(bytes, &limits()).unwrap().1
}

/// The orientation of a block as cameras write it, among other tags.
fn camera_exif(orientation: u8) -> Vec<u8> {
    let mut block = b"II*\0\x08\0\0\0\x02\0".to_vec();
    block.extend([0x0F, 0x01, 2, 0, 4, 0, 0, 0, b'C', b'A', b'M', 0]);
    block.extend([0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0]);
    block.extend([0; 4]);
    block
}

#[test]
fn a_progressive_jpeg_becomes_baseline_and_no_pixel_of_it_changes() {
    let rules = normalise(JpegRule::Baseline, MetadataRule::Keep);
    let colors = [ColorType::Rgb, ColorType::Luma, ColorType::Cmyk, ColorType::CmykAsYcck];
    let samplings = [SamplingFactor::F_1_1, SamplingFactor::F_2_2, SamplingFactor::F_2_1];
    for (color, sampling) in colors.into_iter().flat_map(|c| samplings.map(|s| (c, s))) {
        // No decoder of this build reads CMYK with planes of unequal size, so none reaches this rule.
        if color == ColorType::Cmyk && sampling != SamplingFactor::F_1_1 {
            continue;
        }
        for (width, height) in [(64, 48), (67, 41), (9, 130)] {
            let source = jpeg(width, height, color, |encoder| {
                encoder.set_progressive(true);
                encoder.set_sampling_factor(sampling);
                encoder.add_app_segment(12, b"a note".to_vec()).unwrap();
            });
            let case = format!("{color:?} {sampling:?} {width}x{height}");
            let stored = prepared(RecordKind::ImageText, &source, &rules).remove(0);
            assert_eq!(stored.normalised.as_deref(), Some("baseline"), "{case}");
            let bytes = stored.changed.unwrap();
            let (meta, picture) = read_image(&bytes, &limits()).unwrap();
            assert!(!meta.progressive, "{case}");
            assert_eq!(picture, pixels(&source), "{case}");
            assert!(bytes.windows(6).any(|w| w == b"a note"), "{case}");
            let Facts::Image(facts) = stored.facts else { panic!("{case}") };
            assert_eq!(facts, meta, "{case}");
        }
    }
}

#[test]
fn what_no_rule_touches_is_not_copied() {
    let baseline = jpeg(40, 30, ColorType::Rgb, |_| {});
    let progressive = jpeg(40, 30, ColorType::Rgb, |encoder| encoder.set_progressive(true));
    let cases = [
        (&baseline, normalise(JpegRule::Baseline, MetadataRule::Keep)),
        (&baseline, normalise(JpegRule::Baseline, MetadataRule::Strip)),
        (&progressive, MediaRules::default()),
        (&progressive, normalise(JpegRule::Keep, MetadataRule::Strip)),
    ];
    for (bytes, rules) in cases {
        let stored = prepared(RecordKind::ImageText, bytes, &rules).remove(0);
        assert!(stored.changed.is_none() && stored.normalised.is_none(), "{rules:?}");
    }
}

#[test]
fn a_stripped_jpeg_keeps_its_orientation_and_its_colour_profile() {
    for (orientation, progressive) in [(1, false), (6, false), (3, true)] {
        let mut source = jpeg(40, 30, ColorType::Rgb, |encoder| {
            encoder.set_progressive(progressive);
            encoder.add_exif_metadata(&camera_exif(orientation)).unwrap();
            encoder.add_icc_profile(b"a colour profile").unwrap();
            encoder.add_app_segment(13, b"Photoshop 3.0 of somebody".to_vec()).unwrap();
        });
        source.extend(b"what a camera leaves behind the end");
        let rules = normalise(JpegRule::Baseline, MetadataRule::Strip);
        let stored = prepared(RecordKind::ImageText, &source, &rules).remove(0);
        let done = if progressive { "baseline+metadata" } else { "metadata" };
        assert_eq!(stored.normalised.as_deref(), Some(done));
        let bytes = stored.changed.unwrap();
        let holds = |text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
        assert!(holds(b"a colour profile") && holds(b"JFIF"));
        assert!(!holds(b"CAM") && !holds(b"Photoshop") && !holds(b"somebody") && !holds(b"camera leaves"));
        let (meta, picture) = read_image(&bytes, &limits()).unwrap();
        assert_eq!((meta.orientation, picture), (orientation, pixels(&source)));
        assert!(prepared(RecordKind::ImageText, &bytes, &rules)[0].changed.is_none());
        assert_eq!(meta.height > meta.width, orientation == 6);
    }
}

#[test]
fn a_stripped_png_or_webp_keeps_its_pixels_and_its_orientation() {
    let rules = normalise(JpegRule::Keep, MetadataRule::Strip);
    let picture = photo(31, 22);
    let chunk = |kind: &[u8; 4], body: &[u8]| {
        let mut checksum = flate2::Crc::new();
        checksum.update(kind);
        checksum.update(body);
        [&(body.len() as u32).to_be_bytes(), kind, body, &checksum.sum().to_be_bytes()].concat()
    };
    let plain = png_bytes(&picture).unwrap();
    // Signature and IHDR take 33 bytes.
    let (head, rest) = plain.split_at(33);
    let extra = [
        chunk(b"gAMA", &45_455_u32.to_be_bytes()),
        chunk(b"tEXt", b"Author\0somebody"),
        chunk(b"eXIf", &camera_exif(8)),
    ];
    let png = [head, &extra.concat(), rest, b"behind the end"].concat();
    let vp8l = &webp_bytes(&picture).unwrap()[12..];
    let riff = |chunks: &[u8]| [b"RIFF", (chunks.len() as u32 + 4).to_le_bytes().as_slice(), b"WEBP", chunks].concat();
    let block = camera_exif(8);
    let webp = riff(
        &[
            b"VP8X\x0a\0\0\0\x0c\0\0\0\x1e\0\0\x15\0\0".as_slice(),
            vp8l,
            b"EXIF",
            &(block.len() as u32).to_le_bytes(),
            &block,
            b"XMP \x08\0\0\0somebody",
        ]
        .concat(),
    );
    for (name, source) in [("png", png), ("webp", webp)] {
        let stored = prepared(RecordKind::ImageText, &source, &rules).remove(0);
        assert_eq!(stored.normalised.as_deref(), Some("metadata"), "{name}");
        let bytes = stored.changed.unwrap();
        let (meta, got) = read_image(&bytes, &limits()).unwrap();
        assert_eq!((meta.orientation, meta.width, got), (8, 22, pixels(&source)), "{name}");
        let holds = |text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
        assert!(!holds(b"somebody") && !holds(b"CAM") && !holds(b"behind the end"), "{name}");
        assert_eq!(holds(b"gAMA"), name == "png");
        // Once more, and nothing is left to strip.
        assert!(prepared(RecordKind::ImageText, &bytes, &rules)[0].changed.is_none(), "{name}");
    }
}

#[test]
fn the_smallest_exif_block_is_one_that_decoders_read() {
    for orientation in 0..=9 {
        let block = exif::orientation_only(orientation);
        let read = block.as_deref().and_then(image::metadata::Orientation::from_exif_chunk);
        assert_eq!(
            read.map(image::metadata::Orientation::to_exif),
            (2..=8).contains(&orientation).then_some(orientation)
        );
    }
}

#[test]
fn a_damaged_progressive_jpeg_is_refused_or_coded_whole() {
    let source = jpeg(96, 80, ColorType::Rgb, |encoder| encoder.set_progressive(true));
    let (mut n_refused, mut n_coded) = (0, 0);
    for at in (2..source.len()).step_by(3) {
        let mut flipped = source.clone();
        flipped[at] ^= 1 << (at % 8);
        for damaged in [flipped.as_slice(), &source[..at]] {
            match coefficients::to_baseline(damaged) {
                Ok(coded) => {
                    assert!(coded.starts_with(&[0xFF, 0xD8]) && coded.ends_with(&[0xFF, 0xD9]), "{at}");
                    n_coded += 1;
                }
                Err(_) => n_refused += 1,
            }
        }
    }
    assert!(n_refused > source.len() / 3 && n_coded > 0, "{n_refused} {n_coded}");
    for nothing in [&b""[..], b"\xff\xd8", b"not a picture at all", &[0xFF; 40]] {
        assert!(coefficients::to_baseline(nothing).is_err());
    }
}

#[test]
fn a_picture_is_made_as_small_as_the_rule_says_and_no_smaller_one_is_touched() {
    let rule = |side: Side, only_if_larger: bool, format: PictureFormat| MediaRules {
        reencode: Some(Reencode { side, only_if_larger, quality: 95, format }),
        ..MediaRules::default()
    };
    let cases = [
        ((300, 200), rule(Side::Shorter(100), true, PictureFormat::Jpeg), Some((150, 100))),
        ((200, 300), rule(Side::Longest(100), true, PictureFormat::Png), Some((67, 100))),
        ((300, 200), rule(Side::Shorter(200), true, PictureFormat::Jpeg), None),
        ((300, 200), rule(Side::Shorter(400), true, PictureFormat::Jpeg), None),
        ((30, 20), rule(Side::Shorter(40), false, PictureFormat::Jpeg), Some((60, 40))),
        ((3000, 2), rule(Side::Longest(100), true, PictureFormat::Jpeg), Some((100, 1))),
    ];
    for ((width, height), rules, wanted) in cases {
        let source = png_bytes(&photo(width, height)).unwrap();
        let stored = prepared(RecordKind::ImageText, &source, &rules).remove(0);
        assert_eq!(stored.changed.is_some(), wanted.is_some(), "{rules:?}");
        let Facts::Image(facts) = &stored.facts else { panic!() };
        let (w, h) = wanted.unwrap_or((width as usize, height as usize));
        assert_eq!((facts.width, facts.height), (w, h));
        if let (Some(bytes), Some(Pixels::Rgb(coded))) = (&stored.changed, &stored.pixels) {
            let (meta, picture) = read_image(bytes, &limits()).unwrap();
            assert_eq!((&meta, picture.width, picture.height), (facts, coded.width, coded.height));
            // PNG loses nothing; JPEG at quality 95 keeps brightness to a few levels, whatever half of the colours it drops.
            let luma = |p: &[u8; 3]| (299 * i64::from(p[0]) + 587 * i64::from(p[1]) + 114 * i64::from(p[2])) / 1000;
            let pairs = picture.rgb.as_chunks::<3>().0.iter().zip(coded.rgb.as_chunks::<3>().0);
            let off: i64 = pairs.map(|(a, b)| (luma(a) - luma(b)).abs()).sum();
            let allowed = if meta.format == "png" { 0 } else { 4 * (w * h) as i64 };
            assert!(off <= allowed, "{rules:?}: {off} levels over {w} x {h} pixels");
        }
    }
}

#[test]
fn a_jpeg_made_smaller_by_its_planes_is_the_one_made_smaller_by_its_pixels() {
    let wave = |x: u32, y: u32, u: f32, v: f32| (128.0 + 90.0 * (x as f32 * u + y as f32 * v).sin()) as u8;
    let samplings = [SamplingFactor::F_1_1, SamplingFactor::F_2_1, SamplingFactor::F_1_2, SamplingFactor::F_2_2];
    // Odd sides before and after, a reduction that is decoded at 1, 1/2, 1/4, and an enlargement.
    let sizes = [((640, 480), 256), ((511, 385), 101), ((1201, 901), 133), ((1333, 777), 75), ((60, 45), 101)];
    for sampling in samplings {
        for ((width, height), to) in sizes {
            let source = RgbImage::from_fn(width, height, |x, y| {
                image::Rgb([wave(x, y, 0.01, 0.02), wave(x, y, 0.02, 0.004), wave(x, y, 0.013, 0.015)])
            });
            let mut bytes = Vec::new();
            let mut encoder = Encoder::new(&mut bytes, 95);
            encoder.set_sampling_factor(sampling);
            encoder.encode(&source, width as u16, height as u16, ColorType::Rgb).unwrap();
            let side = Side::Shorter(to);
            let rule = Reencode { side, only_if_larger: false, quality: 98, format: PictureFormat::Jpeg };
            let (by_pixels, facts, _) = shrink::shrink(&Pixels::Rgb(pixels(&bytes)), &rule).unwrap().unwrap();
            let rules = MediaRules { reencode: Some(rule), ..MediaRules::default() };
            let stored = prepared(RecordKind::ImageText, &bytes, &rules).remove(0);
            assert!(matches!(stored.pixels, Some(Pixels::Planes(_))), "{sampling:?}");
            let Facts::Image(of_planes) = &stored.facts else { panic!() };
            assert_eq!(*of_planes, facts);
            let (by_planes, by_pixels) = (pixels(&stored.changed.unwrap()), pixels(&by_pixels));
            assert_eq!((by_planes.width, by_planes.height), (by_pixels.width, by_pixels.height));
            // Everywhere, edges included: a plane half a pixel aside would be 4 levels off on average at the greatest reduction.
            let off = by_planes.rgb.iter().zip(&by_pixels.rgb).map(|(a, b)| a.abs_diff(*b));
            let (worst, sum) = off.fold((0, 0.0), |(worst, sum), off| (off.max(worst), sum + f64::from(off)));
            let mean = sum / by_pixels.rgb.len() as f64;
            assert!(
                worst <= 10 && mean < 1.2,
                "{sampling:?} {width} x {height} to {to}: {worst} at most, {mean:.2} on average"
            );
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(128))]
    /// What stands for decoding every picture that was coded: any pixels, any size, any quality.
    #[test]
    fn a_picture_that_was_coded_anew_always_decodes(
        width in 1_u32..70, height in 1_u32..70, quality in 1_u8..=100, to in 1_usize..90, seed: u64, smooth: bool,
    ) {
        let mut noise = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
        let mut source = RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 5) as u8, (y * 7) as u8, (x + y) as u8]));
        if !smooth {
            noise.fill(&mut source);
        }
        let side = Side::Longest(to);
        let reencode = Reencode { side, only_if_larger: false, quality, format: PictureFormat::Jpeg };
        let rules = MediaRules { reencode: Some(reencode), ..MediaRules::default() };
        let stored = prepared(RecordKind::ImageText, &png_bytes(&source).unwrap(), &rules).remove(0);
        if let Some(bytes) = &stored.changed {
            let (meta, _) = read_image(bytes, &limits()).unwrap();
            let Facts::Image(facts) = &stored.facts else { panic!() };
            proptest::prop_assert_eq!(&meta, facts);
        }
    }
}

#[test]
fn a_sound_becomes_flac_of_16_khz_with_the_same_wave() {
    let rules = MediaRules { flac: true, ..MediaRules::default() };
    for rate in [8_000, 16_000, 44_100, 48_000] {
        let wave: Vec<f32> =
            (0..rate).map(|i| (std::f32::consts::TAU * 440.0 * i as f32 / rate as f32).sin() * 0.5).collect();
        let stored = prepared(RecordKind::AudioText, &wav_bytes(&wave, rate).unwrap(), &rules).remove(0);
        let (meta, got) = read_audio(&stored.changed.unwrap(), &limits()).unwrap();
        assert_eq!((meta.sampling_rate, meta.channels, meta.codec.as_str()), (16_000, 1, "flac"));
        assert!(meta.num_samples.abs_diff(16_000) <= 1, "{rate}: {}", meta.num_samples);
        let Facts::Audio(facts) = stored.facts else { panic!() };
        assert_eq!(facts, meta);
        // The first and last 50 ms hold the filter's edges.
        let wanted = |i: usize| (std::f32::consts::TAU * 440.0 * i as f32 / 16_000.0).sin() * 0.5;
        let worst = (800..15_200).map(|i| (got.samples[i] - wanted(i)).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-3, "{rate}: {worst}");
    }
    let shortest = prepared(RecordKind::AudioText, &wav_bytes(&[0.5; 3], 16_000).unwrap(), &rules).remove(0);
    assert!(read_audio(&shortest.changed.unwrap(), &limits()).is_ok());
}

fn film(n_frames: u32, fps: f32) -> Vec<u8> {
    let frames: Vec<RgbImage> = (0..n_frames)
        .map(|i| RgbImage::from_fn(64, 48, |x, y| image::Rgb([(x * 3 + i * 9) as u8, (y * 4) as u8, (i * 5) as u8])))
        .collect();
    mp4_bytes(&frames, fps).unwrap()
}

/// Every frame, in the order shown.
fn frames(bytes: &[u8]) -> Vec<Picture> {
    let n = read_video(bytes, &limits()).unwrap().num_frames;
    let mut all = Vec::new();
    read_frames(bytes, &(0..n).collect::<Vec<_>>(), &limits(), &mut |_, picture| all.push(picture)).unwrap();
    all
}

const REMUX: MediaRules = MediaRules {
    normalise: Normalise { jpeg: JpegRule::Keep, metadata: MetadataRule::Keep, video: VideoRule::Remux },
    reencode: None,
    clip: None,
    flac: false,
};

#[test]
fn a_remuxed_film_has_its_index_first_and_the_same_frames() {
    let source = film(20, 10.0);
    let stored = prepared(RecordKind::VideoText, &source, &REMUX).remove(0);
    assert_eq!(stored.normalised.as_deref(), Some("remux"));
    let bytes = stored.changed.unwrap();
    let place = |kind: &[u8]| bytes.windows(4).position(|w| w == kind).unwrap();
    assert!(place(b"moov") < place(b"mdat"));
    let (before, after) = (read_video(&source, &limits()).unwrap(), read_video(&bytes, &limits()).unwrap());
    let Facts::Video(facts) = stored.facts else { panic!() };
    assert_eq!(facts, after);
    assert_eq!((before.num_frames, before.duration, before.fps), (after.num_frames, after.duration, after.fps));
    assert_eq!(frames(&source), frames(&bytes));
    // Written anew once more, nothing is left to change.
    let again = prepared(RecordKind::VideoText, &bytes, &REMUX).remove(0);
    assert!(again.changed.is_none() && again.normalised.is_none());
    // What another reader makes of it.
    let n_bytes = bytes.len() as u64;
    let reader = mp4::Mp4Reader::read_header(std::io::Cursor::new(bytes), n_bytes).unwrap();
    let track = reader.tracks().values().next().unwrap();
    assert_eq!((track.sample_count(), track.width(), track.height()), (20, 64, 48));
}

#[test]
fn a_film_is_cut_into_clips_that_begin_at_a_keyframe_and_hold_their_window() {
    let source = film(30, 10.0);
    let all = frames(&source);
    let clip =
        |seconds, stride_seconds| MediaRules { clip: Some(Clip { seconds, stride_seconds }), ..MediaRules::default() };
    // The one keyframe is the first frame; windows more than a length away from it are left out.
    let stored = prepared(RecordKind::VideoText, &source, &clip(1.0, 0.5));
    let got: Vec<(Option<usize>, usize)> =
        stored.iter().map(|s| (s.window_idx, frames(s.changed.as_deref().unwrap()).len())).collect();
    assert_eq!(got, [(Some(0), 10), (Some(1), 15), (Some(2), 20)]);
    for stored in &stored {
        let got = frames(stored.changed.as_deref().unwrap());
        assert_eq!(got, all[..got.len()]);
        let Facts::Video(facts) = &stored.facts else { panic!() };
        assert_eq!(facts, &read_video(stored.changed.as_deref().unwrap(), &limits()).unwrap());
        assert_eq!(stored.normalised.as_deref(), Some("clip"));
    }
    // A film that is shorter than a clip is one clip.
    let stored = prepared(RecordKind::VideoText, &source, &clip(10.0, 10.0));
    assert_eq!(stored.len(), 1);
    assert_eq!(frames(stored[0].changed.as_deref().unwrap()), all);
}

#[test]
fn damaged_films_are_refused_or_written_whole_and_never_panic() {
    let source = film(12, 10.0);
    let moov = source.windows(4).position(|w| w == b"moov").unwrap();
    for at in (moov..source.len()).step_by(2) {
        for value in [0, 0x7F, 0xFF] {
            let mut damaged = source.clone();
            damaged[at] = value;
            if let Ok(bytes) = remux::remux(&damaged, &limits()) {
                assert!(bytes.len() < 4 * source.len(), "{at}");
            }
        }
    }
    for n in (0..source.len()).step_by(97) {
        assert!(remux::remux(&source[..n], &limits()).is_err() || n > moov);
    }
}

#[test]
fn a_source_may_be_refused_before_anything_is_done_to_it() {
    let source = jpeg(40, 30, ColorType::Rgb, |_| {});
    let refuse = &mut |facts: &Facts| {
        let Facts::Image(image) = facts else { panic!() };
        assert_eq!((image.width, image.height), (40, 30));
        Err((imp_schemas::reject::RejectReason::AspectRatio, "no".to_owned()))
    };
    let got = prepare(RecordKind::ImageText, &source, &MediaRules::default(), &limits(), refuse);
    assert_eq!(got.unwrap_err().1, "no");
}
