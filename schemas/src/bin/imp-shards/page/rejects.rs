//! Rejects by reason, with a few of each.
//!
//! In: the tables of rejects and of tombstones. Out: a group a reason, the largest first. Never: all rows of a table at once.

use imp_schemas::manifest::Manifest;
use imp_schemas::reject::RejectReason;
use imp_schemas::store::Store;
use serde::Serialize;

use crate::ShardsError;

/// Of each reason.
const MAX_EXAMPLES: usize = 6;

#[derive(Debug, Serialize)]
pub(super) struct Group {
    reason: &'static str,
    n: u64,
    /// Percent of all rejects.
    share: f64,
    examples: Vec<Example>,
}

#[derive(Debug, Serialize)]
struct Example {
    source: String,
    row: u64,
    key: String,
    detail: String,
    hex: String,
    ascii: String,
}

pub(super) fn groups(store: &Store, manifest: &Manifest) -> Result<Vec<Group>, ShardsError> {
    let n_all: u64 = manifest.n_rejected.values().sum();
    let group = |(reason, n): (&RejectReason, &u64)| Group {
        reason: reason.name(),
        n: *n,
        share: 100.0 * *n as f64 / n_all.max(1) as f64,
        examples: Vec::new(),
    };
    let mut groups: Vec<Group> = manifest.n_rejected.iter().map(group).collect();
    groups.sort_by(|a, b| b.n.cmp(&a.n).then(a.reason.cmp(b.reason)));
    let mut add = |reason: RejectReason, example: Example| {
        if let Some(group) = groups.iter_mut().find(|g| g.reason == reason.name())
            && group.examples.len() < MAX_EXAMPLES
        {
            group.examples.push(example);
        }
    };
    for entry in &manifest.rejects {
        for r in store.rejects(&manifest.corpus, entry)? {
            let (hex, ascii) = dump(&r.first_bytes);
            add(r.reason, Example { source: r.source, row: r.row, key: r.key, detail: r.detail, hex, ascii });
        }
    }
    for t in store.tombstones(manifest)? {
        let (source, hex, ascii) = (format!("shard {}", t.shard.short()), String::new(), String::new());
        add(t.reason, Example { source, row: t.row, key: t.key, detail: t.detail, hex, ascii });
    }
    Ok(groups)
}

/// Bytes as hex in pairs, and as text with dots for what is not printed.
fn dump(bytes: &[u8]) -> (String, String) {
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let ascii = bytes.iter().map(|&b| if b.is_ascii_graphic() || b == b' ' { char::from(b) } else { '·' });
    (hex.join(" "), ascii.collect())
}
