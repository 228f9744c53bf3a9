//! Which blocks have experts, and how tokens find them: `[train.model.experts]`.
//!
//! In: the table as the file spells it, the model's depth. Out: [`ExpertsConfig`], whose numbers can be. Never: tensors.
//! Source: Akbari et al. 2023, arXiv:2305.06324, and the authors' release (sizes, groups, initial values).

use serde::{Deserialize, Serialize};

use super::config::hold;
use super::{ModelConfig, ModelError};
use crate::ops::experts::choose::capacity;
use crate::ops::experts::{Choice, Groups};
use crate::ops::{Routing, RoutingStats};

/// Where the blocks with experts stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// The last ones, as in the release.
    #[default]
    Last,
    /// Spread evenly; the last block is one of them.
    Alternate,
    First,
}

/// Who chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Router {
    /// Experts choose tokens: each is always full, no loss has to balance them.
    #[default]
    ExpertChoice,
    /// Tokens choose experts, up to their capacity; the balance loss keeps them apart.
    TokenChoice,
    /// Nothing is chosen: every slot of an expert is a mean of one example's tokens (Puigcerver et al. 2023, arXiv:2308.00951).
    Soft,
}

/// Which tokens compete when nothing is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalGroups {
    /// As in training: an embedding depends on its batch (IMP.md, trap T10).
    #[default]
    Batch,
    /// Those of one example: an embedding is the same in any company.
    Example,
}

/// `[train.model.experts]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawExperts {
    /// Experts of a block; the release has 16 in B and L, 4 in its example of S.
    pub n: usize,
    /// Blocks that have them; absent: the release's 6, or all of a smaller model's.
    pub blocks: Option<usize>,
    #[serde(default)]
    pub placement: Placement,
    #[serde(default)]
    pub router: Router,
    /// Experts that a token chooses; `token_choice` only.
    pub top_k: Option<usize>,
    /// Slots of an expert for each example, whatever its tokens; `soft` only. Absent: one, as in the paper's best models.
    // Absent from the digests of models that do without: vectors of before go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<usize>,
    /// Experts that a token meets on average; under `token_choice` the room that experts have for each of a token's choices.
    #[serde(default = "RawExperts::release_capacity_factor")]
    pub capacity_factor: f64,
    /// Most tokens that compete with each other; not where those of one example do (`eval_groups = "example"`).
    #[serde(default = "RawExperts::release_group_tokens")]
    pub group_tokens: usize,
    /// Weight of the router's z-loss, for every block and call; the release adds it with 1 (IMP.md, trap T4).
    #[serde(default = "RawExperts::small_z_weight")]
    pub z_weight: f64,
    /// Weight of the balance loss; absent: 0.01 under `token_choice`, 0 under `expert_choice`.
    pub balance_weight: Option<f64>,
    #[serde(default)]
    pub eval_groups: EvalGroups,
}

impl RawExperts {
    fn release_capacity_factor() -> f64 {
        1.0
    }

    fn release_group_tokens() -> usize {
        2048
    }

    /// Zoph et al. 2022, arXiv:2202.08906.
    fn small_z_weight() -> f64 {
        1e-3
    }

    /// `n` experts, everything else as released, but for the weight of the z-loss.
    pub fn of(n: usize) -> Self {
        Self {
            n,
            blocks: None,
            placement: Placement::default(),
            router: Router::default(),
            top_k: None,
            slots: None,
            capacity_factor: Self::release_capacity_factor(),
            group_tokens: Self::release_group_tokens(),
            z_weight: Self::small_z_weight(),
            balance_weight: None,
            eval_groups: EvalGroups::default(),
        }
    }
}

/// Blocks of the release that have experts.
const RELEASE_BLOCKS: usize = 6;
/// More than any example has tokens.
const MOST_SLOTS: usize = 1 << 16;
/// Fedus et al. 2021, arXiv:2101.03961.
const SWITCH_BALANCE_WEIGHT: f64 = 0.01;

/// Experts, checked. Holds: at least two experts, a block that has them, no more choices than experts, weights of 0 or more.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExpertsConfig {
    n: usize,
    /// By block.
    sparse: Vec<bool>,
    eval_groups: EvalGroups,
    #[serde(skip)]
    routing: Routing,
}

impl ExpertsConfig {
    /// # Errors
    /// [`ModelError::Config`] with key, value and rule.
    pub(super) fn check(raw: &RawExperts, depth: usize) -> Result<Self, ModelError> {
        hold(raw.n >= 2, "experts.n", raw.n, || "at least 2; leave the table out for a dense model".to_owned())?;
        let blocks = raw.blocks.unwrap_or(RELEASE_BLOCKS.min(depth));
        hold((1..=depth).contains(&blocks), "experts.blocks", blocks, || {
            format!("between 1 and `train.model.depth` ({depth})")
        })?;
        let (cf, z) = (raw.capacity_factor, raw.z_weight);
        hold(cf.is_finite() && cf > 0.0, "experts.capacity_factor", cf, || "above 0".to_owned())?;
        hold(raw.group_tokens > 0, "experts.group_tokens", raw.group_tokens, || "at least 1".to_owned())?;
        hold(z.is_finite() && z >= 0.0, "experts.z_weight", z, || "0 or more".to_owned())?;
        let tokens_choose = raw.router == Router::TokenChoice;
        hold(tokens_choose || raw.top_k.is_none(), "experts.top_k", raw.top_k.unwrap_or(0), || {
            "absent unless `router = \"token_choice\"`".to_owned()
        })?;
        hold(raw.router == Router::Soft || raw.slots.is_none(), "experts.slots", raw.slots.unwrap_or(0), || {
            "absent unless `router = \"soft\"`; an expert's capacity follows from `capacity_factor`".to_owned()
        })?;
        let (choice, usual_balance) = match raw.router {
            Router::ExpertChoice => (Choice::Experts, 0.0),
            Router::Soft => {
                let n_slots = raw.slots.unwrap_or(1);
                hold((1..=MOST_SLOTS).contains(&n_slots), "experts.slots", n_slots, || {
                    format!("at least 1 and at most {MOST_SLOTS}")
                })?;
                let usual = RawExperts::of(raw.n);
                for (key, found, holds) in [
                    ("experts.balance_weight", raw.balance_weight.unwrap_or(0.0), raw.balance_weight.is_none()),
                    ("experts.capacity_factor", cf, cf == usual.capacity_factor),
                    ("experts.group_tokens", raw.group_tokens as f64, raw.group_tokens == usual.group_tokens),
                    ("experts.z_weight", z, z == usual.z_weight),
                ] {
                    hold(holds, key, found, || "absent under `soft`, where nothing is chosen".to_owned())?;
                }
                (Choice::Nobody { n_slots }, 0.0)
            }
            Router::TokenChoice => {
                let top_k = raw.top_k.unwrap_or(1);
                hold((1..=raw.n).contains(&top_k), "experts.top_k", top_k, || {
                    format!("between 1 and `train.model.experts.n` ({})", raw.n)
                })?;
                (Choice::Tokens { top_k }, SWITCH_BALANCE_WEIGHT)
            }
        };
        let balance = raw.balance_weight.unwrap_or(usual_balance);
        hold(balance.is_finite() && balance >= 0.0, "experts.balance_weight", balance, || "0 or more".to_owned())?;
        let sparse = match raw.placement {
            Placement::Last => (0..depth).map(|i| i >= depth - blocks).collect(),
            Placement::First => (0..depth).map(|i| i < blocks).collect(),
            Placement::Alternate => {
                let chosen: Vec<usize> = (1..=blocks).map(|j| j * depth / blocks - 1).collect();
                (0..depth).map(|i| chosen.contains(&i)).collect()
            }
        };
        let routing = Routing {
            n_experts: raw.n,
            choice,
            capacity_factor: cf,
            groups: Groups::OfAtMost(raw.group_tokens),
            z_weight: z as f32,
            balance_weight: balance as f32,
        };
        Ok(Self { n: raw.n, sparse, eval_groups: raw.eval_groups, routing })
    }

    /// Experts of a block.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Whether block `i` has experts in place of its feed-forward.
    pub fn is_sparse(&self, i: usize) -> bool {
        self.sparse.get(i).copied().unwrap_or(false)
    }

    /// Blocks that have experts.
    pub fn n_blocks(&self) -> usize {
        self.sparse.iter().filter(|&&sparse| sparse).count()
    }

    pub(super) fn routing(&self, purpose: Purpose) -> Routing {
        match (purpose, self.eval_groups) {
            (Purpose::Train, _) | (Purpose::Embed, EvalGroups::Batch) => self.routing,
            (Purpose::Embed, EvalGroups::Example) => Routing { groups: Groups::PerExample, ..self.routing },
        }
    }

    /// Slots of a block, of all experts together; `None` where tokens are chosen.
    pub(crate) fn slots(&self) -> Option<usize> {
        match self.routing.choice {
            Choice::Nobody { n_slots } => Some(self.n * n_slots),
            Choice::Experts | Choice::Tokens { .. } => None,
        }
    }

    /// Experts that have room for a token, on average; `None` where nothing is chosen.
    fn room_per_token(&self) -> Option<f64> {
        match self.routing.choice {
            Choice::Experts => Some(self.routing.capacity_factor),
            Choice::Tokens { top_k } => Some(top_k as f64 * self.routing.capacity_factor),
            Choice::Nobody { .. } => None,
        }
    }

    /// Multiply-adds times two of one of these blocks' experts and their router, for one example of `n_tokens` tokens, if experts are used
    /// evenly; `d` and `f` are the widths.
    pub(super) fn flops(&self, n_tokens: f64, d: f64, f: f64) -> f64 {
        let (ffn, e) = (4.0 * d * f, self.n as f64);
        match self.routing.choice {
            Choice::Experts => n_tokens * (self.routing.capacity_factor.min(e) * ffn + 2.0 * d * e),
            Choice::Tokens { top_k } => {
                let k = top_k as f64;
                n_tokens * ((k * self.routing.capacity_factor).min(k) * ffn + 2.0 * d * e)
            }
            // The router, tokens into slots, and slots back.
            Choice::Nobody { n_slots } => e * n_slots as f64 * (ffn + 6.0 * n_tokens * d),
        }
    }

    /// Whether an embedding depends on what it is computed with.
    pub fn depends_on_batch(&self) -> bool {
        self.eval_groups == EvalGroups::Batch && self.slots().is_none()
    }
}

/// What a call of the encoder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Train,
    Embed,
}

impl ModelConfig {
    /// Whether block `i` has experts in place of its feed-forward.
    pub fn is_sparse(&self, i: usize) -> bool {
        self.experts.as_ref().is_some_and(|experts| experts.is_sparse(i))
    }

    /// Whether each expert gets a token in a call of `n` examples of `n_tokens` tokens. What an evaluation embeds is looked at only where
    /// tokens of one example compete: otherwise it depends on how many happen to come together.
    ///
    /// # Errors
    /// [`ModelError::Config`] names the group that is too small; `call` says whose it is.
    pub(crate) fn check_capacity(
        &self,
        purpose: Purpose,
        call: &str,
        n: usize,
        n_tokens: usize,
    ) -> Result<(), ModelError> {
        let Some(experts) = &self.experts else { return Ok(()) };
        let routing = experts.routing(purpose);
        if purpose == Purpose::Embed && routing.groups != Groups::PerExample {
            return Ok(());
        }
        let Some(room) = experts.room_per_token() else { return Ok(()) };
        let least = routing.groups.ranges(n, n_tokens).into_iter().map(|g| g.len()).min().unwrap_or(0);
        hold(capacity(room, least, experts.n) > 0, "experts.capacity_factor", routing.capacity_factor, || {
            format!(
                "larger, or `experts.n` ({}) smaller: {call} routes groups of {least} tokens, of which an expert takes {room} * {least} / {}, rounded to 0",
                experts.n, experts.n
            )
        })
    }
}

/// Means over the blocks with experts and the calls of the encoder of one step; z-losses are added up, as the objective has them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RoutingSummary {
    /// Sum of the router z-losses, not weighted.
    pub z_loss: f32,
    /// Mean of the balance losses, not weighted: 1 when first choices are spread evenly, the number of experts when one has all. Of soft
    /// experts the greatest share that one of them has in the tokens, times their number.
    pub balance: f32,
    /// Share of tokens that no expert took.
    pub unrouted: f32,
    /// Mean probability of the pairs that were chosen.
    pub confidence: f32,
    /// Entropy of the experts' shares of the chosen pairs, by that of equal shares: 1 when even, 0 when one expert has all.
    pub usage_entropy: f32,
}

impl RoutingSummary {
    /// `None` for a dense model.
    pub fn of(stats: &[RoutingStats]) -> Option<Self> {
        if stats.is_empty() {
            return None;
        }
        let mean = |of: fn(&RoutingStats) -> f32| stats.iter().map(of).sum::<f32>() / stats.len() as f32;
        Some(Self {
            z_loss: stats.iter().map(|s| s.z_loss).sum(),
            balance: mean(|s| s.balance),
            unrouted: mean(|s| s.unrouted),
            confidence: mean(|s| s.confidence),
            usage_entropy: mean(|s| {
                let entropy: f32 = s.usage.iter().filter(|&&u| u > 0.0).map(|u| -u * u.ln()).sum();
                entropy / (s.usage.len() as f32).ln()
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_with_experts_stand_where_the_placement_says() {
        let sparse = |placement, blocks, depth| -> Vec<usize> {
            let raw = RawExperts { placement, blocks: Some(blocks), ..RawExperts::of(4) };
            let config = ExpertsConfig::check(&raw, depth).unwrap();
            assert_eq!(config.n_blocks(), blocks);
            (0..depth).filter(|&i| config.is_sparse(i)).collect()
        };
        assert_eq!(sparse(Placement::Last, 6, 12), [6, 7, 8, 9, 10, 11]);
        assert_eq!(sparse(Placement::First, 2, 12), [0, 1]);
        assert_eq!(sparse(Placement::Alternate, 6, 12), [1, 3, 5, 7, 9, 11]);
        assert_eq!(sparse(Placement::Alternate, 3, 7), [1, 3, 6]);
        assert_eq!(ExpertsConfig::check(&RawExperts::of(4), 4).unwrap().n_blocks(), 4);
    }

    #[test]
    fn experts_without_slots_are_spelled_as_before_there_were_any() {
        let spelled = serde_json::to_string(&RawExperts::of(4)).unwrap();
        let before =
            r#"{"n":4,"blocks":null,"placement":"last","router":"expert_choice","top_k":null,"capacity_factor":1.0,"#;
        assert!(spelled.starts_with(before) && !spelled.contains("slots"), "{spelled}");
    }

    #[test]
    fn experts_that_cannot_be_are_refused_with_key_value_and_rule() {
        let of = RawExperts::of;
        let cases = [
            (of(1), "`train.model.experts.n` is 1, must be at least 2"),
            (RawExperts { blocks: Some(9), ..of(4) }, "`train.model.experts.blocks` is 9, must be between 1 and"),
            (
                RawExperts { capacity_factor: 0.0, ..of(4) },
                "`train.model.experts.capacity_factor` is 0, must be above 0",
            ),
            (RawExperts { group_tokens: 0, ..of(4) }, "`train.model.experts.group_tokens` is 0"),
            (RawExperts { z_weight: -1.0, ..of(4) }, "`train.model.experts.z_weight` is -1"),
            (
                RawExperts { top_k: Some(2), ..of(4) },
                "`train.model.experts.top_k` is 2, must be absent unless `router = \"token_choice\"`",
            ),
            (RawExperts { slots: Some(2), ..of(4) }, "`train.model.experts.slots` is 2, must be absent unless"),
            (
                RawExperts { slots: Some(0), router: Router::Soft, ..of(4) },
                "`train.model.experts.slots` is 0, must be at least 1",
            ),
            (
                RawExperts { capacity_factor: 2.0, router: Router::Soft, ..of(4) },
                "`train.model.experts.capacity_factor` is 2, must be absent under `soft`",
            ),
            (
                RawExperts { balance_weight: Some(0.1), router: Router::Soft, ..of(4) },
                "`train.model.experts.balance_weight` is 0.1, must be absent under `soft`",
            ),
            (
                RawExperts { top_k: Some(5), router: Router::TokenChoice, ..of(4) },
                "`train.model.experts.top_k` is 5, must be between 1 and",
            ),
            (RawExperts { balance_weight: Some(f64::NAN), ..of(4) }, "`train.model.experts.balance_weight` is NaN"),
        ];
        for (raw, wanted) in cases {
            let message = ExpertsConfig::check(&raw, 8).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }
    }
}
