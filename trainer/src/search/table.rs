//! Embeddings as a Parquet file, a row per vector, which any reader opens.
//!
//! Columns: `stream`, `space`, `row`, `key`, `text`, `embedding` (a list of fixed length). The footer's metadata says which checkpoint
//! made them: `imp.step`, `imp.model_digest`, `imp.made_by`, `imp.eval`, `imp.corpus`, `imp.split`. Never: half a file under the name that was asked for.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float32Type, Int64Type, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{EmbeddedRow, Embeddings};
use crate::model::Stream;

/// A file of embeddings that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{}` is no Parquet file that this build can write or read", path.display())]
    Parquet { path: PathBuf, source: parquet::errors::ParquetError },
    #[error("`{}` is damaged", path.display())]
    Arrow { path: PathBuf, source: arrow::error::ArrowError },
    #[error("`{}` has no {wanted}; it is no file of `imp-train embed`", path.display())]
    Foreign { path: PathBuf, wanted: String },
}

const STREAMS: [Stream; 4] = [Stream::Vision, Stream::Spectrogram, Stream::Waveform, Stream::Text];

/// Writes the file beside its name, then gives it the name.
///
/// # Errors
/// The folder cannot be written.
pub fn write(path: &Path, embeddings: &Embeddings) -> Result<(), TableError> {
    let rows = &embeddings.rows;
    let strings = |of: &dyn Fn(&EmbeddedRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(of)))
    };
    let value = Arc::new(Field::new("item", DataType::Float32, false));
    let values = Float32Array::from_iter_values(rows.iter().flat_map(|row| row.vector.iter().copied()));
    let damaged = |source| TableError::Arrow { path: path.to_owned(), source };
    let width = embeddings.width as i32;
    let vectors = FixedSizeListArray::try_new(Arc::clone(&value), width, Arc::new(values), None).map_err(damaged)?;
    let text = |name| Field::new(name, DataType::Utf8, false);
    let fields = vec![
        text("stream"),
        text("space"),
        Field::new("row", DataType::Int64, false),
        text("key"),
        text("text"),
        Field::new("embedding", DataType::FixedSizeList(value, width), false),
    ];
    let about = [
        ("imp.step", embeddings.step.to_string()),
        ("imp.model_digest", embeddings.model_digest.clone()),
        ("imp.made_by", embeddings.made_by.clone()),
        ("imp.eval", embeddings.eval.clone()),
        ("imp.corpus", embeddings.corpus.clone()),
        ("imp.split", embeddings.split.clone()),
    ];
    let about: HashMap<String, String> = about.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let schema = Arc::new(Schema::new(fields).with_metadata(about));
    let columns: Vec<ArrayRef> = vec![
        strings(&|row| row.stream.name()),
        strings(&|row| row.space.name()),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.row as i64))),
        strings(&|row| &row.key),
        strings(&|row| &row.text),
        Arc::new(vectors),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(damaged)?;
    let half = path.with_added_extension("half");
    let unwritten = |source| TableError::Write { path: path.to_owned(), source };
    let broken = |source| TableError::Parquet { path: path.to_owned(), source };
    let file = File::create(&half).map_err(unwritten)?;
    let mut writer = ArrowWriter::try_new(file, schema, None).map_err(broken)?;
    writer.write(&batch).map_err(broken)?;
    writer.close().map_err(broken)?;
    std::fs::rename(&half, path).map_err(unwritten)
}

/// Reads what [`write()`] wrote.
///
/// # Errors
/// The file is not there, damaged, or of another kind.
pub fn read(path: &Path) -> Result<Embeddings, TableError> {
    let file = File::open(path).map_err(|source| TableError::Read { path: path.to_owned(), source })?;
    let broken = |source| TableError::Parquet { path: path.to_owned(), source };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(broken)?;
    let about = builder.schema().metadata().clone();
    let foreign = |wanted: &str| TableError::Foreign { path: path.to_owned(), wanted: wanted.to_owned() };
    let said = |key: &str| about.get(key).cloned().ok_or_else(|| foreign(&format!("`{key}` in its metadata")));
    let step = said("imp.step")?.parse().map_err(|_| foreign("number in `imp.step`"))?;
    let mut embeddings = Embeddings {
        step,
        model_digest: said("imp.model_digest")?,
        made_by: said("imp.made_by")?,
        eval: said("imp.eval")?,
        corpus: said("imp.corpus")?,
        split: said("imp.split")?,
        width: 0,
        rows: Vec::new(),
    };
    for batch in builder.build().map_err(broken)? {
        let batch = batch.map_err(|source| TableError::Arrow { path: path.to_owned(), source })?;
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| foreign(&format!("column `{name}`")));
        let strings = |name: &str| {
            column(name)?.as_string_opt::<i32>().ok_or_else(|| foreign(&format!("column `{name}` of strings")))
        };
        let stream = |name: &str, i: usize| {
            let (names, named) = (strings(name)?, format!("stream in column `{name}`"));
            STREAMS.into_iter().find(|s| s.name() == names.value(i)).ok_or_else(|| foreign(&named))
        };
        let (keys, texts) = (strings("key")?, strings("text")?);
        let row_numbers = column("row")?.as_primitive_opt::<Int64Type>().ok_or_else(|| foreign("numbers in `row`"))?;
        let vectors = column("embedding")?.as_fixed_size_list_opt().ok_or_else(|| foreign("vectors in `embedding`"))?;
        let values =
            vectors.values().as_primitive_opt::<Float32Type>().ok_or_else(|| foreign("f32 in `embedding`"))?.values();
        let width = vectors.value_length() as usize;
        embeddings.width = width;
        for i in 0..batch.num_rows() {
            embeddings.rows.push(EmbeddedRow {
                stream: stream("stream", i)?,
                space: stream("space", i)?,
                row: row_numbers.value(i) as u64,
                key: keys.value(i).to_owned(),
                text: texts.value(i).to_owned(),
                vector: values[(vectors.offset() + i) * width..(vectors.offset() + i + 1) * width].to_vec(),
            });
        }
    }
    Ok(embeddings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_come_back_as_they_were_and_other_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.parquet");
        let row = |i: u64, stream, space| EmbeddedRow {
            stream,
            space,
            row: i,
            key: format!("key {i}"),
            text: format!("a »{i}«"),
            vector: vec![i as f32, -0.5, 0.25],
        };
        let embeddings = Embeddings {
            step: 7,
            model_digest: "0123".to_owned(),
            made_by: "4567".to_owned(),
            eval: "images".to_owned(),
            corpus: "world".to_owned(),
            split: "test".to_owned(),
            width: 3,
            rows: vec![row(0, Stream::Vision, Stream::Text), row(1, Stream::Text, Stream::Vision)],
        };
        write(&path, &embeddings).unwrap();
        assert_eq!(read(&path).unwrap(), embeddings);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

        let other = dir.path().join("other.parquet");
        let batch = RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
        let mut writer = ArrowWriter::try_new(File::create(&other).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let message = read(&other).unwrap_err().to_string();
        assert!(message.contains("no `imp.step` in its metadata; it is no file of `imp-train embed`"), "{message}");
        std::fs::write(&other, b"no parquet").unwrap();
        assert!(matches!(read(&other), Err(TableError::Parquet { .. })));
        assert!(matches!(read(&dir.path().join("gone")), Err(TableError::Read { .. })));
        assert!(matches!(write(&dir.path().join("no/folder"), &embeddings), Err(TableError::Write { .. })));
    }
}
