//! Why columns could not be added or dropped: the table, the place in it, what is wrong, what to do.

use std::io;

use arrow::error::ArrowError;
use imp_schemas::side_table::{AddedType, ScalarType};
use parquet::errors::ParquetError;

/// Nothing was published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ColumnsError {
    #[error("table `{path}` is of no known form; give a file that ends in .parquet, .csv, .tsv or .jsonl")]
    Form { path: String },
    #[error("cannot open table `{path}`")]
    Open { path: String, source: io::Error },
    #[error("table `{path}` cannot be read")]
    Read { path: String, source: ArrowError },
    #[error("table `{path}` has no column `{column}`; it has {have}; choose with {option}")]
    NoColumn { path: String, column: String, have: String, option: &'static str },
    #[error("table `{path}` has nothing to add: no column beside `{key}`")]
    NothingToAdd { path: String, key: String },
    #[error(
        "column `{column}` of table `{path}` has the name of one that records have already; rename it there, or leave it out with --columns"
    )]
    Reserved { path: String, column: String },
    #[error(
        "column `{column}` of table `{path}` cannot be added under this name: names are letters, digits and `_`, begin with no digit, and stand once; rename it there, or leave it out with --columns"
    )]
    Name { path: String, column: String },
    #[error(
        "column `{column}` of table `{path}` has type {found}; cast it there to one of {types} or a list of these, or leave it out with --columns",
        types = ScalarType::names()
    )]
    Type { path: String, column: String, found: String },
    #[error(
        "column `{column}` of table `{path}` has type {found}, the one added before {wanted}; cast it there, or add it anew without --update"
    )]
    OtherType { path: String, column: String, found: AddedType, wanted: AddedType },
    #[error("row {row} of table `{path}` has no key; each row needs that of its record in column `{column}`")]
    NoKey { path: String, row: u64, column: String },
    #[error("key `{key}` stands in rows {first} and {second} of table `{path}`; remove all rows of a key but one")]
    Twice { path: String, key: String, first: u64, second: u64 },
    #[error(
        "no record of corpus `{corpus}` has one of the {n_keys} keys of table `{path}`, such as `{key}`; name the column of the records' keys with --key"
    )]
    NothingMatches { corpus: String, path: String, n_keys: u64, key: String },
    #[error("corpus `{corpus}` has no added column `{column}`; it has {have}")]
    NotAdded { corpus: String, column: String, have: String },
    #[error("cannot put rows aside on disk; the folder for temporary files needs about twice the table's size")]
    Spool(#[source] io::Error),
    #[error("rows that were put aside on disk do not come back as they were")]
    Rows(#[source] ArrowError),
    #[error("cannot write a side table")]
    Write(#[source] ParquetError),
}
