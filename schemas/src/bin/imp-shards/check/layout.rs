//! How a shard is laid out: what a random read of one row costs, and who can open the file.
//!
//! In: footer and offset index. Out: findings. Never: a page.
//! Source: DATA-PLANE.md 8.3 (pages and row groups), 8.7 (types that the common tools open), 8.8 (the writer's recipe).

use arrow::datatypes::{DataType, Field, Schema};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, media_column, record_schema};
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::version::Version;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};

use crate::finding::Findings;

/// Bytes of a row group, uncompressed; one row may weigh more.
const MAX_GROUP_BYTES: i64 = 128 << 20;
const MAX_GROUP_ROWS: i64 = 10_000;
/// Blobs of this mean size have a page each. Packing decides by 16 KiB over the first few megabytes of a shard; those that
/// come later may move the mean a little.
const LARGE_BLOB: i64 = 20 << 10;
/// A page of several small blobs: it is closed once it holds 64 KiB, and what came last may be large. DATA-PLANE.md 8.3.
const MAX_SHARED_PAGE: i64 = 256 << 10;
const REPACK: &str = "ingest the corpus again: imp-ingest lays shards out so";

/// Whether a shard of this version has the column.
pub(super) fn is_in(version: Version, name: &str) -> bool {
    let since = match name {
        column::LABELS | column::LABEL_IDS => 2,
        column::NUM_TOKENS | column::NORMALISED | column::PHASH => 1,
        _ => 0,
    };
    version >= Version { major: 1, minor: since }
}

/// Names, types and nullability of the columns, in order; says whether rows can be read.
pub(super) fn schema(kind: RecordKind, version: Version, found: &Schema, key: &str, findings: &mut Findings) -> bool {
    let wanted = record_schema(kind);
    let mut same = true;
    for wanted in wanted.fields().iter().filter(|f| is_in(version, f.name())) {
        let place = found.field_with_name(wanted.name()).ok();
        let equal =
            place.is_some_and(|f| f.data_type() == wanted.data_type() && f.is_nullable() == wanted.is_nullable());
        if !equal {
            same = false;
            let found = place.map_or("absent".to_owned(), describe);
            let found = format!("column `{}` is {found}, wanted {}", wanted.name(), describe(wanted));
            findings.push("schema", key, found, "ingest the corpus again with this version of imp-ingest");
        }
    }
    let order: Vec<_> = found.fields().iter().map(|f| f.name()).filter(|n| wanted.field_with_name(n).is_ok()).collect();
    let mut wanted_order: Vec<_> = wanted.fields().iter().map(|f| f.name()).collect();
    wanted_order.retain(|name| order.contains(name));
    if same && order != wanted_order {
        findings.push("schema", key, format!("columns stand as {order:?}, wanted {wanted_order:?}"), REPACK);
    }
    for field in found.fields() {
        if let Some(unsafe_type) = not_everywhere(field) {
            let found = format!("column `{}` has {unsafe_type}, which not every reader opens", field.name());
            let remedy =
                "write it as a plain binary, text, number, list or struct; Hugging Face datasets refuses the file";
            findings.push("types", key, found, remedy);
        }
    }
    same
}

fn describe(field: &Field) -> String {
    let null = if field.is_nullable() { "" } else { " not null" };
    format!("{}{null}", field.data_type())
}

/// The first type in the field that Hugging Face `datasets` fails to load, or that other tools take for something else.
fn not_everywhere(field: &Field) -> Option<String> {
    if let Some(name) = field.metadata().get("ARROW:extension:name") {
        return Some(format!("extension type `{name}`"));
    }
    match field.data_type() {
        DataType::FixedSizeBinary(_)
        | DataType::Map(_, _)
        | DataType::Union(_, _)
        | DataType::RunEndEncoded(_, _)
        | DataType::Interval(_) => Some(format!("type {}", field.data_type())),
        DataType::Struct(fields) => fields.iter().find_map(|f| not_everywhere(f)),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => not_everywhere(item),
        _ => None,
    }
}

/// Row groups, pages, encodings and filters.
pub(super) fn check(kind: RecordKind, reader: &ShardReader, key: &str, findings: &mut Findings) {
    let media_path = format!("{}.{}", media_column(kind), column::MEDIA_BYTES);
    for (i, group) in reader.metadata().row_groups().iter().enumerate() {
        let place = format!("{key}, row group {i}");
        if group.num_rows() > MAX_GROUP_ROWS {
            let found = format!("it has {} rows, at most {MAX_GROUP_ROWS}", group.num_rows());
            findings.push("row_group", place.as_str(), found, REPACK);
        }
        if group.total_byte_size() > MAX_GROUP_BYTES && group.num_rows() > 1 {
            let found = format!("it weighs {} MiB, at most {}", group.total_byte_size() >> 20, MAX_GROUP_BYTES >> 20);
            findings.push("row_group", place.as_str(), found, REPACK);
        }
        for (j, chunk) in group.columns().iter().enumerate() {
            let path = chunk.column_path().string();
            if path == media_path {
                encoding(chunk, &place, findings);
                pages(reader, i, j, group, &place, findings);
            }
            if [column::KEY, column::DIGEST].contains(&path.as_str()) && chunk.bloom_filter_offset().is_none() {
                let found = format!("column `{path}` has no Bloom filter, so that a look-up reads every shard");
                findings.push("bloom", place.as_str(), found, REPACK);
            }
        }
    }
}

/// Media stand as they are: any row is one range of the file.
fn encoding(chunk: &ColumnChunkMetaData, place: &str, findings: &mut Findings) {
    let mut wrong = Vec::new();
    if chunk.compression() != Compression::UNCOMPRESSED {
        wrong.push(format!("compressed with {}", chunk.compression()));
    }
    let is_dictionary = |e: Encoding| matches!(e, Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY);
    if chunk.dictionary_page_offset().is_some() || chunk.encodings().any(is_dictionary) {
        wrong.push("encoded with a dictionary".to_owned());
    }
    if chunk.statistics().is_some() || chunk.column_index_offset().is_some() {
        wrong.push("kept with statistics, which repeat whole media in the footer".to_owned());
    }
    for found in wrong {
        findings.push("encoding", place, format!("its media are {found}"), REPACK);
    }
}

fn pages(
    reader: &ShardReader,
    row_group: usize,
    chunk: usize,
    group: &RowGroupMetaData,
    place: &str,
    findings: &mut Findings,
) {
    let of_group = reader.metadata().page_index_for_row_group(row_group);
    let Some(index) = of_group.offset_index(chunk) else {
        findings.push("pages", place, "its media have no offset index, so that a row is found by reading all", REPACK);
        return;
    };
    let locations = index.page_locations();
    let ends = locations.iter().skip(1).map(|page| page.first_row_index).chain([group.num_rows()]);
    let shared: Vec<_> = locations.iter().zip(ends).filter(|(page, end)| end - page.first_row_index > 1).collect();
    let Some((worst, end)) = shared.iter().max_by_key(|(page, _)| page.compressed_page_size) else { return };
    let n_rows = end - worst.first_row_index;
    let mean = group.column(chunk).uncompressed_size() / group.num_rows().max(1);
    let weight = i64::from(worst.compressed_page_size);
    if mean >= LARGE_BLOB || weight > MAX_SHARED_PAGE {
        let found = format!("{n_rows} media of {} KiB on the mean share a page of {} KiB", mean >> 10, weight >> 10);
        findings.push("pages", place, found, REPACK);
    }
}
