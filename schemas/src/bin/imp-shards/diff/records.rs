//! Records of two snapshots, matched by key.
//!
//! In: two manifests. Out: how many came, went and changed, and a few of each. Never: the rows of a shard that shows the same
//! rows on both sides; more than about 60 bytes a row of those it reads.

use std::collections::{BTreeMap, HashMap, HashSet};

use imp_schemas::manifest::Manifest;
use imp_schemas::record::column;
use imp_schemas::shard::Digest;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::Store;
use imp_schemas::tombstone::Hidden;
use serde::Serialize;

use super::Change;
use crate::ShardsError;
use crate::rows::{Rows, for_live, label_columns};

/// Keys that are named of each kind of change.
const MAX_NAMED: usize = 20;

/// What became of the records. A record that differs in several ways counts once in `n_changed` and in each way.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Records {
    pub n_added: u64,
    pub n_removed: u64,
    pub n_changed: u64,
    pub n_media_changed: u64,
    pub n_captions_changed: u64,
    pub n_label_changed: u64,
    pub n_split_changed: u64,
    /// The first keys in the order of the shards.
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
    /// Labels whose number of records differs.
    pub classes: BTreeMap<String, Change>,
}

/// First 16 bytes of a BLAKE3 stand for a text: two alike by chance in 10^20 among a billion.
type Short = [u8; 16];

/// One record on one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    media: Short,
    captions: Short,
    label: Short,
    split: Short,
}

pub(super) fn compare(from: (&Store, &Manifest), to: (&Store, &Manifest)) -> Result<Records, ShardsError> {
    let hidden = [hidden(from)?, hidden(to)?];
    let shown = |m: &Manifest, h: &Hidden| -> HashSet<(Digest, Vec<u64>)> {
        m.shards.iter().map(|s| (s.digest.clone(), h.rows(&s.digest).to_vec())).collect()
    };
    let (had, has) = (shown(from.1, &hidden[0]), shown(to.1, &hidden[1]));
    let mut records = Records::default();
    let mut before: HashMap<Short, (Seen, bool)> = HashMap::new();
    walk(from, &hidden[0], &has, |key, seen, labels| {
        before.insert(short(key), (seen, false));
        labels.iter().for_each(|&label| records.classes.entry(label.to_owned()).or_default().from += 1);
    })?;
    walk(to, &hidden[1], &had, |key, seen, labels| {
        labels.iter().for_each(|&label| records.classes.entry(label.to_owned()).or_default().to += 1);
        match before.get_mut(&short(key)) {
            None => {
                records.n_added += 1;
                name(&mut records.added, key, "");
            }
            Some((was, met)) => {
                *met = true;
                changed(&mut records, key, was, &seen);
            }
        }
    })?;
    records.n_removed = before.values().filter(|(_, met)| !met).count() as u64;
    if records.n_removed > 0 {
        // Once more for the names, which were not kept.
        walk(from, &hidden[0], &has, |key, _, _| {
            if before.get(&short(key)).is_some_and(|(_, met)| !met) {
                name(&mut records.removed, key, "");
            }
        })?;
    }
    records.classes.retain(|_, change| change.from != change.to);
    Ok(records)
}

fn hidden((store, manifest): (&Store, &Manifest)) -> Result<Hidden, ShardsError> {
    Ok(Hidden::of(&store.tombstones(manifest)?))
}

fn changed(records: &mut Records, key: &str, was: &Seen, is: &Seen) {
    if was == is {
        return;
    }
    records.n_changed += 1;
    let ways = [
        ("media", was.media != is.media, &mut records.n_media_changed),
        ("captions", was.captions != is.captions, &mut records.n_captions_changed),
        ("label", was.label != is.label, &mut records.n_label_changed),
        ("split", was.split != is.split, &mut records.n_split_changed),
    ];
    let mut names = Vec::new();
    for (way, differs, n) in ways {
        if differs {
            *n += 1;
            names.push(way);
        }
    }
    name(&mut records.changed, key, &format!(" ({})", names.join(", ")));
}

fn name(list: &mut Vec<String>, key: &str, what: &str) {
    if list.len() < MAX_NAMED {
        list.push(format!("{key}{what}"));
    }
}

/// Every record of the shards that `other` does not show with the same rows.
fn walk(
    (store, manifest): (&Store, &Manifest),
    hidden: &Hidden,
    other: &HashSet<(Digest, Vec<u64>)>,
    mut take: impl FnMut(&str, Seen, &[&str]),
) -> Result<(), ShardsError> {
    for entry in &manifest.shards {
        let hidden = hidden.rows(&entry.digest);
        if other.contains(&(entry.digest.clone(), hidden.to_vec())) {
            continue;
        }
        let reader = ShardReader::open(store, &manifest.corpus, entry)?;
        let columns = [column::KEY, column::DIGEST, column::SPLIT, column::CAPTIONS];
        let columns = [&columns[..], label_columns(&reader)].concat();
        for_live(&reader, &manifest.corpus, &hidden, &columns, |_, rows| each(rows, &mut take))?;
    }
    Ok(())
}

fn each(rows: &Rows<'_>, take: &mut impl FnMut(&str, Seen, &[&str])) -> Result<(), ShardsError> {
    let (keys, digests) = (rows.texts(column::KEY)?, rows.texts(column::DIGEST)?);
    let (splits, labels) = (rows.texts(column::SPLIT)?, rows.labels()?);
    let captions = rows.captions()?;
    for i in 0..keys.len() {
        let seen = Seen {
            media: short(digests[i].unwrap_or_default()),
            captions: short(&captions[i].iter().map(|c| c.unwrap_or_default()).collect::<Vec<_>>().join("\0")),
            label: short(&labels[i].join("\0")),
            split: short(splits[i].unwrap_or_default()),
        };
        take(keys[i].unwrap_or_default(), seen, &labels[i]);
    }
    Ok(())
}

fn short(text: &str) -> Short {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    short
}
