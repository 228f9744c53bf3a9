//! AdamW with decoupled decay and a global-norm clip that really happens.
//!
//! In: a model, its gradients, a rate. Out: the model's parameters moved by one update. Never: a schedule.
//!
//! Moments are shared by all tasks, unless the settings have it otherwise: a parameter that this step's task does not touch has a zero
//! gradient, so its moments decay and it still moves by its momentum. Weights decay where the name ends in `/kernel`, and nowhere else.
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
    /// Whose moments are whose.
    #[serde(skip_serializing_if = "Moments::are_shared")]
    pub moments: Moments,
}

/// How tasks share AdamW's moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moments {
    /// One pair for all tasks, as in the release.
    #[default]
    Shared,
    /// A pair for each task, to compare with: as many times the memory.
    PerTask,
}

impl Moments {
    fn are_shared(&self) -> bool {
        *self == Self::Shared
    }
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { weight_decay: 1e-4, clip_norm: 1.0, b1: 0.9, b2: 0.999, eps: 1e-7, ema: 0.0, moments: Moments::Shared }
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

/// First and second moments of every parameter, in the model's order.
struct Pair<D: Backend> {
    n_updates: u64,
    mu: Vec<D::Moment>,
    nu: Vec<D::Moment>,
}

/// The optimiser's state.
pub struct AdamW<D: Backend> {
    settings: AdamWSettings,
    n_updates: u64,
    names: Vec<String>,
    shapes: Vec<Vec<usize>>,
    /// One, or one of each task.
    pairs: Vec<Pair<D>>,
    /// Running mean of the parameters; empty where none is kept.
    ema: Vec<D::Moment>,
    dev: D,
}

impl<D: Backend> AdamW<D> {
    /// Zero moments for every parameter of `model`, shared by all tasks.
    ///
    /// # Errors
    /// [`ModelError::Optimizer`] with key, value and rule.
    pub fn new(model: &Imp<D>, settings: AdamWSettings) -> Result<Self, ModelError> {
        Self::for_tasks(model, AdamWSettings { moments: Moments::Shared, ..settings }, 1)
    }

    /// Zero moments for every parameter of `model`, shared or not by so many tasks.
    ///
    /// # Errors
    /// As [`AdamW::new`].
    pub fn for_tasks(model: &Imp<D>, settings: AdamWSettings, n_tasks: usize) -> Result<Self, ModelError> {
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
        let n_pairs = if settings.moments == Moments::Shared { 1 } else { n_tasks };
        let pair = |_| Ok::<_, ModelError>(Pair { n_updates: 0, mu: zeros()?, nu: zeros()? });
        Ok(Self {
            settings,
            n_updates: 0,
            names: parameters.iter().map(|p| p.name.clone()).collect(),
            shapes: parameters.iter().map(|p| p.shape.clone()).collect(),
            pairs: (0..n_pairs).map(pair).collect::<Result<_, _>>()?,
            ema,
            dev,
        })
    }

    /// One update of every parameter, by moments that all tasks share.
    ///
    /// # Errors
    /// [`ModelError::GradientNotFinite`] before anything has moved.
    pub fn step(&mut self, model: &mut Imp<D>, grads: Grads<D>, lr: f64) -> Result<Update, ModelError> {
        self.step_of(0, model, grads, lr)
    }

    /// One update of every parameter, by the gradients of the task with that index.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn step_of(
        &mut self,
        task_idx: usize,
        model: &mut Imp<D>,
        mut grads: Grads<D>,
        lr: f64,
    ) -> Result<Update, ModelError> {
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
        let at = if s.moments == Moments::Shared { 0 } else { task_idx };
        let pair = &mut self.pairs[at];
        pair.n_updates += 1;
        let t = i32::try_from(pair.n_updates).unwrap_or(i32::MAX);
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
        D::adamw(tensors, &mut grads.0, &mut pair.mu, &mut pair.nu, &decays, &step).map_err(device)?;
        if !self.ema.is_empty() {
            let t = self.n_updates as f64;
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
        if let (Moments::Shared, [pair]) = (self.settings.moments, &mut self.pairs[..]) {
            pair.n_updates = n_updates;
        }
    }

    /// `mu/<parameter>`, `nu/<parameter>`, and `ema/<parameter>` where a mean is kept, in a stable order. Where each task has its own:
    /// `mu.<task index>/<parameter>`, and `updates`, how many each has had.
    pub fn names(&self) -> Vec<String> {
        let mut kinds: Vec<String> = match self.settings.moments {
            Moments::Shared => vec!["mu".to_owned(), "nu".to_owned()],
            Moments::PerTask => (0..self.pairs.len()).flat_map(|i| [format!("mu.{i}"), format!("nu.{i}")]).collect(),
        };
        kinds.extend((!self.ema.is_empty()).then(|| "ema".to_owned()));
        let of_kind = |kind: &String| self.names.iter().map(move |name| format!("{kind}/{name}")).collect::<Vec<_>>();
        let updates = (self.settings.moments == Moments::PerTask).then(|| UPDATES.to_owned());
        kinds.iter().flat_map(of_kind).chain(updates).collect()
    }

    /// Shape and values of a moment, or of the counts; `None` for an unknown name.
    pub fn tensor(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        if self.has_counts(name) {
            // Whole below 16 million.
            let counts = self.pairs.iter().map(|pair| pair.n_updates as f32).collect();
            return Some((vec![self.pairs.len()], counts));
        }
        let (kind, i) = self.place(name)?;
        let moment = match kind {
            Kind::Mu(pair) => &self.pairs[pair].mu[i],
            Kind::Nu(pair) => &self.pairs[pair].nu[i],
            Kind::Ema => &self.ema[i],
        };
        Some((self.shapes[i].clone(), D::moment_values(moment)))
    }

    /// Sets a moment, or the counts.
    ///
    /// # Errors
    /// An unknown name, or a shape that is not the parameter's.
    pub fn load(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<(), ModelError> {
        if self.has_counts(name) {
            ModelError::check_shape(name, shape, values.len(), &[self.pairs.len()])?;
            self.pairs.iter_mut().zip(values).for_each(|(pair, &n)| pair.n_updates = n as u64);
            return Ok(());
        }
        let (kind, i) = self.place(name).ok_or_else(|| ModelError::unknown(name, &self.names()))?;
        ModelError::check_shape(name, shape, values.len(), &self.shapes[i])?;
        let moment = D::moment(&self.dev, values.to_vec()).map_err(|e| ModelError::Device(format!("{e}")))?;
        match kind {
            Kind::Mu(pair) => self.pairs[pair].mu[i] = moment,
            Kind::Nu(pair) => self.pairs[pair].nu[i] = moment,
            Kind::Ema => self.ema[i] = moment,
        }
        Ok(())
    }

    fn has_counts(&self, name: &str) -> bool {
        name == UPDATES && self.settings.moments == Moments::PerTask
    }

    /// What a name of [`AdamW::names`] says: which moments, and whose.
    fn place(&self, name: &str) -> Option<(Kind, usize)> {
        let (kind, of) = name.split_once('/')?;
        let i = self.names.iter().position(|n| n == of)?;
        let (kind, pair) = match (self.settings.moments, kind.split_once('.')) {
            (Moments::PerTask, Some((kind, pair))) => (kind, pair.parse().ok().filter(|&at| at < self.pairs.len())?),
            (Moments::Shared, None) => (kind, 0),
            (Moments::PerTask, None) if kind == "ema" => (kind, 0),
            (Moments::Shared, Some(_)) | (Moments::PerTask, None) => return None,
        };
        match kind {
            "mu" => Some((Kind::Mu(pair), i)),
            "nu" => Some((Kind::Nu(pair), i)),
            "ema" if !self.ema.is_empty() => Some((Kind::Ema, i)),
            _ => None,
        }
    }
}

/// Which moments: first or second, and of which pair; or the running mean.
enum Kind {
    Mu(usize),
    Nu(usize),
    Ema,
}

/// The name of the counts of updates by task.
const UPDATES: &str = "updates";
