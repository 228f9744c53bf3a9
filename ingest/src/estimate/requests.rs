//! Shards of a run and its requests to the store, as the code cuts and asks.
//!
//! In: what each unit puts into each split. Out: sums. Every number here stands for a call, named where it is counted; of the store's
//! own repeats after a failure there is none.
//! Never: a factor that was measured once.

use imp_schemas::shard_writer::{ROW_GROUP_BYTES, ROW_GROUP_ROWS};
use imp_schemas::store::PART_BYTES;

use crate::config::CorpusConfig;
use crate::duplicates;

/// Of a row in the index of media, at most: two numbers that are stored as differences.
const INDEX_ROW_BYTES: f64 = 8.0;

/// Records that a unit puts into one split.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cut {
    pub(super) n: f64,
    pub(super) media_bytes: f64,
}

/// How records become shards.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing {
    /// A shard is closed before its media exceed this.
    pub(super) shard_bytes: u64,
    /// What a row takes beside its medium.
    pub(super) row_bytes: f64,
    /// What a row group takes whatever its rows: bloom filters, its part of the footer.
    pub(super) group_bytes: f64,
}

/// Sums over the units of a corpus.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct CorpusRequests {
    pub(super) n_shards: f64,
    pub(super) shard_bytes: f64,
    n_groups: f64,
    n_of_units: f64,
}

impl CorpusRequests {
    /// Adds a unit that puts `cuts` into its splits and has a table of rejects with this likelihood.
    pub(super) fn add_unit(&mut self, packing: &Packing, cuts: &[Cut], share_with_rejects: f64) {
        // Its commit is looked for, and written.
        self.n_of_units += 2.0 + share_with_rejects;
        for cut in cuts.iter().filter(|cut| cut.n >= 0.5) {
            for shard in shards_of(packing, *cut) {
                let n_groups = n_parts(shard, ROW_GROUP_BYTES).max((shard.n / ROW_GROUP_ROWS as f64).ceil());
                let n_bytes = shard.media_bytes + shard.n * packing.row_bytes + n_groups * packing.group_bytes;
                self.n_shards += 1.0;
                self.n_groups += n_groups;
                self.shard_bytes += n_bytes;
                self.n_of_units += put_new(n_bytes);
            }
        }
    }

    /// Requests of a corpus of these units and so many records.
    pub(super) fn of_corpus(&self, corpus: &CorpusConfig, n_records: f64) -> f64 {
        // To find duplicates: of each shard the footer, of each row group the small columns, which lie close together; for sketches
        // once more.
        let n_passes = match duplicates::is_needed(&corpus.clean, self.n_shards.round() as usize) {
            true if corpus.clean.near.is_some() => 2.0,
            true => 1.0,
            false => 0.0,
        };
        let of_duplicates = n_passes * (self.n_shards + self.n_groups);
        // The index of media; the snapshots that are there, for their side tables and for the next number; the manifest.
        self.n_of_units + of_duplicates + put_new(n_records * INDEX_ROW_BYTES) + 3.0
    }
}

/// The shards of one split of a unit: all full but the last.
fn shards_of(packing: &Packing, cut: Cut) -> Vec<Cut> {
    let n = n_parts(cut, packing.shard_bytes).max(1.0);
    let full = capacity(cut, packing.shard_bytes).min(cut.media_bytes);
    let part = |media_bytes: f64| Cut { n: cut.n * media_bytes / cut.media_bytes.max(1.0), media_bytes };
    if n <= 1.0 {
        return vec![cut];
    }
    let mut shards = vec![part(full); n as usize - 1];
    shards.push(part(cut.media_bytes - full * (n - 1.0)));
    shards
}

/// Parts that media are cut into if none may exceed `limit` bytes.
fn n_parts(cut: Cut, limit: u64) -> f64 {
    (cut.media_bytes / capacity(cut, limit).max(1.0)).ceil()
}

/// What fits into a part: the next medium did not, so that half of one is missing on average; one larger stands alone.
fn capacity(cut: Cut, limit: u64) -> f64 {
    let mean = cut.media_bytes / cut.n.max(1.0);
    (limit as f64 - mean / 2.0).max(mean)
}

/// Requests that put an object of so many bytes under the digest of its content: it is looked for, then put as one, or in parts
/// between a begin and an end.
fn put_new(n_bytes: f64) -> f64 {
    let n_parts = (n_bytes / PART_BYTES as f64).ceil();
    1.0 + if n_parts > 1.0 { n_parts + 2.0 } else { 1.0 }
}
