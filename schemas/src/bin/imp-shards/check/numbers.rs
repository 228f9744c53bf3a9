//! The numbers of the manifest, counted again: ranges of each shard, histograms of the corpus, nulls where none may be.
//!
//! In: rows. Out: findings. Never: a row kept.

use std::collections::BTreeMap;

use arrow::array::Array;
use imp_schemas::histogram::Histogram;
use imp_schemas::manifest::{Manifest, ShardEntry};
use imp_schemas::record::column;

use crate::ShardsError;
use crate::finding::Findings;
use crate::rows::Rows;

/// Columns that may be null.
const MAY_BE_NULL: [&str; 6] =
    [column::LABEL, column::LABEL_ID, column::LABELS, column::LABEL_IDS, column::NORMALISED, column::PHASH];
const STALE: &str = "ingest the corpus again: plans prune by these numbers";

/// Of one shard.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    ranges: BTreeMap<&'static str, [f64; 2]>,
    n_null: BTreeMap<String, u64>,
}

/// Columns that a manifest may keep ranges of.
const PLANNING: [&str; 10] = [
    column::BYTES_LEN,
    column::NUM_TOKENS,
    column::WIDTH,
    column::HEIGHT,
    column::FPS,
    column::NUM_FRAMES,
    column::DURATION,
    column::SAMPLING_RATE,
    column::CHANNELS,
    column::NUM_SAMPLES,
];

impl Numbers {
    pub(crate) fn add(
        &mut self,
        rows: &Rows<'_>,
        histograms: &mut BTreeMap<String, Histogram>,
    ) -> Result<(), ShardsError> {
        for field in rows.batch.schema().fields() {
            let Some(array) = rows.batch.column_by_name(field.name()) else { continue };
            if array.null_count() > 0 && !MAY_BE_NULL.contains(&field.name().as_str()) {
                *self.n_null.entry(field.name().clone()).or_insert(0) += array.null_count() as u64;
            }
        }
        for name in PLANNING {
            if rows.batch.column_by_name(name).is_none() {
                continue;
            }
            for value in rows.values(name)?.into_iter().flatten() {
                let range = self.ranges.entry(name).or_insert([value, value]);
                *range = [range[0].min(value), range[1].max(value)];
                histograms.entry(name.to_owned()).or_default().push(value);
            }
        }
        Ok(())
    }

    /// Least and greatest value of each planning column.
    pub(crate) fn into_ranges(self) -> BTreeMap<String, [f64; 2]> {
        self.ranges.into_iter().map(|(name, range)| (name.to_owned(), range)).collect()
    }

    /// Holds what was counted to the shard's entry.
    pub(super) fn check(&self, entry: &ShardEntry, key: &str, findings: &mut Findings) {
        for (name, n) in &self.n_null {
            let found = format!("column `{name}` is null in {n} rows");
            findings.push("null", key, found, "ingest the corpus again: every reader relies on these columns");
        }
        for (name, wanted) in &entry.ranges {
            let found = self.ranges.get(name.as_str());
            if found.is_none_or(|found| !same(found[0], wanted[0]) || !same(found[1], wanted[1])) {
                let found = found.map_or("nothing".to_owned(), |[a, b]| format!("{a} to {b}"));
                let found = format!("`{name}` spans {found}, the manifest says {} to {}", wanted[0], wanted[1]);
                findings.push("statistics", key, found, STALE);
            }
        }
    }
}

/// A float may have been printed and read on the way.
fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// Holds the histograms of all rows to the manifest's; a manifest of 1.0 has none.
pub(super) fn check_histograms(
    corpus: &str,
    manifest: &Manifest,
    found: &BTreeMap<String, Histogram>,
    findings: &mut Findings,
) {
    for (name, wanted) in &manifest.histograms {
        // Shards of before the column cannot be counted in it.
        let in_every_shard = manifest.shards.iter().all(|shard| shard.ranges.contains_key(name));
        let empty = Histogram::default();
        let counted = found.get(name).unwrap_or(&empty);
        if in_every_shard && counted != wanted {
            let what = format!(
                "the histogram of `{name}` counts {} values, its rows give {} in other bins or numbers",
                wanted.n(),
                counted.n()
            );
            findings.push("statistics", format!("{corpus}/manifests"), what, STALE);
        }
    }
}
