//! AdamW with decoupled decay and a global-norm clip that really happens.
//!
//! In: a model, its gradients, a rate. Out: the model's parameters moved by one update. Never: a schedule.
//!
//! Moments are shared by all tasks: a parameter that this step's task does not touch has a zero gradient, so its moments
//! decay and it still moves by its momentum. Weights decay where the name ends in `/kernel`, and nowhere else.
//! Source: Loshchilov and Hutter 2019, arXiv:1711.05101; order of operations as in optax (`eps_root = 0`).

use serde::{Deserialize, Serialize};

use crate::model::{Grads, Imp, ModelError};
use crate::ops::Backend;

/// AdamW's constants; the defaults are the release's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWSettings {
    /// Multiplied by the rate, applied to kernels only.
    pub weight_decay: f64,
    /// Greatest global norm of the gradients.
    pub clip_norm: f64,
    pub b1: f64,
    pub b2: f64,
    /// Outside the root, after bias correction.
    pub eps: f64,
    /// Decay of the running mean of the parameters, which evaluations then use; 0 keeps none. Early on the mean is over fewer
    /// updates: the decay of update t is at most `(1 + t) / (10 + t)`.
    pub ema: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { weight_decay: 1e-4, clip_norm: 1.0, b1: 0.9, b2: 0.999, eps: 1e-7, ema: 0.0 }
    }
}

impl AdamWSettings {
    /// # Errors
    /// [`ModelError::Optimizer`] with key, value and rule.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let rule = |holds: bool, key, found, rule| match holds {
            true => Ok(()),
            false => Err(ModelError::Optimizer { key, found, rule }),
        };
        rule(
            self.weight_decay.is_finite() && self.weight_decay >= 0.0,
            "weight_decay",
            self.weight_decay,
            "0 or more",
        )?;
        rule(self.clip_norm > 0.0, "clip_norm", self.clip_norm, "above 0")?;
        rule((0.0..1.0).contains(&self.b1), "b1", self.b1, "at least 0 and below 1")?;
        rule((0.0..1.0).contains(&self.b2), "b2", self.b2, "at least 0 and below 1")?;
        rule(self.eps.is_finite() && self.eps > 0.0, "eps", self.eps, "above 0")?;
        rule((0.0..1.0).contains(&self.ema), "ema", self.ema, "at least 0 and below 1")
    }
}

/// What one update did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    pub clipped: bool,
}

/// The numbers of one update, as a device's kernel needs them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// What gradients are multiplied by: below 1 where they are clipped.
    pub grad_scale: f32,
    pub b1: f32,
    pub b2: f32,
    /// `1 - b1` and `1 - b2`, subtracted in f64.
    pub rest: (f32, f32),
    /// `1 - b1^t` and `1 - b2^t`.
    pub correction: (f32, f32),
    pub eps: f32,
    pub lr: f32,
    /// The update's number, from 1.
    pub t: i32,
    /// 0 where the parameter does not decay.
    pub weight_decay: f32,
}

/// The optimiser's state: first and second moments of every parameter, in the model's order.
pub struct AdamW<D: Backend> {
    settings: AdamWSettings,
    n_updates: u64,
    names: Vec<String>,
    shapes: Vec<Vec<usize>>,
    mu: Vec<D::Moment>,
    nu: Vec<D::Moment>,
    /// Running mean of the parameters; empty where none is kept.
    ema: Vec<D::Moment>,
    dev: D,
}

impl<D: Backend> AdamW<D> {
    /// Zero moments for every parameter of `model`.
    ///
    /// # Errors
    /// [`ModelError::Optimizer`] with key, value and rule.
    pub fn new(model: &Imp<D>, settings: AdamWSettings) -> Result<Self, ModelError> {
        settings.check()?;
        let dev = model.device().clone();
        let parameters = model.parameters();
        let zeros = || {
            let zero = |p: &crate::model::Parameter<D>| D::moment(&dev, vec![0.0; p.shape.iter().product()]);
            parameters.iter().map(zero).collect::<Result<Vec<_>, _>>().map_err(|e| ModelError::Device(format!("{e}")))
        };
        let ema = match settings.ema > 0.0 {
            true => parameters
                .iter()
                .map(|p| D::moment(&dev, p.tensor.as_vec()))
                .collect::<Result<_, _>>()
                .map_err(|e| ModelError::Device(format!("{e}")))?,
            false => Vec::new(),
        };
        Ok(Self {
            settings,
            n_updates: 0,
            names: parameters.iter().map(|p| p.name.clone()).collect(),
            shapes: parameters.iter().map(|p| p.shape.clone()).collect(),
            mu: zeros()?,
            nu: zeros()?,
            ema,
            dev,
        })
    }

    /// One update of every parameter.
    ///
    /// # Errors
    /// [`ModelError::GradientNotFinite`] before anything has moved.
    pub fn step(&mut self, model: &mut Imp<D>, mut grads: Grads<D>, lr: f64) -> Result<Update, ModelError> {
        let device = |e: D::Err| ModelError::Device(format!("{e}"));
        let tensors: Vec<_> = model.parameters_mut().iter_mut().map(|p| &mut p.tensor).collect();
        let squares = D::squares(&tensors, &mut grads.0).map_err(device)?;
        let grad_norm = squares.iter().sum::<f64>().sqrt();
        if !grad_norm.is_finite() {
            return Err(ModelError::GradientNotFinite(grad_norm));
        }
        let s = &self.settings;
        let clipped = grad_norm >= s.clip_norm;
        self.n_updates += 1;
        let t = i32::try_from(self.n_updates).unwrap_or(i32::MAX);
        let step = AdamWStep {
            grad_scale: if clipped { (s.clip_norm / grad_norm) as f32 } else { 1.0 },
            b1: s.b1 as f32,
            b2: s.b2 as f32,
            rest: ((1.0 - s.b1) as f32, (1.0 - s.b2) as f32),
            correction: ((1.0 - s.b1.powi(t)) as f32, (1.0 - s.b2.powi(t)) as f32),
            eps: s.eps as f32,
            lr: lr as f32,
            t,
            weight_decay: s.weight_decay as f32,
        };
        let decays: Vec<bool> = self.names.iter().map(|name| name.ends_with("/kernel")).collect();
        D::adamw(tensors, &mut grads.0, &mut self.mu, &mut self.nu, &decays, &step).map_err(device)?;
        if !self.ema.is_empty() {
            let t = f64::from(t);
            let decay = s.ema.min((1.0 + t) / (10.0 + t)) as f32;
            let tensors: Vec<_> = model.parameters().iter().map(|p| &p.tensor).collect();
            D::average(&tensors, &mut self.ema, decay).map_err(device)?;
        }
        Ok(Update { grad_norm, clipped })
    }

    /// Updates done.
    pub fn n_updates(&self) -> u64 {
        self.n_updates
    }

    /// Continues the count of a checkpoint.
    pub fn set_updates(&mut self, n_updates: u64) {
        self.n_updates = n_updates;
    }

    /// `mu/<parameter>`, `nu/<parameter>`, and `ema/<parameter>` where a mean is kept, in a stable order.
    pub fn names(&self) -> Vec<String> {
        let kinds: &[&str] = if self.ema.is_empty() { &["mu", "nu"] } else { &["mu", "nu", "ema"] };
        kinds.iter().flat_map(|kind| self.names.iter().map(move |name| format!("{kind}/{name}"))).collect()
    }

    /// Shape and values of a moment; `None` for an unknown name.
    pub fn tensor(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (moments, of) = match name.split_once('/')? {
            ("mu", of) => (&self.mu, of),
            ("nu", of) => (&self.nu, of),
            ("ema", of) if !self.ema.is_empty() => (&self.ema, of),
            _ => return None,
        };
        let i = self.names.iter().position(|n| n == of)?;
        Some((self.shapes[i].clone(), D::moment_values(&moments[i])))
    }

    /// Sets a moment.
    ///
    /// # Errors
    /// An unknown name, or a shape that is not the parameter's.
    pub fn load(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<(), ModelError> {
        let unknown = || ModelError::unknown(name, &self.names());
        let (which, of) = name.split_once('/').ok_or_else(unknown)?;
        let i = self.names.iter().position(|n| n == of).ok_or_else(unknown)?;
        ModelError::check_shape(name, shape, values.len(), &self.shapes[i])?;
        let moment = D::moment(&self.dev, values.to_vec()).map_err(|e| ModelError::Device(format!("{e}")))?;
        match which {
            "mu" => self.mu[i] = moment,
            "nu" => self.nu[i] = moment,
            "ema" if !self.ema.is_empty() => self.ema[i] = moment,
            _ => return Err(unknown()),
        }
        Ok(())
    }
}
