//! Promises of `add-columns` and `drop-columns`, and of the commands that show what was added.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, FixedSizeListArray, Float32Array, Int16Array, LargeStringArray,
    TimestampSecondArray, UInt64Array,
};
use arrow::datatypes::Int32Type;
use arrow::record_batch::RecordBatch;
use imp_schemas::manifest::Manifest;
use imp_schemas::record::column;
use imp_schemas::shard::{manifest_key, side_table_key};
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::side_table::AddedColumns;
use imp_schemas::store::Store;
use parquet::arrow::ArrowWriter;

use crate::store::{CORPUS, Corpus, KIND, Plan, keys, write, write_into};
use crate::{imp_shards, stdout};

/// A file beside the corpus's objects, where no command looks.
fn file(corpus: &Corpus, name: &str, text: &str) -> PathBuf {
    let path = corpus.folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn parquet(corpus: &Corpus, name: &str, columns: Vec<(&str, ArrayRef)>) -> PathBuf {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    let path = corpus.folder.path().join(name);
    std::fs::write(&path, writer.into_inner().unwrap()).unwrap();
    path
}

fn add(corpus: &Corpus, from: &std::path::Path, more: &[&str]) -> String {
    let mut arguments = vec!["add-columns", "--store", corpus.store(), CORPUS, "--from", from.to_str().unwrap()];
    arguments.extend(more);
    stdout(&arguments)
}

/// What a call that fails says; it has published nothing.
fn refused(corpus: &Corpus, arguments: &[&str]) -> String {
    let before = newest(corpus);
    let done = imp_shards(arguments);
    assert_eq!(done.status.code(), Some(2), "{arguments:?}");
    assert_eq!(newest(corpus), before);
    String::from_utf8(done.stderr).unwrap()
}

fn newest(corpus: &Corpus) -> (u64, Manifest) {
    let snapshot = Store::open(corpus.store()).unwrap().manifest(CORPUS).unwrap();
    (snapshot.version, snapshot.manifest)
}

/// Every row of every shard, as text, by key: what the reader joins.
fn values(corpus: &Corpus, names: &[&str]) -> BTreeMap<String, Vec<String>> {
    let store = Store::open(corpus.store()).unwrap();
    let manifest = store.manifest(CORPUS).unwrap().manifest;
    let mut added = AddedColumns::of(&store, &manifest);
    let mut all = BTreeMap::new();
    for entry in &manifest.shards {
        let reader = ShardReader::open(&store, CORPUS, entry).unwrap();
        let rows: Vec<u64> = (0..entry.n_rows).collect();
        let columns: Vec<&str> = names.iter().copied().chain([column::KEY]).collect();
        let batch = added.read_joined(&reader, &rows, &columns).unwrap();
        let found: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(found, columns);
        for row in 0..batch.num_rows() {
            let text = |i: usize| arrow::util::display::array_value_to_string(batch.column(i), row).unwrap();
            all.insert(text(names.len()), (0..names.len()).map(text).collect());
        }
    }
    all
}

fn row(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

fn check(corpus: &Corpus) -> (Option<i32>, String) {
    let done = imp_shards(&["check", "--store", corpus.store(), "--orphan-hours", "0"]);
    (done.status.code(), String::from_utf8(done.stdout).unwrap())
}

#[test]
fn columns_of_a_table_are_joined_by_key_shown_counted_and_checked() {
    let corpus = write(&Plan { keys: keys(&["a", "b", "c", "007"]), hidden: Some(1), ..Plan::default() });
    let scores = file(&corpus, "s.csv", "key,score,lang\n007,4,de\nb,9.5,en\nnobody,1,fr\na,0.5,\n");
    let said = add(&corpus, &scores, &[]);
    for line in
        ["snapshot 2 published, with score (float64), lang (utf8)", "2 of 3 records", "2 of its 4 keys", "`nobody`"]
    {
        assert!(said.contains(line), "{line}: {said}");
    }
    // Row 1, `b`, is hidden: it gets no value, though the table names it.
    let all = values(&corpus, &["lang", "score"]);
    assert_eq!(all["a"], row(&["", "0.5"]));
    assert_eq!(all["007"], row(&["de", "4.0"]));
    assert_eq!((&all["b"], &all["c"]), (&row(&["", ""]), &row(&["", ""])));
    assert_eq!(check(&corpus).0, Some(0), "{}", check(&corpus).1);
    let store = corpus.store();
    let shown = stdout(&["show", "--store", store, CORPUS]);
    assert!(shown.contains("score") && shown.contains("0.5") && shown.contains(" de "), "{shown}");
    let stats: serde_json::Value = serde_json::from_str(&stdout(&["stats", "--store", store, "--json"])).unwrap();
    let score = &stats["corpora"][0]["added_columns"]["score"];
    assert_eq!((&score["n_null"], &score["least"], &score["mean"]), (&1.into(), &0.5.into(), &2.25.into()));
    let text = stdout(&["stats", "--store", store]);
    assert!(text.contains("added score (float64): 1 null, 0.5 to 4, mean 2.2500"), "{text}");
    assert!(text.contains("added lang (utf8): 2 null\n"), "{text}");
    let snapshots = stdout(&["snapshots", "--store", store, CORPUS]);
    assert!(snapshots.contains("lang score"), "{snapshots}");
    let diff = stdout(&["diff", "--store", store, CORPUS]);
    assert!(diff.contains("0 added, 0 removed, 0 changed") && diff.contains("new column lang"), "{diff}");
}

#[test]
fn adding_the_same_again_writes_nothing_and_another_table_takes_the_place() {
    let corpus = write(&Plan::default());
    let first = file(&corpus, "1.csv", "key,x,y\na,1,1\nb,2,2\n");
    add(&corpus, &first, &[]);
    let (_, before) = newest(&corpus);
    let again = add(&corpus, &first, &[]);
    assert!(again.contains("snapshot 2 unchanged"), "{again}");
    assert_eq!(newest(&corpus), (2, before));
    // A table of `x` alone: `y` stays, `x` is what the new table says and nothing else.
    let second = file(&corpus, "2.csv", "key,x\nb,20\nc,30\n");
    add(&corpus, &second, &[]);
    let all = values(&corpus, &["x", "y"]);
    assert_eq!([&all["a"], &all["b"], &all["c"]], [&row(&["", "1"]), &row(&["20", "2"]), &row(&["30", ""])]);
    let diff = stdout(&["diff", "--store", corpus.store(), CORPUS]);
    assert!(diff.contains("column     x: other values") && !diff.contains("column     y"), "{diff}");
    // Only what the table names, with --update; in this order of columns the reader gives them.
    let third = file(&corpus, "3.csv", "key,x,y,z\na,100,,7\nnobody,1,5,1\n");
    add(&corpus, &third, &["--update", "--columns", "y,x,z"]);
    let all = values(&corpus, &["y", "x", "z"]);
    assert_eq!(
        [&all["a"], &all["b"], &all["c"]],
        [&row(&["", "100", "7"]), &row(&["2", "20", ""]), &row(&["", "30", ""])]
    );
    assert!(add(&corpus, &third, &["--update", "--columns", "y,x,z"]).contains("unchanged"));
    let (_, manifest) = newest(&corpus);
    assert_eq!(manifest.side_tables.len(), 1, "a table that shows nothing is not listed");
    assert_eq!(check(&corpus).0, Some(0), "{}", check(&corpus).1);
    let float = file(&corpus, "4.csv", "key,x\na,0.5\n");
    let said = refused(
        &corpus,
        &["add-columns", "--store", corpus.store(), CORPUS, "--from", float.to_str().unwrap(), "--update"],
    );
    assert!(said.contains("type float64") && said.contains("int64") && said.contains("--update"), "{said}");
}

#[test]
fn dropped_columns_are_gone_from_the_next_snapshot_only() {
    let corpus = write(&Plan::default());
    add(&corpus, &file(&corpus, "1.csv", "key,x,y\na,1,1\n"), &[]);
    let drop = |names: &str| ["drop-columns", "--store", corpus.store(), CORPUS, names].map(str::to_owned);
    let said = refused(&corpus, &drop("x,nothing").each_ref().map(String::as_str));
    assert!(said.contains("`nothing`") && said.contains("it has x, y"), "{said}");
    let said = stdout(&drop("x").each_ref().map(String::as_str));
    assert!(said.contains("snapshot 3 published, without x"), "{said}");
    assert_eq!(values(&corpus, &["y"])["a"], row(&["1"]));
    assert_eq!(newest(&corpus).1.added_columns().len(), 1);
    stdout(&drop("y").each_ref().map(String::as_str));
    assert!(newest(&corpus).1.side_tables.is_empty());
    let diff = stdout(&["diff", "--store", corpus.store(), CORPUS, "--from", "2"]);
    assert!(diff.contains("lost column x") && diff.contains("lost column y"), "{diff}");
    // Snapshot 2 still shows both, so their table is nobody's orphan.
    assert_eq!(check(&corpus).0, Some(0), "{}", check(&corpus).1);
}

#[test]
fn the_types_that_tools_write_become_those_that_every_reader_opens() {
    let corpus = write(&Plan::default());
    let vectors = Arc::new(arrow::datatypes::Field::new("item", arrow::datatypes::DataType::Float32, true));
    let numbers = Arc::new(Float32Array::from(vec![0.5, -1.0, 2.0, f32::NAN]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(LargeStringArray::from(vec!["c", "a"]))),
        ("small", Arc::new(Int16Array::from(vec![Some(-3), None]))),
        ("large", Arc::new(UInt64Array::from(vec![7, 8]))),
        ("lang", Arc::new(["de", "en"].into_iter().collect::<DictionaryArray<Int32Type>>())),
        ("clip", Arc::new(FixedSizeListArray::new(vectors, 2, numbers, None))),
        ("when", Arc::new(TimestampSecondArray::from(vec![0, 1]))),
    ];
    let table = parquet(&corpus, "t.parquet", columns);
    let arguments =
        ["add-columns", "--store", corpus.store(), CORPUS, "--from", table.to_str().unwrap(), "--key", "id"];
    let said = refused(&corpus, &arguments);
    assert!(said.contains("`when`") && said.contains("Timestamp") && said.contains("bool, int32"), "{said}");
    add(&corpus, &table, &["--key", "id", "--columns", "small,large,lang,clip"]);
    let kinds: Vec<String> = newest(&corpus).1.side_tables[0].columns.iter().map(|c| c.kind.to_string()).collect();
    assert_eq!(kinds, ["int32", "int64", "utf8", "list<float32>"]);
    let all = values(&corpus, &["clip", "lang", "large", "small"]);
    assert_eq!(all["c"], row(&["[0.5, -1.0]", "de", "7", "-3"]));
    assert_eq!(all["a"], row(&["[2.0, NaN]", "en", "8", ""]));
    assert_eq!(all["b"], row(&["", "", "", ""]));
    let lines = file(
        &corpus,
        "t.jsonl",
        "{\"key\": \"a\", \"ok\": true, \"tags\": [\"x\", \"y\"], \"p\": 1}\n{\"key\": \"b\", \"p\": 0.5}\n",
    );
    add(&corpus, &lines, &[]);
    let all = values(&corpus, &["ok", "p", "tags", "small"]);
    assert_eq!((&all["a"], &all["b"]), (&row(&["true", "1.0", "[x, y]", ""]), &row(&["", "0.5", "", ""])));
    assert_eq!(check(&corpus).0, Some(0), "{}", check(&corpus).1);
    let shown = stdout(&["show", "--store", corpus.store(), CORPUS]);
    assert!(shown.contains("[0.5, -1.0]"), "{shown}");
}

#[test]
fn a_table_that_cannot_be_joined_is_refused_with_its_place_and_what_to_do() {
    let cases: [(&str, &str, &[&str], &[&str]); 11] = [
        ("t.csv", "key,x\na,1\nb,2\na,3\n", &[], &["key `a` stands in rows 1 and 3", "remove"]),
        ("t.csv", "key,width\na,1\n", &[], &["`width`", "rename"]),
        ("t.csv", "key,Captions\na,1\n", &[], &["`Captions`", "--columns"]),
        ("t.csv", "key,a b\na,1\n", &[], &["`a b`", "letters, digits"]),
        ("t.csv", "key,x,x\na,1,2\n", &[], &["`x`", "stand once"]),
        ("t.csv", "id,x\na,1\n", &[], &["no column `key`", "it has id, x", "--key"]),
        ("t.csv", "key,x\na,1\n", &["--columns", "y"], &["no column `y`", "--columns"]),
        ("t.csv", "key,x\na,1\n,2\n", &[], &["row 2 of table", "no key"]),
        ("t.csv", "key,x\nz,1\ny,2\n", &[], &["one of the 2 keys", "such as `z`", "--key"]),
        ("t.csv", "key\na\n", &[], &["no column beside `key`"]),
        ("t.txt", "key,x\na,1\n", &[], &[".parquet, .csv, .tsv or .jsonl"]),
    ];
    let corpus = write(&Plan::default());
    for (name, text, more, wanted) in cases {
        let path = file(&corpus, name, text);
        let mut arguments = vec!["add-columns", "--store", corpus.store(), CORPUS, "--from", path.to_str().unwrap()];
        arguments.extend(more);
        let said = refused(&corpus, &arguments);
        for part in wanted {
            assert!(said.contains(part), "{text:?}: {part}: {said}");
        }
    }
    let store = Store::open(corpus.store()).unwrap();
    assert!(store.list(&format!("{CORPUS}/columns")).unwrap().is_empty(), "nothing was written either");
}

#[test]
fn a_table_of_many_buckets_gives_what_one_bucket_gives() {
    let names: Vec<String> = (0..20_000).map(|i| format!("record-{i}")).collect();
    let corpus = write(&Plan { keys: names.clone(), ..Plan::default() });
    let row = |i: usize, key: &str| format!("{key},{},{}\n", i as f64 / 4.0, "words ".repeat(20));
    let matching = |from: usize| names.iter().enumerate().skip(from).step_by(2).map(|(i, key)| row(i, key));
    let small: String = ["key,score,text\n".to_owned()].into_iter().chain(matching(1)).collect();
    add(&corpus, &file(&corpus, "small.csv", &small), &[]);
    let (_, one_bucket) = newest(&corpus);
    // 35 MB more, none of which matches.
    let others = (0..250_000).map(|i| row(i, &format!("other-{i}")));
    let large: String = [small].into_iter().chain(others).collect();
    let said = add(&corpus, &file(&corpus, "large.csv", &large), &[]);
    assert!(said.contains("unchanged") && said.contains("250000 of its 260000 keys match no record"), "{said}");
    assert!(said.contains("… and 249990 more"), "{said}");
    assert_eq!(newest(&corpus), (2, one_bucket));
    let store = Store::open(corpus.store()).unwrap();
    let manifest = store.manifest(CORPUS).unwrap().manifest;
    let mut added = AddedColumns::of(&store, &manifest);
    let batch = added.read(&manifest.shards[0].digest, &[1, 2, 8191, 8193, 19_999], &["score"]).unwrap();
    let scores: Vec<Option<f64>> = batch.column(0).as_primitive::<arrow::datatypes::Float64Type>().iter().collect();
    assert_eq!(scores, [Some(0.25), None, Some(2047.75), Some(2048.25), Some(4999.75)]);
}

#[test]
fn each_kind_of_damage_to_a_side_table_is_found_and_named() {
    type Damage = fn(&mut Manifest);
    let cases: [(&str, Damage, &str); 7] = [
        ("another type", |m| m.side_tables[0].columns[0].kind.is_list = true, "column `x` is Int64"),
        ("another column", |m| m.side_tables[0].columns[0].name = "z".to_owned(), "column `z` is not there"),
        ("fewer rows", |m| m.side_tables[0].n_rows -= 1, "number of rows is 3, the manifest says 2"),
        ("fewer rows of its shard", |m| m.side_tables[0].shards[0].n_rows -= 1, "has 2 rows of shard"),
        ("another shard", |m| m.side_tables[0].shards[0].digest.0.make_ascii_uppercase(), "wanted row 0 of shard"),
        ("twice", |m| m.side_tables.push(m.side_tables[0].clone()), "two tables have column `x`"),
        ("another size", |m| m.side_tables[0].n_bytes += 1, "bytes, the manifest says"),
    ];
    for (what, damage, wanted) in cases {
        let corpus = write(&Plan::default());
        add(&corpus, &file(&corpus, "t.csv", "key,x\na,1\nb,2\n"), &[]);
        let (_, mut manifest) = newest(&corpus);
        damage(&mut manifest);
        let path = corpus.folder.path().join(manifest_key(CORPUS, 2));
        std::fs::write(&path, manifest.to_bytes().unwrap()).unwrap();
        let (status, text) = check(&corpus);
        assert_eq!(status, Some(1), "{what}");
        assert!(text.contains(wanted) && text.contains("add-columns"), "{what}: {text}");
    }
    let corpus = write(&Plan::default());
    add(&corpus, &file(&corpus, "t.csv", "key,x\na,1\nb,2\n"), &[]);
    let key = side_table_key(CORPUS, &newest(&corpus).1.side_tables[0].digest);
    let path = corpus.folder.path().join(key);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(check(&corpus).1.contains("finding [digest]"), "{}", check(&corpus).1);
    std::fs::remove_file(&path).unwrap();
    assert!(check(&corpus).1.contains("finding [missing_object]"), "{}", check(&corpus).1);
}

#[test]
fn a_side_table_is_plain_parquet_that_says_which_row_of_which_shard_each_row_is() {
    let corpus = write(&Plan::default());
    add(&corpus, &file(&corpus, "t.csv", "key,x\nc,1\n"), &[]);
    let (_, manifest) = newest(&corpus);
    let table = &manifest.side_tables[0];
    let bytes = std::fs::read(corpus.folder.path().join(side_table_key(CORPUS, &table.digest))).unwrap();
    assert_eq!((bytes.len() as u64, imp_schemas::shard::Digest::of(&bytes)), (table.n_bytes, table.digest.clone()));
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes));
    let reader = reader.unwrap();
    let shard = reader.metadata().row_group(0).column(0).statistics().unwrap().clone();
    assert_eq!(shard.min_bytes_opt(), Some(manifest.shards[0].digest.0.as_bytes()));
    assert_eq!(shard.max_bytes_opt(), shard.min_bytes_opt());
    let batch = reader.build().unwrap().next().unwrap().unwrap();
    let names: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["shard", "row", "x"]);
    let shards = batch.column(0).as_string::<i32>().iter().flatten();
    assert!(shards.eq([manifest.shards[0].digest.0.as_str(); 3]));
    let x = batch.column(2);
    assert_eq!((x.is_null(0), x.is_null(1), x.is_null(2)), (true, true, false));
}

#[test]
fn a_shard_that_no_table_covers_reads_as_null_and_a_column_that_was_not_added_is_an_error() {
    let corpus = write(&Plan::default());
    add(&corpus, &file(&corpus, "t.csv", "key,x\nc,1\n"), &[]);
    let (_, first) = newest(&corpus);
    // The next snapshot has another shard and the old side table.
    write_into(corpus.folder.path(), &Plan { keys: keys(&["d", "e"]), snapshot: 3, ..Plan::default() });
    let (_, mut manifest) = newest(&corpus);
    manifest.side_tables = first.side_tables;
    let store = Store::open(corpus.store()).unwrap();
    let mut added = AddedColumns::of(&store, &manifest);
    let batch = added.read(&manifest.shards[0].digest, &[0, 1], &["x"]).unwrap();
    assert_eq!((batch.num_rows(), batch.column(0).null_count()), (2, 2));
    let error = added.read(&manifest.shards[0].digest, &[0], &["y"]).unwrap_err().to_string();
    assert!(error.contains("`y`") && error.contains("it has x"), "{error}");
    assert_eq!(manifest.kind, KIND);
    assert_eq!(added.read(&first.shards[0].digest, &[2], &["x"]).unwrap().column(0).null_count(), 0);
    assert!(added.read(&first.shards[0].digest, &[3], &["x"]).is_err(), "the table has no row 3");
}
