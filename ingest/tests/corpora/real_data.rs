//! Every broken Parquet file, tar and table of the folder named by `IMP_SHARED` ends as its `EXPECT.csv` says.

use std::path::PathBuf;

use imp_ingest::{CorpusReport, IngestError, Progress};
use imp_schemas::reject::RejectReason::{self, *};
use imp_schemas::store::Store;

use crate::common::{config_of, rejects};

fn bad() -> PathBuf {
    let shared = std::env::var_os("IMP_SHARED").expect("IMP_SHARED names the folder with data/ and golden/");
    PathBuf::from(shared).join("data/bad")
}

/// What became of one file: its report and its rejects, or the error.
fn ingest(file: &str, more: &str) -> Result<(CorpusReport, Vec<(RejectReason, String)>), IngestError> {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store").to_str().unwrap()).unwrap();
    let text = format!(
        "max_reject_share = 1.0\n[[ingest.corpus]]\nname = \"t\"\nkind = \"image-text\"\npath = \"{file}\"\n{more}\n"
    );
    let config = config_of(&text, &bad(), &dir.path().join("run.toml"))?;
    let report = imp_ingest::run(&config, &store, &mut Progress::silent())?;
    Ok((report.corpora[0].clone(), rejects(&store, "t")))
}

#[test]
fn every_bad_file_ends_as_expect_csv_says() {
    let mut table = csv::Reader::from_path(bad().join("EXPECT.csv")).unwrap();
    let mut n_files = 0;
    for row in table.records() {
        let row = row.unwrap();
        let (file, expect) = (&row[0], &row[2]);
        if !["parquet/", "tar/", "text/"].iter().any(|folder| file.starts_with(folder)) {
            continue;
        }
        n_files += 1;
        let columns = if file.ends_with(".jsonl") { "columns = { path = \"image\", caption = \"text\" }" } else { "" };
        let ended = ingest(file, columns);
        let fits = match (expect, &ended) {
            ("error", Ok((_, rejects))) => !rejects.is_empty(),
            ("error", Err(error)) => matches!(
                error,
                IngestError::Table { .. } | IngestError::NoRecords { .. } | IngestError::MissingColumn { .. }
            ),
            // A whole list may lack what a record needs, or name files that are not there: then it says so.
            (_, Err(error)) => matches!(
                error,
                IngestError::NoRecords { .. } | IngestError::MissingColumn { .. } | IngestError::Table { .. }
            ),
            (_, Ok(_)) => true,
        };
        assert!(fits, "{file}: wanted {expect}, {ended:?}");
        let is_ok = expect == "ok";
        let is_broken = matches!(&ended, Err(IngestError::Table { .. }));
        assert!(!(is_ok && is_broken), "{file}: {ended:?}");
    }
    assert!(n_files > 45, "{n_files}");
}

#[test]
fn broken_parquet_names_what_is_wrong() {
    let cases = [
        ("empty", "it has 0 bytes"),
        ("magic_only", "it has 8 bytes"),
        ("footer_len_lie", "its footer claims 2147483647 bytes"),
        ("no_magic_end", "does not begin and end with `PAR1`"),
        ("truncated", "does not begin and end with `PAR1`"),
        ("bomb_20M_rows_20GB", "no column `path` or `url`; its columns are `caption`"),
        ("zero_rows", "is empty: it can be read and holds no record"),
    ];
    for (file, part) in cases {
        let message = ingest(&format!("parquet/{file}.parquet"), "").unwrap_err().to_string();
        assert!(message.contains(part), "{file}: {message}");
    }
}

#[test]
fn rows_that_are_bad_in_a_good_parquet_file_are_rejected_by_number() {
    let (report, rejects) = ingest("parquet/good_but_bad_rows.parquet", "").unwrap();
    assert_eq!((report.n_inputs, report.n_records), (3, 1));
    let found: Vec<(RejectReason, bool)> =
        rejects.iter().map(|(r, text)| (*r, text.contains("bad_rows.parquet/"))).collect();
    assert_eq!(found, [(EmptyCaption, true), (UnknownFormat, true)], "{rejects:?}");
    // The same file as a list: its URLs lead away, and a row without one is named.
    let error = ingest("parquet/good_but_bad_rows.parquet", "columns = { url = \"url\" }").unwrap_err().to_string();
    for part in ["good_but_bad_rows.parquet row 0", "good_but_bad_rows.parquet row 1", "malformed_row"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn corpora_that_are_empty_say_so() {
    for file in ["text/captions_header_only.csv", "parquet/zero_rows.parquet"] {
        let error = ingest(file, "").unwrap_err();
        assert!(matches!(error, IngestError::NoRecords { .. }), "{error:?}");
        assert!(error.to_string().contains("is empty: it can be read and holds no record"), "{error}");
    }
    let error = ingest("tar/only_zeros.tar", "").unwrap_err();
    assert!(error.to_string().contains("is empty: it can be read and holds no record"), "{error}");
}
