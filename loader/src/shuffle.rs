//! How well an order is shuffled.
//!
//! In: the rows of a task in the order in which they come. Out: how often a batch holds neighbours, and whether the order still
//! follows the rows. Never: I/O.

use imp_schemas::task::Task;
use serde::Serialize;

use crate::buckets::Bucket;
use crate::plan::Plan;

/// Examples that are looked at: an epoch, or as many.
const MAX_EXAMPLES: u64 = 1 << 20;
/// Rows of a neighbourhood, where the shuffle has no windows.
const NEIGHBOURHOOD: u64 = 256;

/// Of one task, over its first epoch or the beginning of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ShuffleQuality {
    /// Rows that lie side by side and count as neighbours: a window of the shuffle, or 256 rows without a radius.
    pub window_rows: u64,
    /// Pairs of examples of one batch that are neighbours, mean over batches.
    pub same_window_pairs: f64,
    /// The same of an order drawn at random.
    pub same_window_pairs_if_random: f64,
    /// Of the place in the epoch and the row, -1 to 1: 1 is no shuffle, and 0 is what an order drawn at random has.
    pub position_correlation: f64,
}

/// The quality of the order of a task's largest bucket, in batches of its largest view.
pub fn quality(plan: &Plan, task: &Task, task_idx: usize, radius: Option<u64>) -> ShuffleQuality {
    let buckets = plan.buckets(task_idx);
    let bucket_idx = (0..buckets.len()).max_by_key(|&i| buckets[i].n_rows).unwrap_or(0);
    let Bucket { views, n_rows, .. } = &buckets[bucket_idx];
    let (n, n_rows) = (views.iter().map(|&view_idx| task.views()[view_idx].n()).max().unwrap_or(2), *n_rows);
    let window_rows = match radius {
        Some(radius) if radius < n_rows => (radius / crate::plan::N_WINDOWS).max(1),
        _ => NEIGHBOURHOOD.min(n_rows),
    };
    let n_taken = n_rows.min(MAX_EXAMPLES);
    let rows = plan.first_rows(task_idx, bucket_idx, n_taken);
    let batches = rows.chunks_exact(n.max(2));
    let n_batches = batches.len().max(1) as f64;
    let pairs: u64 = batches.map(|batch| pairs_within(batch, window_rows)).sum();
    let pairs_of_batch = (n * n.saturating_sub(1) / 2) as f64;
    // The last window may be shorter: of all pairs of rows, those within one window.
    let of_windows = |len: u64| (len * len.saturating_sub(1)) as f64;
    let last = n_rows % window_rows;
    let within = (n_rows / window_rows) as f64 * of_windows(window_rows) + of_windows(last);
    ShuffleQuality {
        window_rows,
        same_window_pairs: pairs as f64 / n_batches,
        same_window_pairs_if_random: pairs_of_batch * within / of_windows(n_rows).max(1.0),
        position_correlation: correlation(&rows),
    }
}

fn pairs_within(batch: &[u64], window: u64) -> u64 {
    let mut windows: Vec<u64> = batch.iter().map(|row| row / window).collect();
    windows.sort_unstable();
    windows.chunk_by(|a, b| a == b).map(|same| (same.len() * (same.len() - 1) / 2) as u64).sum()
}

/// Pearson's, of place and value.
fn correlation(rows: &[u64]) -> f64 {
    let n = rows.len() as f64;
    let (mean_x, mean_y) = ((n - 1.0) / 2.0, rows.iter().map(|&row| row as f64).sum::<f64>() / n);
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, &y) in rows.iter().enumerate() {
        let (x, y) = (x as f64 - mean_x, y as f64 - mean_y);
        (xy, xx, yy) = (xy + x * y, xx + x * x, yy + y * y);
    }
    xy / (xx * yy).sqrt().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use imp_schemas::task::{Mixture, RawMixture};

    use super::*;
    use crate::buckets::TaskRows;

    fn of(n_rows: u64, radius: Option<u64>) -> ShuffleQuality {
        let raw = serde_json::json!({ "seed": 11, "shuffle_radius": radius, "tasks": [{ "name": "t", "corpora": ["c"],
            "modalities": ["image", "text"], "objective": "nce", "batch": 256,
            "views": [{ "height": 16, "width": 16, "text_tokens": 4 }] }] });
        let mixture: Mixture = serde_json::from_value::<RawMixture>(raw).unwrap().try_into().unwrap();
        let task = mixture.tasks()[0].clone();
        quality(&Plan::new(mixture, vec![TaskRows::whole(vec![n_rows], 1)]), &task, 0, radius)
    }

    #[test]
    fn a_whole_split_is_shuffled_as_by_chance_and_a_radius_shows() {
        let whole = of(100_000, None);
        assert!((whole.same_window_pairs / whole.same_window_pairs_if_random - 1.0).abs() < 0.1, "{whole:?}");
        assert!(whole.position_correlation.abs() < 0.02, "{whole:?}");
        // A pool of 4,096 rows is 16 windows: a pair of a batch shares one with a chance of a sixteenth.
        let narrow = of(100_000, Some(4096));
        assert!((narrow.same_window_pairs / (256.0 * 255.0 / 2.0 / 16.0) - 1.0).abs() < 0.1, "{narrow:?}");
        assert!(narrow.position_correlation.abs() < 0.1, "windows are shuffled before rows are: {narrow:?}");
    }
}
