//! Promises of `imp_schemas::media` on real encodings of made-up pictures, sounds and clips.
#![cfg_attr(feature = "media", expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do"))]
#![cfg(feature = "media")]

use std::io::Cursor;

use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use imp_schemas::media::{
    MediaError, MediaLimits, Picture, check_audio, read_audio, read_audio_part, read_frames, read_image, read_video,
};
use imp_schemas::reject::RejectReason;
use testkit::media::{flac_bytes, jpeg_bytes, mp4_bytes, png_bytes, wav_bytes, webp_bytes};

const LIMITS: MediaLimits = MediaLimits { max_pixels: 1 << 20, max_frames: 100, max_samples: 100_000 };

/// A smooth picture with a dark upper left corner, so that JPEG keeps it and a turn is seen.
fn slope(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
        Rgb([(40.0 + 200.0 * x) as u8, (40.0 + 200.0 * y) as u8, 90])
    })
}

fn clip(n_frames: u32) -> Vec<RgbImage> {
    (0..n_frames).map(|i| RgbImage::from_pixel(64, 48, Rgb([(20 + 20 * i) as u8; 3]))).collect()
}

fn tone(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.05).sin() * 0.5).collect()
}

fn reason(error: MediaError) -> RejectReason {
    error.reason()
}

fn pixels(bytes: &[u8]) -> RgbImage {
    let (meta, picture) = read_image(bytes, &LIMITS).unwrap();
    assert_eq!((meta.width, meta.height), (picture.width, picture.height));
    RgbImage::from_raw(picture.width as u32, picture.height as u32, picture.rgb).unwrap()
}

fn largest_difference(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

fn encoded(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn checking_a_sound_says_what_reading_it_says() {
    let whole = flac_bytes(&tone(9_000), 16_000).unwrap();
    let wav = wav_bytes(&tone(5_000), 8_000).unwrap();
    for bytes in [&whole[..], &whole[..whole.len() / 2], &wav, &wav[..300], b"no sound"] {
        let read = read_audio(bytes, &LIMITS).map(|(meta, _)| meta);
        assert_eq!(check_audio(bytes, &LIMITS), read);
    }
    let few = MediaLimits { max_samples: 4_000, ..LIMITS };
    assert!(matches!(check_audio(&wav, &few), Err(MediaError::TooLarge { .. })));
}

#[test]
fn lossless_pictures_come_back_exactly() {
    let picture = slope(37, 23);
    for bytes in
        [png_bytes(&picture).unwrap(), webp_bytes(&picture).unwrap(), encoded(picture.clone().into(), ImageFormat::Bmp)]
    {
        assert_eq!(pixels(&bytes), picture);
    }
    let sixteen = DynamicImage::ImageRgb8(picture.clone()).into_rgb16();
    assert_eq!(pixels(&encoded(sixteen.into(), ImageFormat::Png)), picture);
}

#[test]
fn a_jpeg_is_recognised_by_its_bytes_and_stays_close() {
    let picture = slope(64, 40);
    let bytes = jpeg_bytes(&picture, 95).unwrap();
    // A smooth slope at quality 95 is quantised by at most a few levels.
    assert!(largest_difference(&pixels(&bytes), &picture) <= 6);
    assert_eq!(read_image(&bytes, &LIMITS).unwrap().0.format, "jpeg");
}

#[test]
fn grey_is_replicated_and_alpha_is_laid_over_white() {
    let grey = DynamicImage::ImageRgb8(slope(16, 16)).into_luma8();
    let got = pixels(&encoded(grey.clone().into(), ImageFormat::Png));
    assert!(got.pixels().zip(grey.pixels()).all(|(rgb, g)| rgb.0 == [g.0[0]; 3]));
    let half = RgbaImage::from_fn(2, 1, |x, _| if x == 0 { Rgba([10, 20, 30, 0]) } else { Rgba([0, 100, 200, 128]) });
    let got = pixels(&encoded(half.into(), ImageFormat::Png));
    assert_eq!(got.get_pixel(0, 0).0, [255, 255, 255]);
    assert_eq!(got.get_pixel(1, 0).0, [127, 177, 227]);
}

#[test]
fn the_first_frame_of_a_gif_is_its_picture() {
    let mut bytes = Vec::new();
    {
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
        for grey in [50, 200] {
            let frame = RgbaImage::from_pixel(8, 8, Rgba([grey, grey, grey, 255]));
            encoder.encode_frame(image::Frame::new(frame)).unwrap();
        }
    }
    assert_eq!(pixels(&bytes).get_pixel(3, 3).0, [50; 3]);
}

#[test]
fn a_gif_frame_larger_than_its_screen_is_refused_before_it_is_held() {
    // Found by fuzzing: a screen of one pixel, and a frame of 61,697 x 61,937 that took 15 GB to hold.
    let mut gif = b"GIF87a\x01\0\x01\0\0\0\0,\0\0\0\0".to_vec();
    gif.extend([0x01, 0xF1, 0xF1, 0xF1, 0x80, 0, 0, 0, 255, 255, 255, 2, 2, 0x44, 0x01, 0, b';']);
    let start = std::time::Instant::now();
    assert_eq!(reason(read_image(&gif, &LIMITS).unwrap_err()), RejectReason::Corrupt);
    // Filling that frame takes seconds.
    assert!(start.elapsed().as_secs_f64() < 1.0);
}

#[test]
fn every_exif_orientation_is_undone() {
    let picture = slope(48, 32);
    for number in 1..=8_u8 {
        let mut bytes = jpeg_bytes(&picture, 95).unwrap();
        // APP1 with one TIFF directory of one entry: tag 0x112, one short.
        let mut exif = b"Exif\0\0MM\0\x2A\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([number, 0, 0, 0, 0, 0, 0]);
        let mut segment = vec![0xFF, 0xE1];
        segment.extend(((exif.len() + 2) as u16).to_be_bytes());
        segment.extend(exif);
        bytes.splice(2..2, segment);
        let (meta, _) = read_image(&bytes, &LIMITS).unwrap();
        assert_eq!(meta.orientation, number);
        let mut wanted = DynamicImage::ImageRgb8(picture.clone());
        wanted.apply_orientation(image::metadata::Orientation::from_exif(number).unwrap());
        assert!(largest_difference(&pixels(&bytes), &wanted.into_rgb8()) <= 6, "orientation {number}");
    }
}

#[test]
fn a_picture_is_refused_by_its_header_before_its_pixels_are_held() {
    let mut png = png_bytes(&slope(8, 8)).unwrap();
    png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    assert!(matches!(read_image(&png, &LIMITS), Err(MediaError::TooLarge { found: 0x1_0000_0000, .. })));
    let mut jpeg = jpeg_bytes(&slope(8, 8), 90).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF]);
    assert_eq!(reason(read_image(&jpeg, &LIMITS).unwrap_err()), RejectReason::TooLarge);
    // Below the limit, but more than the file's bytes can hold.
    jpeg[frame + 5..frame + 9].copy_from_slice(&[3, 0xFF, 3, 0xFF]);
    assert_eq!(reason(read_image(&jpeg, &LIMITS).unwrap_err()), RejectReason::Truncated);
}

#[test]
fn a_cut_picture_is_refused_at_every_length() {
    let picture = slope(40, 24);
    // The checksum of a PNG's end chunk and a WebP's padding are not waited for: every row is there.
    for (bytes, tail) in
        [(jpeg_bytes(&picture, 90).unwrap(), 0), (png_bytes(&picture).unwrap(), 4), (webp_bytes(&picture).unwrap(), 1)]
    {
        for n in 0..bytes.len() - tail {
            assert!(read_image(&bytes[..n], &LIMITS).is_err(), "{n} of {} bytes decode", bytes.len());
        }
    }
}

#[test]
fn what_is_no_medium_is_named() {
    let html = b"<html><body>404 Not Found</body></html>";
    assert_eq!(reason(read_image(html, &LIMITS).unwrap_err()), RejectReason::UnknownFormat);
    assert_eq!(reason(read_audio(html, &LIMITS).unwrap_err()), RejectReason::UnknownFormat);
    assert_eq!(reason(read_video(html, &LIMITS).unwrap_err()), RejectReason::UnknownFormat);
    let text = read_image(html, &LIMITS).unwrap_err().to_string();
    assert!(text.contains("<html>"), "{text}");
    for read in [
        |b: &[u8]| read_image(b, &LIMITS).err(),
        |b: &[u8]| read_audio(b, &LIMITS).err(),
        |b: &[u8]| read_video(b, &LIMITS).err(),
    ] {
        assert_eq!(read(&[]), Some(MediaError::Empty));
    }
}

#[test]
fn sounds_come_back_with_their_length_and_rate() {
    let samples = tone(20_000);
    for (bytes, codec) in
        [(wav_bytes(&samples, 16_000).unwrap(), "pcm_s16le"), (flac_bytes(&samples, 16_000).unwrap(), "flac")]
    {
        let (meta, sound) = read_audio(&bytes, &LIMITS).unwrap();
        assert_eq!((meta.sampling_rate, meta.channels, meta.num_samples), (16_000, 1, 20_000), "{codec}");
        assert_eq!((meta.codec.as_str(), sound.sampling_rate), (codec, 16_000));
        assert!((meta.duration - 1.25).abs() < 1e-9);
        // 16 bits of full scale ±1.
        let worst = sound.samples.iter().zip(&samples).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1.0 / 16_000.0, "{codec}: {worst}");
    }
}

/// A WAV by hand: `format` 1 is whole numbers, 3 floats.
fn wav(format: u16, channels: u16, bits: u16, body: &[u8]) -> Vec<u8> {
    let block = channels * bits / 8;
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0");
    bytes.extend([format, channels].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend([8_000, 8_000 * u32::from(block)].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend([block, bits].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend(b"data");
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn every_width_of_pcm_is_read_at_full_scale() {
    let cases: [(u16, u16, Vec<u8>); 5] = [
        (1, 8, vec![128 + 64]),
        (1, 16, (1_i16 << 14).to_le_bytes().to_vec()),
        (1, 24, vec![0, 0, 0x40]),
        (1, 32, (1_i32 << 30).to_le_bytes().to_vec()),
        (3, 32, 0.5_f32.to_le_bytes().to_vec()),
    ];
    for (format, bits, half) in cases {
        let (_, sound) = read_audio(&wav(format, 1, bits, &half.repeat(100)), &LIMITS).unwrap();
        assert_eq!(sound.samples.len(), 100);
        assert!((sound.samples[7] - 0.5).abs() < 1e-6, "{bits} bits: {}", sound.samples[7]);
    }
}

/// Samples of 16 bits are read by us, those of 24 by symphonia.
#[test]
fn sixteen_bits_of_pcm_are_what_the_same_in_24_are_to_the_bit() {
    let values: Vec<i16> = (0..30_000).map(|i| (i * 7919 % 65_536 - 32_768) as i16).collect();
    for channels in [1, 2, 3, 6] {
        let narrow: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let wide: Vec<u8> = values.iter().flat_map(|v| [0, v.to_le_bytes()[0], v.to_le_bytes()[1]]).collect();
        let (narrow, wide) = (wav(1, channels, 16, &narrow), wav(1, channels, 24, &wide));
        let ((meta, ours), (other_meta, theirs)) =
            (read_audio(&narrow, &LIMITS).unwrap(), read_audio(&wide, &LIMITS).unwrap());
        assert_eq!(ours, theirs, "{channels}");
        assert_eq!((meta.codec.as_str(), meta.channels), ("pcm_s16le", usize::from(channels)));
        assert_eq!((meta.num_samples, meta.duration), (other_meta.num_samples, other_meta.duration));
        assert_eq!(check_audio(&narrow, &LIMITS).unwrap(), meta);
        let n = meta.num_samples;
        for part in [0..1, 2047..2049, 3000..n, 0..n, n - 1..n] {
            let got = read_audio_part(&narrow, &LIMITS, part.clone()).unwrap();
            assert_eq!(got.samples, theirs.samples[part.start as usize..part.end as usize], "{part:?}");
        }
        for part in [0..n + 1, n + 5..n + 7] {
            assert!(matches!(read_audio_part(&narrow, &LIMITS, part), Err(MediaError::Truncated { .. })));
        }
    }
}

/// A WAV whose format is an identifier further on.
fn extensible(valid_bits: u16, identifier: u8, body: &[u8]) -> Vec<u8> {
    let plain = wav(0xFFFE, 1, 16, body);
    let (head, tail) = plain.split_at(36);
    let mut bytes = head.to_vec();
    bytes[16..20].copy_from_slice(&40_u32.to_le_bytes());
    bytes.extend([22, 0]);
    bytes.extend(valid_bits.to_le_bytes());
    bytes.extend([4, 0, 0, 0]);
    bytes.extend([identifier, 0, 0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xAA, 0, 0x38, 0x9B, 0x71]);
    bytes.extend(tail);
    bytes
}

#[test]
fn sixteen_bits_behind_an_identifier_are_what_symphonia_makes_of_them() {
    let body = 1024_i16.to_le_bytes().repeat(50);
    let (_, plain) = read_audio(&wav(1, 1, 16, &body), &LIMITS).unwrap();
    assert_eq!(read_audio(&extensible(16, 1, &body), &LIMITS).unwrap().1, plain);
    // Where fewer bits count symphonia reads it.
    assert_eq!(read_audio(&extensible(12, 1, &body), &LIMITS).unwrap().1, plain);
    assert!(read_audio(&extensible(16, 99, &body), &LIMITS).is_err());
}

#[test]
fn channels_are_mixed_to_their_mean() {
    let body: Vec<u8> = [0.5_f32, -0.25, 0.0].iter().flat_map(|s| s.to_le_bytes()).collect();
    let (meta, sound) = read_audio(&wav(3, 3, 32, &body.repeat(50)), &LIMITS).unwrap();
    assert_eq!((meta.channels, meta.num_samples), (3, 50));
    assert!((sound.samples[0] - 0.25 / 3.0).abs() < 1e-6);
}

/// A Sun file by hand, with four bytes of comment.
fn au(encoding: u32, channels: u32, claimed: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = b".snd".to_vec();
    bytes.extend([28, claimed, encoding, 8_000, channels].iter().flat_map(|n| n.to_be_bytes()));
    bytes.extend(b"abc\0");
    bytes.extend(body);
    bytes
}

#[test]
fn every_encoding_of_au_is_read_at_full_scale() {
    let cases: [(u32, Vec<u8>); 6] = [
        (2, vec![64]),
        (3, (1_i16 << 14).to_be_bytes().to_vec()),
        (4, vec![0x40, 0, 0]),
        (5, (1_i32 << 30).to_be_bytes().to_vec()),
        (6, 0.5_f32.to_be_bytes().to_vec()),
        (7, 0.5_f64.to_be_bytes().to_vec()),
    ];
    for (encoding, half) in cases {
        let body = half.repeat(100);
        for claimed in [body.len() as u32, u32::MAX] {
            let (meta, sound) = read_audio(&au(encoding, 1, claimed, &body), &LIMITS).unwrap();
            assert_eq!((meta.sampling_rate, meta.num_samples), (8_000, 100), "encoding {encoding}");
            assert!((sound.samples[7] - 0.5).abs() < 1e-6, "encoding {encoding}: {}", sound.samples[7]);
        }
    }
    // G.711: all ones is silence in mu-law; in A-law it is 0x55 with its sign bit, one step from silence.
    assert_eq!(read_audio(&au(1, 2, 200, &[0xFF; 200]), &LIMITS).unwrap().1.samples, [0.0; 100]);
    let (_, a_law) = read_audio(&au(27, 1, 100, &[0xD5; 100]), &LIMITS).unwrap();
    assert!(a_law.samples.iter().all(|s| s.abs() < 1e-3));
    assert_eq!(reason(read_audio(&au(3, 1, 300, &[0; 200]), &LIMITS).unwrap_err()), RejectReason::Truncated);
    assert_eq!(reason(read_audio(&au(3, 0, 200, &[0; 200]), &LIMITS).unwrap_err()), RejectReason::Corrupt);
    assert_eq!(reason(read_audio(&au(3, 1 << 20, 200, &[0; 200]), &LIMITS).unwrap_err()), RejectReason::Corrupt);
    assert_eq!(reason(read_audio(&au(99, 1, 200, &[0; 200]), &LIMITS).unwrap_err()), RejectReason::UnsupportedCodec);
    for n in 0..28 {
        assert!(read_audio(&au(3, 1, 200, &[0; 200])[..n], &LIMITS).is_err());
    }
}

/// One page of an Ogg stream; RFC 3533, 6.
fn ogg_page(flags: u8, granule: u64, page_idx: u32, packets: &[&[u8]]) -> Vec<u8> {
    let mut page = b"OggS\0".to_vec();
    page.push(flags);
    page.extend(granule.to_le_bytes());
    page.extend([7, page_idx, 0].iter().flat_map(|n| n.to_le_bytes()));
    page.push(packets.len() as u8);
    page.extend(packets.iter().map(|p| p.len() as u8));
    page.extend(packets.concat());
    let crc = page.iter().fold(0_u32, |crc, &byte| {
        (0..8).fold(crc ^ (u32::from(byte) << 24), |crc, _| {
            if crc & 0x8000_0000 == 0 { crc << 1 } else { (crc << 1) ^ 0x04C1_1DB7 }
        })
    });
    page[22..26].copy_from_slice(&crc.to_le_bytes());
    page
}

/// An Ogg Opus file of silent packets of 20 ms, that says it ends at `granule`.
fn ogg_opus(channels: u8, n_packets: usize, granule: u64, last_flags: u8) -> Vec<u8> {
    let mut head = b"OpusHead\x01".to_vec();
    head.push(channels);
    // Pre-skip 312, input rate 48 kHz, no gain, mapping family 0.
    head.extend([0x38, 0x01, 0x80, 0xBB, 0, 0, 0, 0, 0]);
    // CELT, fullband, 20 ms, mono or stereo, then the code of silence.
    let packet: &[u8] = if channels == 1 { &[0xF8, 0xFF, 0xFE] } else { &[0xFC, 0xFF, 0xFE] };
    let mut file = ogg_page(2, 0, 0, &[&head]);
    file.extend(ogg_page(0, 0, 1, &[b"OpusTags\0\0\0\0\0\0\0\0"]));
    file.extend(ogg_page(0, 960, 2, &[packet]));
    file.extend(ogg_page(last_flags, granule, 3, &vec![packet; n_packets - 1]));
    file
}

#[test]
fn opus_begins_behind_its_lead_in_and_ends_where_the_last_page_says() {
    for channels in [1, 2] {
        for (granule, wanted) in [(9_600, 9_600 - 312), (9_000, 9_000 - 312)] {
            let (meta, sound) =
                read_audio(&ogg_opus(channels, 10, granule, 4), &LIMITS).unwrap_or_else(|e| panic!("{granule}: {e}"));
            assert_eq!((meta.codec.as_str(), meta.sampling_rate), ("opus", 48_000));
            assert_eq!((meta.channels, sound.samples.len()), (usize::from(channels), wanted), "{granule}");
            assert!(sound.samples.iter().all(|s| s.abs() < 1e-3));
        }
    }
    assert_eq!(reason(read_audio(&ogg_opus(1, 10, 9_600, 0), &LIMITS).unwrap_err()), RejectReason::Truncated);
    // A page is missing in the middle, or holds packets that are not counted.
    assert_eq!(reason(read_audio(&ogg_opus(1, 10, 12_000, 4), &LIMITS).unwrap_err()), RejectReason::Corrupt);
    assert_eq!(reason(read_audio(&ogg_opus(1, 60, 900, 4), &LIMITS).unwrap_err()), RejectReason::Corrupt);
    let file = ogg_opus(2, 10, 9_600, 4);
    for n in 0..file.len() {
        assert!(read_audio(&file[..n], &LIMITS).is_err(), "{n} of {} bytes decode", file.len());
        let mut damaged = file.clone();
        damaged[n] = damaged[n].wrapping_add(0x55);
        assert!(read_audio(&damaged, &LIMITS).is_err() || n < 58, "byte {n} is changed and it decodes");
    }
}

#[test]
fn a_sample_that_is_no_number_is_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        let body: Vec<u8> = [0.1_f32, bad, 0.1].iter().flat_map(|s| s.to_le_bytes()).collect();
        assert_eq!(reason(read_audio(&wav(3, 1, 32, &body), &LIMITS).unwrap_err()), RejectReason::Corrupt);
    }
}

#[test]
fn lying_wav_headers_are_refused_and_streamed_ones_read() {
    let good = wav(1, 1, 16, &[1, 0].repeat(500));
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        read_audio(&bytes, &LIMITS)
    };
    assert_eq!(reason(changed(22, &[0, 0]).unwrap_err()), RejectReason::Corrupt);
    assert_eq!(reason(changed(22, &[0xFF, 0xFF]).unwrap_err()), RejectReason::Corrupt);
    assert_eq!(reason(changed(24, &[0; 4]).unwrap_err()), RejectReason::Corrupt);
    assert_eq!(reason(changed(40, &[0, 0, 0, 0x10]).unwrap_err()), RejectReason::Truncated);
    assert_eq!(reason(changed(20, &[0x34, 0x12]).unwrap_err()), RejectReason::UnsupportedCodec);
    assert_eq!(changed(40, &[0xFF; 4]).unwrap().0.num_samples, 500);
    // An odd chunk before the samples is padded to even length.
    let mut odd = good.clone();
    odd.splice(36..36, *b"LIST\x03\0\0\0abc\0");
    assert_eq!(read_audio(&odd, &LIMITS).unwrap().0.num_samples, 500);
    assert_eq!(reason(read_audio(&wav(1, 1, 16, &[]), &LIMITS).unwrap_err()), RejectReason::Corrupt);
    let long = wav(1, 1, 16, &[1, 0].repeat(100_001));
    assert_eq!(reason(read_audio(&long, &LIMITS).unwrap_err()), RejectReason::TooLarge);
}

#[test]
fn a_cut_sound_is_refused_at_every_length() {
    for bytes in [wav_bytes(&tone(3_000), 8_000).unwrap(), flac_bytes(&tone(9_000), 8_000).unwrap()] {
        assert!(read_audio(&bytes, &LIMITS).is_ok());
        // Three bytes may be the tail of a checksum that a decoder does not wait for.
        for n in (0..bytes.len() - 3).step_by(7) {
            assert!(read_audio(&bytes[..n], &LIMITS).is_err(), "{n} of {} bytes decode", bytes.len());
        }
    }
}

fn frames(bytes: &[u8], wanted: &[usize]) -> Result<Vec<(usize, Picture)>, MediaError> {
    let mut taken = Vec::new();
    read_frames(bytes, wanted, &LIMITS, &mut |i, picture| taken.push((i, picture)))?;
    Ok(taken)
}

#[test]
fn a_clip_says_what_its_frames_are() {
    let bytes = mp4_bytes(&clip(10), 25.0).unwrap();
    let meta = read_video(&bytes, &LIMITS).unwrap();
    assert_eq!((meta.width, meta.height, meta.num_frames, meta.codec.as_str()), (64, 48, 10, "h264"));
    assert!((meta.fps - 25.0).abs() < 0.5 && (meta.duration - 0.4).abs() < 0.01, "{meta:?}");
    assert_eq!(meta.keyframes.first().map(|k| k.pts_us), Some(0));
    assert!(!meta.has_audio);
    assert_eq!(reason(read_audio(&bytes, &LIMITS).unwrap_err()), RejectReason::UnsupportedCodec);
}

#[test]
fn wanted_frames_come_in_order_with_their_own_pixels() {
    let bytes = mp4_bytes(&clip(10), 25.0).unwrap();
    let wanted = [0, 3, 3, 4, 9];
    let taken = frames(&bytes, &wanted).unwrap();
    assert_eq!(taken.iter().map(|(i, _)| *i).collect::<Vec<_>>(), wanted);
    for (i, picture) in taken {
        assert_eq!((picture.width, picture.height, picture.rgb.len()), (64, 48, 64 * 48 * 3));
        let grey = picture.rgb[(20 * 64 + 30) * 3];
        // A flat frame is coded within a few levels of quantisation.
        assert!(grey.abs_diff((20 + 20 * i) as u8) <= 8, "frame {i} is {grey}");
    }
    assert!(frames(&bytes, &[]).unwrap().is_empty());
    assert_eq!(reason(frames(&bytes, &[2, 10]).unwrap_err()), RejectReason::Truncated);
}

#[test]
fn a_clip_beyond_the_limits_is_refused() {
    let bytes = mp4_bytes(&clip(10), 25.0).unwrap();
    let few = MediaLimits { max_frames: 9, ..LIMITS };
    assert_eq!(reason(read_video(&bytes, &few).unwrap_err()), RejectReason::TooLarge);
    let small = MediaLimits { max_pixels: 64 * 47, ..LIMITS };
    assert_eq!(reason(read_video(&bytes, &small).unwrap_err()), RejectReason::TooLarge);
}

#[test]
fn a_cut_or_damaged_clip_is_an_error_or_whole_and_never_a_panic() {
    let bytes = mp4_bytes(&clip(6), 25.0).unwrap();
    for n in 0..bytes.len() {
        assert!(read_video(&bytes[..n], &LIMITS).is_err(), "{n} of {} bytes decode", bytes.len());
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] = damaged[at].wrapping_add(0x81);
        if let Ok(meta) = read_video(&damaged, &LIMITS) {
            assert!(meta.num_frames <= 6);
        }
    }
}

#[test]
fn a_damaged_picture_or_sound_never_panics() {
    let picture = slope(24, 24);
    let mut grey = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut grey)
        .write_image(&[77; 24 * 24], 24, 24, ExtendedColorType::L8)
        .unwrap();
    let pictures =
        [jpeg_bytes(&picture, 80).unwrap(), png_bytes(&picture).unwrap(), webp_bytes(&picture).unwrap(), grey];
    for bytes in pictures {
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] = damaged[at].wrapping_add(0x55);
            let _ = read_image(&damaged, &LIMITS);
        }
    }
    for bytes in [wav_bytes(&tone(200), 8_000).unwrap(), flac_bytes(&tone(4_500), 8_000).unwrap()] {
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] = damaged[at].wrapping_add(0x55);
            let _ = read_audio(&damaged, &LIMITS);
        }
    }
}

#[test]
#[cfg(not(feature = "ffmpeg"))]
fn codecs_outside_this_build_are_named_with_a_remedy() {
    let mut hevc = mp4_bytes(&clip(2), 25.0).unwrap();
    let at = hevc.windows(4).position(|w| w == b"avc1").map(|first| {
        // The brand list may name it too; the sample description is the last.
        hevc.windows(4).rposition(|w| w == b"avc1").unwrap_or(first)
    });
    hevc[at.unwrap()..][..4].copy_from_slice(b"hvc1");
    let error = read_video(&hevc, &LIMITS).unwrap_err();
    assert!(matches!(&error, MediaError::UnsupportedCodec { codec, .. } if codec == "hevc"), "{error}");
    assert!(error.to_string().contains("--features ffmpeg"), "{error}");
    assert!(error.to_string().contains("H.264"), "{error}");
}
