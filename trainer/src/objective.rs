//! What a step minimises, and its losses, one file each.
//!
//! In: vectors or logits of a batch. Out: a loss on the tape. Never: a parameter but the temperature.

pub mod classes;
pub mod nce;

use imp_schemas::task::{Objective, Task};

pub use classes::{Classes, Form};

/// What a step minimises: one of the two, or their sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    /// The contrastive loss of every pair of the batch's streams.
    pub nce: bool,
    /// The cross-entropy of the batch's labels.
    pub classes: Option<Classes>,
}

impl Goal {
    /// The contrastive loss alone.
    pub fn nce() -> Self {
        Self { nce: true, classes: None }
    }

    /// The softmax cross-entropy of a corpus's labels alone.
    pub fn softmax(corpus: &str) -> Self {
        let classes = Classes { corpus: corpus.to_owned(), form: Form::Softmax, label_smoothing: 0.0 };
        Self { nce: false, classes: Some(classes) }
    }

    /// What a task minimises.
    pub fn of(task: &Task) -> Self {
        let classes = task.objectives().over_classes().map(|objective| Classes {
            corpus: task.corpora()[0].clone(),
            form: if objective == Objective::Sigmoid { Form::Sigmoid } else { Form::Softmax },
            label_smoothing: task.label_smoothing() as f32,
        });
        Self { nce: task.objectives().has_nce(), classes }
    }
}
