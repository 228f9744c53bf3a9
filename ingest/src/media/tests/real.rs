//! The same promises on public pictures, films and sounds: the folder named by `IMP_SHARED`.

use std::path::{Path, PathBuf};

use imp_schemas::media::mp4::movie;
use imp_schemas::media::{Needed, Planes, read_planes};

use super::*;
use crate::filter::picture_hash;

fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, out) } else { out.push(path) }
        }
    }
    let root = std::env::var_os("IMP_SHARED").expect("IMP_SHARED names the folder with data/ and golden/");
    let mut out = Vec::new();
    walk(&Path::new(&root).join("data").join(folder), &mut out);
    out.retain(|path| path.extension().is_some_and(|e| extensions.iter().any(|x| e.eq_ignore_ascii_case(x))));
    out.sort();
    assert!(!out.is_empty(), "{folder}");
    out
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn every_public_picture_keeps_its_pixels_under_every_rule() {
    let rules = normalise(JpegRule::Baseline, MetadataRule::Strip);
    let mut done = std::collections::BTreeMap::new();
    let paths = [files("image/coco-mini", &["jpg"]), files("bad/image", &["jpg", "jpeg", "png", "webp"])].concat();
    for path in paths {
        let bytes = std::fs::read(&path).unwrap();
        let Ok((meta, picture)) = read_image(&bytes, &limits()) else { continue };
        let stored = prepared(RecordKind::ImageText, &bytes, &rules).remove(0);
        let case = name(&path);
        if let Some(changed) = &stored.changed {
            let (new_meta, new_picture) = read_image(changed, &limits()).unwrap();
            assert_eq!(new_picture, picture, "{case}");
            assert_eq!((new_meta.orientation, new_meta.width), (meta.orientation, meta.width), "{case}");
        }
        let is_progressive = matches!(&stored.facts, Facts::Image(image) if image.progressive);
        assert!(!is_progressive, "{case}");
        *done.entry(stored.normalised.unwrap_or_default()).or_insert(0) += 1;
    }
    assert!(done.iter().any(|(done, _)| done.starts_with("baseline")) && done.contains_key("metadata"), "{done:?}");
}

/// The bytes of every sample with its times, by track.
fn samples(bytes: &[u8]) -> Vec<Vec<(&[u8], i64, i64)>> {
    let movie = movie(bytes, &limits()).unwrap();
    let of = |s: &imp_schemas::media::mp4::Sample, start: i64| {
        (&bytes[s.offset as usize..(s.offset + s.len) as usize], s.dts - start, s.pts - start)
    };
    let tracks = movie.tracks.iter().map(|t| {
        let start = t.samples.first().map_or(0, |s| s.dts);
        t.samples.iter().map(|s| of(s, start)).collect()
    });
    tracks.collect()
}

#[test]
fn every_public_film_keeps_its_samples_frames_and_sound_when_it_is_written_anew() {
    let (mut n, mut n_fragmented) = (0, 0);
    for path in [files("video", &["mp4"]), files("bad/video", &["mp4"])].concat() {
        let bytes = std::fs::read(&path).unwrap();
        let case = name(&path);
        let Ok(before) = read_video(&bytes, &limits()) else { continue };
        let anew = remux::remux(&bytes, &limits()).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(samples(&bytes), samples(&anew), "{case}");
        let index = movie(&anew, &limits()).unwrap();
        assert!(index.is_fast_start, "{case}");
        n_fragmented += usize::from(movie(&bytes, &limits()).unwrap().tracks[0].is_fragmented);
        let after = read_video(&anew, &limits()).unwrap();
        let times = |meta: &imp_schemas::media::VideoMeta| meta.keyframes.iter().map(|k| k.pts_us).collect::<Vec<_>>();
        assert_eq!(times(&before), times(&after), "{case}");
        assert_eq!((before.num_frames, before.duration, before.width), (after.num_frames, after.duration, after.width));
        for keyframe in &after.keyframes {
            let video = &index.tracks[0].samples;
            assert!(video.iter().any(|s| Ok(s.offset) == u64::try_from(keyframe.offset)), "{case}");
        }
        // Frames and sound are those of the same samples; decoding a part of the films shows that the tables say so.
        if n % 8 == 0 {
            assert!(frames(&bytes) == frames(&anew), "{case}");
            assert_eq!(read_audio(&bytes, &limits()).ok(), read_audio(&anew, &limits()).ok(), "{case}");
        }
        assert_eq!(remux::remux(&anew, &limits()).unwrap(), anew, "{case}");
        n += 1;
    }
    assert!(n > 200 && n_fragmented > 0, "{n} {n_fragmented}");
}

#[test]
fn samples_between_two_keyframes_are_one_range_with_their_sound() {
    let mut n = 0;
    for path in files("video", &["mp4"]) {
        let bytes = std::fs::read(&path).unwrap();
        let Ok(anew) = remux::remux(&bytes, &limits()) else { continue };
        let movie = movie(&anew, &limits()).unwrap();
        let [film, sound] = &movie.tracks[..] else { continue };
        let keys: Vec<_> = film.samples.iter().filter(|s| s.sync).collect();
        for pair in keys.windows(2) {
            let (from, to) = (pair[0].offset, pair[1].offset);
            let inside = |s: &&imp_schemas::media::mp4::Sample| (from..to).contains(&s.offset);
            let decoded = |s: &&imp_schemas::media::mp4::Sample| (pair[0].dts..pair[1].dts).contains(&s.dts);
            assert_eq!(film.samples.iter().filter(inside).count(), film.samples.iter().filter(decoded).count());
            let seconds = |ticks: i64, scale: u32| ticks as f64 / f64::from(scale);
            let (start, end) = (seconds(pair[0].dts, film.timescale), seconds(pair[1].dts, film.timescale));
            let heard = sound.samples.iter().filter(inside);
            assert!(heard.clone().all(|s| seconds(s.dts, sound.timescale) < end), "{}", name(&path));
            let wanted = ((end - start) * f64::from(sound.timescale) / 1024.0) as usize;
            assert!(heard.count() + 1 >= wanted, "{}", name(&path));
            n += 1;
        }
    }
    assert!(n > 5, "{n}");
}

#[test]
fn clips_of_public_films_decode_and_hold_the_frames_of_their_windows() {
    let rules = MediaRules { clip: Some(Clip { seconds: 1.0, stride_seconds: 1.0 }), ..MediaRules::default() };
    let (mut n_films, mut n_clips, mut n_sounding) = (0, 0, 0);
    for path in files("video", &["mp4"]).into_iter().step_by(6) {
        let bytes = std::fs::read(&path).unwrap();
        let Ok(meta) = read_video(&bytes, &limits()) else { continue };
        let all = frames(&bytes);
        let Ok(clips) = prepare(RecordKind::VideoText, &bytes, &rules, &limits(), &mut |_| Ok(())) else { continue };
        for clip in clips {
            let own = clip.changed.unwrap();
            let got = frames(&own);
            // The clip's frames stand in the film in one row, and its window lies within them.
            let window = clip.window_idx.unwrap() as f64;
            let fps = f64::from(meta.fps);
            let first =
                (0..all.len()).find(|&i| all[i..].starts_with(&got)).unwrap_or_else(|| panic!("{}", name(&path)));
            assert!(first as f64 <= window * fps + 1.0, "{}", name(&path));
            let end = ((window + 1.0).min(meta.duration) * fps).floor() as usize;
            assert!(first + got.len() + 1 >= end.min(all.len()), "{}: {first} {} {end}", name(&path), got.len());
            if let Ok((sound, _)) = read_audio(&own, &limits()) {
                let seconds = got.len() as f64 / fps;
                assert!((sound.duration - seconds).abs() < 0.2, "{}: {} {seconds}", name(&path), sound.duration);
                n_sounding += 1;
            }
            n_clips += 1;
        }
        n_films += 1;
    }
    assert!(n_films > 20 && n_clips > n_films && n_sounding > 0, "{n_clips} clips of {n_films}, {n_sounding} sound");
}

#[test]
fn public_sounds_become_flac_of_the_same_length() {
    let rules = MediaRules { flac: true, ..MediaRules::default() };
    let (mut before, mut after, mut n) = (0, 0, 0);
    for path in files("audio/grid", &["wav", "flac", "mp3", "m4a"]).into_iter().step_by(4) {
        let bytes = std::fs::read(&path).unwrap();
        let (meta, _) = read_audio(&bytes, &limits()).unwrap();
        let stored = prepared(RecordKind::AudioText, &bytes, &rules).remove(0);
        let Facts::Audio(facts) = &stored.facts else { panic!() };
        assert!((facts.duration - meta.duration).abs() < 1e-3, "{}", name(&path));
        (before, after, n) = (before + bytes.len(), after + stored.changed.unwrap().len(), n + 1);
    }
    assert!(n >= 40 && after < before, "{n} sounds, {before} bytes before, {after} after");
}

#[test]
fn copies_of_a_photograph_stay_near_it_and_other_photographs_do_not() {
    let mut hashes = Vec::new();
    let mut worst_copy = 0;
    for path in files("image/coco-mini", &["jpg"]) {
        let bytes = std::fs::read(&path).unwrap();
        let picture = pixels(&bytes);
        let of = |picture: &Picture| Pixels::Rgb(picture.clone());
        let resized = |w: usize, h: usize| of(&picture).resized(w, h).unwrap();
        let hash = picture_hash(&of(&picture)).unwrap();
        let (w, h) = (picture.width, picture.height);
        let recompressed = |picture: &Picture, quality: u8| {
            let mut bytes = Vec::new();
            let (w, h) = (picture.width as u16, picture.height as u16);
            Encoder::new(&mut bytes, quality).encode(&picture.rgb, w, h, ColorType::Rgb).unwrap();
            of(&pixels(&bytes))
        };
        let Pixels::Rgb(half) = resized(w / 2, h / 2) else { panic!() };
        let mut planes = Planes::default();
        let needed = |w, h| Some(Needed { at_least: (w / 2, h / 2), columns: 0..w, rows: 0..h });
        read_planes(&bytes, &MediaLimits::default(), &mut planes, needed).unwrap().unwrap();
        let copies = [
            recompressed(&picture, 75),
            recompressed(&picture, 30),
            recompressed(&half, 60),
            resized(128, 128),
            resized(w * 3 / 2, h * 3 / 2),
            of(&half),
            Pixels::Planes(planes.clone()),
            Pixels::Planes(planes).resized(w / 3, h / 3).unwrap(),
        ];
        for copy in copies {
            worst_copy = worst_copy.max((picture_hash(&copy).unwrap() ^ hash).count_ones());
        }
        hashes.push(hash);
    }
    let pairs = (0..hashes.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    let nearest = pairs.map(|(i, j)| (hashes[i] ^ hashes[j]).count_ones()).min().unwrap();
    assert!(worst_copy <= 6 && nearest > 11, "a copy is {worst_copy} bits away, another photograph {nearest}");
}
