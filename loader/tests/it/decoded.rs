//! What is in the arrays: that pictures, clips, sounds and captions are the records' own.

use imp_loader::{EvalLoader, EvalSpec, Loader, LoaderSettings};
use imp_schemas::modality::{Modality, RecordKind};
use imp_schemas::resolution::Resolution;

use crate::batches::{MIXTURE, mixture};
use crate::stores::{Corpus, Row, picture, store, three_corpora, tone, video_row};

#[test]
fn captions_are_cropped_or_padded_and_every_one_of_a_record_is_drawn() {
    let (_dir, store) = three_corpora();
    let mut loader = Loader::open(&store, mixture(MIXTURE), &LoaderSettings::default(), None).unwrap();
    let mut drawn = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let batch = loader.next().unwrap();
        if batch.task_idx != 0 {
            continue;
        }
        for (ids, example) in batch.text.unwrap().ids.chunks(4).zip(&batch.examples) {
            let row = crate::stores::image_row(example.row as usize);
            let fits = |tokens: &Vec<i32>| (0..4).all(|t| ids[t] == tokens.get(t).copied().unwrap_or(0));
            let caption = row.tokens.iter().position(fits);
            drawn.insert((example.row % 3, caption.unwrap_or_else(|| panic!("{ids:?} of row {}", example.row))));
        }
    }
    // Rows 0, 1, 2 (mod 3) have one, two, three captions.
    assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]);
}

#[test]
fn a_bag_holds_the_drawn_caption_and_those_after_it() {
    let (_dir, store) = three_corpora();
    let bags = MIXTURE.replace("\"text_tokens\": 4", "\"text_tokens\": 4, \"captions\": 2");
    let mut loader = Loader::open(&store, mixture(&bags), &LoaderSettings::default(), None).unwrap();
    let batch = loop {
        let batch = loader.next().unwrap();
        if batch.task_idx == 0 {
            break batch;
        }
    };
    let ids = batch.text.as_ref().unwrap().ids.as_slice();
    assert_eq!(ids.len(), batch.n() * 2 * 4);
    for (bag, example) in ids.chunks(8).zip(&batch.examples) {
        let tokens = crate::stores::image_row(example.row as usize).tokens;
        let cropped =
            |i: usize| (0..4).map(|t| tokens[i % tokens.len()].get(t).copied().unwrap_or(0)).collect::<Vec<_>>();
        let of_record = (0..tokens.len()).map(|first| [cropped(first), cropped(first + 1)].concat());
        assert!(of_record.into_iter().any(|wanted| wanted == bag), "{bag:?} of {tokens:?}");
    }
}

#[test]
fn evaluation_shows_the_centre_of_each_picture() {
    let (_dir, store) = three_corpora();
    let mixture = mixture(MIXTURE);
    let view = &mixture.tasks()[1].views()[0];
    let spec = EvalSpec { n: 64, ..EvalSpec::new("photos", "test", &[Modality::Image], view, &mixture) };
    let batch = EvalLoader::open(&store, &spec, &LoaderSettings::default()).unwrap().next().unwrap().unwrap();
    assert_eq!(batch.rows.len(), 11);
    for (i, pixels) in batch.batch.vision.unwrap().pixels.chunks(16 * 16 * 3).enumerate() {
        // Row 8 of 16 of the centre square of a 48-high picture stands at 25 to 27 of 48, far left of it is red.
        let (width, side) = (40 + (i as u32 % 5) * 8, 48.min(40 + (i as u32 % 5) * 8));
        let source = picture(i, width, 48);
        let want = source.get_pixel((width - side) / 2 + side / 32, 24 + side / 32).0[0];
        let got = pixels[8 * 16 * 3];
        // JPEG at quality 90 and an average over three source pixels.
        assert!(got.abs_diff(want) < 16, "picture {i}: {got}, want {want}");
    }
}

#[test]
fn clips_step_by_the_stride_and_short_ones_are_tiled() {
    let (_dir, store) = store();
    let rows: Vec<Row> = [3, 5, 7, 12, 16].iter().enumerate().map(|(i, &n)| video_row(i, n)).collect();
    Corpus::new("clips", RecordKind::VideoText).write(&store, &rows, 1);
    let only_video = serde_json::from_str::<serde_json::Value>(MIXTURE).map(|mut m| {
        m["tasks"] = serde_json::json!([m["tasks"][3].clone()]);
        m.to_string()
    });
    let mut loader = Loader::open(&store, mixture(&only_video.unwrap()), &LoaderSettings::default(), None).unwrap();
    let mut starts = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let batch = loader.next().unwrap();
        let vision = batch.vision.unwrap();
        for (pixels, example) in vision.pixels.chunks(4 * 16 * 16 * 3).zip(&batch.examples) {
            // The level of a frame says which one it is: 20 + 8 f, after H.264.
            let f: Vec<i32> = pixels.chunks(16 * 16 * 3).map(|p| (i32::from(p[400]) - 20 + 4) / 8).collect();
            let n = rows[example.row as usize].num_frames;
            if n >= 7 {
                assert!(f.windows(2).all(|w| w[1] - w[0] == 2) && f[0] >= 0 && f[3] < n, "{f:?} of {n}");
                starts.insert((n, f[0]));
            } else {
                let available = (n + 1) / 2;
                assert_eq!(f, (0..4).map(|i| i % available * 2).collect::<Vec<_>>(), "of {n}");
            }
        }
    }
    let of = |n| starts.iter().filter(|s| s.0 == n).count();
    assert!(of(7) == 1 && of(12) > 2 && of(16) > 3, "{starts:?}");
}

#[test]
fn windows_of_an_evaluation_are_spaced_evenly_and_follow_each_other() {
    let (_dir, store) = store();
    let n_frames = [3_usize, 12, 16];
    let rows: Vec<Row> = n_frames.iter().enumerate().map(|(i, &n)| video_row(i, n)).collect();
    Corpus::new("clips", RecordKind::VideoText).write(&store, &rows, 1);
    let mixture = mixture(MIXTURE);
    let spec = EvalSpec {
        n: 2,
        n_windows: 3,
        ..EvalSpec::new("clips", "train", &[Modality::Video], &mixture.tasks()[3].views()[0], &mixture)
    };
    let batches: Vec<_> =
        EvalLoader::open(&store, &spec, &LoaderSettings::default()).unwrap().map(Result::unwrap).collect();
    let order: Vec<_> = batches.iter().map(|b| (b.rows.clone(), b.window_idx)).collect();
    let of = |rows: &[u64]| [0, 1, 2].map(|window| (rows.to_vec(), window));
    assert_eq!(order, [of(&[0, 1]), of(&[2])].concat());
    for batch in batches {
        let vision = batch.batch.vision.unwrap();
        for (pixels, &row) in vision.pixels.chunks(4 * 16 * 16 * 3).zip(&batch.rows) {
            let first = (usize::from(pixels[400]) + 4 - 20) / 8;
            // Four frames, two apart, span seven; what is shorter is shown from its first frame on, three times.
            let room = n_frames[row as usize].saturating_sub(7);
            assert_eq!(first, room * batch.window_idx / 2, "row {row}, window {}", batch.window_idx);
        }
    }
}

#[test]
fn sounds_of_any_rate_keep_their_pitch() {
    let (_dir, store) = three_corpora();
    let mixture = mixture(MIXTURE);
    let view = &mixture.tasks()[2].views()[0];
    let spec = EvalSpec { n: 64, ..EvalSpec::new("sounds", "test", &[Modality::Audio], view, &mixture) };
    let batch = EvalLoader::open(&store, &spec, &LoaderSettings::default()).unwrap().next().unwrap().unwrap();
    let audio = batch.batch.audio.unwrap();
    let loudest = |frame: &[f32]| (0..32).max_by(|&a, &b| frame[a].total_cmp(&frame[b])).unwrap();
    for (i, log_mel) in audio.values.chunks(48 * 32).enumerate() {
        // The band whose centre is nearest to the tone, by the definition of the mel scale.
        let mel = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
        let step = (mel(7600.0) - mel(80.0)) / 33.0;
        let want = (mel(200.0 + 40.0 * i as f64) - mel(80.0)) / step - 1.0;
        // The middle of the frame is inside of every sound: they are at least 0.3 s long and centred.
        let got = loudest(&log_mel[24 * 32..25 * 32]);
        // A window of 256 samples has bins of 62.5 Hz, which is a band and a half down there.
        assert!((got as f64 - want).abs() <= 1.6, "sound {i}: band {got}, want {want:.1}");
        // Before a centred sound of 0.3 s in 0.384 s there is silence.
        if i % 4 == 0 {
            assert!(log_mel[0] < -13.0 && log_mel[47 * 32] < -13.0);
        }
    }
    assert_eq!(tone(0, 8_000, 0.3).len(), 2400);
}

#[test]
fn a_waveform_is_the_sound_itself_in_the_middle_of_its_frame() {
    let (_dir, store) = three_corpora();
    let mixture = mixture(&of_waveforms());
    let spec = EvalSpec {
        n: 64,
        ..EvalSpec::new("sounds", "test", &[Modality::Audio], &mixture.tasks()[2].views()[0], &mixture)
    };
    let batch = EvalLoader::open(&store, &spec, &LoaderSettings::default()).unwrap().next().unwrap().unwrap().batch;
    let audio = batch.audio.unwrap();
    assert_eq!((audio.resolution, audio.kept), (Resolution::Waveform { samples: N_SAMPLES }, None));
    assert_eq!(audio.values.len(), 10 * N_SAMPLES);
    // Every third is at the mixture's rate, so that nothing is resampled: of 0.3, 0.4 and 0.6 seconds, for a frame of 0.384.
    for (i, got) in audio.values.chunks(N_SAMPLES).enumerate().filter(|(i, _)| i % 3 == 1) {
        let sound = tone(i, 16_000, 0.3 + 0.1 * (i % 4) as f32);
        let (silence, skipped) = (N_SAMPLES.saturating_sub(sound.len()) / 2, sound.len().saturating_sub(N_SAMPLES) / 2);
        let mut want = vec![0.0; N_SAMPLES];
        want[silence..].iter_mut().zip(&sound[skipped..]).for_each(|(to, from)| *to = *from);
        let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Samples of 16 bits.
        assert!(error < 1e-4, "sound {i}: {error}");
    }
}

#[test]
fn a_waveforms_tokens_are_dropped_at_the_views_rate() {
    let (_dir, store) = three_corpora();
    let mut loader = Loader::open(&store, mixture(&of_waveforms()), &LoaderSettings::default(), None).unwrap();
    let batch = loop {
        let batch = loader.next().unwrap();
        if batch.task_idx == 2 {
            break batch;
        }
    };
    let audio = batch.audio.unwrap();
    assert_eq!(audio.values.len(), batch.examples.len() * N_SAMPLES);
    // A quarter of 48.
    let kept = audio.kept.unwrap();
    assert_eq!(kept.len(), batch.examples.len() * 36);
    assert!(kept.chunks(36).all(|kept| kept.windows(2).all(|two| two[0] < two[1]) && kept[35] < 48));
}

const N_SAMPLES: usize = 6144;

/// The mixture with a waveform of as many samples in place of the spectrogram.
fn of_waveforms() -> String {
    MIXTURE
        .replace("\"spectrogram\": [8, 16]", "\"spectrogram\": [8, 16], \"waveform\": 128")
        .replace("\"spectrogram_frames\": 48", "\"waveform_samples\": 6144")
}
