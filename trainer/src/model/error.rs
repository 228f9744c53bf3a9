//! What can be wrong with a model, a batch or a parameter.

use imp_schemas::resolution::ShapeError;

/// Why a model cannot be built, loaded or run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ModelError {
    #[error("`train.model.{key}` is {found}, must be {rule}")]
    Config { key: &'static str, found: String, rule: String },
    #[error("`train.optimizer.{key}` is {found}, must be {rule}")]
    Optimizer { key: &'static str, found: f64, rule: &'static str },
    #[error("the model has no parameter `{name}`; it has {n_parameters}, the nearest is `{nearest}`")]
    UnknownParameter { name: String, n_parameters: usize, nearest: String },
    #[error("parameter `{name}` has shape {found:?}, the model wants {wanted:?}")]
    ParameterShape { name: String, found: Vec<usize>, wanted: Vec<usize> },
    #[error("the batch has no {stream} stream, the {objective} objective wants {wanted}")]
    MissingStream { stream: &'static str, objective: &'static str, wanted: &'static str },
    #[error("the model has no head from {source_stream} to {target}; its pairs are {pairs}")]
    UnknownPair { source_stream: &'static str, target: &'static str, pairs: String },
    #[error("the model has no classifier for corpus `{corpus}`; it has {known}")]
    UnknownClassifier { corpus: String, known: String },
    #[error("{what} holds {found} values, must hold {wanted}")]
    Values { what: &'static str, found: usize, wanted: usize },
    #[error("{what} {found} is out of range, must be below {limit}")]
    Range { what: &'static str, found: i64, limit: usize },
    #[error("the batch's {stream} has a size that the model's patching cannot cut")]
    Resolution { stream: &'static str, source: ShapeError },
    #[error("the loss is {0}; lower the peak rate or lengthen the warm-up")]
    LossNotFinite(f32),
    #[error("the global gradient norm is {0}; lower the peak rate or lengthen the warm-up")]
    GradientNotFinite(f64),
    #[error("device: {0}")]
    Device(String),
}

impl ModelError {
    /// No parameter has that name; names the one that is spelled most alike.
    pub(crate) fn unknown(name: &str, known: &[String]) -> Self {
        let nearest = known.iter().max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
        Self::UnknownParameter {
            name: name.to_owned(),
            n_parameters: known.len(),
            nearest: nearest.cloned().unwrap_or_default(),
        }
    }

    /// Both the shape and the number of values must be the parameter's.
    pub(crate) fn check_shape(name: &str, found: &[usize], n_values: usize, wanted: &[usize]) -> Result<(), Self> {
        if found != wanted || n_values != wanted.iter().product::<usize>() {
            return Err(Self::ParameterShape { name: name.to_owned(), found: found.to_vec(), wanted: wanted.to_vec() });
        }
        Ok(())
    }
}
