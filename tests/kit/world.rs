//! A little world of shapes, colours, sizes, motions and tones, as files that a user could have.
//!
//! In: a folder, a scale, a seed. Out: three corpora of real encoded files in three forms, the same bytes every time:
//!
//! ```text
//! world-image/captions.csv               path,caption,label,split; several rows a picture
//! world-image/images/000/00017.jpg
//! world-video/world-video-train-000000.tar    WebDataset: KEY.mp4 KEY.txt KEY.json
//! world-audio/train/low-pure-tone-…/00017.wav    folder with sidecars: 00017.txt, 00017.json
//! world.json                             seed, scale and counts; written last
//! ```
//!
//! Never: a held-out combination outside the split `test`; the code under test.

mod combos;
mod picture;
mod sound;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use imp_schemas::rng::{Role, rng_for};
use serde::{Deserialize, Serialize};

pub use combos::{Combo, Scene, combos};
pub use picture::{CLIP_FRAMES, CLIP_SIDE};
pub use sound::SAMPLE_RATE;

use crate::media::{EncodeError, flac_bytes, jpeg_bytes, mp4_bytes, wav_bytes};

/// How much of one scene is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SceneScale {
    /// Values of each attribute; more than there are means all.
    pub n_values: [usize; 3],
    /// Combinations that only the split `test` shows.
    pub n_held_out: usize,
    /// Records of each trained combination.
    pub n_train: usize,
    /// Records of each held-out combination.
    pub n_test: usize,
}

/// How much of the world is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    pub image: SceneScale,
    pub video: SceneScale,
    pub audio: SceneScale,
}

impl Scale {
    /// What `cargo demo` trains on: 1,920 pictures, 864 clips, 1,056 sounds.
    pub fn demo() -> Self {
        Self {
            image: SceneScale { n_values: [6, 8, 3], n_held_out: 24, n_train: 14, n_test: 10 },
            video: SceneScale { n_values: [4, 6, 6], n_held_out: 24, n_train: 6, n_test: 6 },
            audio: SceneScale { n_values: [5, 4, 4], n_held_out: 16, n_train: 14, n_test: 10 },
        }
    }

    /// For tests: 48 pictures, 24 clips, 24 sounds; written in well under a second.
    pub fn tiny() -> Self {
        Self {
            image: SceneScale { n_values: [3, 4, 2], n_held_out: 6, n_train: 2, n_test: 2 },
            video: SceneScale { n_values: [2, 3, 3], n_held_out: 6, n_train: 1, n_test: 2 },
            audio: SceneScale { n_values: [3, 2, 3], n_held_out: 6, n_train: 1, n_test: 2 },
        }
    }

    /// The scale of one scene.
    pub fn of(&self, scene: Scene) -> SceneScale {
        match scene {
            Scene::Image => self.image,
            Scene::Video => self.video,
            Scene::Audio => self.audio,
        }
    }
}

/// What was written of one scene.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SceneReport {
    /// Name of the corpus, and of its folder.
    pub name: String,
    /// Records by split.
    pub n_train: usize,
    pub n_test: usize,
    /// Class names by split; no name is in both.
    pub train_classes: Vec<String>,
    pub test_classes: Vec<String>,
    pub n_bytes: u64,
}

/// What was written. The same seed and scale give the same report and the same files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorldReport {
    pub seed: u64,
    pub scale: Scale,
    /// Image, video, audio.
    pub scenes: Vec<SceneReport>,
}

/// The world could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot encode record {record_idx} of `{scene}`")]
    Encode { scene: &'static str, record_idx: usize, source: EncodeError },
    #[error("cannot write row {row} of `{}`", path.display())]
    Table { path: PathBuf, row: usize, source: csv::Error },
    #[error("cannot write the report of the world")]
    Report { source: serde_json::Error },
}

/// One record before it is laid out as files.
struct Made {
    label: String,
    split: &'static str,
    captions: Vec<String>,
    extension: &'static str,
    bytes: Vec<u8>,
}

/// Records of a WebDataset tar.
const RECORDS_PER_TAR: usize = 256;
const REPORT_FILE: &str = "world.json";

/// Writes the world below `dir`, replacing what stands there of the same name.
///
/// # Errors
/// See [`WorldError`].
pub fn write(dir: &Path, scale: &Scale, seed: u64) -> Result<WorldReport, WorldError> {
    // Without the report the world counts as unwritten, so it goes first and comes back last.
    let report_path = dir.join(REPORT_FILE);
    if report_path.exists() {
        std::fs::remove_file(&report_path).map_err(|source| WorldError::Write { path: report_path.clone(), source })?;
    }
    let mut scenes = Vec::new();
    for scene in Scene::ALL {
        let folder = dir.join(scene.name());
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|source| WorldError::Write { path: folder.clone(), source })?;
        }
        let made = make(scene, scale.of(scene), seed)?;
        match scene {
            Scene::Image => write_table(&folder, &made)?,
            Scene::Video => write_tars(&folder, &made)?,
            Scene::Audio => write_sidecars(&folder, &made)?,
        }
        scenes.push(report_of(scene, &made));
    }
    let report = WorldReport { seed, scale: *scale, scenes };
    let json = serde_json::to_vec_pretty(&report).map_err(|source| WorldError::Report { source })?;
    put(&report_path, &json)?;
    Ok(report)
}

/// The report of the world that stands below `dir`; `None` if none does, or only part of one.
pub fn standing(dir: &Path) -> Option<WorldReport> {
    serde_json::from_slice(&std::fs::read(dir.join(REPORT_FILE)).ok()?).ok()
}

/// Makes every record of a scene, on all cores, in an order that does not depend on them.
fn make(scene: Scene, scale: SceneScale, seed: u64) -> Result<Vec<Made>, WorldError> {
    let most = scene.n_values_at_most();
    let n_values = std::array::from_fn(|axis| scale.n_values[axis].clamp(1, most[axis]));
    let mut wanted: Vec<(usize, Combo, usize)> = Vec::new();
    for (combo_idx, combo) in combos(scene, n_values, scale.n_held_out, seed).into_iter().enumerate() {
        let n = if combo.is_held_out { scale.n_test } else { scale.n_train };
        wanted.extend((0..n).map(|copy_idx| (combo_idx, combo, copy_idx)));
    }
    // Mixed, so that any stretch of the corpus shows the whole world, as a user's corpus would.
    rng_for(seed, Role::Synth, &[scene.address(), 2 << 32]).shuffle(&mut wanted);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let record_idx = next.fetch_add(1, Ordering::Relaxed);
            let Some((combo_idx, combo, copy_idx)) = wanted.get(record_idx) else { return done };
            let address = [scene.address(), *combo_idx as u64, *copy_idx as u64];
            done.push((record_idx, make_one(combo, record_idx, seed, &address)));
        }
    };
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut made: Vec<(usize, Result<Made, WorldError>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads)
            .filter_map(|i| std::thread::Builder::new().name(format!("world-{i}")).spawn_scoped(scope, work).ok())
            .collect();
        // This thread works too: the world gets made even where no other thread can be had.
        let mut made = work();
        made.extend(threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()));
        made
    });
    made.sort_by_key(|(record_idx, _)| *record_idx);
    made.into_iter().map(|(_, made)| made).collect()
}

fn make_one(combo: &Combo, record_idx: usize, seed: u64, address: &[u64]) -> Result<Made, WorldError> {
    let mut rng = rng_for(seed, Role::Synth, address);
    let n_captions = 2 + rng.below(2) as usize;
    let captions = combo.captions(n_captions, &mut rng);
    let (extension, bytes) = match combo.scene {
        Scene::Image => ("jpg", jpeg_bytes(&picture::picture(combo, &mut rng), 90)),
        Scene::Video => {
            let (frames, fps) = picture::clip(combo, &mut rng);
            ("mp4", mp4_bytes(&frames, fps))
        }
        Scene::Audio => {
            let samples = sound::sound(combo, &mut rng);
            if rng.chance(0.5) {
                ("wav", wav_bytes(&samples, SAMPLE_RATE))
            } else {
                ("flac", flac_bytes(&samples, SAMPLE_RATE))
            }
        }
    };
    let bytes = bytes.map_err(|source| WorldError::Encode { scene: combo.scene.name(), record_idx, source })?;
    let split = if combo.is_held_out { "test" } else { "train" };
    Ok(Made { label: combo.label(), split, captions, extension, bytes })
}

fn report_of(scene: Scene, made: &[Made]) -> SceneReport {
    let of_split = |split| made.iter().filter(move |m| m.split == split);
    let classes = |split| {
        let mut classes: Vec<String> = of_split(split).map(|m| m.label.clone()).collect();
        classes.sort();
        classes.dedup();
        classes
    };
    SceneReport {
        name: scene.name().to_owned(),
        n_train: of_split("train").count(),
        n_test: of_split("test").count(),
        train_classes: classes("train"),
        test_classes: classes("test"),
        n_bytes: made.iter().map(|m| m.bytes.len() as u64).sum(),
    }
}

/// A table beside its media: one row per caption, so a picture has several rows.
fn write_table(folder: &Path, made: &[Made]) -> Result<(), WorldError> {
    let path = folder.join("captions.csv");
    let mut table = csv::Writer::from_writer(Vec::new());
    let mut rows = vec![["path", "caption", "label", "split"].map(str::to_owned)];
    for (record_idx, record) in made.iter().enumerate() {
        let medium = format!("images/{:03}/{record_idx:05}.{}", record_idx / 500, record.extension);
        put(&folder.join(&medium), &record.bytes)?;
        let row = |caption: &String| [medium.clone(), caption.clone(), record.label.clone(), record.split.to_owned()];
        rows.extend(record.captions.iter().map(row));
    }
    for (row, fields) in rows.iter().enumerate() {
        table.write_record(fields).map_err(|source| WorldError::Table { path: path.clone(), row, source })?;
    }
    let bytes =
        table.into_inner().map_err(|error| WorldError::Write { path: path.clone(), source: error.into_error() })?;
    put(&path, &bytes)
}

/// WebDataset tars, a split a name.
fn write_tars(folder: &Path, made: &[Made]) -> Result<(), WorldError> {
    for split in ["train", "test"] {
        let records: Vec<(usize, &Made)> = made.iter().enumerate().filter(|(_, m)| m.split == split).collect();
        for (tar_idx, records) in records.chunks(RECORDS_PER_TAR).enumerate() {
            let path = folder.join(format!("{}-{split}-{tar_idx:06}.tar", Scene::Video.name()));
            let failed = |source| WorldError::Write { path: path.clone(), source };
            let mut tar = tar::Builder::new(Vec::new());
            for (record_idx, record) in records {
                let files = [
                    (record.extension, record.bytes.clone()),
                    ("txt", record.captions.join("\n").into_bytes()),
                    ("json", label_json(record)),
                ];
                for (extension, bytes) in files {
                    let mut header = tar::Header::new_ustar();
                    header.set_size(bytes.len() as u64);
                    header.set_mode(0o644);
                    let name = format!("{record_idx:06}.{extension}");
                    tar.append_data(&mut header, name, bytes.as_slice()).map_err(failed)?;
                }
            }
            put(&path, &tar.into_inner().map_err(failed)?)?;
        }
    }
    Ok(())
}

/// A folder per split, every medium with its sentences in a `.txt` and its label in a `.json` beside it.
fn write_sidecars(folder: &Path, made: &[Made]) -> Result<(), WorldError> {
    for (record_idx, record) in made.iter().enumerate() {
        let stem = folder.join(record.split).join(format!("{:02}", record_idx / 100)).join(format!("{record_idx:05}"));
        put(&stem.with_extension(record.extension), &record.bytes)?;
        put(&stem.with_extension("txt"), record.captions.join("\n").as_bytes())?;
        put(&stem.with_extension("json"), &label_json(record))?;
    }
    Ok(())
}

fn label_json(record: &Made) -> Vec<u8> {
    serde_json::json!({ "label": record.label }).to_string().into_bytes()
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), WorldError> {
    let failed = |source| WorldError::Write { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, bytes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Every file below `dir` with its bytes.
    fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.insert(path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn the_same_seed_writes_the_same_bytes_and_another_seed_does_not() {
        let [first, again, other] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let report = write(first.path(), &Scale::tiny(), 7).unwrap();
        assert_eq!(report, write(again.path(), &Scale::tiny(), 7).unwrap());
        write(other.path(), &Scale::tiny(), 8).unwrap();
        assert_eq!(files(first.path()), files(again.path()));
        assert_ne!(files(first.path()), files(other.path()));
        assert_eq!(standing(first.path()), Some(report));
    }

    #[test]
    fn a_held_out_combination_is_never_in_the_train_split() {
        let dir = tempfile::tempdir().unwrap();
        let report = write(dir.path(), &Scale::tiny(), 7).unwrap();
        for scene in &report.scenes {
            assert!(!scene.test_classes.is_empty(), "{}", scene.name);
            assert!(scene.test_classes.iter().all(|c| !scene.train_classes.contains(c)), "{}", scene.name);
        }
        let table = std::fs::read_to_string(dir.path().join("world-image/captions.csv")).unwrap();
        let mut n_rows = 0;
        for row in table.lines().skip(1) {
            let fields: Vec<&str> = row.split(',').collect();
            let classes =
                if fields[3] == "test" { &report.scenes[0].test_classes } else { &report.scenes[0].train_classes };
            assert!(classes.iter().any(|c| c == fields[2]), "{row}");
            assert!(dir.path().join("world-image").join(fields[0]).is_file(), "{row}");
            n_rows += 1;
        }
        assert!(n_rows >= 2 * (report.scenes[0].n_train + report.scenes[0].n_test));
    }
}
