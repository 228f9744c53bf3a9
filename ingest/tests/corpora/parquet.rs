//! Parquet as a list of paths, and Parquet that holds the media.

use imp_schemas::reject::RejectReason::*;
use parquet::basic::{Compression, ZstdLevel};

use crate::common::{World, jpeg, png, wav};
use crate::tables::{blobs, lists, media, numbers, parquet, parquet_with, texts};

fn corpus(path: &str, more: &str) -> String {
    format!(
        "max_reject_share = 1.0\n[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"{path}\"\n{more}\n"
    )
}

#[test]
fn a_parquet_table_of_paths_is_a_table_whatever_its_compression() {
    let world = World::new();
    let columns = [
        ("path", texts(&[Some("a.jpg"), Some("b.png"), None, Some("d.jpg"), Some("../e.jpg")])),
        ("caption", lists(&[&["one", "uno"], &["two"], &["three"], &[" "], &["five"]])),
        ("label", numbers(&[Some(3), None, Some(1), None, Some(1)])),
    ];
    world.put("t/a.jpg", jpeg(1));
    world.put("t/b.png", png(2));
    world.put("t/d.jpg", jpeg(3));
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let gzip = Compression::GZIP(parquet::basic::GzipLevel::default());
    let brotli = Compression::BROTLI(parquet::basic::BrotliLevel::default());
    for compression in [Compression::SNAPPY, zstd, gzip, brotli, Compression::LZ4_RAW, Compression::UNCOMPRESSED] {
        world.put("t/t.parquet", parquet_with(&columns, None, compression));
        let report = world.ingest(&corpus("t/t.parquet", "")).unwrap();
        assert_eq!((report.corpora[0].n_inputs, report.corpora[0].n_records), (5, 2), "{compression}");
        let mut rows = world.rows("c");
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(
            (rows[0].key.as_str(), rows[0].captions.as_slice()),
            ("a", &["one".to_owned(), "uno".to_owned()][..])
        );
        assert_eq!((rows[0].label.as_deref(), rows[0].media.clone()), (Some("3"), jpeg(1)));
        let rejects = world.rejects("c");
        assert_eq!(rejects[0], (MalformedRow, "t.parquet 2: the path is blank".to_owned()));
        assert_eq!(rejects[1].0, EmptyCaption);
        assert!(rejects[1].1.starts_with("t.parquet 3: `d.jpg`"), "{rejects:?}");
        assert_eq!((rejects[2].0, rejects.len()), (UnsafePath, 3));
    }
}

#[test]
fn a_list_column_of_class_labels_needs_no_separator() {
    let world = World::new();
    let features = r#"{"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "List", "feature": {"names": ["cat; black", "dog"], "_type": "ClassLabel"}}}}}"#;
    let (one, two, three, four) = (jpeg(1), png(2), jpeg(3), png(4));
    let columns = [
        ("image", media(&[Some(&one), Some(&two), Some(&three), Some(&four)], &[None; 4])),
        ("label", lists(&[&["1", "0"], &["0"], &[], &["1", "7"]])),
    ];
    world.put("d/t.parquet", parquet(&columns, Some(features)));
    world.ingest(&corpus("d/t.parquet", "caption_from_label = [\"a {}\"]")).unwrap();
    assert_eq!(world.manifest("c").classes, ["cat; black", "dog"]);
    let mut rows = world.rows("c");
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!((rows.len(), rows[0].key.as_str(), rows[1].key.as_str()), (2, "t/0", "t/1"));
    assert_eq!(rows[0].labels, Some(vec!["dog".to_owned(), "cat; black".to_owned()]));
    assert_eq!(
        (rows[0].label.as_deref(), rows[0].label_id, &rows[0].label_ids),
        (Some("dog"), Some(1), &Some(vec![1, 0]))
    );
    assert_eq!((rows[1].label.as_deref(), &rows[1].labels, &rows[1].label_ids), (Some("cat; black"), &None, &None));
    assert_eq!([&rows[0].captions[0], &rows[1].captions[0]], ["a dog and cat; black", "a cat; black"]);
    let rejects = world.rejects("c");
    let has = |reason, part: &str| rejects.iter().any(|(r, text)| *r == reason && text.contains(part));
    assert!(has(EmptyCaption, "t.parquet/2 2: neither a caption nor a label"), "{rejects:?}");
    assert!(has(UnknownClass, "t.parquet/3 3: class 7, its table's list has 0 to 1"), "{rejects:?}");
    assert_eq!(rejects.len(), 2, "{rejects:?}");
}

#[test]
fn hugging_face_files_give_their_media_captions_and_class_names() {
    let world = World::new();
    let features = r#"{"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}"#;
    let (one, two, three) = (jpeg(1), png(2), jpeg(3));
    let first = [
        ("image", media(&[Some(&one), Some(&two), Some(b""), None], &[Some("x.jpg"), None, None, Some("far.jpg")])),
        ("text", texts(&[Some("a cat"), None, Some("lost"), Some("away")])),
        ("label", numbers(&[Some(0), Some(1), Some(1), Some(1)])),
    ];
    let second = [
        ("image", media(&[Some(&three), Some(b"no picture"), Some(&three)], &[None, None, None])),
        ("text", texts(&[Some("a third"), Some("broken"), Some("odd class")])),
        ("label", numbers(&[Some(-1), Some(0), Some(7)])),
    ];
    world.put("d/train-0.parquet", parquet(&first, Some(features)));
    world.put("d/train-1.parquet", parquet(&second, Some(features)));
    let report = world.ingest(&corpus("d/train-*.parquet", "")).unwrap();
    assert_eq!((report.corpora[0].n_inputs, report.corpora[0].n_records), (7, 3));
    let mut rows = world.rows("c");
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    let seen: Vec<(&str, Option<&str>, usize, &[u8])> =
        rows.iter().map(|r| (r.key.as_str(), r.label.as_deref(), r.captions.len(), r.media.as_slice())).collect();
    let want: [(&str, Option<&str>, usize, &[u8]); 3] =
        [("train-0/0", Some("cat"), 1, &one), ("train-0/1", Some("dog"), 0, &two), ("train-1/0", None, 1, &three)];
    assert_eq!(seen, want);
    assert_eq!((rows[0].media_path.as_str(), rows[0].source.as_str()), ("x.jpg", "train-0.parquet/0/x.jpg"));
    assert_eq!(world.manifest("c").classes, ["cat", "dog"]);
    let rejects = world.rejects("c");
    let has = |reason, part: &str| rejects.iter().any(|(r, text)| *r == reason && text.contains(part));
    assert!(has(EmptyFile, "train-0.parquet/2 2: the medium has 0 bytes"), "{rejects:?}");
    assert!(
        has(MissingFile, "train-0.parquet/3/far.jpg 3: its bytes are null, it only names `far.jpg`"),
        "{rejects:?}"
    );
    assert!(has(UnknownFormat, "train-1.parquet/1 1"), "{rejects:?}");
    assert!(has(UnknownClass, "train-1.parquet/2 2: class 7"), "{rejects:?}");
}

#[test]
fn a_plain_binary_column_is_a_medium_and_a_key_column_its_key() {
    let world = World::new();
    let (one, two) = (wav(1), wav(2));
    let columns = [
        ("sound", blobs(&[Some(&one), Some(&two), Some(&one)])),
        ("key", texts(&[Some("first"), Some("second"), None])),
        ("caption", texts(&[Some("a tone"), Some("another"), Some("keyless")])),
    ];
    world.put("s.parquet", parquet(&columns, None));
    let config = corpus("s.parquet", "columns = { media = \"sound\" }").replace("image-text", "audio-text");
    world.ingest(&config).unwrap();
    let mut rows = world.rows("c");
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(
        rows.iter().map(|r| (r.key.as_str(), r.media.clone())).collect::<Vec<_>>(),
        [("first", one), ("second", two)]
    );
    assert_eq!(world.rejects("c"), [(MalformedRow, "s.parquet/2 2: the key is blank".to_owned())]);
}

#[test]
fn a_medium_over_the_limit_is_refused_before_it_is_copied() {
    let world = World::new();
    let (small, large) = (jpeg(1), vec![7; (1 << 20) + 1]);
    let columns =
        [("image", blobs(&[Some(&large), Some(&small)])), ("caption", texts(&[Some("too much"), Some("fine")]))];
    world.put("s.parquet", parquet(&columns, None));
    world.ingest(&corpus("s.parquet", "limits = { max_media_mib = 1 }")).unwrap();
    let want = "s.parquet/0 0: the medium has 1048577 bytes, the limit is 1048576".to_owned();
    assert_eq!(world.rejects("c"), [(TooLarge, want)]);
}

#[test]
fn one_damaged_file_of_many_is_a_reject_and_the_only_one_is_an_error() {
    let world = World::new();
    let one = jpeg(1);
    let embedded = parquet(&[("image", blobs(&[Some(&one)])), ("caption", texts(&[Some("words")]))], None);
    let table = parquet(&[("path", texts(&[Some("a.jpg")])), ("caption", texts(&[Some("words")]))], None);
    world.put("t/a.jpg", &one);
    for (folder, whole) in [("e", &embedded), ("t", &table)] {
        world.put(&format!("{folder}/1.parquet"), whole);
        world.put(&format!("{folder}/0.parquet"), &whole[..whole.len() - 5]);
        world.put(&format!("{folder}/2.parquet"), "PAR1");
        world.ingest(&corpus(&format!("{folder}/*.parquet"), "")).unwrap();
        assert_eq!(world.rows("c").len(), 1);
        let rejects = world.rejects("c");
        assert!(rejects.len() == 2 && rejects.iter().all(|(reason, _)| *reason == Corrupt), "{rejects:?}");
        let message = world.ingest(&corpus(&format!("{folder}/0.parquet"), "")).unwrap_err().to_string();
        assert!(message.contains("table `0.parquet` cannot be read"), "{message}");
    }
}

#[test]
fn a_column_that_is_not_there_is_named_with_what_is() {
    let world = World::new();
    world.put("t.parquet", parquet(&[("ulr", texts(&[Some("x")])), ("caption", texts(&[Some("x")]))], None));
    world.put("e.parquet", parquet(&[("image", blobs(&[Some(b"x")])), ("words", texts(&[Some("x")]))], None));
    let cases = [
        ("t.parquet", "", ["`path` or `url`", "`ulr`, `caption`", "did you mean `ulr`?"]),
        ("t.parquet", "columns = { media = \"img\" }", ["`img`", "`ulr`, `caption`", "t.parquet"]),
        ("e.parquet", "", ["`caption` or `label`", "`image`, `words`", "e.parquet"]),
    ];
    for (path, more, parts) in cases {
        let message = world.ingest(&corpus(path, more)).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    world.put("mixed/a.parquet", parquet(&[("image", blobs(&[Some(b"x")])), ("text", texts(&[Some("x")]))], None));
    world.put("mixed/b.csv", "path,caption\n");
    let message = world.ingest(&corpus("mixed/*", "")).unwrap_err().to_string();
    assert!(message.contains("of one kind"), "{message}");
    let message = world.ingest(&corpus("mixed", "")).unwrap_err().to_string();
    assert!(message.contains("mixed/*.parquet"), "{message}");
}
