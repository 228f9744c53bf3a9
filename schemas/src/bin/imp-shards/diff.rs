//! What changed from one snapshot of a corpus to another.
//!
//! In: two snapshots, of one store or of two. Out: records that came, went or changed; counts, shards and config that differ.
//! Never: the rows of a shard that both have with the same rows hidden; media bytes.

mod print;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use imp_schemas::manifest::Manifest;
use imp_schemas::shard::Digest;
use imp_schemas::store::{Snapshot, Store};
use serde::Serialize;
use serde_json::Value;

use crate::ShardsError;
pub(crate) use records::Records;

/// Which snapshots, beside the store of the first.
#[derive(Debug)]
pub(crate) struct DiffArgs<'a> {
    pub corpus: &'a str,
    /// The one before `to` without it; the newest with another store.
    pub from: Option<u64>,
    /// The newest without it.
    pub to: Option<u64>,
    /// Where `to` lies, if not in the store of `from`.
    pub other_store: Option<&'a str>,
    pub json: bool,
}

/// A count on both sides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    pub from: u64,
    pub to: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Shards {
    pub n_shared: u64,
    pub n_new: u64,
    pub n_gone: u64,
    pub new_bytes: u64,
    pub gone_bytes: u64,
}

/// One value of the config that differs; `null` where it is absent.
#[derive(Debug, Serialize)]
pub(crate) struct ConfigChange {
    pub key: String,
    pub from: Value,
    pub to: Value,
}

#[derive(Debug, Serialize)]
pub(crate) struct Side {
    pub store: String,
    pub snapshot: u64,
    pub digest: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Diff {
    pub corpus: String,
    pub from: Side,
    pub to: Side,
    /// The manifests are the same bytes; everything below is then without a change.
    pub identical: bool,
    pub n_inputs: Change,
    pub n_records: Change,
    pub records: Records,
    /// Only what differs.
    pub splits: BTreeMap<String, Change>,
    pub rejects: BTreeMap<&'static str, Change>,
    pub hidden: Change,
    pub shards: Shards,
    pub classes_added: Vec<String>,
    pub classes_removed: Vec<String>,
    pub tokenizer_changed: bool,
    pub columns_added: Vec<String>,
    pub columns_removed: Vec<String>,
    /// On both sides, with other values, another type, or for other shards.
    pub columns_changed: Vec<String>,
    pub schema_version: Option<[String; 2]>,
    pub config: Vec<ConfigChange>,
}

/// Compares and prints.
///
/// # Errors
/// A corpus or snapshot is not there, or a shard that only one side has cannot be read.
pub(crate) fn run(url: &str, args: &DiffArgs<'_>) -> Result<(), ShardsError> {
    let first = Store::open(url)?;
    let second = args.other_store.map(Store::open).transpose()?;
    let second = second.as_ref().unwrap_or(&first);
    let (from, to) = sides(&first, second, args)?;
    let diff = compare((&first, &from), (second, &to), args.corpus)?;
    let text = if args.json { format!("{:#}", serde_json::to_value(&diff)?) } else { print::text(&diff) };
    // A closed pipe is no error.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

fn sides(first: &Store, second: &Store, args: &DiffArgs<'_>) -> Result<(Snapshot, Snapshot), ShardsError> {
    let corpus = args.corpus;
    for store in [first, second] {
        crate::select(store, &[corpus.to_owned()])?;
    }
    let to = match args.to {
        Some(version) => second.snapshot(corpus, version)?,
        None => second.manifest(corpus)?,
    };
    let from = match (args.from, args.other_store) {
        (Some(version), _) => version,
        (None, Some(_)) => return Ok((first.manifest(corpus)?, to)),
        (None, None) => {
            let versions = first.snapshot_versions(corpus)?;
            let before = versions.into_iter().filter(|v| *v < to.version).max();
            let only = || ShardsError::NothingBefore { corpus: corpus.to_owned(), snapshot: to.version };
            before.ok_or_else(only)?
        }
    };
    Ok((first.snapshot(corpus, from)?, to))
}

fn compare(from: (&Store, &Snapshot), to: (&Store, &Snapshot), corpus: &str) -> Result<Diff, ShardsError> {
    let side = |(store, snapshot): (&Store, &Snapshot)| Side {
        store: store.url().to_owned(),
        snapshot: snapshot.version,
        digest: snapshot.digest.0.clone(),
    };
    let (a, b) = (&from.1.manifest, &to.1.manifest);
    let change = |value: fn(&Manifest) -> u64| Change { from: value(a), to: value(b) };
    let reasons = |m: &Manifest| m.n_rejected.iter().map(|(reason, n)| (reason.name(), *n)).collect();
    let splits = |m: &Manifest| m.splits().into_iter().map(|s| (s.to_owned(), m.n_rows(s))).collect();
    let missing = |of: &Manifest, from: &Manifest| {
        let known: BTreeSet<&String> = from.classes.iter().collect();
        of.classes.iter().filter(|c| !known.contains(c)).cloned().collect()
    };
    let mut config = Vec::new();
    config_changes("", &a.config, &b.config, &mut config);
    let [columns_added, columns_removed, columns_changed] = columns(a, b);
    let versions = [a.schema_version.to_string(), b.schema_version.to_string()];
    Ok(Diff {
        corpus: corpus.to_owned(),
        from: side(from),
        to: side(to),
        identical: from.1.digest == to.1.digest,
        n_inputs: change(|m| m.n_inputs),
        n_records: change(|m| m.n_records),
        records: records::compare((from.0, a), (to.0, b))?,
        splits: changes(splits(a), splits(b)),
        rejects: changes(reasons(a), reasons(b)),
        hidden: change(|m| m.tombstones.as_ref().map_or(0, |t| t.n_rows)),
        shards: shards(a, b),
        classes_added: missing(b, a),
        classes_removed: missing(a, b),
        tokenizer_changed: a.tokenizer != b.tokenizer,
        columns_added,
        columns_removed,
        columns_changed,
        schema_version: (versions[0] != versions[1]).then_some(versions),
        config,
    })
}

/// The counts that differ.
fn changes<K: Ord + Clone>(from: BTreeMap<K, u64>, to: BTreeMap<K, u64>) -> BTreeMap<K, Change> {
    let names: BTreeSet<&K> = from.keys().chain(to.keys()).collect();
    let of = |side: &BTreeMap<K, u64>, name: &K| side.get(name).copied().unwrap_or(0);
    let change = |name: &K| (name.clone(), Change { from: of(&from, name), to: of(&to, name) });
    names.into_iter().map(change).filter(|(_, c)| c.from != c.to).collect()
}

fn shards(a: &Manifest, b: &Manifest) -> Shards {
    let digests = |m: &Manifest| m.shards.iter().map(|s| s.digest.clone()).collect::<BTreeSet<_>>();
    let (had, has) = (digests(a), digests(b));
    let new = || b.shards.iter().filter(|s| !had.contains(&s.digest));
    let gone = || a.shards.iter().filter(|s| !has.contains(&s.digest));
    Shards {
        n_shared: had.intersection(&has).count() as u64,
        n_new: new().count() as u64,
        n_gone: gone().count() as u64,
        new_bytes: new().map(|s| s.n_bytes).sum(),
        gone_bytes: gone().map(|s| s.n_bytes).sum(),
    }
}

/// Columns that were added later: those that only `b` has, only `a` has, and both with other tables behind them.
fn columns(a: &Manifest, b: &Manifest) -> [Vec<String>; 3] {
    let tables = |m: &Manifest| {
        let mut tables: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
        for table in &m.side_tables {
            for column in &table.columns {
                tables.entry(column.name.clone()).or_default().insert(table.digest.clone());
            }
        }
        tables
    };
    let (had, has) = (tables(a), tables(b));
    let only = |these: &BTreeMap<String, _>, those: &BTreeMap<String, _>| -> Vec<String> {
        these.keys().filter(|name| !those.contains_key(*name)).cloned().collect()
    };
    let changed = had.iter().filter(|(name, tables)| has.get(*name).is_some_and(|others| others != *tables));
    [only(&has, &had), only(&had, &has), changed.map(|(name, _)| name.clone()).collect()]
}

/// Walks both trees; a path such as `limits.max_pixels` names a leaf.
fn config_changes(path: &str, from: &Value, to: &Value, out: &mut Vec<ConfigChange>) {
    if from == to {
        return;
    }
    let (Value::Object(a), Value::Object(b)) = (from, to) else {
        let key = if path.is_empty() { "config" } else { path };
        out.push(ConfigChange { key: key.to_owned(), from: from.clone(), to: to.clone() });
        return;
    };
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for name in names {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let of = |side: &serde_json::Map<String, Value>| side.get(name).cloned().unwrap_or(Value::Null);
        config_changes(&below, &of(a), &of(b), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_leaves_of_a_config_that_differ_are_named() {
        let (a, b) = (
            serde_json::json!({ "limits": { "max_pixels": 1, "min_side": 2 }, "path": "x" }),
            serde_json::json!({ "limits": { "max_pixels": 3, "min_side": 2 }, "path": "x", "new": true }),
        );
        let mut out = Vec::new();
        config_changes("", &a, &b, &mut out);
        let keys: Vec<&str> = out.iter().map(|c| c.key.as_str()).collect();
        assert_eq!(keys, ["limits.max_pixels", "new"]);
        assert_eq!(out[1].from, Value::Null);
    }
}
