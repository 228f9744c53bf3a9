//! Ingest of public corpora and of files that are wrong in known ways: the folder named by `IMP_SHARED`.

use std::path::PathBuf;

use imp_ingest::{CorpusReport, IngestError, Progress};
use imp_schemas::reject::RejectReason::{self, *};
use imp_schemas::store::Store;

use crate::common::{config_of, encode, rejects, seen};

fn data() -> PathBuf {
    let shared = std::env::var_os("IMP_SHARED").expect("IMP_SHARED names the folder with data/ and golden/");
    PathBuf::from(shared).join("data")
}

fn ingest(root: &std::path::Path, ingest: &str) -> (tempfile::TempDir, Store, Result<Vec<CorpusReport>, IngestError>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store").to_str().unwrap()).unwrap();
    let config = config_of(ingest, root, &dir.path().join("run.toml"));
    let report = config.and_then(|config| imp_ingest::run(&config, &store, &mut Progress::silent()));
    (dir, store, report.map(|report| report.corpora))
}

/// Name, `[[ingest.corpus]]` body, inputs, records per split, rejects by reason.
type Case = (&'static str, &'static str, u64, Vec<(&'static str, u64)>, Vec<(RejectReason, u64)>);

#[test]
fn public_corpora_give_the_counts_that_their_tables_promise() {
    let cases: [Case; 6] = [
        (
            "fsdd",
            "kind = \"audio-text\"\npath = \"audio/fsdd/labels.csv\"\n",
            1000,
            vec![("train", 800), ("test", 200)],
            vec![],
        ),
        (
            "cifar10",
            "kind = \"image-text\"\npath = \"image/cifar10/*.tar\"\nclass_names = \"image/cifar10/classnames.txt\"\n\
             split = { from_path = { train = \"cifar10-train-*\", test = \"cifar10-test-*\" } }\n",
            4000,
            vec![("train", 3000), ("test", 1000)],
            vec![],
        ),
        (
            "sign-digits",
            "kind = \"image-text\"\npath = \"image/sign-digits/labels.csv\"\nmedia_root = \"image/sign-digits/sign-digits.tar\"\n",
            1100,
            vec![("train", 880), ("test", 220)],
            vec![],
        ),
        (
            "coco-mini",
            "kind = \"image-text\"\npath = \"image/coco-mini/captions.csv\"\n",
            51,
            vec![("train", 51)],
            vec![],
        ),
        ("coco-folder", "kind = \"image-text\"\npath = \"image/coco-mini\"\n", 51, vec![("train", 51)], vec![]),
        (
            "grid-audio",
            "kind = \"audio-text\"\npath = \"audio/grid/captions.jsonl\"\ncolumns = { path = \"audio\", caption = \"text\" }\n",
            200,
            vec![("train", 200)],
            vec![],
        ),
    ];
    for (name, body, n_inputs, splits, n_rejected) in cases {
        let (_dir, store, reports) = ingest(&data(), &format!("[[ingest.corpus]]\nname = \"{name}\"\n{body}"));
        let report = &reports.unwrap()[0];
        let found: Vec<(&str, u64)> = report.splits.iter().map(|(split, n)| (split.as_str(), *n)).collect();
        assert_eq!((report.n_inputs, found), (n_inputs, splits), "{name}");
        assert_eq!(report.n_rejected.clone().into_iter().collect::<Vec<_>>(), n_rejected, "{name}");
        let rows = seen(&store, name);
        assert!(rows.iter().all(|row| row.label.is_some() || !row.captions.is_empty()), "{name}");
        if name.starts_with("coco") {
            assert!(rows.iter().all(|row| row.captions.len() == 5), "{name}");
        }
    }
}

#[test]
fn of_the_clips_those_in_h264_are_kept_and_the_others_listed_by_codec() {
    let body = "[[ingest.corpus]]\nname = \"grid\"\nkind = \"video-text\"\npath = \"video/grid/captions.csv\"\nmax_reject_share = 0.35\n";
    let (_dir, store, reports) = ingest(&data(), body);
    let report = &reports.unwrap()[0];
    assert_eq!((report.n_inputs, report.n_records), (250, 200));
    assert_eq!(report.n_rejected.clone().into_iter().collect::<Vec<_>>(), [(UnsupportedCodec, 50)]);
    assert!(seen(&store, "grid").iter().all(|row| row.codec == "h264" && row.captions.len() == 1));
}

#[test]
fn bad_tars_behave_as_expected_csv_says() {
    // Records, and rejects besides; a tar without records is refused by an error.
    let cases = [
        ("bad_checksum.tar", 0),
        ("bomb_1GB_zeros.tar.gz", 0),
        ("dirs_and_dotfiles.tar", 4),
        ("duplicate_keys.tar", 4),
        ("empty.tar", 0),
        ("gnu_longnames.tar", 4),
        ("good.tar", 4),
        ("good.tar.gz", 4),
        ("interleaved.tar", 4),
        ("missing_jpg.tar", 3),
        ("missing_txt.tar", 3),
        ("mixed_trouble.tar", 3),
        ("only_zeros.tar", 0),
        ("pax_unicode.tar", 4),
        ("size_lie.tar", 0),
        ("symlink.tar", 4),
        ("traversal.tar", 4),
    ];
    for (file, n_records) in cases {
        let body = format!(
            "max_reject_share = 1.0\n[[ingest.corpus]]\nname = \"t\"\nkind = \"image-text\"\npath = \"bad/tar/{file}\"\n"
        );
        let (_dir, store, reports) = ingest(&data(), &body);
        match reports {
            Ok(reports) => {
                assert_eq!(reports[0].n_records, n_records, "{file}: {:?}", rejects(&store, "t"));
                assert_eq!(seen(&store, "t").len() as u64, n_records);
            }
            Err(error) => {
                assert!(n_records == 0 && matches!(error, IngestError::NoRecords { .. }), "{file}: {error}");
            }
        }
    }
    // Cut in a member: what stood before is kept, the cut is listed.
    for file in ["truncated.tar", "no_end_blocks.tar"] {
        let body = format!(
            "max_reject_share = 1.0\n[[ingest.corpus]]\nname = \"t\"\nkind = \"image-text\"\npath = \"bad/tar/{file}\"\n"
        );
        let (_dir, store, reports) = ingest(&data(), &body);
        assert!(reports.unwrap()[0].n_records >= 1, "{file}");
        assert!(rejects(&store, "t").iter().any(|(reason, _)| *reason == Truncated), "{file}");
    }
}

#[test]
fn bad_tables_behave_as_expected_csv_says() {
    use RejectReason as R;
    let cases: [(&str, u64, Vec<R>); 14] = [
        ("captions.tsv", 1, vec![]),
        ("captions_1MB_caption.csv", 1, vec![]),
        ("captions_bad_lines.jsonl", 3, vec![R::MalformedRow, R::EmptyCaption, R::EmptyCaption]),
        ("captions_crlf_bom.csv", 2, vec![]),
        ("captions_deep.jsonl", 0, vec![]),
        ("captions_dupes.jsonl", 1, vec![R::DuplicateKey, R::DuplicateKey]),
        ("captions_latin1.csv", 0, vec![]),
        ("captions_missing_and_escape.csv", 0, vec![]),
        ("captions_newline_in_field.csv", 2, vec![]),
        ("captions_nul.csv", 1, vec![]),
        ("captions_ragged.csv", 0, vec![]),
        ("captions_surrogate.jsonl", 0, vec![]),
        ("captions_unclosed.csv", 2, vec![R::MalformedRow]),
        ("captions_unicode.jsonl", 10, vec![]),
    ];
    // The tables name pictures that are not beside them: they are laid there.
    let root = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "d", "e", "f", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"] {
        std::fs::write(root.path().join(format!("{name}.jpg")), encode(16, 1, image::ImageFormat::Jpeg)).unwrap();
    }
    for entry in std::fs::read_dir(data().join("bad/text")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), root.path().join(entry.file_name())).unwrap();
    }
    let run = |file: &str| {
        let columns = if file.ends_with("jsonl") { "columns = { path = \"image\", caption = \"text\" }\n" } else { "" };
        let body = format!(
            "max_reject_share = 1.0\n[[ingest.corpus]]\nname = \"t\"\nkind = \"image-text\"\npath = \"{file}\"\n{columns}"
        );
        ingest(root.path(), &body)
    };
    for (file, n_records, reasons) in cases {
        let (_dir, store, reports) = run(file);
        match reports {
            Ok(reports) => {
                let found: Vec<R> = rejects(&store, "t").into_iter().map(|(reason, _)| reason).collect();
                assert_eq!((reports[0].n_records, found), (n_records, reasons), "{file}");
            }
            Err(error) => assert!(n_records == 0 && matches!(error, IngestError::NoRecords { .. }), "{file}: {error}"),
        }
    }
    for (file, part) in [
        ("captions_empty.csv", "it is empty"),
        ("captions_header_only.csv", "holds no record"),
        ("captions_headerless.csv", "no column `path`"),
        ("captions_utf16.csv", "UTF-16"),
    ] {
        let (_dir, _store, reports) = run(file);
        let message = reports.unwrap_err().to_string();
        assert!(message.contains(part), "{file}: {message}");
    }
}
