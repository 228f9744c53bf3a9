//! Bad input: a message that names file, row, found and wanted; every dropped record counted and listed.

use std::path::Path;

use imp_schemas::reject::RejectReason;
use imp_schemas::shard::rejects_key;
use imp_schemas::store::Store;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use testkit::media::jpeg_bytes;

use crate::fixture::ingest;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let picture = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, 90]));
        let jpeg = jpeg_bytes(&picture, 90).unwrap();
        for i in 0..4 {
            folder.write(&format!("good{i}.jpg"), &jpeg);
        }
        folder.write("cut.jpg", &jpeg[..jpeg.len() / 2]);
        folder.write("page.jpg", b"<html>404 not found</html>");
        folder.write("empty.jpg", b"");
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    fn config(&self, more: &str) -> std::path::PathBuf {
        let (root, store) = (self.path().display(), self.path().join("store"));
        let text = format!(
            "store = '{}'\nrun = 'unused'\n[ingest]\nroot = '{root}'\ntokenizer = {{ train = {{ vocab_size = 300 }} }}\n\
             [[ingest.corpus]]\nname = 'photos'\nkind = 'image-text'\npath = 'captions.csv'\nmax_reject_share = 0.9\n{more}\n",
            store.display()
        );
        let path = self.path().join("run.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn store(&self) -> Store {
        Store::open(self.path().join("store").to_str().unwrap()).unwrap()
    }

    /// The whole chain of what went wrong.
    fn failure(&self, more: &str) -> String {
        let error = ingest(&self.config(more), &self.store()).unwrap_err();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    }
}

#[test]
fn a_dropped_record_is_counted_by_reason_and_listed_beside_the_shards() {
    let folder = Folder::new();
    folder.write(
        "captions.csv",
        b"path,caption\ngood0.jpg,a gradient\ngood1.jpg,another\ncut.jpg,cut in half\npage.jpg,an error page\n\
          empty.jpg,nothing\nmissing.jpg,not there\ngood2.jpg,   \n../outside.jpg,not ours\n",
    );
    ingest(&folder.config(""), &folder.store()).unwrap();
    let manifest = folder.store().manifest("photos").unwrap().manifest;
    let wanted = [
        (RejectReason::MissingFile, 1),
        (RejectReason::EmptyFile, 1),
        (RejectReason::UnsafePath, 1),
        (RejectReason::UnknownFormat, 1),
        (RejectReason::Truncated, 1),
        (RejectReason::EmptyCaption, 1),
    ];
    assert_eq!(manifest.n_rejected.into_iter().collect::<Vec<_>>(), wanted);
    assert_eq!((manifest.n_inputs, manifest.n_records), (8, 2));
    let rejects = &manifest.rejects[0];
    let bytes = folder.store().get(&rejects_key("photos", &rejects.digest)).unwrap();
    let table = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
    let rows: usize = table.map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!((rows, rejects.n_rows), (6, 6));
}

#[test]
fn a_table_without_the_column_is_named_with_what_it_has() {
    let folder = Folder::new();
    folder.write("captions.csv", b"file,captoin\ngood0.jpg,a gradient\n");
    let message = folder.failure("");
    assert!(message.contains("captions.csv") && message.contains("path") && message.contains("file"), "{message}");
}

#[test]
fn a_run_over_its_budget_of_rejects_publishes_nothing_and_names_the_reason() {
    let folder = Folder::new();
    let mut rows = "path,caption\ngood0.jpg,a\n".to_owned();
    (0..12).for_each(|i| rows += &format!("missing{i}.jpg,b\n"));
    folder.write("captions.csv", rows.as_bytes());
    let message = folder.failure("");
    assert!(message.contains("missing_file") && message.contains("missing0.jpg"), "{message}");
    assert_eq!(folder.store().newest_snapshot("photos").unwrap(), None);
}

#[test]
fn a_misspelt_key_gets_a_suggestion() {
    let folder = Folder::new();
    folder.write("captions.csv", b"path,caption\ngood0.jpg,a gradient\n");
    let message = folder.failure("columms = { path = 'path' }");
    assert!(message.contains("columms") && message.contains("did you mean `columns`"), "{message}");
}

#[test]
fn a_corpus_that_is_not_there_is_named_with_its_root() {
    let folder = Folder::new();
    let message = folder.failure("");
    let root = folder.path().to_str().unwrap();
    assert!(message.contains("captions.csv") && message.contains(root), "{message}");
}
