//! A difference for people.
//!
//! In: a [`Diff`]. Out: lines. Never: a line about what is the same, but for the totals.

use std::collections::BTreeMap;

use super::{Change, Diff};
use crate::page::human_bytes;

/// Classes that are named.
const MAX_CLASSES: usize = 20;

pub(super) fn text(diff: &Diff) -> String {
    let (from, to) = (&diff.from, &diff.to);
    let of = |side: &super::Side| if from.store == to.store { String::new() } else { format!(" of {}", side.store) };
    let mut lines =
        vec![format!("{}: snapshot {}{} → {}{}", diff.corpus, from.snapshot, of(from), to.snapshot, of(to))];
    if diff.identical {
        lines.push("  the same manifest, byte for byte".to_owned());
        return lines.join("\n");
    }
    let r = &diff.records;
    lines.push(format!(
        "  records    {}: {} added, {} removed, {} changed",
        arrow(diff.n_records),
        r.n_added,
        r.n_removed,
        r.n_changed
    ));
    if r.n_changed > 0 {
        let ways = [
            ("media", r.n_media_changed),
            ("captions", r.n_captions_changed),
            ("label", r.n_label_changed),
            ("split", r.n_split_changed),
        ];
        let ways: Vec<String> = ways.iter().filter(|(_, n)| *n > 0).map(|(way, n)| format!("{way} of {n}")).collect();
        lines.push(format!("  changed    {}", ways.join(", ")));
    }
    lines.push(format!("  inputs     {}", arrow(diff.n_inputs)));
    counts(&mut lines, "split", &diff.splits, usize::MAX);
    counts(&mut lines, "rejected", &diff.rejects, usize::MAX);
    if diff.hidden.from != diff.hidden.to {
        lines.push(format!("  hidden     {}", arrow(diff.hidden)));
    }
    let s = &diff.shards;
    lines.push(format!(
        "  shards     {} shared, {} new ({}), {} gone ({})",
        s.n_shared,
        s.n_new,
        human_bytes(s.new_bytes),
        s.n_gone,
        human_bytes(s.gone_bytes)
    ));
    counts(&mut lines, "class", &r.classes, MAX_CLASSES);
    for (what, classes) in [("new class", &diff.classes_added), ("lost class", &diff.classes_removed)] {
        lines.extend(classes.iter().take(MAX_CLASSES).map(|class| format!("  {what:<10} {class}")));
    }
    if diff.tokenizer_changed {
        lines.push("  tokenizer  another; every `tokens` column differs".to_owned());
    }
    for (what, columns) in
        [("new column", &diff.columns_added), ("lost column", &diff.columns_removed), ("column", &diff.columns_changed)]
    {
        let other = if what == "column" { ": other values" } else { "" };
        lines.extend(columns.iter().map(|column| format!("  {what:<10} {column}{other}")));
    }
    if let Some([from, to]) = &diff.schema_version {
        lines.push(format!("  schema     {from} → {to}"));
    }
    lines.extend(diff.config.iter().map(|c| format!("  config     {}: {} → {}", c.key, c.from, c.to)));
    for (what, keys, n) in
        [("added", &r.added, r.n_added), ("removed", &r.removed, r.n_removed), ("changed", &r.changed, r.n_changed)]
    {
        lines.extend(keys.iter().map(|key| format!("  {what:<10} {key}")));
        if n > keys.len() as u64 {
            lines.push(format!("  {what:<10} … and {} more", n - keys.len() as u64));
        }
    }
    lines.join("\n")
}

fn counts<K: std::fmt::Display>(lines: &mut Vec<String>, what: &str, changes: &BTreeMap<K, Change>, most: usize) {
    lines.extend(changes.iter().take(most).map(|(name, change)| format!("  {what:<10} {name} {}", arrow(*change))));
    if changes.len() > most {
        lines.push(format!("  {what:<10} … and {} more", changes.len() - most));
    }
}

fn arrow(change: Change) -> String {
    let Change { from, to } = change;
    match from.cmp(&to) {
        std::cmp::Ordering::Equal => from.to_string(),
        std::cmp::Ordering::Less => format!("{from} → {to} (+{})", to - from),
        std::cmp::Ordering::Greater => format!("{from} → {to} (-{})", from - to),
    }
}
