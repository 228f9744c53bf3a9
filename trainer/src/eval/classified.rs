//! Examples put into classes: how many rightly, and what was taken for what.
//!
//! In: scores of every class for every example, the examples' labels. Out: shares in [0, 1]. Never: where scores come from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{rank, top_k};

/// How well examples were put into classes; of an example with several labels any is right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Classified {
    pub top1: f64,
    pub top5: f64,
    /// Top-1 of who picks any of the classes: 1 / `n_classes` where each example has one label among them.
    pub chance: f64,
    pub n_classes: usize,
    /// The most frequent first.
    #[serde(default)]
    pub confusions: Vec<Confusion>,
}

/// Examples of one class that were taken for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    pub class: String,
    pub taken_for: String,
    pub n: usize,
    /// Examples of the class.
    pub of: usize,
}

impl Classified {
    /// Of `scores`, `[n, classes]`; `classes` are indices into `names`, and so are the examples' `labels`.
    pub fn of(scores: &[f32], classes: &[usize], labels: &[Vec<u32>], names: &[String]) -> Self {
        let rows = || scores.chunks_exact(classes.len().max(1));
        let is_of = |labels: &[u32], i: usize| labels.contains(&(classes[i] as u32));
        let ranks: Vec<usize> = rows().zip(labels).map(|(row, labels)| rank(row, &|i| is_of(labels, i))).collect();
        let said: Vec<usize> = rows().map(|row| top_k(row, 1).first().map_or(0, |&i| classes[i])).collect();
        let n_right = |labels: &Vec<u32>| (0..classes.len()).filter(|&i| is_of(labels, i)).count() as f64;
        let chance = labels.iter().map(n_right).sum::<f64>() / (labels.len() * classes.len()).max(1) as f64;
        let share = |k: usize| ranks.iter().filter(|&&r| r < k).count() as f64 / ranks.len().max(1) as f64;
        Self {
            top1: share(1),
            top5: share(5),
            chance,
            n_classes: classes.len(),
            confusions: confusions(labels, &said, names),
        }
    }
}

/// Pairs of classes that are kept of those that were confused.
const N_CONFUSIONS: usize = 200;

/// Which classes were taken for which, the most frequent first. `labels` of each example and `said` are classes, indices into `names`.
/// To say any label of an example is no confusion; for what is none of them the first one stands.
fn confusions(labels: &[Vec<u32>], said: &[usize], names: &[String]) -> Vec<Confusion> {
    let first = || labels.iter().map(|of_example| of_example.first().map_or(0, |&label| label as usize));
    let mut pairs: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for ((of_example, label), &said) in labels.iter().zip(first()).zip(said) {
        if !of_example.contains(&(said as u32)) {
            *pairs.entry((label, said)).or_default() += 1;
        }
    }
    let name = |class: usize| names.get(class).cloned().unwrap_or_default();
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    pairs.truncate(N_CONFUSIONS);
    let confusion = |((class, said), n)| {
        let of = first().filter(|&label| label == class).count();
        Confusion { class: name(class), taken_for: name(said), n, of }
    };
    pairs.into_iter().map(confusion).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confusions_count_what_was_taken_for_what() {
        let names = ["cat", "dog", "owl"].map(str::to_owned);
        let labels = [vec![0], vec![0, 2], vec![0], vec![1], vec![2], vec![1, 2]];
        let found = confusions(&labels, &[1, 1, 0, 1, 0, 2], &names);
        let told: Vec<_> = found.iter().map(|c| (c.class.as_str(), c.taken_for.as_str(), c.n, c.of)).collect();
        assert_eq!(told, [("cat", "dog", 2, 3), ("owl", "cat", 1, 1)]);
    }

    #[test]
    fn an_example_is_right_at_k_if_any_of_its_labels_is_among_the_first_k() {
        let names = ["cat", "dog", "owl", "emu"].map(str::to_owned);
        // The classes to choose from are two of the four, in another order than their indices.
        let scores = [0.9, 0.1, 0.2, 0.8, 0.6, 0.4];
        let got = Classified::of(&scores, &[3, 0], &[vec![3], vec![1, 0], vec![0]], &names);
        assert_eq!((got.top1, got.top5, got.chance, got.n_classes), (2.0 / 3.0, 1.0, 0.5, 2));
        // Two of the three classes are right for the first example, one for the second.
        let both = Classified::of(&[0.0; 6], &[0, 1, 2], &[vec![0, 2], vec![1]], &names);
        assert_eq!(both.chance, 0.5);
        let told: Vec<_> = got.confusions.iter().map(|c| (c.class.as_str(), c.taken_for.as_str(), c.n)).collect();
        assert_eq!(told, [("cat", "emu", 1)]);
    }
}
