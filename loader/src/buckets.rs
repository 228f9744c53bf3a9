//! The rows of a task, by the shape at which they come.
//!
//! In: rows of the task's corpora, and for aspect buckets the width and height of each. Out: for each bucket its views and rows.
//! Never: a row in two buckets or in none, a bucket with fewer rows than a batch while there is another, a byte of a medium.

use std::sync::Arc;

use imp_schemas::task::Task;

/// Rows that come at the same views. A task without aspect buckets has one, with all of its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// Indices among the task's views.
    pub views: Vec<usize>,
    pub n_rows: u64,
    /// Rising; `None` for every row.
    rows: Option<Arc<[u32]>>,
}

impl Bucket {
    /// The `i`-th row of the bucket, counted over the task's corpora one after the other.
    pub fn row(&self, i: u64) -> u64 {
        self.rows.as_ref().map_or(i, |rows| u64::from(rows[i as usize]))
    }

    /// Every row at every view.
    pub fn whole(n_views: usize, n_rows: u64) -> Self {
        Self { views: (0..n_views).collect(), n_rows, rows: None }
    }
}

/// Rows of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRows {
    /// Of each of the task's corpora.
    pub n_rows: Vec<u64>,
    pub buckets: Vec<Bucket>,
}

impl TaskRows {
    /// Without aspect buckets.
    pub fn whole(n_rows: Vec<u64>, n_views: usize) -> Self {
        let bucket = Bucket::whole(n_views, n_rows.iter().sum());
        Self { n_rows, buckets: vec![bucket] }
    }
}

/// The buckets of `task`, whose rows have these widths and heights, in their order.
pub fn by_aspect(task: &Task, sizes: impl Iterator<Item = (u32, u32)>) -> Vec<Bucket> {
    let views = task.view_buckets();
    let aspects: Vec<f64> = views
        .iter()
        .map(|views| task.views()[views[0]].size().map_or(0.0, |(w, h)| (w as f64 / h as f64).ln()))
        .collect();
    let mut rows: Vec<Vec<u32>> = vec![Vec::new(); views.len()];
    for (row, (width, height)) in (0..).zip(sizes) {
        let aspect = (f64::from(width.max(1)) / f64::from(height.max(1))).ln();
        rows[nearest(&aspects, aspect, |_| true)].push(row);
    }
    // A batch must not hold a row twice. The smallest goes first, so that two small neighbours may make one that is large enough.
    let least: Vec<usize> =
        views.iter().map(|views| views.iter().map(|&i| task.views()[i].n()).max().unwrap_or(1)).collect();
    let mut open: Vec<bool> = vec![true; views.len()];
    loop {
        let short = |&i: &usize| open[i] && rows[i].len() < least[i];
        let Some(i) = (0..views.len()).filter(short).min_by_key(|&i| rows[i].len()) else { break };
        if open.iter().filter(|open| **open).count() == 1 {
            break;
        }
        let to = nearest(&aspects, aspects[i], |k| open[k] && k != i);
        let moved = std::mem::take(&mut rows[i]);
        open[i] = false;
        rows[to].extend(moved);
        rows[to].sort_unstable();
    }
    let kept = views.into_iter().zip(rows).zip(open).filter(|(_, open)| *open);
    kept.map(|((views, rows), _)| Bucket { views, n_rows: rows.len() as u64, rows: Some(rows.into()) }).collect()
}

/// The nearest of `aspects` (logarithms) that is `open`; the first of equals.
fn nearest(aspects: &[f64], aspect: f64, open: impl Fn(usize) -> bool) -> usize {
    let near = (0..aspects.len()).filter(|&i| open(i));
    near.min_by(|&a, &b| (aspects[a] - aspect).abs().total_cmp(&(aspects[b] - aspect).abs())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use imp_schemas::task::{Mixture, RawMixture};
    use proptest::prelude::*;

    use super::*;

    fn task(batch: usize) -> Task {
        let view =
            |width: usize, height: usize| serde_json::json!({ "width": width, "height": height, "text_tokens": 4 });
        let raw = serde_json::json!({ "seed": 1, "tasks": [{ "name": "t", "corpora": ["c"], "modalities": ["image", "text"],
            "objective": "nce", "batch": batch, "aspect_buckets": true,
            "views": [view(64, 64), view(96, 64), view(64, 96), view(32, 32)] }] });
        let mixture: Mixture = serde_json::from_value::<RawMixture>(raw).unwrap().try_into().unwrap();
        mixture.tasks()[0].clone()
    }

    fn rows(bucket: &Bucket) -> Vec<u64> {
        (0..bucket.n_rows).map(|i| bucket.row(i)).collect()
    }

    #[test]
    fn a_row_goes_to_the_nearest_shape() {
        let sizes = [(500, 500), (640, 480), (480, 640), (1000, 300), (300, 310), (400, 600), (1200, 1000)];
        let buckets = by_aspect(&task(2), sizes.into_iter());
        assert_eq!(buckets[0].views, [0, 3]);
        assert_eq!(buckets.iter().map(rows).collect::<Vec<_>>(), [vec![0, 4, 6], vec![1, 3], vec![2, 5]]);
    }

    #[test]
    fn a_shape_with_fewer_rows_than_a_batch_lends_them() {
        let sizes = [(500, 500), (640, 480), (480, 640), (500, 510), (300, 310), (400, 600), (1200, 1000)];
        let buckets = by_aspect(&task(2), sizes.into_iter());
        assert_eq!(buckets.iter().map(rows).collect::<Vec<_>>(), [vec![0, 1, 3, 4, 6], vec![2, 5]]);
        let buckets = by_aspect(&task(7), sizes.into_iter());
        assert_eq!(buckets.iter().map(rows).collect::<Vec<_>>(), [(0..7).collect::<Vec<_>>()]);
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_bucket(
            sizes in prop::collection::vec((1u32..900, 1u32..900), 8..80), batch in 2usize..9,
        ) {
            let buckets = by_aspect(&task(batch), sizes.iter().copied());
            let mut all: Vec<u64> = buckets.iter().flat_map(rows).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..sizes.len() as u64).collect::<Vec<_>>());
            prop_assert!(buckets.iter().all(|bucket| bucket.n_rows >= batch as u64 || buckets.len() == 1));
        }
    }
}
