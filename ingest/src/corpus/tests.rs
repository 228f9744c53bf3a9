//! Listings of every form: the same units whatever the order, places of media here and behind URLs, identities.

use std::collections::BTreeMap;
use std::path::Path;

use imp_schemas::reject::RejectReason;
use imp_schemas::run_file::RunFile;
use imp_schemas::store::Store;
use testkit::s3::S3Server;

use super::*;

fn config(root: &Path, ingest: &str) -> IngestConfig {
    let file: RunFile = toml::from_str(&format!("store = \"s\"\nrun = \"r\"\n[ingest]\n{ingest}")).unwrap();
    IngestConfig::of(&file, Path::new("run.toml")).unwrap().with_root(root)
}

fn open(config: &IngestConfig) -> Result<Listing, IngestError> {
    Listing::open(config, &config.corpora[0])
}

/// A corpus of pictures at `path`, with more lines of its table.
fn corpus(path: &str, more: &str) -> String {
    format!("[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"{path}\"\n{more}\n")
}

fn all(listing: &Listing) -> Found {
    let mut found = Found::default();
    for unit in 0..listing.n_units() {
        found.append(listing.read(unit).unwrap());
    }
    found.candidates.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

fn keys_by_unit(listing: &Listing) -> Vec<Vec<String>> {
    let keys = |unit| {
        let mut keys: Vec<String> = listing.read(unit).unwrap().candidates.into_iter().map(|c| c.key).collect();
        keys.sort();
        keys
    };
    (0..listing.n_units()).map(keys).collect()
}

fn url_of(candidate: &Candidate) -> &str {
    match &candidate.medium {
        Place::Url { url } => url,
        other => panic!("{other:?}"),
    }
}

fn put(root: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A bucket's prefix with these objects.
fn bucket(objects: &[(&str, &[u8])]) -> (S3Server, Store) {
    let server = S3Server::start().unwrap();
    let store = Store::open_with(&server.url("photos"), &server.options()).unwrap();
    for (key, bytes) in objects {
        store.put(key, bytes.to_vec().into()).unwrap();
    }
    (server, store)
}

fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_record_lies_in_the_same_unit_whatever_the_order_of_its_table() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<String> = (0..200).map(|i| format!("{i:03}.jpg,picture {i}")).collect();
    (0..200).for_each(|i| put(dir.path(), &format!("{i:03}.jpg"), "x"));
    put(dir.path(), "t.csv", format!("path,caption\n{}\n", rows.join("\n")));
    let config = config(dir.path(), &format!("unit_records = 30\n{}", corpus("t.csv", "")));
    let first = keys_by_unit(&open(&config).unwrap());
    assert_eq!((first.len(), first.iter().map(Vec::len).sum::<usize>()), (8, 200));
    let reversed: Vec<String> = rows.iter().rev().cloned().collect();
    put(dir.path(), "t.csv", format!("path,caption\n{}\n", reversed.join("\n")));
    assert_eq!(keys_by_unit(&open(&config).unwrap()), first);
}

#[test]
fn rows_of_one_path_and_files_of_one_stem_meet_in_one_unit() {
    let dir = tempfile::tempdir().unwrap();
    let mut table = "path,caption\n".to_owned();
    for turn in ["one", "two"] {
        (0..50).for_each(|i| table += &format!("{i}.jpg,{turn}\n"));
    }
    for i in 0..50 {
        put(dir.path(), &format!("{i}.jpg"), "x");
        put(dir.path(), &format!("{i}.txt"), "from a file");
    }
    put(dir.path(), "../t.csv", "");
    put(dir.path(), "sub/t.csv", table);
    let of_table = config(dir.path(), &format!("unit_records = 3\n{}", corpus("sub/t.csv", "media_root = \".\"")));
    let of_folder = config(dir.path(), &format!("unit_records = 3\n{}", corpus(".", "")));
    let (table, folder) = (open(&of_table).unwrap(), open(&of_folder).unwrap());
    assert_eq!((table.n_units(), folder.n_units()), (64, 32));
    let found = all(&table);
    assert!(found.rejects.is_empty() && found.candidates.len() == 50, "{:?}", found.rejects);
    assert!(found.candidates.iter().all(|c| c.wording.captions == ["one", "two"]));
    let found = all(&folder);
    assert_eq!((found.candidates.len(), found.rejects.len(), found.n_ignored), (50, 0, 1));
    assert!(found.candidates.iter().all(|c| c.wording.captions == ["from a file"]));
}

#[test]
fn class_folders_are_found_out_for_the_whole_folder_not_for_a_unit() {
    let dir = tempfile::tempdir().unwrap();
    (0..40).for_each(|i| put(dir.path(), &format!("cat/{i}.jpg"), "x"));
    let config = config(dir.path(), &format!("unit_records = 5\n{}", corpus(".", "")));
    assert!(all(&open(&config).unwrap()).candidates.iter().all(|c| c.wording.labels == ["cat"]));
    // `.` sorts behind `-`, so the sidecar does not follow its medium at once.
    put(dir.path(), "cat/7-b.jpg", "x");
    put(dir.path(), "cat/7.b.jpg", "x");
    put(dir.path(), "cat/7.txt", "the seventh");
    let found = all(&open(&config).unwrap());
    assert!(found.candidates.iter().all(|c| c.wording.labels.is_empty()), "{found:?}");
}

#[test]
fn an_identity_changes_with_the_files_words_and_sizes_of_its_unit_alone() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..40 {
        put(dir.path(), &format!("f/{i}.jpg"), "x");
        put(dir.path(), &format!("f/{i}.txt"), "words");
    }
    let rows: Vec<String> = (0..40).map(|i| format!("{i}.jpg,words")).collect();
    put(dir.path(), "f.csv", format!("path,caption\n{}\n", rows.join("\n")));
    let cases = [("f", ""), ("f.csv", "media_root = \"f\"")];
    for (path, more) in cases {
        let config = config(dir.path(), &format!("unit_records = 10\n{}", corpus(path, more)));
        let identities = || {
            let listing = open(&config).unwrap();
            let unit_of = |unit| listing.read(unit).unwrap().candidates.iter().any(|c| c.key == "7");
            let with_7 = (0..listing.n_units()).find(|unit| unit_of(*unit)).unwrap();
            let identity = |unit| listing.identity(unit).unwrap();
            (with_7, (0..listing.n_units()).map(identity).collect::<Vec<Digest>>())
        };
        let (with_7, before) = identities();
        assert_eq!(identities().1, before);
        put(dir.path(), "f/7.jpg", "longer");
        let after = identities().1;
        let changed: Vec<usize> = (0..before.len()).filter(|unit| before[*unit] != after[*unit]).collect();
        assert_eq!(changed, [with_7], "{path}");
        put(dir.path(), "f/7.jpg", "x");
    }
}

#[test]
fn tars_are_grouped_by_size_and_a_unit_reads_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let heavy = vec![0; 600 << 10];
    for i in 0..5 {
        let (jpg, txt) = (format!("{i}.jpg"), format!("{i}.txt"));
        put(dir.path(), &format!("w/{i}.tar"), tar_of(&[(&jpg, &heavy), (&txt, b"words")]));
    }
    let config = config(dir.path(), &format!("shard_mib = 1\n{}", corpus("w/*.tar", "")));
    let listing = open(&config).unwrap();
    assert_eq!(keys_by_unit(&listing), [vec!["0", "1"], vec!["2", "3"], vec!["4"]]);
    let before: Vec<Digest> = (0..3).map(|unit| listing.identity(unit).unwrap()).collect();
    put(dir.path(), "w/3.tar", tar_of(&[("3.jpg", &heavy), ("3.txt", b"other words, longer by far")]));
    let listing = open(&config).unwrap();
    let after: Vec<Digest> = (0..3).map(|unit| listing.identity(unit).unwrap()).collect();
    assert!(before[0] == after[0] && before[1] != after[1] && before[2] == after[2]);
    let mut words = Vec::new();
    listing.survey(&mut |wording| words.push(wording.captions.join(","))).unwrap();
    assert_eq!(words, ["words", "words", "words", "other words, longer by far", "words"]);
}

#[test]
fn a_list_of_urls_as_laion_has_it_gives_places_behind_urls_and_keys_that_stay() {
    let dir = tempfile::tempdir().unwrap();
    let csv = "URL,TEXT,WIDTH\nhttps://a.example/1.jpg,one,3\n,no url,3\nhttps://a.example/2.jpg,,3\nnot a url,x,3\n\
               https://a.example/1.jpg,one again,3\n";
    put(dir.path(), "laion.csv", csv);
    let jsonl = "{\"url\":\"https://a.example/1.jpg\",\"caption\":\"one\",\"key\":\"000000001\",\"width\":3}\n\
                 {\"url\":\"s3://bucket/2.jpg\",\"caption\":\"two\",\"key\":null}\n";
    put(dir.path(), "i2d.jsonl", jsonl);
    let found = all(&open(&config(dir.path(), &corpus("laion.csv", ""))).unwrap());
    let [one] = &found.candidates[..] else { panic!("{found:?}") };
    assert_eq!((url_of(one), one.source.as_str()), ("https://a.example/1.jpg", "https://a.example/1.jpg"));
    assert_eq!(one.key, blake3::hash(b"https://a.example/1.jpg").to_hex()[..32]);
    assert_eq!((one.wording.captions.join("|"), one.medium.len(), one.row), ("one|one again".to_owned(), None, 2));
    let rejects: BTreeMap<u64, String> =
        found.rejects.iter().map(|r| (r.row, format!("{} {}", r.reason, r.detail))).collect();
    assert!(rejects[&3].contains("the URL is blank"), "{rejects:?}");
    assert!(rejects[&4].starts_with("empty_caption"), "{rejects:?}");
    assert!(rejects[&5].contains("`not a url` is no URL"), "{rejects:?}");
    let found = all(&open(&config(dir.path(), &corpus("i2d.jsonl", ""))).unwrap());
    assert_eq!((found.candidates[0].key.as_str(), found.rejects[0].row), ("000000001", 2));
    assert!(found.rejects[0].detail.contains("blank key"), "{:?}", found.rejects);
}

#[test]
fn a_path_cell_may_be_a_url_and_a_media_root_may_be_one() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "t.csv", "path,caption\na/b.jpg,words\ns3://bucket/c.jpg,words\nftp://x/d.jpg,words\n");
    for (root, want) in
        [("s3://photos/all/", "s3://photos/all/a/b.jpg"), ("https://x.example", "https://x.example/a/b.jpg")]
    {
        let found = all(&open(&config(dir.path(), &corpus("t.csv", &format!("media_root = \"{root}\"")))).unwrap());
        let urls: Vec<&str> = found.candidates.iter().map(url_of).collect();
        assert!(urls.contains(&want) && urls.contains(&"s3://bucket/c.jpg") && urls.len() == 2, "{urls:?}");
        assert!(found.rejects[0].detail.contains("ftp://x/d.jpg"), "{:?}", found.rejects);
    }
}

#[test]
fn a_path_that_a_url_reads_as_another_does_not_leave_its_media_root() {
    let dir = tempfile::tempdir().unwrap();
    let table = "path,caption\n%2e%2E/.%2e/a.jpg,words\n\".\t./a.jpg\",words\n..a%2e/b%2e%2ec.jpg,words\n";
    put(dir.path(), "t.csv", table);
    let found = all(&open(&config(dir.path(), &corpus("t.csv", "media_root = \"https://x.example/m\""))).unwrap());
    let urls: Vec<&str> = found.candidates.iter().map(url_of).collect();
    assert_eq!(urls, ["https://x.example/m/..a%2e/b%2e%2ec.jpg"]);
    let mut reasons: Vec<RejectReason> = found.rejects.iter().map(|reject| reject.reason).collect();
    reasons.sort();
    assert_eq!(reasons, [RejectReason::UnsafePath, RejectReason::MalformedRow]);
}

#[test]
fn names_of_members_are_parted_by_backslashes_too() {
    let dir = tempfile::tempdir().unwrap();
    let members: [(&str, &[u8]); 5] =
        [("a.b\\c.jpg", b"x"), ("a.b\\c.txt", b"words"), ("d\\.jpg", b"x"), ("d\\..\\e.jpg", b"x"), ("f.jpg", b"x")];
    put(dir.path(), "t.tar", tar_of(&members));
    let found = all(&open(&config(dir.path(), &corpus("t.tar", ""))).unwrap());
    let keys: Vec<&str> = found.candidates.iter().map(|c| c.key.as_str()).collect();
    assert_eq!((keys, found.n_ignored), (vec!["a.b/c", "f"], 1));
    assert_eq!(found.rejects.iter().map(|r| r.reason).collect::<Vec<_>>(), [RejectReason::UnsafePath]);
}

#[test]
fn what_is_skipped_of_a_compressed_tar_counts_towards_what_it_may_unpack_to() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    // A member that nobody wants, of a hundredth more than a gibibyte, and one behind it.
    let len = (1 << 30) / 100 * 101;
    let mut zst = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros.bin").unwrap();
    header.set_size(len);
    header.set_cksum();
    zst.write_all(header.as_bytes()).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(len.next_multiple_of(512)), &mut zst).unwrap();
    zst.write_all(&tar_of(&[("a.jpg", b"x")])).unwrap();
    put(dir.path(), "t.tar.zst", zst.finish().unwrap());
    let found = all(&open(&config(dir.path(), &corpus("t.tar.zst", ""))).unwrap());
    let [reject] = &found.rejects[..] else { panic!("{found:?}") };
    assert_eq!((found.candidates.len(), reject.reason), (0, RejectReason::TooLarge));
    assert!(reject.detail.contains("unpacks to more than 1073741824 bytes"), "{reject:?}");
}

#[test]
fn a_folder_in_object_storage_is_a_folder() {
    let (server, _store) = bucket(&[
        ("set/a/1.jpg", b"x"),
        ("set/a/1.txt", b"the first"),
        ("set/a/2.jpg", b"xy"),
        ("set/a/2.json", b"{\"caption\": \"the second\"}"),
        ("set/.hidden.jpg", b"x"),
        ("set/notes.md", b"x"),
    ]);
    let root = server.url("photos");
    let by_root = config(Path::new(&root), &corpus("set", "")).with_store_options(&server.options());
    let by_url = config(Path::new("."), &corpus(&format!("{root}/set/"), "")).with_store_options(&server.options());
    for config in [by_root, by_url] {
        let listing = open(&config).unwrap();
        let found = all(&listing);
        let seen: Vec<(&str, &str, &str)> =
            found.candidates.iter().map(|c| (c.key.as_str(), url_of(c), c.wording.captions[0].as_str())).collect();
        let want = [
            ("a/1", "s3://imp-test/photos/set/a/1.jpg", "the first"),
            ("a/2", "s3://imp-test/photos/set/a/2.jpg", "the second"),
        ];
        assert_eq!((seen.as_slice(), found.n_ignored), (&want[..], 1));
        assert_eq!(listing.identity(0).unwrap(), open(&config).unwrap().identity(0).unwrap());
    }
}

#[test]
fn tars_and_tables_in_object_storage_are_read_and_what_is_not_there_is_named() {
    let one = tar_of(&[("1.jpg", b"one"), ("1.txt", b"first")]);
    let two = tar_of(&[("2.jpg", b"two2"), ("2.txt", b"second")]);
    let table = b"path,caption\nimg/1.jpg,words\nhttp://x.example/2.jpg,words\n";
    let (server, _store) = bucket(&[("w/a-1.tar", &one), ("w/a-2.tar", &two), ("w/b.tar", b""), ("t/t.csv", table)]);
    let root = server.url("photos");
    let with = |path: &str| config(Path::new(&root), &corpus(path, "")).with_store_options(&server.options());
    let listing = open(&with("w/a-*.tar")).unwrap();
    assert_eq!(listing.n_units(), 1);
    let found = listing.read(0).unwrap();
    let media: Vec<Vec<u8>> = found
        .candidates
        .iter()
        .map(|candidate| match &candidate.medium {
            Place::File { file, offset, len } => {
                let bytes = std::fs::read(file).unwrap();
                bytes[*offset as usize..(*offset + *len) as usize].to_vec()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(media, [b"one".to_vec(), b"two2".to_vec()]);
    assert_eq!(found.candidates[1].source, "a-2.tar/2.jpg");
    let found = all(&open(&with("t/t.csv")).unwrap());
    let mut urls: Vec<&str> = found.candidates.iter().map(url_of).collect();
    urls.sort_unstable();
    assert_eq!(urls, ["http://x.example/2.jpg", "s3://imp-test/photos/t/img/1.jpg"]);
    for path in ["w/none.tar", "nowhere", "w/z-*.tar", "t/none.csv"] {
        assert!(matches!(open(&with(path)), Err(IngestError::NoSuchPath { .. })), "{path}");
    }
    let message = open(&with("http://x.example/t.csv")).unwrap_err().to_string();
    assert!(message.contains("download the list first"), "{message}");
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn a_listing_of_many_rows_is_not_held_in_memory() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let n_rows = 400_000u64;
    let mut table = std::io::BufWriter::new(std::fs::File::create(dir.path().join("t.csv")).unwrap());
    writeln!(table, "url,caption").unwrap();
    for row in 0..n_rows {
        writeln!(table, "https://x.example/{row:09}.jpg,a picture of the number {row} with some more words").unwrap();
    }
    table.into_inner().unwrap();
    let config = config(dir.path(), &format!("unit_records = 1000\n{}", corpus("t.csv", "")));
    let before = resident();
    let listing = open(&config).unwrap();
    assert_eq!(listing.n_units() as u64, n_rows.div_ceil(1000).next_power_of_two());
    let (mut n_found, mut most) = (0, resident());
    for unit in 0..listing.n_units() {
        n_found += listing.read(unit).unwrap().candidates.len() as u64;
        most = most.max(resident());
    }
    assert_eq!(n_found, n_rows);
    // 38 MiB whether it has one million rows or four; held, these would be 200. Other tests run beside this one.
    let grown = most.saturating_sub(before) >> 20;
    assert!(grown < 96, "{grown} MiB");
}

#[cfg(real_data)]
#[test]
fn twenty_million_rows_in_a_file_of_two_megabytes_are_streamed() {
    let shared = std::env::var_os("IMP_SHARED").expect("IMP_SHARED names the folder with data/ and golden/");
    let path = Path::new(&shared).join("data/bad/parquet/bomb_20M_rows_20GB.parquet");
    let file = ParquetFile::open(&path).unwrap();
    let (mut n_rows, mut most) = (0, 0);
    let before = resident();
    let broken = file.read(&["caption"], &mut |first, batch| {
        assert_eq!(first, n_rows);
        n_rows += batch.num_rows() as u64;
        let column = batch.column(0);
        assert_eq!(parquet_file::text_at(column, batch.num_rows() - 1).unwrap().unwrap().len(), 1000);
        most = most.max(resident());
        Ok(())
    });
    assert!(broken.unwrap().is_empty());
    assert_eq!(n_rows, 20_000_000);
    // A hundredth of what the rows are; other tests run beside this one.
    let grown = most.saturating_sub(before) >> 20;
    assert!(grown < 200, "{grown} MiB");
}
