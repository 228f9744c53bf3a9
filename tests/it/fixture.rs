//! A tiny world on disk, and the steps of its run called in this process.

use std::path::{Path, PathBuf};

use imp_ingest::{IngestConfig, Report};
use imp_schemas::run_file::RunFile;
use imp_schemas::store::Store;
use imp_trainer::config::{RawTrain, TrainConfig};
use tempfile::TempDir;
use testkit::world::{self, Scale};

/// Seed of the tiny world; its combinations and bytes follow from it.
const SEED: u64 = 5;

pub struct World {
    dir: TempDir,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        world::write(&dir.path().join("corpora"), &Scale::tiny(), SEED).unwrap();
        Self { dir }
    }

    pub fn corpora(&self) -> PathBuf {
        self.dir.path().join("corpora")
    }

    /// The run file, written to disk as a user's would be.
    pub fn run_file(&self, steps: u64, checkpoint_every: u64) -> PathBuf {
        let path = self.dir.path().join("run.toml");
        let (store, run) = (self.dir.path().join("store"), self.dir.path().join("run"));
        let (store, run) = (store.to_str().unwrap(), run.to_str().unwrap());
        let text = testkit::tiny::run_file(&self.corpora(), store, run, steps, checkpoint_every);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn local_store(&self) -> Store {
        Store::open(self.dir.path().join("store").to_str().unwrap()).unwrap()
    }

    pub fn local_run(&self, name: &str) -> Store {
        Store::open(self.dir.path().join(name).to_str().unwrap()).unwrap()
    }

    pub fn ingest(&self, store: &Store) -> Report {
        ingest(&self.run_file(4, 2), store).unwrap()
    }

    pub fn train_config(&self, steps: u64, checkpoint_every: u64) -> TrainConfig {
        let path = self.run_file(steps, checkpoint_every);
        let raw: RawTrain = RunFile::read(&path).unwrap().table(&path, "train").unwrap();
        raw.try_into().unwrap()
    }
}

pub fn ingest(run_file: &Path, store: &Store) -> Result<Report, imp_ingest::IngestError> {
    let config = IngestConfig::read(run_file)?;
    imp_ingest::run(&config, store, &mut imp_ingest::Progress::silent())
}
