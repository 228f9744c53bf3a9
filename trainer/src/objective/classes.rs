//! The cross-entropies of labels, and their targets.
//!
//! In: logits and labels. Out: the loss. Never: where logits come from.

use dfdx::prelude::{HasShape, Tape};

use crate::model::ModelError;
use crate::ops::{Backend, Rows, Scalar};

/// Labels as an objective.
#[derive(Debug, Clone, PartialEq)]
pub struct Classes {
    /// Whose classes, and whose classifier.
    pub corpus: String,
    pub form: Form,
    /// Share of a label's weight that goes to all classes alike, at least 0 and below 1.
    pub label_smoothing: f32,
}

/// How classes are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One of them is right.
    Softmax,
    /// Each is right or wrong on its own.
    Sigmoid,
}

impl Classes {
    /// The mean loss of `logits`, `[n, n_classes]`.
    ///
    /// # Errors
    /// There are not as many labels as rows, or one is outside the classes.
    pub fn loss<D: Backend, T: Tape<f32, D>>(
        &self,
        logits: Rows<D, T>,
        labels: &[u32],
    ) -> Result<Scalar<D, T>, ModelError> {
        let (n, n_classes) = *logits.shape();
        if labels.len() != n {
            return Err(ModelError::Values { what: "labels", found: labels.len(), wanted: n });
        }
        let mut targets = one_hot(labels, n_classes)?;
        if self.label_smoothing > 0.0 {
            targets = smoothed(&targets, n_classes, self.label_smoothing, self.form == Form::Softmax);
        }
        let loss = match self.form {
            Form::Softmax => D::softmax_cross_entropy(logits, &targets),
            Form::Sigmoid => D::sigmoid_cross_entropy(logits, &targets),
        };
        loss.map_err(|e| ModelError::Device(e.to_string()))
    }
}

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
