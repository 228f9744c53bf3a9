//! Rows of a corpus in the terminal.
//!
//! In: a corpus and a number of rows. Out: a table. Never: media bytes, a hidden row.

use std::io::Write;

use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use comfy_table::{ContentArrangement, Table, presets};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, media_column, record_schema};
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::side_table::AddedColumns;
use imp_schemas::store::Store;
use imp_schemas::tombstone::{Hidden, row_of_live};

use crate::ShardsError;
use crate::rows::{Rows, present};

/// Characters of a caption.
const MAX_CHARS: usize = 60;

pub(crate) fn run(url: &str, corpus: &str, split: Option<&str>, n_rows: u64) -> Result<(), ShardsError> {
    let store = Store::open(url)?;
    crate::select(&store, &[corpus.to_owned()])?;
    let manifest = store.manifest(corpus)?.manifest;
    let shards = match split {
        Some(split) => manifest.split(split)?,
        None => manifest.shards.iter().collect(),
    };
    let kind = manifest.kind;
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    let mut added = AddedColumns::of(&store, &manifest);
    let names = added.names();
    table.set_header(header(kind).into_iter().map(str::to_owned).chain(names.iter().cloned()));
    let hidden = Hidden::of(&store.tombstones(&manifest)?);
    let mut left = n_rows;
    for entry in shards {
        if left == 0 {
            break;
        }
        let reader = ShardReader::open(&store, corpus, entry)?;
        let hidden = hidden.rows(&entry.digest);
        let rows: Vec<u64> = (0..entry.n_live().min(left)).map(|live| row_of_live(&hidden, live)).collect();
        let schema = record_schema(kind);
        let mut columns = present(&reader, &schema);
        columns.retain(|name| *name != media_column(kind));
        let batch = reader.read(&rows, &columns)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let values = texts(&added.read(&entry.digest, &rows, &names)?)?;
        for (row, values) in lines(&Rows { corpus, batch: &batch }, kind)?.into_iter().zip(values) {
            table.add_row(row.into_iter().chain(values));
        }
        left -= rows.len() as u64;
    }
    // A closed pipe is no error.
    let _ = writeln!(std::io::stdout(), "{table}");
    Ok(())
}

/// Values of any type, row by row.
fn texts(batch: &RecordBatch) -> Result<Vec<Vec<String>>, ShardsError> {
    let options = FormatOptions::default().with_null("-");
    let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
    let columns = columns.collect::<Result<Vec<_>, _>>().map_err(ShardsError::Format)?;
    let of_row = |row: usize| {
        let values = columns.iter().map(|column| column.value(row).try_to_string().map(|text| cut(&text)));
        values.collect::<Result<_, _>>().map_err(ShardsError::Format)
    };
    (0..batch.num_rows()).map(of_row).collect()
}

fn header(kind: RecordKind) -> Vec<&'static str> {
    let mut names = vec!["key", "split", "label", "captions", "tokens", "bytes"];
    names.extend(match kind {
        RecordKind::ImageText => ["size", "format"],
        RecordKind::VideoText => ["size", "frames"],
        RecordKind::AudioText => ["samples", "codec"],
    });
    names
}

fn lines(rows: &Rows<'_>, kind: RecordKind) -> Result<Vec<Vec<String>>, ShardsError> {
    let text = |value: Option<&str>| value.unwrap_or("-").to_owned();
    let number = |value: Option<i64>| value.map_or("-".to_owned(), |n| n.to_string());
    let (keys, splits) = (rows.texts(column::KEY)?, rows.texts(column::SPLIT)?);
    let (labels, sizes) = (rows.labels()?, rows.numbers(column::BYTES_LEN)?);
    let (captions, tokens) = (rows.captions()?, rows.tokens()?);
    let (last, before_last): (Vec<String>, Vec<String>) = match kind {
        RecordKind::ImageText => (rows.texts(column::FORMAT)?.into_iter().map(text).collect(), pixels(rows)?),
        RecordKind::VideoText => (rows.numbers(column::NUM_FRAMES)?.into_iter().map(number).collect(), pixels(rows)?),
        RecordKind::AudioText => (
            rows.texts(column::CODEC)?.into_iter().map(text).collect(),
            rows.numbers(column::NUM_SAMPLES)?.into_iter().map(number).collect(),
        ),
    };
    let line = |i: usize| {
        let captions: Vec<&str> = captions[i].iter().map(|c| c.unwrap_or("-")).collect();
        let lengths: Vec<String> = tokens[i].iter().map(|t| t.len().to_string()).collect();
        vec![
            text(keys[i]),
            text(splits[i]),
            if labels[i].is_empty() { "-".to_owned() } else { cut(&labels[i].join(" | ")) },
            cut(&captions.join(" | ")),
            lengths.join(" "),
            number(sizes[i]),
            before_last[i].clone(),
            last[i].clone(),
        ]
    };
    Ok((0..rows.batch.num_rows()).map(line).collect())
}

fn pixels(rows: &Rows<'_>) -> Result<Vec<String>, ShardsError> {
    let (widths, heights) = (rows.numbers(column::WIDTH)?, rows.numbers(column::HEIGHT)?);
    let side = |value: Option<i64>| value.map_or("-".to_owned(), |n| n.to_string());
    Ok(widths.into_iter().zip(heights).map(|(w, h)| format!("{}x{}", side(w), side(h))).collect())
}

fn cut(text: &str) -> String {
    if text.chars().count() <= MAX_CHARS {
        return text.to_owned();
    }
    text.chars().take(MAX_CHARS - 1).chain(['…']).collect()
}
