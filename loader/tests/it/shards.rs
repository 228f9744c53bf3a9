//! The shard reader, over shards of several row groups.

use arrow::array::{Array, AsArray};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::column;
use imp_schemas::shard::shard_key;
use imp_schemas::shard_reader::{ShardReadError, ShardReader};

use crate::stores::{Corpus, Row, image_row, store};

fn rows() -> Vec<Row> {
    (0..11).map(image_row).collect()
}

#[test]
fn any_rows_come_back_as_they_were_written() {
    let (_dir, store) = store();
    let rows = rows();
    let entry = Corpus::new("photos", RecordKind::ImageText).write_shard(&store, &rows, "train");
    let reader = ShardReader::open(&store, "photos", &entry).unwrap();
    assert_eq!(reader.n_rows(), 11);
    let cases: [&[u64]; 6] = [&[0], &[10], &[0, 1, 2, 3], &[2, 3, 5, 9], &[0, 10], &(0..11).collect::<Vec<_>>()];
    for wanted in cases {
        let batch = reader.read(wanted, &["image.bytes", column::TOKENS]).unwrap();
        assert_eq!(batch.num_rows(), wanted.len());
        let media = batch.column_by_name("image").unwrap().as_struct().column(0).as_binary::<i32>();
        for (i, &row) in wanted.iter().enumerate() {
            assert_eq!(media.value(i), rows[row as usize].medium, "row {row} of {wanted:?}");
        }
        assert!(batch.column_by_name(column::KEY).is_none());
    }
    let all = reader.read_all(&[column::KEY]).unwrap();
    assert_eq!(all.iter().map(|b| b.num_rows()).sum::<usize>(), 11);
    assert_eq!(reader.read(&[], &[column::KEY]).unwrap().num_rows(), 0);
    assert_eq!(reader.metadata().num_row_groups(), 4);
}

#[test]
fn rows_and_columns_that_are_not_there_are_named() {
    let (_dir, store) = store();
    let entry = Corpus::new("photos", RecordKind::ImageText).write_shard(&store, &rows(), "train");
    let reader = ShardReader::open(&store, "photos", &entry).unwrap();
    assert!(matches!(reader.read(&[11], &["key"]), Err(ShardReadError::Rows { row: 11, n_rows: 11, .. })));
    assert!(matches!(reader.read(&[3, 3], &["key"]), Err(ShardReadError::Rows { row: 3, .. })));
    let message = reader.read(&[1], &["kee"]).unwrap_err().to_string();
    assert!(message.contains("no column `kee`") && message.contains("`key`"), "{message}");
}

#[test]
fn a_shard_that_is_not_the_listed_one_is_refused_with_its_place() {
    let (_dir, store) = store();
    let entry = Corpus::new("photos", RecordKind::ImageText).write_shard(&store, &rows(), "train");
    let key = shard_key("photos", &entry.digest);
    let mut longer = entry.clone();
    longer.n_rows = 12;
    let message = ShardReader::open(&store, "photos", &longer).unwrap_err().to_string();
    assert!(message.contains(&key) && message.contains("number of rows is 11, the manifest says 12"), "{message}");

    // Damage one page in the middle row group: the other groups stay readable.
    let whole = store.get(&key).unwrap();
    let reader = ShardReader::open(&store, "photos", &entry).unwrap();
    let (start, len) = reader.metadata().row_group(2).column(0).byte_range();
    let mut damaged = whole.to_vec();
    damaged[start as usize..(start + len) as usize].fill(0xff);
    store.put(&key, damaged.into()).unwrap();
    assert!(reader.read(&[0, 3], &["key"]).is_ok());
    match reader.read(&[7], &["key"]) {
        Err(ShardReadError::Decode { shard, row_group: 2, .. }) => assert_eq!(shard, key),
        other => panic!("{other:?}"),
    }

    // Cut the end off: the footer is not there.
    store.put(&key, whole.slice(..whole.len() - 100)).unwrap();
    let message = ShardReader::open(&store, "photos", &entry).unwrap_err().to_string();
    assert!(message.contains("footer of shard") && message.contains(&key), "{message}");
    store.delete(&key).unwrap();
    assert!(matches!(reader.read(&[0], &["key"]), Err(ShardReadError::Fetch { row_group: 0, .. })));
}

#[test]
fn a_read_touches_only_the_pages_of_its_rows() {
    let (dir, store) = store();
    let rows = rows();
    let entry = Corpus::new("photos", RecordKind::ImageText).write_shard(&store, &rows, "train");
    let reader = ShardReader::open(&store, "photos", &entry).unwrap();
    // Every byte of the file but the pages of row 4's medium is overwritten: a reader that looks anywhere else fails.
    let medium_idx = reader
        .metadata()
        .file_metadata()
        .schema_descr()
        .columns()
        .iter()
        .position(|c| c.path().string() == "image.bytes")
        .unwrap();
    let page = &reader.metadata().page_index().unwrap().page_locations(1, medium_idx).unwrap()[1];
    let key = shard_key("photos", &entry.digest);
    let whole = store.get(&key).unwrap();
    let mut blank = vec![0xffu8; whole.len()];
    let range = page.offset as usize..page.offset as usize + page.compressed_page_size as usize;
    blank[range.clone()].copy_from_slice(&whole[range]);
    std::fs::write(dir.path().join(&key), blank).unwrap();
    let batch = reader.read(&[4], &["image.bytes"]).unwrap();
    let media = batch.column_by_name("image").unwrap().as_struct().column(0).as_binary::<i32>();
    assert_eq!(media.value(0), rows[4].medium);
    assert!(!media.is_null(0));
}
