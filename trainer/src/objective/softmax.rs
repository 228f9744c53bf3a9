//! Targets of the cross-entropies.
//!
//! In: labels. Out: what the loss compares with. Never: logits.

use crate::model::ModelError;

/// `[n, n_classes]`, 1 at each example's class.
///
/// # Errors
/// [`ModelError::Range`] for a label outside the classes.
pub fn one_hot(labels: &[u32], n_classes: usize) -> Result<Vec<f32>, ModelError> {
    let mut targets = vec![0.0; labels.len() * n_classes];
    for (row, &label) in targets.chunks_exact_mut(n_classes).zip(labels) {
        match row.get_mut(label as usize) {
            Some(at) => *at = 1.0,
            None => return Err(ModelError::Range { what: "label", found: i64::from(label), limit: n_classes }),
        }
    }
    Ok(targets)
}

/// Smooths 0/1 labels by `alpha`, and divides each row by its sum if `normalise`, which makes several labels of one example
/// a distribution.
pub fn smoothed(labels: &[f32], n_classes: usize, alpha: f32, normalise: bool) -> Vec<f32> {
    let mut targets: Vec<f32> = labels.iter().map(|y| (1.0 - alpha) * y + alpha / n_classes as f32).collect();
    if normalise {
        for row in targets.chunks_exact_mut(n_classes) {
            let mass: f32 = row.iter().sum();
            row.iter_mut().for_each(|t| *t /= mass);
        }
    }
    targets
}
