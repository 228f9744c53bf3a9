//! Zero-shot classification: class names in sentences against media, arg-max of the cosine.
//! Of an example with several labels any is right.

use super::embed::{Embedder, Items};
use super::{Classified, EvalError, Example, Measure, Retrieved, top_k};
use crate::config::{Candidates, Eval};
use crate::ops::Backend;

/// Queries that are kept for people to look at, and media for each.
const N_EXAMPLES: usize = 6;
const N_RETRIEVED: usize = 5;

/// Scores every example against every candidate class.
///
/// # Errors
/// The corpus has no classes, or an example no label.
pub fn measure<D: Backend>(
    embedder: &Embedder<'_, D>,
    eval: &Eval,
    items: &Items,
) -> Result<(Measure, Vec<Example>), EvalError> {
    let wrong = |found: String, wanted| EvalError::Corpus { name: eval.name.clone(), found, wanted };
    check_labels(eval, &items.labels, &items.keys)?;
    let is_of = |example: usize, class: usize| items.labels[example].contains(&(class as u32));
    let classes: Vec<usize> = match eval.candidates {
        Candidates::All => (0..items.manifest.classes.len()).collect(),
        Candidates::Split => {
            (0..items.manifest.classes.len()).filter(|&class| (0..items.n()).any(|i| is_of(i, class))).collect()
        }
    };
    if classes.len() < 2 {
        return Err(wrong(format!("{} classes to choose from", classes.len()), "at least 2"));
    }
    let names: Vec<&String> = classes.iter().map(|&class| &items.manifest.classes[class]).collect();
    let groups: Vec<Vec<String>> =
        names.iter().map(|name| eval.prompts.iter().map(|prompt| prompt.replace("{}", name)).collect()).collect();
    let texts: Vec<Vec<f32>> =
        items.media.iter().map(|(stream, _)| embedder.texts(&groups, *stream, eval)).collect::<Result<_, _>>()?;
    let scores = items.scores(&texts, classes.len());
    let measure = Measure::ZeroShot(Classified::of(&scores, &classes, &items.labels, &items.manifest.classes));
    // Queries spread over the classes, so that the page does not show six kinds of circle.
    let stride = (classes.len() / N_EXAMPLES).max(1);
    let examples = (0..classes.len()).step_by(stride).take(N_EXAMPLES).map(|c| {
        let column: Vec<f32> = scores.chunks(classes.len()).map(|row| row[c]).collect();
        let retrieved = top_k(&column, N_RETRIEVED).into_iter().map(|i| Retrieved {
            row: items.rows[i],
            key: items.keys[i].clone(),
            score: column[i],
            correct: is_of(i, classes[c]),
        });
        Example {
            name: eval.name.clone(),
            corpus: String::new(),
            split: String::new(),
            query: names[c].clone(),
            retrieved: retrieved.collect(),
        }
    });
    Ok((measure, examples.collect()))
}

/// Every record must have a label.
///
/// # Errors
/// A record has none; its key is named.
pub(super) fn check_labels(eval: &Eval, labels: &[Vec<u32>], keys: &[String]) -> Result<(), EvalError> {
    match labels.iter().zip(keys).find(|(of_record, _)| of_record.is_empty()) {
        Some((_, key)) => Err(EvalError::Corpus {
            name: eval.name.clone(),
            found: format!("record `{key}` has no label"),
            wanted: "a label for every record of the split",
        }),
        None => Ok(()),
    }
}
