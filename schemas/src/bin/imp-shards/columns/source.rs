//! A table that some tool wrote, as batches of keys and of values in the types that an added column may have.
//!
//! In: a Parquet, CSV, TSV or JSON-lines file. Out: batches, the key first, then the columns. Never: the whole file in memory; a
//! value changed: what does not fit its type is an error. Types of CSV and JSON are those that fit all of their rows.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use imp_schemas::manifest::AddedColumn;
use imp_schemas::parquet_claims::{batches, guarded, open_rows};
use imp_schemas::side_table::{AddedType, ScalarType, is_reserved};
use parquet::arrow::ProjectionMask;

use super::ColumnsError;

const BATCH_ROWS: usize = 4096;

#[derive(Debug, Clone, Copy)]
enum Form {
    Parquet,
    /// With this delimiter.
    Csv(u8),
    JsonLines,
}

/// An opened table.
pub(super) struct Source {
    name: String,
    form: Form,
    /// As the file is read.
    schema: SchemaRef,
    key: String,
    columns: Vec<AddedColumn>,
    n_bytes: u64,
}

/// Keys and values of some rows of a table.
pub(super) struct Part {
    /// Row of the first, from 1.
    pub first_row: u64,
    pub keys: StringArray,
    pub values: Vec<ArrayRef>,
}

impl Source {
    /// Looks at the columns of the file, of CSV and JSON at all rows once; `wanted` are all but the key if empty.
    pub(super) fn open(path: &Path, key: &str, wanted: &[String]) -> Result<Self, ColumnsError> {
        let name = path.display().to_string();
        let form = match path.extension().and_then(|e| e.to_str()) {
            Some("parquet") => Form::Parquet,
            Some("csv") => Form::Csv(b','),
            Some("tsv") => Form::Csv(b'\t'),
            Some("jsonl" | "ndjson") => Form::JsonLines,
            _ => return Err(ColumnsError::Form { path: name }),
        };
        let failed = |source| ColumnsError::Read { path: name.clone(), source };
        let file = open(path)?;
        let mut n_bytes = file.metadata().map_err(|e| failed(e.into()))?.len();
        let schema = match form {
            Form::Parquet => {
                let builder = open_rows(file).map_err(|e| failed(e.into()))?;
                // What is put aside is not compressed.
                let groups = builder.metadata().row_groups();
                n_bytes = groups.iter().map(|group| u64::try_from(group.total_byte_size()).unwrap_or(0)).sum();
                builder.schema().clone()
            }
            Form::Csv(delimiter) => {
                Arc::new(csv_format(delimiter).infer_schema(BufReader::new(file), None).map_err(failed)?.0)
            }
            Form::JsonLines => {
                let inferred = arrow::json::reader::infer_json_schema(BufReader::new(file), None).map_err(failed)?.0;
                // Members of an object have no order.
                let mut fields = inferred.fields().to_vec();
                fields.sort_by(|a, b| a.name().cmp(b.name()));
                Arc::new(Schema::new(fields))
            }
        };
        let (key, schema) = (key.to_owned(), as_read(form, &schema, key));
        let mut source = Self { name, form, schema, key, columns: Vec::new(), n_bytes };
        source.columns = source.choose(wanted)?;
        Ok(source)
    }

    /// The file, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The columns to add.
    pub(super) fn columns(&self) -> &[AddedColumn] {
        &self.columns
    }

    /// About what it takes uncompressed.
    pub(super) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    fn choose(&self, wanted: &[String]) -> Result<Vec<AddedColumn>, ColumnsError> {
        let have: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let need = wanted.iter().map(|name| (name, "--columns")).chain([(&self.key, "--key")]);
        for (column, option) in need {
            if !have.contains(&column.as_str()) {
                let (path, have) = (self.name.clone(), have.join(", "));
                return Err(ColumnsError::NoColumn { path, column: column.clone(), have, option });
            }
        }
        let all = || have.iter().map(|name| (*name).to_owned()).filter(|name| *name != self.key).collect();
        let names: Vec<String> = if wanted.is_empty() { all() } else { wanted.to_vec() };
        if names.is_empty() {
            return Err(ColumnsError::NothingToAdd { path: self.name.clone(), key: self.key.clone() });
        }
        let column = |name: &String| {
            let (path, column) = (self.name.clone(), name.clone());
            // SQL does not tell `Width` from `width`.
            if is_reserved(&name.to_ascii_lowercase()) {
                return Err(ColumnsError::Reserved { path, column });
            }
            let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let is_once = names.iter().filter(|other| other.eq_ignore_ascii_case(name)).count() == 1;
            if name.is_empty() || !is_plain || !is_once || name.starts_with(|c: char| c.is_ascii_digit()) {
                return Err(ColumnsError::Name { path, column });
            }
            let (_, field) = self.schema.fields().find(name).ok_or_else(|| ColumnsError::NoColumn {
                path: path.clone(),
                column: column.clone(),
                have: have.join(", "),
                option: "--columns",
            })?;
            let found = || field.data_type().to_string();
            let kind = added_type(field.data_type());
            let kind = kind.ok_or_else(|| ColumnsError::Type { path, column: column.clone(), found: found() })?;
            Ok(AddedColumn { name: column, kind })
        };
        names.iter().map(column).collect()
    }

    /// Hands on all rows, some thousand at a time.
    pub(super) fn read(&self, mut take: impl FnMut(&Part) -> Result<(), ColumnsError>) -> Result<(), ColumnsError> {
        let failed = |source| ColumnsError::Read { path: self.name.clone(), source };
        let mut first_row = 1;
        for batch in self.batches()? {
            let part = self.part(&batch.map_err(failed)?, first_row).map_err(failed)?;
            for i in 0..part.keys.len() {
                if part.keys.is_null(i) || part.keys.value(i).is_empty() {
                    let (path, column) = (self.name.clone(), self.key.clone());
                    return Err(ColumnsError::NoKey { path, row: first_row + i as u64, column });
                }
            }
            take(&part)?;
            first_row += part.keys.len() as u64;
        }
        Ok(())
    }

    fn batches(&self) -> Result<Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>, ColumnsError> {
        let failed = |source| ColumnsError::Read { path: self.name.clone(), source };
        let file = open(Path::new(&self.name))?;
        let is_read = |name: &str| name == self.key || self.columns.iter().any(|column| column.name == name);
        let places: Vec<usize> =
            (0..self.schema.fields().len()).filter(|&i| is_read(self.schema.field(i).name())).collect();
        Ok(match self.form {
            Form::Parquet => {
                let builder = open_rows(file).map_err(|e| failed(e.into()))?;
                let mask = ProjectionMask::roots(builder.parquet_schema(), places);
                let reader = guarded(|| builder.with_projection(mask).with_batch_size(BATCH_ROWS).build());
                Box::new(batches(reader.map_err(|e| failed(e.into()))?).map(|batch| batch.map_err(ArrowError::from)))
            }
            Form::Csv(delimiter) => {
                let builder = arrow::csv::ReaderBuilder::new(self.schema.clone()).with_format(csv_format(delimiter));
                let builder = builder.with_batch_size(BATCH_ROWS).with_projection(places);
                Box::new(builder.build(file).map_err(failed)?)
            }
            Form::JsonLines => {
                let schema = Arc::new(self.schema.project(&places).map_err(failed)?);
                // A key may be a number.
                let builder = arrow::json::ReaderBuilder::new(schema).with_coerce_primitive(true);
                Box::new(builder.with_batch_size(BATCH_ROWS).build(BufReader::new(file)).map_err(failed)?)
            }
        })
    }

    fn part(&self, batch: &RecordBatch, first_row: u64) -> Result<Part, ArrowError> {
        let column = |name: &str, data_type: &DataType| {
            let column = batch.column(batch.schema_ref().index_of(name)?);
            cast_with_options(column, data_type, &CastOptions { safe: false, ..CastOptions::default() })
        };
        let keys = column(&self.key, &DataType::Utf8)?.as_string::<i32>().clone();
        let values = self.columns.iter().map(|c| column(&c.name, &c.kind.data_type()));
        Ok(Part { first_row, keys, values: values.collect::<Result<_, _>>()? })
    }
}

fn open(path: &Path) -> Result<File, ColumnsError> {
    File::open(path).map_err(|source| ColumnsError::Open { path: path.display().to_string(), source })
}

fn csv_format(delimiter: u8) -> Format {
    Format::default().with_header(true).with_delimiter(delimiter)
}

/// The inferred types, but for keys, which are text even if all are numbers, and times, which stay the text that they are.
fn as_read(form: Form, schema: &SchemaRef, key: &str) -> SchemaRef {
    if matches!(form, Form::Parquet) {
        return schema.clone();
    }
    let fields = schema.fields().iter().map(|field| {
        let is_text = field.name() == key || field.data_type().is_temporal();
        if is_text { Arc::new(Field::new(field.name(), DataType::Utf8, true)) } else { field.clone() }
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The type of an added column that holds every value of `found`, or as many as fit; `None` if there is none.
fn added_type(found: &DataType) -> Option<AddedType> {
    match found {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            Some(AddedType { scalar: scalar_type(item.data_type())?, is_list: true })
        }
        scalar => Some(AddedType { scalar: scalar_type(scalar)?, is_list: false }),
    }
}

fn scalar_type(found: &DataType) -> Option<ScalarType> {
    Some(match found {
        DataType::Boolean => ScalarType::Bool,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => ScalarType::Int32,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => ScalarType::Int64,
        DataType::Float16 | DataType::Float32 => ScalarType::Float32,
        DataType::Float64 => ScalarType::Float64,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ScalarType::Utf8,
        DataType::Dictionary(_, value) => scalar_type(value)?,
        _ => return None,
    })
}
