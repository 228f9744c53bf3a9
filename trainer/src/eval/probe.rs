//! Linear probe: how well classes can be read off the encoder's features by a linear classifier.
//!
//! In: features and labels of two splits. Out: scores on the second of a classifier that was trained on the first. Never: a gradient in the
//! encoder; a look at the second split before the classifier is done.
//!
//! Multinomial logistic regression on features of mean 0 and deviation 1, all examples in every update, as Radford et al. 2021,
//! arXiv:2103.00020, do; with AdamW instead of L-BFGS, one strength of decay instead of a sweep, and 50,000 examples at most.
//! Several labels of an example share its weight in training, and any of them is right in scoring.

use dfdx::prelude::{Backward, NoneTape, OwnedTape};
use imp_loader::LoaderSettings;

use super::embed::{Embedder, Features, MOST_FEATURES};
use super::{Classified, EvalError, Measure};
use crate::config::Eval;
use crate::model::ModelError;
use crate::objective::{Classes, Form};
use crate::ops::{Backend, InputGrad, Linear, Rows};
use crate::optim::AdamWStep;

const N_UPDATES: i32 = 400;
/// Of the first update; the last has none.
const LR: f32 = 0.02;
const WEIGHT_DECAY: f32 = 0.1;
const BETAS: (f32, f32) = (0.9, 0.999);
/// Added to deviations, for features that never change.
const LEAST_DEVIATION: f32 = 1e-6;

/// Trains a classifier on `eval`'s train split and measures it on its split. Returns the number of measured examples beside the measure.
///
/// # Errors
/// A split cannot be read, a record has no label, or the corpus has fewer than two classes.
pub fn measure<D: Backend>(
    embedder: &Embedder<'_, D>,
    eval: &Eval,
    settings: &LoaderSettings,
) -> Result<(Measure, usize), EvalError> {
    let mut train = embedder.features(eval, &eval.train_split, MOST_FEATURES, settings)?;
    let mut test = embedder.features(eval, eval.task().split(), u64::MAX, settings)?;
    let names = test.classes.clone();
    if names.len() < 2 {
        let found = format!("{} classes to choose from", names.len());
        return Err(EvalError::Corpus { name: eval.name.clone(), found, wanted: "at least 2" });
    }
    let scale = Scale::of(&train);
    scale.apply(&mut train.values);
    scale.apply(&mut test.values);
    let classifier = fit(embedder.device(), &train, names.len())?;
    let logits = D::linear(rows(embedder.device(), &test)?, &classifier).map_err(device)?.as_vec();
    let classes: Vec<usize> = (0..names.len()).collect();
    let classified = Classified::of(&logits, &classes, &test.labels, &names);
    let measure = Measure::LinearProbe { n_train: train.labels.len(), classified };
    Ok((measure, test.labels.len()))
}

/// Mean and deviation of each feature.
struct Scale(Vec<[f32; 2]>);

impl Scale {
    fn of(features: &Features) -> Self {
        let n = features.labels.len().max(1) as f64;
        let column = |i: usize| features.values.iter().skip(i).step_by(features.width).map(|&v| f64::from(v));
        let scale = |i: usize| {
            let mean = column(i).sum::<f64>() / n;
            let deviation = (column(i).map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            [mean as f32, deviation as f32]
        };
        Self((0..features.width).map(scale).collect())
    }

    fn apply(&self, values: &mut [f32]) {
        for row in values.chunks_exact_mut(self.0.len().max(1)) {
            for (v, [mean, deviation]) in row.iter_mut().zip(&self.0) {
                *v = (*v - mean) / (deviation + LEAST_DEVIATION);
            }
        }
    }
}

fn device(error: impl std::fmt::Display) -> EvalError {
    ModelError::Device(error.to_string()).into()
}

/// `[n, width]` on the device.
fn rows<D: Backend>(dev: &D, features: &Features) -> Result<Rows<D, NoneTape>, EvalError> {
    let shape = (features.labels.len(), features.width);
    dev.try_tensor_from_vec(features.values.clone(), shape).map_err(device)
}

/// The classifier, all parameters zero at first: its loss has one minimum.
fn fit<D: Backend>(dev: &D, train: &Features, n_classes: usize) -> Result<Linear<D>, EvalError> {
    let zeros = |n: usize| dev.try_tensor_from_vec(vec![0.0; n], (n,)).map_err(device);
    let moments = || -> Result<Vec<D::Moment>, EvalError> {
        [train.width * n_classes, n_classes].into_iter().map(|n| D::moment(dev, vec![0.0; n]).map_err(device)).collect()
    };
    let (mut kernel, mut bias) = (zeros(train.width * n_classes)?, zeros(n_classes)?);
    let (mut mu, mut nu) = (moments()?, moments()?);
    let x = rows(dev, train)?;
    let classes = Classes { corpus: String::new(), form: Form::Softmax, label_smoothing: 0.0 };
    let layer = |kernel: &_, bias: &_| Linear {
        kernel: Clone::clone(kernel),
        bias: Some(Clone::clone(bias)),
        n_out: n_classes,
        gelu: false,
        input_grad: InputGrad::Unwanted,
    };
    for t in 1..=N_UPDATES {
        let logits = D::linear(x.retaped::<OwnedTape<f32, D>>(), &layer(&kernel, &bias)).map_err(device)?;
        let mut grads = classes.loss(logits, &train.labels)?.try_backward().map_err(device)?;
        let step = AdamWStep {
            grad_scale: 1.0,
            b1: BETAS.0,
            b2: BETAS.1,
            rest: (1.0 - BETAS.0, 1.0 - BETAS.1),
            correction: (1.0 - BETAS.0.powi(t), 1.0 - BETAS.1.powi(t)),
            eps: 1e-8,
            lr: LR * (1.0 - t as f32 / N_UPDATES as f32),
            t,
            weight_decay: WEIGHT_DECAY,
        };
        D::adamw(vec![&mut kernel, &mut bias], &mut grads, &mut mu, &mut nu, &[true, false], &step).map_err(device)?;
    }
    Ok(layer(&kernel, &bias))
}

#[cfg(test)]
mod tests {
    use dfdx::prelude::{Cpu, HasShape};
    use imp_schemas::rng::{Role, rng_for};

    use super::super::top_k;
    use super::*;

    /// Three classes around three corners, of features that differ in scale by a thousand.
    fn corners(n: usize, seed: u64) -> Features {
        let mut rng = rng_for(seed, Role::Synth, &[]);
        let labels: Vec<Vec<u32>> = (0..n).map(|i| vec![i as u32 % 3]).collect();
        let row = |of_example: &Vec<u32>| {
            let at = [[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]][of_example[0] as usize];
            [1e3 * (at[0] + 0.5 * rng.normal() as f32), 5.0 + at[1] + 0.5 * rng.normal() as f32, 7.0]
        };
        let values = labels.iter().flat_map(row).collect();
        Features { width: 3, values, labels, classes: ["a", "b", "c"].map(str::to_owned).to_vec() }
    }

    #[test]
    fn a_probe_reads_what_is_linear_in_the_features_whatever_their_scale() {
        let (mut train, mut test) = (corners(300, 1), corners(300, 2));
        let scale = Scale::of(&train);
        scale.apply(&mut train.values);
        scale.apply(&mut test.values);
        let dev = Cpu::default();
        let classifier = fit(&dev, &train, 3).unwrap();
        let logits = Cpu::linear(rows(&dev, &test).unwrap(), &classifier).unwrap();
        assert_eq!(*logits.shape(), (300, 3));
        let logits = logits.as_vec();
        let is_right = |(row, labels): &(&[f32], &Vec<u32>)| labels.contains(&(top_k(row, 1)[0] as u32));
        let right = logits.chunks_exact(3).zip(&test.labels).filter(is_right);
        assert!(right.count() > 290);
        // Labels that say nothing of the features are not learned.
        train.labels.iter_mut().enumerate().for_each(|(i, labels)| *labels = vec![(i as u32 / 3) % 3]);
        let logits = Cpu::linear(rows(&dev, &test).unwrap(), &fit(&dev, &train, 3).unwrap()).unwrap().as_vec();
        let right = logits.chunks_exact(3).zip(&test.labels).filter(is_right);
        assert!(right.count() < 200);
    }
}
