//! Columns that are added to rows long after their shards were written: a score, a language, a licence, another caption.
//!
//! A side table has, for every shard that it covers, every row of it, in order: `shard`, `row`, then the added columns; a row
//! that nobody gave a value is null. So row `r` of a shard is row `start + r` of the table, found without a search, and a row
//! group is of one shard. The manifest says which tables and columns a snapshot shows; a column that is added again takes
//! the place of the one before. Shards are named by their bytes: a table stays right for a shard wherever the shard is listed.
//! Never: a shard rewritten, two tables that say something of one column and one shard.
//! Source: DATA-PLANE.md 5, item 15; the types are those of 8.7 that every reader opens.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::manifest::{AddedColumn, Manifest, ShardEntry, SideTableEntry};
use crate::modality::RecordKind;
use crate::record::record_schema;
use crate::shard::Digest;

#[cfg(feature = "store")]
mod reading;
#[cfg(feature = "store")]
pub use reading::AddedColumns;

/// The shard of a row: its digest.
pub const SHARD: &str = "shard";
/// Row within the shard.
pub const ROW: &str = "row";

/// Type of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScalarType {
    Bool,
    Int32,
    Int64,
    Float32,
    Float64,
    Utf8,
}

/// Type of an added column: `float32`, or `list<float32>` of such values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddedType {
    pub scalar: ScalarType,
    pub is_list: bool,
}

/// A text that names no type of an added column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no type of an added column; those are {types}, and list<> of them", types = ScalarType::names())]
pub struct NoSuchType(String);

impl ScalarType {
    pub const ALL: [Self; 6] = [Self::Bool, Self::Int32, Self::Int64, Self::Float32, Self::Float64, Self::Utf8];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Utf8 => "utf8",
        }
    }

    /// All of them, for messages.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    fn data_type(self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Utf8 => DataType::Utf8,
        }
    }
}

impl AddedType {
    /// As it stands in a side table.
    pub fn data_type(self) -> DataType {
        let scalar = self.scalar.data_type();
        if self.is_list { DataType::List(Arc::new(Field::new("item", scalar, true))) } else { scalar }
    }
}

impl std::fmt::Display for AddedType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scalar = self.scalar.name();
        if self.is_list { write!(f, "list<{scalar}>") } else { f.write_str(scalar) }
    }
}

impl From<AddedType> for String {
    fn from(added: AddedType) -> Self {
        added.to_string()
    }
}

impl TryFrom<String> for AddedType {
    type Error = NoSuchType;

    fn try_from(text: String) -> Result<Self, NoSuchType> {
        let item = text.strip_prefix("list<").and_then(|rest| rest.strip_suffix('>'));
        let scalar = ScalarType::ALL.into_iter().find(|scalar| scalar.name() == item.unwrap_or(&text));
        Ok(Self { scalar: scalar.ok_or(NoSuchType(text.clone()))?, is_list: item.is_some() })
    }
}

/// Columns of a side table, in the order they are stored.
pub fn side_table_schema(columns: &[AddedColumn]) -> SchemaRef {
    let mut fields = vec![Field::new(SHARD, DataType::Utf8, false), Field::new(ROW, DataType::Int64, false)];
    fields.extend(columns.iter().map(|c| Field::new(&c.name, c.kind.data_type(), true)));
    Arc::new(Schema::new(fields))
}

/// Whether a record of any kind, or a side table itself, has a column of that name.
pub fn is_reserved(name: &str) -> bool {
    let kinds = [RecordKind::ImageText, RecordKind::VideoText, RecordKind::AudioText];
    [SHARD, ROW].contains(&name) || kinds.into_iter().any(|kind| record_schema(kind).index_of(name).is_ok())
}

impl SideTableEntry {
    /// Where the rows of `shard` stand in the table; `None` if it does not cover it.
    pub fn rows_of(&self, shard: &Digest) -> Option<Range<u64>> {
        let at = self.shards.iter().position(|covered| covered.digest == *shard)?;
        let start: u64 = self.shards[..at].iter().map(|covered| covered.n_rows).sum();
        Some(start..start + self.shards[at].n_rows)
    }
}

impl Manifest {
    /// The added columns that the snapshot shows, by name.
    pub fn added_columns(&self) -> Vec<AddedColumn> {
        let all: BTreeSet<AddedColumn> = self.side_tables.iter().flat_map(|t| t.columns.iter().cloned()).collect();
        let mut all: Vec<AddedColumn> = all.into_iter().collect();
        all.dedup_by(|a, b| a.name == b.name);
        all
    }
}

/// `tables` without the columns of these names; a table that shows nothing any more is left out.
pub fn without_columns(tables: &[SideTableEntry], names: &[&str]) -> Vec<SideTableEntry> {
    let mut left = tables.to_vec();
    for table in &mut left {
        table.columns.retain(|column| !names.contains(&column.name.as_str()));
    }
    left.retain(|table| !table.columns.is_empty());
    left
}

/// Of `tables` those that cover one of `shards`, which a manifest of these shards carries on.
pub fn that_cover(tables: &[SideTableEntry], shards: &[ShardEntry]) -> Vec<SideTableEntry> {
    let here: BTreeSet<&Digest> = shards.iter().map(|shard| &shard.digest).collect();
    let covers = |table: &&SideTableEntry| table.shards.iter().any(|covered| here.contains(&covered.digest));
    tables.iter().filter(covers).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::CoveredShard;

    fn table(shards: &[(&str, u64)], columns: &[&str]) -> SideTableEntry {
        let kind = AddedType { scalar: ScalarType::Float32, is_list: false };
        SideTableEntry {
            digest: Digest::of(columns.concat().as_bytes()),
            n_bytes: 1,
            footer_len: 1,
            index_offset: 0,
            n_rows: shards.iter().map(|s| s.1).sum(),
            columns: columns.iter().map(|&name| AddedColumn { name: name.to_owned(), kind }).collect(),
            shards: shards
                .iter()
                .map(|&(digest, n_rows)| CoveredShard { digest: Digest(digest.to_owned()), n_rows })
                .collect(),
        }
    }

    #[test]
    fn every_type_is_read_back_from_its_name_and_no_other_text_is_one() {
        for scalar in ScalarType::ALL {
            for is_list in [false, true] {
                let added = AddedType { scalar, is_list };
                assert_eq!(AddedType::try_from(added.to_string()), Ok(added));
            }
        }
        for text in ["", "float16", "list<>", "list<utf8", "list<list<utf8>>"] {
            let error = AddedType::try_from(text.to_owned()).unwrap_err().to_string();
            assert!(error.contains("bool, int32"), "{error}");
        }
    }

    #[test]
    fn a_row_lies_behind_the_rows_of_the_shards_before_its_own() {
        let table = table(&[("a", 3), ("b", 2)], &["x"]);
        let rows = ["a", "b", "c"].map(|shard| table.rows_of(&Digest(shard.to_owned())));
        assert_eq!(rows, [Some(0..3), Some(3..5), None]);
    }

    #[test]
    fn a_table_goes_with_its_last_column_and_with_its_last_shard() {
        let tables = [table(&[("a", 3)], &["x", "y"]), table(&[("b", 2)], &["x"])];
        let left = without_columns(&tables, &["x"]);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["y"]);
        assert!(that_cover(&tables, &[]).is_empty());
    }

    #[test]
    fn the_names_of_every_kind_of_record_are_reserved() {
        for name in ["key", "shard", "row", "captions", "width", "video", "sampling_rate"] {
            assert!(is_reserved(name), "{name}");
        }
        assert!(!is_reserved("aesthetic"));
    }
}
