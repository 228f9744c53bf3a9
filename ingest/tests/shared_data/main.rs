//! Every corpus of the shared data goes in by its documented command, with the counts that its README gives, and comes out clean.

#![cfg(real_data)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test reads where its data lie, and fails where it cannot go on"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use imp_ingest::{IngestConfig, Progress};
use imp_schemas::store::Store;

/// Name, records, rejects.
const COUNTS: [(&str, u64, u64); 14] = [
    ("coco", 51, 0),
    ("coco-img2dataset", 51, 0),
    ("cifar10", 4000, 0),
    ("sign-digits", 1100, 0),
    ("spoken-digits", 1000, 0),
    ("instruments", 120, 0),
    ("grid-speech", 200, 0),
    ("librosa-examples", 10, 0),
    ("codecs", 48, 0),
    ("grid", 250, 0),
    ("grid-original", 10, 0),
    ("asl", 14, 0),
    ("scenes", 60, 0),
    ("misc", 4, 0),
];

#[test]
fn every_shared_corpus_goes_in_with_the_counts_of_its_readme_and_checks_clean() {
    let shared = PathBuf::from(std::env::var("IMP_SHARED").unwrap());
    let run_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/configs/shared-data.toml");
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("store").to_str().unwrap().to_owned();
    let store = Store::open(&url).unwrap();
    let config = IngestConfig::read(&run_file).unwrap().with_root(&shared.join("data"));
    let report = imp_ingest::run(&config, &store, &mut Progress::silent()).unwrap();
    let counts: Vec<(&str, u64, u64)> =
        report.corpora.iter().map(|c| (c.corpus.as_str(), c.n_records, c.n_rejected.values().sum())).collect();
    assert_eq!(counts, COUNTS);
    let shards = Path::new(env!("CARGO_BIN_EXE_imp-ingest")).with_file_name("imp-shards");
    let checked = Command::new(&shards).args(["check", "--store", &url, "--decode", "all"]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
