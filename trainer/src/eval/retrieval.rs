//! Retrieval: captions against media, both ways. Of several captions of an example any counts; every caption is a query of
//! its own. Equal sentences are one text, and each of their media is right.

use super::embed::{Embedder, Items, distinct};
use super::{EvalError, Example, Measure, Retrieved, rank, top_k};
use crate::config::Eval;
use crate::ops::Backend;

const N_EXAMPLES: usize = 6;
const N_RETRIEVED: usize = 5;

/// Ranks all distinct captions of the split for each example, and all examples for each caption.
///
/// # Errors
/// A record has no caption.
pub fn measure<D: Backend>(
    embedder: &Embedder<'_, D>,
    eval: &Eval,
    items: &Items,
) -> Result<(Measure, Vec<Example>), EvalError> {
    if let Some(bare) = items.captions.iter().position(Vec::is_empty) {
        let found = format!("record `{}` has no caption", items.keys[bare]);
        return Err(EvalError::Corpus {
            name: eval.name.clone(),
            found,
            wanted: "a caption for every record of the split",
        });
    }
    let (texts, own) = distinct(&items.captions);
    let groups: Vec<Vec<String>> = texts.iter().map(|text| vec![text.clone()]).collect();
    let embedded: Vec<Vec<f32>> =
        items.media.iter().map(|(stream, _)| embedder.texts(&groups, *stream, eval)).collect::<Result<_, _>>()?;
    let scores = items.scores(&embedded, texts.len());
    let to_text: Vec<usize> =
        scores.chunks(texts.len()).zip(&own).map(|(row, own)| rank(row, &|i| own.contains(&i))).collect();
    let columns: Vec<Vec<f32>> =
        (0..texts.len()).map(|t| scores.chunks(texts.len()).map(|row| row[t]).collect()).collect();
    let from_text: Vec<usize> =
        columns.iter().enumerate().map(|(t, column)| rank(column, &|i| own[i].contains(&t))).collect();
    let measure = Measure::Retrieval {
        r_at_1: recall(&to_text, 1),
        r_at_5: recall(&to_text, 5),
        r_at_10: recall(&to_text, 10),
        median_rank: median_rank(&to_text),
        chance_r_at_10: chance(&own, texts.len(), 10),
        n_texts: texts.len(),
        text_r_at_1: recall(&from_text, 1),
        text_r_at_5: recall(&from_text, 5),
        text_r_at_10: recall(&from_text, 10),
        text_median_rank: median_rank(&from_text),
    };
    let stride = (texts.len() / N_EXAMPLES).max(1);
    let examples = (0..texts.len()).step_by(stride).take(N_EXAMPLES).map(|t| Example {
        name: eval.name.clone(),
        corpus: String::new(),
        split: String::new(),
        query: texts[t].clone(),
        retrieved: top_k(&columns[t], N_RETRIEVED)
            .into_iter()
            .map(|i| Retrieved {
                row: items.rows[i],
                key: items.keys[i].clone(),
                score: columns[t][i],
                correct: own[i].contains(&t),
            })
            .collect(),
    });
    Ok((measure, examples.collect()))
}

fn recall(ranks: &[usize], k: usize) -> f64 {
    ranks.iter().filter(|&&rank| rank < k).count() as f64 / ranks.len().max(1) as f64
}

/// Counted from 1.
fn median_rank(ranks: &[usize]) -> f64 {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2] as f64 + 1.0,
        n => (sorted[n / 2 - 1] + sorted[n / 2]) as f64 / 2.0 + 1.0,
    }
}

/// Probability that one of an example's own texts is among the first `k` of a random order, mean over the examples.
fn chance(own: &[Vec<usize>], n_texts: usize, k: usize) -> f64 {
    let one = |n_own: usize| {
        let miss = (0..k.min(n_texts)).map(|i| {
            let left = (n_texts - i) as f64;
            ((left - n_own as f64) / left).max(0.0)
        });
        1.0 - miss.product::<f64>()
    };
    let distinct = |own: &Vec<usize>| own.iter().collect::<std::collections::BTreeSet<_>>().len();
    own.iter().map(|own| one(distinct(own))).sum::<f64>() / own.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_that_of_a_random_order() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(chance(&[vec![0]], 50, 10), 0.2));
        // Two of four in the first two: 1 - (2/4)(1/3).
        assert!(close(chance(&[vec![0, 1]], 4, 2), 1.0 - 1.0 / 6.0));
        assert!(close(chance(&[vec![0]], 5, 10), 1.0));
        assert_eq!(median_rank(&[0, 2, 9]), 3.0);
    }
}
