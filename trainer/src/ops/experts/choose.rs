//! Which tokens which expert computes.
//!
//! In: the router's probabilities, the sizes of a call. Out: rows by expert. Never: a gradient, a draw: equal probabilities go to
//! the lower index.

use std::cmp::Ordering;
use std::ops::Range;

use super::Routing;

/// Who chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Each expert takes its most probable tokens of the group, exactly as many as its capacity.
    Experts,
    /// Each token goes to its most probable experts, first choices before second, in the order of the tokens, as long as they have
    /// room.
    Tokens { top_k: usize },
    /// Nobody: every slot of an expert is a mean of an example's tokens; see [`super::soft`].
    Nobody { n_slots: usize },
}

/// Which tokens compete with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    /// All tokens of the call, one after the other, cut into the fewest groups of at most so many; sizes differ by one at most.
    OfAtMost(usize),
    /// The tokens of one example: what it becomes does not depend on its neighbours.
    PerExample,
}

impl Groups {
    /// Rows of each group, for a call of `n` examples of `n_tokens` tokens.
    pub fn ranges(self, n: usize, n_tokens: usize) -> Vec<Range<usize>> {
        let rows = n * n_tokens;
        let n_groups = match self {
            Self::OfAtMost(most) => rows.div_ceil(most.max(1)),
            Self::PerExample => n,
        };
        (0..n_groups).map(|g| g * rows / n_groups..(g + 1) * rows / n_groups).collect()
    }
}

/// Tokens of a group that one expert takes: `factor * n_tokens / n_experts`, halves to the even neighbour, as the release rounds.
/// For token choice the factor counts each of the choices.
pub fn capacity(factor: f64, n_tokens: usize, n_experts: usize) -> usize {
    let exact = factor * n_tokens as f64 / n_experts as f64;
    (exact.round_ties_even() as usize).min(n_tokens)
}

/// Rows of the call by expert, group by group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ops) struct Assignment {
    pub tokens: Vec<Vec<u32>>,
}

/// Chooses by `probs` `[rows, experts]`, for a call of (examples, tokens of each).
pub(in crate::ops) fn assign(probs: &[f32], routing: &Routing, sizes: (usize, usize)) -> Assignment {
    let e = routing.n_experts;
    let mut tokens = vec![Vec::new(); e];
    for group in routing.groups.ranges(sizes.0, sizes.1) {
        let of_group = &probs[group.start * e..group.end * e];
        match routing.choice {
            Choice::Experts => {
                let capacity = capacity(routing.capacity_factor, group.len(), e);
                for (expert, tokens) in tokens.iter_mut().enumerate() {
                    let chosen = most_probable(of_group.iter().skip(expert).step_by(e).copied(), capacity);
                    tokens.extend(chosen.into_iter().map(|token| group.start as u32 + token));
                }
            }
            Choice::Nobody { .. } => {}
            Choice::Tokens { top_k } => {
                let capacity = capacity(routing.capacity_factor * top_k as f64, group.len(), e);
                let orders: Vec<Vec<u32>> =
                    of_group.chunks_exact(e).map(|row| most_probable(row.iter().copied(), top_k)).collect();
                let mut n_taken = vec![0; e];
                for rank in 0..top_k.min(e) {
                    for (token, order) in orders.iter().enumerate() {
                        let expert = order[rank] as usize;
                        if n_taken[expert] < capacity {
                            n_taken[expert] += 1;
                            tokens[expert].push((group.start + token) as u32);
                        }
                    }
                }
            }
        }
    }
    Assignment { tokens }
}

/// Indices of the `n` greatest, falling.
fn most_probable(values: impl Iterator<Item = f32>, n: usize) -> Vec<u32> {
    let mut all: Vec<(f32, u32)> = values.zip(0..).collect();
    let order = |a: &(f32, u32), b: &(f32, u32)| -> Ordering { b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)) };
    if n < all.len() {
        if n > 0 {
            all.select_nth_unstable_by(n - 1, order);
        }
        all.truncate(n);
    }
    all.sort_unstable_by(order);
    all.into_iter().map(|(_, idx)| idx).collect()
}

/// Share of the rows whose most probable expert is each.
pub(in crate::ops) fn first_choices(probs: &[f32], n_experts: usize) -> Vec<f32> {
    let mut shares = vec![0.0; n_experts];
    let per = n_experts as f32 / probs.len().max(1) as f32;
    for row in probs.chunks_exact(n_experts) {
        let first = (1..n_experts).fold(0, |best, expert| if row[expert] > row[best] { expert } else { best });
        shares[first] += per;
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routing(choice: Choice, groups: Groups, capacity_factor: f64, n_experts: usize) -> Routing {
        Routing { n_experts, choice, capacity_factor, groups, z_weight: 0.0, balance_weight: 0.0 }
    }

    proptest! {
        #[test]
        fn every_expert_takes_exactly_its_capacity_of_distinct_tokens_the_most_probable(
            (n, t, e) in (1_usize..6, 1_usize..20, 1_usize..6),
            (most, factor) in (1_usize..60, 0.1_f64..3.0),
            levels in proptest::collection::vec(0_u8..9, 6 * 20 * 6),
        ) {
            // Few levels: ties are common.
            let probs: Vec<f32> = levels[..n * t * e].iter().map(|&l| f32::from(l)).collect();
            let groups = Groups::OfAtMost(most);
            let got = assign(&probs, &routing(Choice::Experts, groups, factor, e), (n, t));
            let ranges = groups.ranges(n, t);
            prop_assert_eq!(ranges.iter().map(ExactSizeIterator::len).sum::<usize>(), n * t);
            prop_assert!(ranges.iter().all(|r| r.len() <= most));
            for (expert, tokens) in got.tokens.iter().enumerate() {
                for range in &ranges {
                    let of_group: Vec<u32> = tokens.iter().copied().filter(|&t| range.contains(&(t as usize))).collect();
                    prop_assert_eq!(of_group.len(), capacity(factor, range.len(), e));
                    let mut distinct = of_group.clone();
                    distinct.sort_unstable();
                    distinct.dedup();
                    prop_assert_eq!(distinct.len(), of_group.len());
                    let p = |token: usize| probs[token * e + expert];
                    let least = of_group.iter().map(|&t| p(t as usize)).fold(f32::INFINITY, f32::min);
                    for other in range.clone().filter(|&t| !of_group.contains(&(t as u32))) {
                        prop_assert!(of_group.is_empty() || p(other) <= least);
                    }
                }
            }
        }

        #[test]
        fn no_expert_takes_more_than_its_capacity_when_tokens_choose_and_no_token_is_left_while_there_is_room(
            (n, t, e, top_k) in (1_usize..4, 1_usize..20, 1_usize..6, 1_usize..3),
            factor in 0.1_f64..3.0,
            levels in proptest::collection::vec(0_u8..9, 4 * 20 * 6),
        ) {
            let probs: Vec<f32> = levels[..n * t * e].iter().map(|&l| f32::from(l)).collect();
            let choice = Choice::Tokens { top_k };
            let got = assign(&probs, &routing(choice, Groups::PerExample, factor, e), (n, t));
            let most = capacity(factor * top_k as f64, t, e);
            for (expert, tokens) in got.tokens.iter().enumerate() {
                for item in 0..n {
                    let taken = tokens.iter().filter(|&&token| token as usize / t == item).count();
                    prop_assert!(taken <= most);
                    for token in item * t..(item + 1) * t {
                        let first = most_probable(probs[token * e..(token + 1) * e].iter().copied(), 1)[0] as usize;
                        prop_assert!(first != expert || taken == most || tokens.contains(&(token as u32)));
                    }
                }
            }
        }
    }
}
