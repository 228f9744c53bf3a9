//! How often each rule of cleaning was broken, dry runs included.
//!
//! In: findings. Out: counts by rule, in the order of the rules' names. Never: a record or caption counted twice by one rule.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Finding;

/// Counts by rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Tally {
    counts: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(crate) fn add(&mut self, finding: &Finding) {
        *self.counts.entry(finding.rule).or_default() += 1;
    }

    /// Rule and count.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.iter().map(|(rule, n)| (*rule, *n))
    }
}

#[cfg(test)]
mod tests {
    use imp_schemas::reject::RejectReason;

    use super::*;

    #[test]
    fn findings_are_counted_by_rule() {
        let finding = |rule| Finding { rule, reason: RejectReason::CaptionRule, detail: String::new() };
        let mut tally = Tally::default();
        ["caption.deny", "max_aspect", "caption.deny"].map(finding).iter().for_each(|f| tally.add(f));
        assert_eq!(tally.iter().collect::<Vec<_>>(), [("caption.deny", 2), ("max_aspect", 1)]);
    }
}
