//! Small corpora of real encoded media, and a door to the code under test.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use imp_ingest::{IngestConfig, IngestError, Progress, Report};
use imp_schemas::manifest::{Manifest, ShardEntry};
use imp_schemas::reject::RejectReason;
use imp_schemas::shard::{rejects_key, shard_key};
use imp_schemas::store::Store;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// A folder of corpora and a store beside it.
pub struct World {
    dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("corpora")
    }

    /// Writes a file below the corpora's root.
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.root().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub fn store(&self, name: &str) -> Store {
        Store::open(self.path(name).to_str().unwrap()).unwrap()
    }

    /// The config of `ingest`, the text below `[ingest]`.
    pub fn config(&self, ingest: &str) -> Result<IngestConfig, IngestError> {
        config_of(ingest, &self.root(), &self.path("run.toml"))
    }

    /// Ingests into the store of this name.
    pub fn ingest_into(&self, store: &str, ingest: &str) -> Result<Report, IngestError> {
        imp_ingest::run(&self.config(ingest)?, &self.store(store), &mut Progress::silent())
    }

    pub fn ingest(&self, ingest: &str) -> Result<Report, IngestError> {
        self.ingest_into("store", ingest)
    }

    pub fn manifest(&self, corpus: &str) -> Manifest {
        self.store("store").manifest(corpus).unwrap().manifest
    }

    pub fn rows(&self, corpus: &str) -> Vec<Seen> {
        seen(&self.store("store"), corpus)
    }

    pub fn rejects(&self, corpus: &str) -> Vec<(RejectReason, String)> {
        rejects(&self.store("store"), corpus)
    }
}

pub fn config_of(ingest: &str, root: &Path, file: &Path) -> Result<IngestConfig, IngestError> {
    std::fs::write(file, format!("store = \"store\"\nrun = \"run\"\n[ingest]\n{ingest}")).unwrap();
    Ok(IngestConfig::read(file)?.with_root(root))
}

/// A record as it stands in a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub key: String,
    pub source: String,
    pub split: String,
    pub captions: Vec<String>,
    pub n_tokens: Vec<usize>,
    pub label: Option<String>,
    pub label_id: Option<i32>,
    pub labels: Option<Vec<String>>,
    pub label_ids: Option<Vec<i32>>,
    pub media: Vec<u8>,
    pub media_path: String,
    pub codec: String,
}

pub fn batches(store: &Store, corpus: &str, entry: &ShardEntry) -> Vec<RecordBatch> {
    let bytes = store.get(&shard_key(corpus, &entry.digest)).unwrap();
    ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap().map(Result::unwrap).collect()
}

/// All records of the newest snapshot, in row order.
pub fn seen(store: &Store, corpus: &str) -> Vec<Seen> {
    let manifest = store.manifest(corpus).unwrap().manifest;
    let batches = manifest.shards.iter().flat_map(|entry| batches(store, corpus, entry));
    batches.flat_map(|batch| rows_of(&batch, &manifest)).collect()
}

fn rows_of(batch: &RecordBatch, manifest: &Manifest) -> Vec<Seen> {
    let text = |name: &str, row: usize| {
        let column = batch.column_by_name(name).unwrap().as_string::<i32>();
        column.is_valid(row).then(|| column.value(row).to_owned())
    };
    let media = batch.column_by_name(manifest.kind.medium().name()).unwrap().as_struct();
    (0..batch.num_rows())
        .map(|row| {
            let captions = batch.column_by_name("captions").unwrap().as_list::<i32>().value(row);
            let tokens = batch.column_by_name("tokens").unwrap().as_list::<i32>().value(row);
            let tokens = tokens.as_list::<i32>();
            for ids in tokens.iter().flatten() {
                let ids = ids.as_primitive::<Int32Type>().clone();
                let n_ids = manifest.tokenizer.vocab_size as i32;
                assert!(ids.values().iter().all(|&id| id > 0 && id < n_ids), "{ids:?}");
            }
            let label_id = batch.column_by_name("label_id").unwrap().as_primitive::<Int32Type>();
            let list = |name: &str| {
                let lists = batch.column_by_name(name).unwrap().as_list::<i32>();
                lists.is_valid(row).then(|| lists.value(row))
            };
            let labels =
                list("labels").map(|all| all.as_string::<i32>().iter().map(|l| l.unwrap().to_owned()).collect());
            Seen {
                key: text("key", row).unwrap(),
                source: text("source", row).unwrap(),
                split: text("split", row).unwrap(),
                captions: captions.as_string::<i32>().iter().map(|c| c.unwrap().to_owned()).collect(),
                n_tokens: tokens.iter().map(|ids| ids.unwrap().len()).collect(),
                label: text("label", row),
                label_id: label_id.is_valid(row).then(|| label_id.value(row)),
                labels,
                label_ids: list("label_ids").map(|ids| ids.as_primitive::<Int32Type>().values().to_vec()),
                media: media.column(0).as_binary::<i32>().value(row).to_vec(),
                media_path: media.column(1).as_string::<i32>().value(row).to_owned(),
                codec: ["codec", "format"]
                    .iter()
                    .find_map(|n| batch.column_by_name(n))
                    .unwrap()
                    .as_string::<i32>()
                    .value(row)
                    .to_owned(),
            }
        })
        .collect()
}

/// Reason and `source row: detail` of every reject of the newest snapshot.
pub fn rejects(store: &Store, corpus: &str) -> Vec<(RejectReason, String)> {
    let manifest = store.manifest(corpus).unwrap().manifest;
    manifest.rejects.iter().flat_map(|entry| reject_table(store, &rejects_key(corpus, &entry.digest))).collect()
}

pub fn reject_table(store: &Store, key: &str) -> Vec<(RejectReason, String)> {
    let bytes = store.get(key).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
    let mut all = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let text =
            |name: &str, row: usize| batch.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned();
        let rows = batch.column_by_name("row").unwrap().as_primitive::<arrow::datatypes::Int64Type>().clone();
        for row in 0..batch.num_rows() {
            let name = text("reason", row);
            let reason = RejectReason::ALL.into_iter().find(|reason| reason.name() == name).unwrap();
            all.push((reason, format!("{} {}: {}", text("source", row), rows.value(row), text("detail", row))));
        }
    }
    all
}

/// A picture of `side` × `side` that no other seed makes.
fn pixels(side: u32, seed: u32) -> image::RgbImage {
    image::RgbImage::from_fn(side, side, |x, y| {
        image::Rgb([(x * 3 + seed * 37) as u8, (y * 5 + seed * 11) as u8, ((x ^ y) * 7 + seed) as u8])
    })
}

pub fn encode(side: u32, seed: u32, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    pixels(side, seed).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub fn jpeg(seed: u32) -> Vec<u8> {
    encode(24, seed, image::ImageFormat::Jpeg)
}

pub fn png(seed: u32) -> Vec<u8> {
    encode(20, seed, image::ImageFormat::Png)
}

/// A tenth of a second of tone, 16 bit mono.
pub fn wav(seed: u32) -> Vec<u8> {
    let samples: Vec<f32> = (0..800).map(|i| (i as f32 * (seed + 3) as f32 * 0.05).sin() * 0.3).collect();
    testkit::media::wav_bytes(&samples, 8000).unwrap()
}

/// Six frames of H.264 in MP4.
pub fn mp4(seed: u32) -> Vec<u8> {
    let frames: Vec<image::RgbImage> = (0..6).map(|frame| pixels(32, seed * 10 + frame)).collect();
    testkit::media::mp4_bytes(&frames, 12.0).unwrap()
}

/// A tar of plain files.
pub fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // Set as bytes: the crate refuses the very names that a hostile tar has.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}
