//! What a store holds after a run: bytes that do not depend on the machine, in the layout that readers count on.

use std::collections::BTreeSet;

use imp_schemas::record::record_schema;
use imp_schemas::shard::{Digest, footer, shard_key, tokenizer_key};
use imp_schemas::store::{Listed, Store};
use parquet::arrow::parquet_to_arrow_schema;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use crate::common::{World, batches, encode, jpeg, tar_of, wav};

const CONFIG: &str = "shard_mib = 1\nmax_reject_share = 0.5\n\
    [[ingest.corpus]]\nname = \"pictures\"\nkind = \"image-text\"\npath = \"p.tar\"\nsplit = { hold_out = { test = 0.25 } }\n\
    caption_from_label = [\"a photo of a {}\"]\n\
    [[ingest.corpus]]\nname = \"sounds\"\nkind = \"audio-text\"\npath = \"s/t.csv\"\n";

/// Pictures sorted by class, large enough for several shards of 1 MiB; some sounds, one of them cut.
fn corpora(world: &World) {
    let media: Vec<(String, Vec<u8>)> = (0..60)
        .flat_map(|i| {
            let key = format!("{:02}", i);
            let class = (i / 20).to_string().into_bytes();
            [(format!("{key}.png"), encode(140, i, image::ImageFormat::Png)), (format!("{key}.cls"), class)]
        })
        .collect();
    let members: Vec<(&str, &[u8])> = media.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    world.put("p.tar", tar_of(&members));
    let mut table = "path,label,split\n".to_owned();
    for i in 0..9 {
        world.put(&format!("s/{i}.wav"), wav(i));
        table += &format!("{i}.wav,tone,train\n");
    }
    world.put("s/cut.wav", &wav(5)[..20]);
    world.put("s/t.csv", table + "cut.wav,tone,train\n");
}

fn listing(store: &Store) -> Vec<(Listed, Digest)> {
    let all = store.list("").unwrap();
    all.into_iter().map(|listed| (listed.clone(), Digest::of(&store.get(&listed.key).unwrap()))).collect()
}

fn metadata(store: &Store, corpus: &str, digest: &Digest) -> ParquetMetaData {
    let bytes = store.get(&shard_key(corpus, digest)).unwrap();
    ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required).parse_and_finish(&bytes).unwrap()
}

/// Pages of every column of every row group, by the offset index.
fn pages(metadata: &ParquetMetaData) -> Vec<Vec<usize>> {
    let index = metadata.page_index().unwrap();
    let n_pages = |group, column| index.offset_index(group, column).unwrap().page_locations().len();
    let groups = metadata.row_groups().iter().enumerate();
    groups.map(|(group, columns)| (0..columns.num_columns()).map(|column| n_pages(group, column)).collect()).collect()
}

#[test]
fn the_same_corpora_give_the_same_bytes_with_any_number_of_workers() {
    let world = World::new();
    corpora(&world);
    let mut listings = Vec::new();
    for workers in [1, 2, 5] {
        let name = format!("store-{workers}");
        let config = world.config(CONFIG).unwrap().with_workers(workers);
        let store = world.store(&name);
        imp_ingest::run(&config, &store, &mut imp_ingest::Progress::silent()).unwrap();
        listings.push(listing(&store));
    }
    assert!(listings[0].iter().filter(|(l, _)| l.key.starts_with("pictures/shards/")).count() > 2);
    assert!(listings.iter().all(|l| *l == listings[0]));
}

#[test]
fn a_rerun_writes_nothing_and_says_so() {
    let world = World::new();
    corpora(&world);
    let first = world.ingest(CONFIG).unwrap();
    let before = listing(&world.store("store"));
    let second = world.ingest(CONFIG).unwrap();
    assert_eq!(listing(&world.store("store")), before);
    assert!(first.corpora.iter().all(|c| c.published.is_new && c.published.version == 1));
    assert!(second.corpora.iter().all(|c| !c.published.is_new && c.published.version == 1));
    assert!(second.to_string().contains("unchanged, nothing new written"), "{second}");
    // A changed corpus is a second snapshot beside the first.
    world.put("s/t.csv", "path,label\n0.wav,tone\n1.wav,tone\n");
    let third = world.ingest(CONFIG).unwrap();
    assert_eq!((third.corpora[1].published.version, third.corpora[1].published.is_new), (2, true));
    let store = world.store("store");
    assert_eq!(store.snapshot("sounds", 1).unwrap().manifest.n_records, 9);
    assert_eq!(store.snapshot("sounds", 2).unwrap().manifest.n_records, 2);
}

#[test]
fn manifests_and_footers_agree_with_the_bytes() {
    let world = World::new();
    corpora(&world);
    world.ingest(CONFIG).unwrap();
    let store = world.store("store");
    for corpus in ["pictures", "sounds"] {
        let manifest = store.manifest(corpus).unwrap().manifest;
        assert_eq!(manifest.n_inputs, manifest.n_records + manifest.n_rejected.values().sum::<u64>());
        assert!(store.get(&tokenizer_key(&manifest.tokenizer.digest)).is_ok());
        for entry in &manifest.shards {
            let bytes = store.get(&shard_key(corpus, &entry.digest)).unwrap();
            assert_eq!((Digest::of(&bytes), bytes.len() as u64), (entry.digest.clone(), entry.n_bytes));
            let metadata = metadata(&store, corpus, &entry.digest);
            assert_eq!(metadata.file_metadata().num_rows() as u64, entry.n_rows);
            assert_eq!(metadata.num_row_groups() as u64, entry.n_row_groups);
            // From `index_offset` to the end is all that planning reads.
            let tail = bytes.slice(entry.index_offset as usize..);
            let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required);
            reader.try_parse_sized(&tail, entry.n_bytes).unwrap();
            let from_tail = reader.finish().unwrap();
            assert_eq!(pages(&from_tail), pages(&metadata));
            let footer_at = entry.n_bytes - 8 - entry.footer_len;
            assert!(entry.index_offset < footer_at);
            let pairs = metadata.file_metadata().key_value_metadata().unwrap();
            let value = |key: &str| pairs.iter().find(|kv| kv.key == key).unwrap().value.clone().unwrap();
            assert_eq!(value(footer::N_ROWS), entry.n_rows.to_string());
            assert_eq!(value(footer::SCHEMA), manifest.kind.name());
            assert_eq!(value(footer::SPLIT), entry.split);
            assert_eq!(value(footer::TOKENIZER), manifest.tokenizer.digest.0);
            assert!(value(footer::HUGGINGFACE).contains(if corpus == "sounds" { "Audio" } else { "Image" }));
            let mut hasher = blake3::Hasher::new();
            for batch in batches(&store, corpus, entry) {
                let digests = batch.column_by_name("digest").unwrap().clone();
                let digests = arrow::array::AsArray::as_string::<i32>(&digests);
                digests.iter().flatten().for_each(|digest| {
                    hasher.update(digest.as_bytes());
                });
            }
            assert_eq!(value(footer::MEDIA_DIGEST), hasher.finalize().to_hex().to_string());
            let embedded = parquet_to_arrow_schema(metadata.file_metadata().schema_descr(), Some(pairs)).unwrap();
            assert_eq!(embedded.fields(), record_schema(manifest.kind).fields());
        }
    }
    assert_eq!(store.manifest("sounds").unwrap().manifest.shards[0].ranges["sampling_rate"], [8000.0, 8000.0]);
}

#[test]
fn large_blobs_have_a_page_each_and_small_ones_share() {
    let world = World::new();
    corpora(&world);
    for i in 0..400 {
        world.put(&format!("small/{i}.jpg"), jpeg(i));
        world.put(&format!("small/{i}.txt"), format!("picture {i}"));
    }
    world
        .ingest(&format!("{CONFIG}[[ingest.corpus]]\nname = \"small\"\nkind = \"image-text\"\npath = \"small\"\n"))
        .unwrap();
    let store = world.store("store");
    for (corpus, is_large) in [("pictures", true), ("small", false)] {
        for entry in &store.manifest(corpus).unwrap().manifest.shards {
            if is_large {
                assert!(entry.media_bytes / entry.n_rows >= 16 << 10, "{}", entry.media_bytes / entry.n_rows);
            }
            let metadata = metadata(&store, corpus, &entry.digest);
            for (group, row_group) in metadata.row_groups().iter().enumerate() {
                let at = row_group.columns().iter().position(|c| c.column_path().string() == "image.bytes").unwrap();
                let blob = row_group.column(at);
                assert_eq!(blob.compression(), Compression::UNCOMPRESSED);
                assert!(blob.encodings().any(|e| e == Encoding::PLAIN), "{blob:?}");
                assert!(blob.dictionary_page_offset().is_none() && blob.statistics().is_none());
                let n_pages = pages(&metadata)[group][at] as i64;
                if is_large {
                    assert_eq!(n_pages, row_group.num_rows());
                } else {
                    assert!(n_pages > 1 && n_pages < row_group.num_rows() / 8, "{n_pages}");
                }
                for column in row_group.columns() {
                    let is_id = ["key", "digest"].contains(&column.column_path().string().as_str());
                    assert_eq!(column.bloom_filter_offset().is_some(), is_id);
                }
                let words =
                    row_group.columns().iter().find(|c| c.column_path().string() == "captions.list.item").unwrap();
                assert!(matches!(words.compression(), Compression::ZSTD(_)));
            }
        }
    }
}

#[test]
fn a_corpus_sorted_by_class_does_not_lie_class_by_class() {
    let world = World::new();
    corpora(&world);
    world.ingest(CONFIG).unwrap();
    let labels: Vec<Option<i32>> = world.rows("pictures").into_iter().map(|row| row.label_id).collect();
    let distinct: BTreeSet<&Option<i32>> = labels[..15].iter().collect();
    assert_eq!(distinct.len(), 3, "{labels:?}");
}
