//! Promises of `imp_schemas::media` on files from the world, in the folder that IMP_SHARED names.
#![cfg_attr(real_data, expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do"))]
#![cfg(real_data)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use imp_schemas::media::{MediaError, MediaLimits, check_audio, read_audio, read_frames, read_image, read_video};
use safetensors::SafeTensors;

/// A folder or file of the shared data.
fn shared(path: &str) -> PathBuf {
    let root = std::env::var_os("IMP_SHARED").expect("IMP_SHARED names the folder with data/ and golden/");
    Path::new(&root).join(path)
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(shared(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Mean and greatest difference.
fn differences(a: &[u8], b: &[u8]) -> (f64, u8) {
    assert_eq!(a.len(), b.len());
    let each = || a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    (each().map(f64::from).sum::<f64>() / a.len() as f64, each().max().unwrap_or(0))
}

#[test]
fn pictures_decode_as_libjpeg_turbo_decodes_them() {
    let bytes = read("golden/image.safetensors");
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let cases: Vec<&str> = golden.names().into_iter().filter_map(|n| n.strip_suffix("/decoded")).collect();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let tensor = |name: &str| golden.tensor(&format!("{case}/{name}")).unwrap();
        let (meta, picture) = read_image(tensor("file").data(), &MediaLimits::default()).unwrap();
        let decoded = tensor("decoded");
        assert_eq!(decoded.shape(), [meta.height, meta.width, 3], "{case}");
        // golden/README.md allows JPEG another IDCT's rounding; ours is the same decoder.
        assert_eq!(differences(&picture.rgb, decoded.data()), (0.0, 0), "{case}");
        assert_eq!(meta.progressive, case == "progressive_420");
    }
}

#[test]
fn odd_pictures_decode_as_pillow_decodes_them() {
    let folder = shared("data/ref/decode");
    let mut n = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(source) = name.strip_suffix(".png") else { continue };
        // Pillow multiplies nothing by alpha and cuts 16 bits to 8, so these two are not the same picture.
        if ["variants_la8.png", "pillow_p_trns_single.png"].contains(&source) {
            continue;
        }
        let (folder, file) = source.split_once('_').unwrap();
        let bytes = read(&format!("data/bad/image/{folder}/{file}"));
        let (meta, got) = read_image(&bytes, &MediaLimits::default()).unwrap();
        let (wanted_meta, wanted) = read_image(&std::fs::read(&path).unwrap(), &MediaLimits::default()).unwrap();
        assert_eq!((meta.width, meta.height), (wanted_meta.width, wanted_meta.height), "{source}");
        assert_eq!(differences(&got.rgb, &wanted.rgb), (0.0, 0), "{source}");
        n += 1;
    }
    assert_eq!(n, 12);
}

fn video_reference() -> Vec<(String, String, usize, Vec<f64>)> {
    let json: serde_json::Value = serde_json::from_slice(&read("data/ref/video/frames.json")).unwrap();
    let clip = |clip: &serde_json::Value| {
        let pts = clip["pts"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let n_frames = clip["frames"].as_u64().unwrap() as usize;
        (text(&clip["path"]), text(&clip["stream"]["codec_name"]), n_frames, pts)
    };
    json["clips"].as_array().unwrap().iter().map(clip).collect()
}

#[test]
fn every_clip_has_the_frames_that_ffmpeg_counts() {
    let mut n_decoded = 0;
    for (path, codec, n_frames, pts) in video_reference() {
        let bytes = read(&format!("data/{path}"));
        let got = read_video(&bytes, &MediaLimits::default());
        if codec != "h264" && !cfg!(feature = "ffmpeg") {
            let error = got.expect_err(&path);
            assert!(
                matches!(&error, MediaError::UnsupportedCodec { codec: named, .. } if *named == codec),
                "{path}: {error}"
            );
            assert!(error.to_string().contains("--features ffmpeg"), "{path}: {error}");
            continue;
        }
        let meta = got.unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!((meta.num_frames, meta.codec.as_str()), (n_frames, codec.as_str()), "{path}");
        // Matroska does not say how long the last frame stays, and the clip of variable rate contradicts itself by 0.12 s.
        let shown = pts.last().unwrap() - pts.first().unwrap();
        assert!((meta.duration - shown).abs() < 0.2, "{path}: {} of {shown}", meta.duration);
        let starts = &meta.keyframes;
        assert_eq!(starts.first().map(|k| k.pts_us), Some(0), "{path}");
        // No frame begins before the container's first header has ended.
        assert!(starts.iter().all(|k| k.offset >= 8), "{path}: {starts:?}");
        n_decoded += 1;
    }
    assert_eq!(n_decoded, if cfg!(feature = "ffmpeg") { 12 } else { 9 });
}

/// Every file below a folder that is no list of the others.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![shared(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if !["csv", "jsonl", "txt"].contains(&extension.as_str()) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What the default build leaves to the feature `ffmpeg`.
const SYSTEM_SOUNDS: [&str; 4] = ["jfk4_ac3.ac3", "jfk4_ima_adpcm_16k.wav", "jfk4_ms_adpcm_16k.wav", "jfk4_wma2.wma"];

#[test]
fn every_sound_decodes_but_those_that_want_the_system_decoder() {
    let manifest = read("data/MANIFEST.csv");
    let seconds: std::collections::BTreeMap<String, f64> = csv::Reader::from_reader(&manifest[..])
        .records()
        .map(|row| row.unwrap())
        .filter_map(|row| Some((row[0].to_owned(), row[4].parse().ok()?)))
        .collect();
    let root = shared("data");
    let mut n = [0; 3];
    for (i, folder) in ["audio/codecs", "audio/instruments", "audio/grid"].into_iter().enumerate() {
        for path in files(&format!("data/{folder}")) {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let got = read_audio(&bytes, &MediaLimits::default());
            // Keeping no sample changes nothing else.
            let checked = check_audio(&bytes, &MediaLimits::default());
            assert_eq!(checked, got.as_ref().map(|(meta, _)| meta.clone()).map_err(Clone::clone), "{name}");
            if !cfg!(feature = "ffmpeg") && SYSTEM_SOUNDS.iter().any(|s| name.ends_with(s)) {
                assert!(matches!(got, Err(MediaError::UnsupportedCodec { .. })), "{name}: {got:?}");
                continue;
            }
            let (meta, sound) = got.unwrap_or_else(|e| panic!("{name}: {e}"));
            // ffprobe counts the lead-in and the tail that decoders drop, and guesses the length of bare AAC from its rate:
            // up to three frames of 1,152 samples at 22 kHz or less.
            let wanted = seconds[name];
            assert!((meta.duration - wanted).abs() < 0.2, "{name}: {} s of {wanted}", meta.duration);
            let energy: f32 = sound.samples.iter().map(|s| s * s).sum();
            assert!(energy > 0.0, "{name} is silent");
            n[i] += 1;
        }
    }
    assert_eq!(n, if cfg!(feature = "ffmpeg") { [48, 120, 200] } else { [44, 120, 200] });
}

#[test]
fn opus_has_the_length_that_its_container_says_to_the_sample() {
    // By ffmpeg 5.1: pre-skip off the front, the last packet cut at the last page's position or by the discard padding.
    for (path, channels, n_samples) in [
        ("audio/codecs/jfk4_opus.opus", 1, 192_000),
        ("audio/codecs/jfk4_opus.webm", 1, 192_000),
        ("audio/codecs/jfk4_opus_stereo.ogg", 2, 192_000),
        ("audio/instruments/Acoustic_guitar/367ad7b1.opus", 1, 250_560),
        ("audio/instruments/Snare_drum/4c4d4797.opus", 1, 96_000),
        ("audio/instruments/Violin_or_fiddle/7b6a119e.opus", 1, 82_560),
        ("audio/grid/bbbs5s.opus", 2, 142_943),
        ("video/grid/bbaz4n.webm", 1, 142_944),
    ] {
        let (meta, sound) = read_audio(&read(&format!("data/{path}")), &MediaLimits::default()).unwrap();
        assert_eq!((meta.codec.as_str(), meta.sampling_rate), ("opus", 48_000), "{path}");
        assert_eq!((meta.channels, sound.samples.len()), (channels, n_samples), "{path}");
    }
    // The same speech, as it was before it was encoded: the lead-in is off the front, or the two would not line up.
    let (_, encoded) = read_audio(&read("data/audio/codecs/jfk4_opus.opus"), &MediaLimits::default()).unwrap();
    let (_, webm) = read_audio(&read("data/audio/codecs/jfk4_opus.webm"), &MediaLimits::default()).unwrap();
    assert_eq!(encoded.samples, webm.samples);
    let (_, plain) = read_audio(&read("data/audio/codecs/jfk4_s16_mono16k.wav"), &MediaLimits::default()).unwrap();
    let third: Vec<f32> = encoded.samples.chunks_exact(3).map(|s| s.iter().sum::<f32>() / 3.0).collect();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let likeness = dot(&third, &plain.samples) / (dot(&third, &third) * dot(&plain.samples, &plain.samples)).sqrt();
    // Averaging three samples stands in for a resampler, and the codec is lossy; a shift of a few milliseconds gives 0.5.
    assert!(likeness > 0.9, "{likeness}");
}

#[test]
#[cfg(feature = "ffmpeg")]
fn every_clip_decodes_and_gives_its_first_and_last_frame() {
    let mut n = [0; 5];
    let folders = ["video/grid", "video/grid-original", "video/asl", "video/scenes", "video/misc"];
    for (i, folder) in folders.into_iter().enumerate() {
        for path in files(&format!("data/{folder}")) {
            let (name, bytes) = (path.display(), std::fs::read(&path).unwrap());
            let limits = MediaLimits::default();
            let meta = read_video(&bytes, &limits).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(meta.num_frames > 0 && meta.fps > 0.0, "{name}: {meta:?}");
            if i < 2 {
                // One of them has 74, as ffprobe counts too.
                assert!((74..=75).contains(&meta.num_frames), "{name}: {}", meta.num_frames);
                assert_eq!((meta.width, meta.height), (360, 288), "{name}");
                let (sound, _) = read_audio(&bytes, &limits).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert!((sound.duration - 3.0).abs() < 0.1, "{name}: {} s of sound", sound.duration);
            }
            // Every tenth is enough to see that frames are found; each codec has more than ten clips.
            if n[i] % 10 == 0 {
                let mut taken = Vec::new();
                read_frames(&bytes, &[0, meta.num_frames - 1], &limits, &mut |i, p| taken.push((i, p))).unwrap();
                assert!(taken.iter().all(|(_, p)| (p.width, p.height) == (meta.width, meta.height)), "{name}");
                assert_eq!(taken.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [0, meta.num_frames - 1], "{name}");
            }
            n[i] += 1;
        }
    }
    assert_eq!(n, [250, 10, 14, 60, 6]);
}

#[test]
#[cfg(feature = "ffmpeg")]
fn what_the_system_decodes_is_the_picture_that_the_decoder_in_rust_sees() {
    // The MPEG-1 original of a clip against its H.264 copy: two lossy encodings of the same frames.
    let limits = MediaLimits::default();
    let mut taken = Vec::new();
    for path in ["data/video/grid-original/bbaf2n.mpg", "data/video/grid/bbaf2n.mp4"] {
        read_frames(&read(path), &[40], &limits, &mut |_, picture| taken.push(picture)).unwrap();
    }
    let (mean, _) = differences(&taken[0].rgb, &taken[1].rgb);
    assert!(mean < 4.0, "mean {mean}");
    // Formats that go through swscale: 4:4:4, and a GIF's palette.
    for path in ["data/bad/video/h264_444.mp4", "data/video/misc/classroom.gif", "data/bad/video/mjpeg.avi"] {
        let mut frames = Vec::new();
        read_frames(&read(path), &[3], &limits, &mut |_, picture| frames.push(picture)).unwrap();
        let levels: std::collections::BTreeSet<u8> = frames[0].rgb.iter().copied().collect();
        assert!(levels.len() > 50, "{path}: {} levels", levels.len());
    }
}

#[test]
#[cfg(feature = "ffmpeg")]
fn cut_files_of_the_system_decoder_are_refused() {
    for path in [
        "data/video/grid/bbif1a.mp4",
        "data/video/grid/bbaz4n.webm",
        "data/video/grid/bgau1a.webm",
        "data/bad/video/mjpeg.avi",
        "data/bad/video/mpeg4_asp.mp4",
        "data/audio/codecs/jfk4_wma2.wma",
        "data/audio/codecs/jfk4_ima_adpcm_16k.wav",
    ] {
        let bytes = read(path);
        let limits = MediaLimits::default();
        let decodes = |bytes: &[u8]| {
            if path.contains("/audio/") {
                read_audio(bytes, &limits).is_ok()
            } else {
                read_video(bytes, &limits).is_ok()
            }
        };
        assert!(decodes(&bytes), "{path}");
        for tenth in 1..10 {
            assert!(!decodes(&bytes[..bytes.len() * tenth / 10]), "{path} cut at {tenth}/10 decodes");
        }
    }
}

/// RGB of a reference frame and ours may differ by the chroma's upsampling, which ffmpeg smooths; a wrong frame of a
/// talking head differs by several levels in the mean.
const FRAME_MEAN_LIMIT: f64 = 1.5;

#[test]
fn a_frame_asked_for_alone_is_the_frame_that_ffmpeg_shows() {
    let bytes = read("data/video/grid/bbal6n.mp4");
    for wanted in [0, 37, 74] {
        let reference = read(&format!("data/ref/video/bbal6n_mp4_frame{wanted:03}.png"));
        let (_, reference) = read_image(&reference, &MediaLimits::default()).unwrap();
        let mut taken = Vec::new();
        read_frames(&bytes, &[wanted], &MediaLimits::default(), &mut |i, p| taken.push((i, p))).unwrap();
        let [(frame_idx, picture)] = &taken[..] else { panic!("{} frames", taken.len()) };
        assert_eq!(*frame_idx, wanted);
        let (mean, _) = differences(&picture.rgb, &reference.rgb);
        assert!(mean < FRAME_MEAN_LIMIT, "frame {wanted}: mean {mean}");
    }
}

#[test]
fn frames_decoded_alone_are_those_decoded_in_a_row() {
    for path in ["data/video/grid/bbaf2n.mp4", "data/video/grid/bbbs4n.mkv", "data/bad/video/bframes_editlist.mp4"] {
        let bytes = read(path);
        let limits = MediaLimits::default();
        let n = read_video(&bytes, &limits).unwrap().num_frames;
        let mut in_a_row = Vec::new();
        let all: Vec<usize> = (0..n).collect();
        read_frames(&bytes, &all, &limits, &mut |_, picture| in_a_row.push(picture)).unwrap();
        assert_eq!(in_a_row.len(), n);
        for wanted in [[0, n - 1], [n / 3, n / 3 + 1], [n / 2, n - 2]] {
            let mut taken = Vec::new();
            read_frames(&bytes, &wanted, &limits, &mut |i, picture| taken.push((i, picture))).unwrap();
            assert_eq!(taken.len(), 2, "{path}");
            for (i, picture) in taken {
                assert!(picture == in_a_row[i], "{path}, frame {i}");
            }
        }
    }
}

/// Rows of bad/EXPECT.csv that say `ok` and that this build refuses, with the reason. Empty: every one decodes.
const NOT_IN_THIS_BUILD: [(&str, &str); 0] = [];

/// `either` is for the decoder to decide; this is the decision where it is not obvious. Half a medium under a whole
/// caption teaches the wrong thing, so what is cut is refused; what lies only about its length or is noisy is kept.
const DECISIONS: [(&str, bool); 14] = [
    ("audio/jfk4_16bit_96k_cut60.flac", false),
    ("audio/jfk4_aac_faststart_cut60.m4a", false),
    ("audio/jfk4_cbr128_stereo_cut60.mp3", false),
    ("audio/jfk4_vorbis_cut60.ogg", false),
    ("audio/wav_float_nan_inf.wav", false),
    ("audio/wav_header_only.wav", false),
    ("audio/wav_size_0.wav", true),
    ("audio/wav_size_ffffffff.wav", true),
    ("audio/wav_truncated.wav", false),
    ("image/variants/noeoi.jpg", false),
    ("image/variants/truncated_50.jpg", false),
    ("image/pillow/truncated_jpeg.jpg", false),
    ("video/mdat_cut.mp4", false),
    ("video/mdat_200bytes.mp4", false),
];

#[test]
fn every_bad_file_is_treated_as_expected_and_in_time() {
    let mut table = csv::Reader::from_path(shared("data/bad/EXPECT.csv")).unwrap();
    let limits = MediaLimits::default();
    let mut n = 0;
    for row in table.records() {
        let row = row.unwrap();
        let (path, expect) = (&row[0], &row[2]);
        let family = path.split('/').next().unwrap_or_default();
        if !["image", "audio", "video"].contains(&family) {
            continue;
        }
        let bytes = read(&format!("data/bad/{path}"));
        let start = Instant::now();
        let got = match family {
            "image" => read_image(&bytes, &limits).map(|_| ()),
            "audio" => read_audio(&bytes, &limits).map(|_| ()),
            _ => read_video(&bytes, &limits).map(|_| ()),
        };
        // The slowest takes 0.1 s on one core; a machine under load is slower.
        assert!(start.elapsed() < Duration::from_secs(20), "{path} took {:?}", start.elapsed());
        let known = NOT_IN_THIS_BUILD.iter().any(|(exception, _)| *exception == path);
        match expect {
            "ok" if !known => assert!(got.is_ok(), "{path}: {got:?}"),
            "error" => assert!(got.is_err(), "{path} decodes"),
            _ => {}
        }
        if let Some((_, kept)) = DECISIONS.iter().find(|(decided, _)| *decided == path) {
            assert_eq!(got.is_ok(), *kept, "{path}: {got:?}");
        }
        if let Err(error) = got {
            assert!(!error.to_string().is_empty());
        }
        n += 1;
    }
    // 48 sounds, 138 pictures, 23 clips.
    assert!(n > 150, "{n} files");
}

#[test]
fn cut_and_damaged_files_of_every_codec_never_panic() {
    let sounds = [
        "opus.opus",
        "opus.webm",
        "cbr128_stereo.mp3",
        "vorbis.ogg",
        "aac_lc.m4a",
        "alac.m4a",
        "16bit_96k.flac",
        "vorbis.mka",
    ];
    let mut files: Vec<String> = sounds.iter().map(|s| format!("data/audio/codecs/jfk4_{s}")).collect();
    files.extend(["bbal6n.mp4", "bbbs4n.mkv"].map(|c| format!("data/video/grid/{c}")));
    files.extend(
        ["progressive.jpg", "restart.jpg", "webp_named.jpg", "anim3.gif"]
            .map(|p| format!("data/bad/image/variants/{p}")),
    );
    let limits = MediaLimits { max_pixels: 4 << 20, max_frames: 500, max_samples: 4 << 20 };
    let any = |bytes: &[u8], path: &str| {
        if path.contains("/image/") {
            read_image(bytes, &limits).is_ok()
        } else {
            read_audio(bytes, &limits).is_ok() | (path.contains("/video/") && read_video(bytes, &limits).is_ok())
        }
    };
    for path in &files {
        let bytes = read(path);
        assert!(any(&bytes, path), "{path}");
        // A prime step, so that the cuts do not fall on the same place of every packet.
        for n in (0..bytes.len()).step_by(bytes.len() / 23) {
            any(&bytes[..n], path);
        }
        let mut state = 0x9E37_79B9_u64;
        for _ in 0..25 {
            let mut damaged = bytes.clone();
            for _ in 0..5 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % damaged.len();
                damaged[at] ^= (state >> 20) as u8 | 1;
            }
            any(&damaged, path);
        }
    }
}

#[test]
fn sounds_decode_as_the_reference_decodes_them() {
    let index: serde_json::Value = serde_json::from_slice(&read("data/ref/audio/index.json")).unwrap();
    assert!(!index.is_null());
    for (npy, path) in [
        ("fsdd_7_jackson_3_samples.npy", "data/audio/fsdd/recordings/7_jackson_3.wav"),
        ("jfk_3s_mono_44100.npy", "data/audio/codecs/jfk.flac"),
    ] {
        let wanted = npy_f32(&read(&format!("data/ref/audio/{npy}")));
        let (_, sound) = read_audio(&read(path), &MediaLimits::default()).unwrap();
        assert!(sound.samples.len() >= wanted.len(), "{path}");
        // Both are exact in f32 but for the order of additions in the mean of two channels.
        let worst = sound.samples.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{path}: {worst}");
    }
}

/// Values of a little-endian f32 array of NumPy's format 1.0.
fn npy_f32(bytes: &[u8]) -> Vec<f32> {
    let header_len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8_lossy(&bytes[10..10 + header_len]);
    assert!(header.contains("'<f4'"), "{header}");
    bytes[10 + header_len..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
