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
    /// The mean loss of `logits`, `[n, n_classes]`; an example may have several labels.
    ///
    /// # Errors
    /// There are not as many labels as rows, or one is outside the classes.
    pub fn loss<D: Backend, T: Tape<f32, D>>(
        &self,
        logits: Rows<D, T>,
        labels: &[Vec<u32>],
    ) -> Result<Scalar<D, T>, ModelError> {
        let (n, n_classes) = *logits.shape();
        if labels.len() != n {
            return Err(ModelError::Values { what: "labels", found: labels.len(), wanted: n });
        }
        let targets = multi_hot(labels, n_classes)?;
        let targets = smoothed(&targets, n_classes, self.label_smoothing, self.form == Form::Softmax);
        let loss = match self.form {
            Form::Softmax => D::softmax_cross_entropy(logits, &targets),
            Form::Sigmoid => D::sigmoid_cross_entropy(logits, &targets),
        };
        loss.map_err(|e| ModelError::Device(e.to_string()))
    }
}

/// `[n, n_classes]`, 1 at each example's classes.
///
/// # Errors
/// [`ModelError::Range`] for a label outside the classes.
pub fn multi_hot(labels: &[Vec<u32>], n_classes: usize) -> Result<Vec<f32>, ModelError> {
    let mut targets = vec![0.0; labels.len() * n_classes];
    for (row, of_example) in targets.chunks_exact_mut(n_classes).zip(labels) {
        for &label in of_example {
            match row.get_mut(label as usize) {
                Some(at) => *at = 1.0,
                None => return Err(ModelError::Range { what: "label", found: i64::from(label), limit: n_classes }),
            }
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

#[cfg(test)]
mod tests {
    use dfdx::prelude::{Cpu, NoneTape, TensorFromVec};

    use super::*;
    use crate::ops::scalar_value;

    /// Two examples, of which the first has two labels.
    fn loss(form: Form, label_smoothing: f32) -> f64 {
        let dev = Cpu::default();
        let logits: Rows<Cpu, NoneTape> = dev.try_tensor_from_vec(vec![1.0, 2.0, 3.0, 0.5, -1.0, 2.0], (2, 3)).unwrap();
        let classes = Classes { corpus: String::new(), form, label_smoothing };
        f64::from(scalar_value(&classes.loss(logits, &[vec![2, 0], vec![1]]).unwrap()))
    }

    /// Both sides are sums of six terms below 5, in f32 or of values in f32.
    fn near(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 1e-5, "{found}, wanted {wanted}");
    }

    #[test]
    fn several_labels_share_the_weight_of_their_example_under_softmax() {
        let lse = [[1.0, 2.0, 3.0], [0.5, -1.0, 2.0]].map(|x: [f64; 3]| x.iter().map(|x| x.exp()).sum::<f64>().ln());
        near(loss(Form::Softmax, 0.0), ((lse[0] - (0.5 * 1.0 + 0.5 * 3.0)) + (lse[1] + 1.0)) / 2.0);
        // Smoothed first, then divided by the sum of a row: 0.8 * 2 + 0.2 and 0.8 + 0.2.
        let [on, off] = [0.8 + 0.2 / 3.0, 0.2 / 3.0];
        let first = lse[0] - (on * 1.0 + off * 2.0 + on * 3.0) / 1.8;
        let second = lse[1] - (off * 0.5 - on + off * 2.0);
        near(loss(Form::Softmax, 0.2), (first + second) / 2.0);
    }

    #[test]
    fn each_label_is_right_on_its_own_under_sigmoid() {
        let right = |x: f64| (1.0 + (-x).exp()).ln();
        let wrong = |x: f64| (1.0 + x.exp()).ln();
        let sum = right(1.0) + wrong(2.0) + right(3.0) + wrong(0.5) + right(-1.0) + wrong(2.0);
        near(loss(Form::Sigmoid, 0.0), sum / 6.0);
    }

    #[test]
    fn a_label_outside_the_classes_is_named() {
        let error = multi_hot(&[vec![0], vec![1, 3]], 3).unwrap_err().to_string();
        assert!(error.contains("label") && error.contains('3'), "{error}");
    }
}
