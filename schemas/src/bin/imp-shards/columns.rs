//! Columns added to, and dropped from, a published corpus: its next snapshot, without a shard rewritten.
//!
//! In: a corpus, and a table of values by record key that some other tool made. Out: side tables and a snapshot that shows them;
//! no snapshot if it would show what the newest shows. Never: a medium read, a table or a corpus's keys in memory.

mod carry;
mod error;
mod join;
mod source;
mod spool;

use std::path::Path;

use bytes::Bytes;
use imp_schemas::manifest::SideTableEntry;
use imp_schemas::shard::{manifest_key, side_table_key};
use imp_schemas::shard_writer::SideTableWriter;
use imp_schemas::side_table::without_columns;
use imp_schemas::store::{Snapshot, Store};
use imp_schemas::version::Format;

use crate::ShardsError;
pub(crate) use carry::renamed;
pub(crate) use error::ColumnsError;
use join::{Joined, join};
use source::Source;

/// What to add.
#[derive(Debug)]
pub(crate) struct AddArgs<'a> {
    pub corpus: &'a str,
    pub from: &'a Path,
    /// Column of the table with the records' keys.
    pub key: &'a str,
    /// All but the key if empty.
    pub columns: &'a [String],
    /// Records that the table does not name keep the values they have.
    pub update: bool,
}

/// Joins the table to the records, publishes, and says what it did.
///
/// # Errors
/// The table cannot be used (see [`ColumnsError`]), a shard cannot be read, or another program published at the same time.
pub(crate) fn add(url: &str, args: &AddArgs<'_>) -> Result<(), ShardsError> {
    let store = Store::open(url)?;
    crate::select(&store, &[args.corpus.to_owned()])?;
    let snapshot = store.manifest(args.corpus)?;
    let source = Source::open(args.from, args.key, args.columns)?;
    let had = snapshot.manifest.added_columns();
    for column in source.columns().iter().filter(|_| args.update) {
        if let Some(had) = had.iter().find(|had| had.name == column.name && had.kind != column.kind) {
            let (path, column) = (source.name().to_owned(), column.clone());
            return Err(
                ColumnsError::OtherType { path, column: column.name, found: column.kind, wanted: had.kind }.into()
            );
        }
    }
    let joined = join(&store, &snapshot, &source, args.update)?;
    let names: Vec<&str> = source.columns().iter().map(|column| column.name.as_str()).collect();
    let mut tables = without_columns(&snapshot.manifest.side_tables, &names);
    tables.extend(joined.tables.iter().cloned());
    let news = publish(&store, &snapshot, tables)?;
    println!("{}", report(args, &source, &snapshot, &joined, &news));
    Ok(())
}

/// Publishes a snapshot without the added columns `names`; their tables stay for the snapshots that show them.
///
/// # Errors
/// A column was never added, or another program published at the same time.
pub(crate) fn drop(url: &str, corpus: &str, names: &[String]) -> Result<(), ShardsError> {
    let store = Store::open(url)?;
    crate::select(&store, &[corpus.to_owned()])?;
    let snapshot = store.manifest(corpus)?;
    let have: Vec<String> = snapshot.manifest.added_columns().into_iter().map(|column| column.name).collect();
    if let Some(column) = names.iter().find(|name| !have.contains(name)) {
        let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
        return Err(ColumnsError::NotAdded { corpus: corpus.to_owned(), column: column.clone(), have }.into());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let news = publish(&store, &snapshot, without_columns(&snapshot.manifest.side_tables, &names))?;
    println!("{corpus}: {news}, without {}", names.join(", "));
    Ok(())
}

/// Publishes the snapshot with these side tables as the next one, unless it has them already; says which.
fn publish(store: &Store, snapshot: &Snapshot, mut tables: Vec<SideTableEntry>) -> Result<String, ShardsError> {
    // No column of a shard stands in two tables, so their order says nothing; this one does not depend on history.
    tables.sort_by(|a, b| (&a.columns, &a.digest).cmp(&(&b.columns, &b.digest)));
    let mut manifest = snapshot.manifest.clone();
    manifest.side_tables = tables;
    if manifest == snapshot.manifest {
        return Ok(format!("snapshot {} unchanged, nothing new written", snapshot.version));
    }
    manifest.format = manifest.format.max(Format::Manifest.current());
    let (corpus, version) = (&manifest.corpus, snapshot.version + 1);
    if !store.put_if_absent(&manifest_key(corpus, version), Bytes::from(manifest.to_bytes()?))? {
        return Err(ShardsError::Overtaken { corpus: corpus.clone(), snapshot: version });
    }
    Ok(format!("snapshot {version} published"))
}

/// Puts a finished side table into the store; gives what the manifest says of it.
fn store_table(store: &Store, corpus: &str, writer: SideTableWriter) -> Result<SideTableEntry, ShardsError> {
    let (file, entry) = writer.seal().map_err(ColumnsError::Write)?;
    let key = side_table_key(corpus, &entry.digest);
    if store.size(&key)? != Some(entry.n_bytes) {
        store.put_file(&key, file.path())?;
    }
    Ok(entry)
}

fn report(args: &AddArgs<'_>, source: &Source, snapshot: &Snapshot, joined: &Joined, news: &str) -> String {
    let columns: Vec<String> = source.columns().iter().map(|c| format!("{} ({})", c.name, c.kind)).collect();
    let mut lines = vec![format!("{}: {news}, with {}", args.corpus, columns.join(", "))];
    lines.push(format!(
        "  {} of {} records are named by {}; {}",
        joined.n_matched,
        snapshot.manifest.n_records,
        source.name(),
        if args.update { "the others keep their values" } else { "the others are null" }
    ));
    if joined.n_unmatched > 0 {
        lines.push(format!("  {} of its {} keys match no record", joined.n_unmatched, joined.n_keys));
        lines.extend(joined.unmatched.iter().map(|key| format!("  no record has the key `{key}`")));
        let n_more = joined.n_unmatched - joined.unmatched.len() as u64;
        lines.extend((n_more > 0).then(|| format!("  … and {n_more} more")));
    }
    lines.join("\n")
}
