//! Sentences that class names are put into, by medium.
//!
//! In: the name of a set. Out: 16 sentences, the most general first, so that the first few are a smaller set. Never: a class.
//! Source: Radford et al. 2021, arXiv:2103.00020 (ensembles of prompts); the release has 16 for each medium, of its own.

use serde::{Deserialize, Serialize};

/// A set of sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSet {
    Image,
    Video,
    Audio,
}

impl PromptSet {
    /// 16 sentences with `{}` where the class name goes.
    pub fn sentences(self) -> Vec<String> {
        let sentences: [&str; 16] = match self {
            Self::Image => [
                "{}",
                "a picture of {}",
                "this picture shows {}",
                "{} in a photograph",
                "a close view of {}",
                "a small picture of {}",
                "a large picture of {}",
                "a clear picture of {}",
                "a blurred picture of {}",
                "a bright picture of {}",
                "a dark picture of {}",
                "part of a picture of {}",
                "many pictures show {}",
                "one can see {} here",
                "a drawing of {}",
                "somebody took a picture of {}",
            ],
            Self::Video => [
                "{}",
                "a clip of {}",
                "this clip shows {}",
                "{} in a film",
                "a close view of {} in motion",
                "a short clip of {}",
                "a long clip of {}",
                "a clear clip of {}",
                "a shaky clip of {}",
                "a bright clip of {}",
                "a dark clip of {}",
                "part of a clip of {}",
                "many clips show {}",
                "one can see {} happen here",
                "an example of {}",
                "somebody filmed {}",
            ],
            Self::Audio => [
                "{}",
                "the sound of {}",
                "this sound is {}",
                "{} in a recording",
                "a near sound of {}",
                "a short sound of {}",
                "a long sound of {}",
                "a clear sound of {}",
                "a noisy sound of {}",
                "a loud sound of {}",
                "a soft sound of {}",
                "part of a sound of {}",
                "many recordings have {}",
                "one can hear {} here",
                "{} in the distance",
                "somebody recorded {}",
            ],
        };
        sentences.map(str::to_owned).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_sentence_has_a_place_for_the_name_and_is_there_once() {
        for set in [PromptSet::Image, PromptSet::Video, PromptSet::Audio] {
            let sentences = set.sentences();
            assert!(sentences.iter().all(|sentence| sentence.matches("{}").count() == 1), "{set:?}");
            assert_eq!(sentences.iter().collect::<BTreeSet<_>>().len(), 16, "{set:?}");
        }
    }
}
