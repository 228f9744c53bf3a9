//! The words of the little world: attributes, their combinations, and which combinations are never trained on.
//!
//! In: how many values of each attribute, how many combinations to hold out. Out: every combination with its label and
//! sentences. Never: draws anything but which combinations are held out.

use imp_schemas::rng::{Rng, Role, rng_for};

/// Which of the three corpora.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// Shape, colour, size.
    Image,
    /// Shape, colour, motion.
    Video,
    /// Pitch, timbre, pattern.
    Audio,
}

/// Values of each attribute of a scene, most important first: a smaller world takes the first few.
type Attributes = [&'static [&'static str]; 3];

const SHAPES: &[&str] = &["circle", "square", "triangle", "star", "ring", "cross"];
const COLOURS: &[&str] = &["red", "green", "blue", "yellow", "white", "black", "pink", "cyan"];
const SIZES: &[&str] = &["small", "large", "medium"];
const MOTIONS: &[&str] = &["moving left", "moving right", "growing", "moving up", "moving down", "shrinking"];
const PITCHES: &[&str] = &["low", "high", "middle", "deep", "piercing"];
const TIMBRES: &[&str] = &["pure", "buzzing", "hollow", "bell"];
const PATTERNS: &[&str] = &["holds", "pulses", "rises", "falls"];

impl Scene {
    /// All three, in the order they are written.
    pub const ALL: [Self; 3] = [Self::Image, Self::Video, Self::Audio];

    /// Name of the corpus and of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "world-image",
            Self::Video => "world-video",
            Self::Audio => "world-audio",
        }
    }

    pub(super) fn address(self) -> u64 {
        match self {
            Self::Image => 0,
            Self::Video => 1,
            Self::Audio => 2,
        }
    }

    fn attributes(self) -> Attributes {
        match self {
            Self::Image => [SHAPES, COLOURS, SIZES],
            Self::Video => [SHAPES, COLOURS, MOTIONS],
            Self::Audio => [PITCHES, TIMBRES, PATTERNS],
        }
    }

    /// The most values that each attribute can have.
    pub fn n_values_at_most(self) -> [usize; 3] {
        self.attributes().map(<[_]>::len)
    }
}

/// One combination of attribute values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combo {
    pub scene: Scene,
    /// Index of the value of each attribute.
    pub values: [usize; 3],
    /// Appears in the split `test` only.
    pub is_held_out: bool,
}

impl Combo {
    fn words(&self) -> [&'static str; 3] {
        let attributes = self.scene.attributes();
        std::array::from_fn(|axis| attributes[axis][self.values[axis]])
    }

    /// The class name: what a zero-shot prompt is filled with.
    pub fn label(&self) -> String {
        let [a, b, c] = self.words();
        match self.scene {
            Scene::Image => format!("{c} {b} {a}"),
            Scene::Video => format!("{b} {a} {c}"),
            Scene::Audio => format!("{a} {b} tone that {c}"),
        }
    }

    /// All the ways to say it.
    fn sentences(&self) -> Vec<String> {
        let [a, b, c] = self.words();
        let label = self.label();
        match self.scene {
            Scene::Image => vec![
                format!("a {label}"),
                format!("there is a {label} in the picture"),
                format!("a picture of a {label}"),
                format!("one {label} on a plain background"),
                format!("a {b} {a} that is {c}"),
                format!("the {a} is {c} and {b}"),
            ],
            Scene::Video => vec![
                format!("a {label}"),
                format!("a video of a {label}"),
                format!("there is a {label} in the clip"),
                format!("a {b} {a} is {c}"),
                format!("the {a} that is {c} is {b}"),
            ],
            Scene::Audio => vec![
                format!("a {label}"),
                format!("the sound of a {label}"),
                format!("you hear a {label}"),
                format!("a {b} tone, {a}, that {c}"),
                format!("a {a} tone {c}, and it is {b}"),
            ],
        }
    }

    /// `n` different captions, drawn.
    pub(super) fn captions(&self, n: usize, rng: &mut Rng) -> Vec<String> {
        let mut sentences = self.sentences();
        rng.shuffle(&mut sentences);
        sentences.truncate(n.max(1));
        sentences
    }
}

/// Every combination of the first `n_values` values, in order, with `n_held_out` of them held out.
///
/// Held out is a balanced subset: every value, and as far as the numbers allow every pair of values, is held out equally
/// often, so that all of them are still trained on with other partners.
pub fn combos(scene: Scene, n_values: [usize; 3], n_held_out: usize, seed: u64) -> Vec<Combo> {
    let [na, nb, nc] = n_values;
    let mut all = Vec::with_capacity(na * nb * nc);
    for (a, b) in (0..na).flat_map(|a| (0..nb).map(move |b| (a, b))) {
        all.extend((0..nc).map(|c| Combo { scene, values: [a, b, c], is_held_out: false }));
    }
    let mut best: Vec<usize> = Vec::new();
    // A greedy choice can run into a corner; another order of the combinations seldom runs into the same one.
    for attempt in 0..64 {
        let mut order: Vec<usize> = (0..all.len()).collect();
        rng_for(seed, Role::Synth, &[scene.address(), 1 << 32, attempt]).shuffle(&mut order);
        let chosen = balanced(&all, &order, n_values, n_held_out);
        if chosen.len() > best.len() {
            best = chosen;
        }
        if best.len() == n_held_out {
            break;
        }
    }
    for at in best {
        all[at].is_held_out = true;
    }
    all
}

/// Takes combinations in `order` while no value and no pair of values is taken more often than its even share.
fn balanced(all: &[Combo], order: &[usize], n_values: [usize; 3], n_wanted: usize) -> Vec<usize> {
    const PAIRS: [(usize, usize); 3] = [(0, 1), (0, 2), (1, 2)];
    let value_cap = n_values.map(|n| n_wanted.div_ceil(n.max(1)));
    let pair_cap = PAIRS.map(|(i, j)| n_wanted.div_ceil((n_values[i] * n_values[j]).max(1)));
    let mut n_of_value = n_values.map(|n| vec![0; n]);
    let mut n_of_pair = PAIRS.map(|(i, j)| vec![0; n_values[i] * n_values[j]]);
    let mut chosen = Vec::new();
    for &at in order {
        let v = all[at].values;
        let pair_at = PAIRS.map(|(i, j)| v[i] * n_values[j] + v[j]);
        let fits = chosen.len() < n_wanted
            && (0..3).all(|axis| n_of_value[axis][v[axis]] < value_cap[axis])
            && (0..3).all(|pair| n_of_pair[pair][pair_at[pair]] < pair_cap[pair]);
        if fits {
            for axis in 0..3 {
                n_of_value[axis][v[axis]] += 1;
                n_of_pair[axis][pair_at[axis]] += 1;
            }
            chosen.push(at);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_held_out_combination_is_trained_on_with_other_partners() {
        for scene in Scene::ALL {
            for (n_values, n_held_out) in [(scene.n_values_at_most(), 20), ([3, 4, 2], 6)] {
                let all = combos(scene, n_values, n_held_out, 7);
                let held = all.iter().filter(|c| c.is_held_out);
                assert_eq!(held.clone().count(), n_held_out, "{scene:?}");
                for combo in held {
                    for (i, j) in [(0, 1), (0, 2), (1, 2)] {
                        let same_pair = |c: &&Combo| {
                            !c.is_held_out && c.values[i] == combo.values[i] && c.values[j] == combo.values[j]
                        };
                        assert!(all.iter().any(|c| same_pair(&c)), "{} has an untrained pair", combo.label());
                    }
                }
            }
        }
    }

    #[test]
    fn labels_are_different_and_do_not_change_with_the_seed() {
        for scene in Scene::ALL {
            let labels =
                |seed| combos(scene, scene.n_values_at_most(), 8, seed).iter().map(Combo::label).collect::<Vec<_>>();
            let mut first = labels(1);
            assert_eq!(first, labels(2));
            first.sort();
            first.dedup();
            assert_eq!(first.len(), scene.n_values_at_most().iter().product::<usize>());
        }
    }
}
