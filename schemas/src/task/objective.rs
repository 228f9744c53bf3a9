//! What a task minimises: one objective, or the sum of several.
//!
//! In: a word of the config, or a list of them. Out: [`Objectives`]; one is written as a word, several as a list. Never: a loss.

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A part of what a step minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Symmetric noise-contrastive loss over every pair of the task's modalities, mean over the pairs.
    Nce,
    /// Softmax cross-entropy on the corpus's labels; one medium, one corpus.
    Softmax,
    /// Binary cross-entropy of each class on its own, mean over the classes; one medium, one corpus.
    Sigmoid,
}

impl Objective {
    /// As configs spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nce => "nce",
            Self::Softmax => "softmax",
            Self::Sigmoid => "sigmoid",
        }
    }

    /// Whether it wants labels.
    pub fn is_over_classes(self) -> bool {
        self != Self::Nce
    }
}

/// What a step minimises the sum of. A checked task's holds: no repetition, at most one over classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objectives(Vec<Objective>);

impl Objectives {
    /// All of them, in the config's order.
    pub fn all(&self) -> &[Objective] {
        &self.0
    }

    pub fn has_nce(&self) -> bool {
        self.0.contains(&Objective::Nce)
    }

    /// The one that wants labels.
    pub fn over_classes(&self) -> Option<Objective> {
        self.0.iter().copied().find(|o| o.is_over_classes())
    }

    /// `nce, softmax`.
    pub fn listed(&self) -> String {
        self.0.iter().map(|o| o.name()).collect::<Vec<_>>().join(", ")
    }
}

impl From<Objective> for Objectives {
    fn from(objective: Objective) -> Self {
        Self(vec![objective])
    }
}

impl Serialize for Objectives {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            // One is a word, as it was before there could be several: the digest of a mixture stays.
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Objectives {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrList;

        impl<'de> Visitor<'de> for WordOrList {
            type Value = Objectives;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`nce`, `softmax`, `sigmoid`, or a list of them")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Objectives, E> {
                Objective::deserialize(serde::de::value::StrDeserializer::new(word)).map(Objectives::from)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Objectives, A::Error> {
                let mut all = Vec::new();
                while let Some(objective) = list.next_element()? {
                    all.push(objective);
                }
                Ok(Objectives(all))
            }
        }

        deserializer.deserialize_any(WordOrList)
    }
}
