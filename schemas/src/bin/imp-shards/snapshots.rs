//! The snapshots of a corpus, a line each.
//!
//! In: manifests. Out: a table or JSON. Never: a shard.

use std::io::Write;

use comfy_table::{Table, presets};
use imp_schemas::store::{Store, StoreError};
use serde::Serialize;

use crate::ShardsError;

#[derive(Debug, Serialize)]
struct Line {
    version: u64,
    digest: String,
    schema_version: String,
    n_records: u64,
    n_inputs: u64,
    n_shards: u64,
    /// Shards that the snapshot before does not have.
    n_new_shards: u64,
    n_bytes: u64,
    n_rejected: u64,
    n_tombstones: u64,
    added_columns: Vec<String>,
}

/// Lists and prints.
///
/// # Errors
/// The corpus is not in the store, or the store failed. A snapshot that cannot be read is said so in its line.
pub(crate) fn run(url: &str, corpus: &str, json: bool) -> Result<(), ShardsError> {
    let store = Store::open(url)?;
    crate::select(&store, &[corpus.to_owned()])?;
    let mut lines = Vec::new();
    let mut unreadable = Vec::new();
    let mut before = std::collections::HashSet::new();
    for version in store.snapshot_versions(corpus)? {
        let snapshot = match store.snapshot(corpus, version) {
            Ok(snapshot) => snapshot,
            Err(StoreError::Manifest(error)) => {
                unreadable.push((version, error.to_string()));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let manifest = snapshot.manifest;
        lines.push(Line {
            version,
            digest: snapshot.digest.0,
            schema_version: manifest.schema_version.to_string(),
            n_records: manifest.n_records,
            n_inputs: manifest.n_inputs,
            n_shards: manifest.shards.len() as u64,
            n_new_shards: manifest.shards.iter().filter(|s| !before.contains(&s.digest)).count() as u64,
            n_bytes: manifest.shards.iter().map(|s| s.n_bytes).sum(),
            n_rejected: manifest.n_rejected.values().sum(),
            n_tombstones: manifest.tombstones.as_ref().map_or(0, |t| t.n_rows),
            added_columns: manifest.added_columns().into_iter().map(|column| column.name).collect(),
        });
        before = manifest.shards.into_iter().map(|s| s.digest).collect();
    }
    let mut out = std::io::stdout().lock();
    // A closed pipe is no error.
    let _ = if json {
        let broken: Vec<_> = unreadable.iter().map(|(v, e)| serde_json::json!({ "version": v, "error": e })).collect();
        let report =
            serde_json::json!({ "corpus": corpus, "snapshots": serde_json::to_value(&lines)?, "unreadable": broken });
        writeln!(out, "{report:#}")
    } else {
        let broken = unreadable.iter().map(|(v, e)| format!("\nsnapshot {v} cannot be read: {e}"));
        writeln!(out, "{}{}", table(&lines), broken.collect::<String>())
    };
    Ok(())
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "snapshot", "manifest", "schema", "records", "inputs", "shards", "new", "MiB", "rejects", "hidden", "added",
    ]);
    for l in lines {
        let mib = format!("{:.1}", l.n_bytes as f64 / f64::from(1 << 20));
        let counts = [l.n_records, l.n_inputs, l.n_shards, l.n_new_shards].map(|n| n.to_string());
        let head = [l.version.to_string(), l.digest.chars().take(12).collect(), l.schema_version.clone()];
        let tail = [mib, l.n_rejected.to_string(), l.n_tombstones.to_string(), l.added_columns.join(" ")];
        table.add_row(head.into_iter().chain(counts).chain(tail));
    }
    table
}
