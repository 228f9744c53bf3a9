//! How a column's values are spread, as a small chart.
//!
//! In: values. Out: SVG text that takes its colours from the page. Never: a value left out: what is far off is in the last bar.

use std::fmt::Write as _;

use serde::Serialize;

const N_BARS: usize = 30;
const HEIGHT: f64 = 60.0;

/// One chart with its numbers.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    name: &'static str,
    unit: &'static str,
    /// Made of numbers alone.
    svg: String,
    least: String,
    median: String,
    greatest: String,
}

/// `None` without a value.
pub(super) fn chart(name: &'static str, unit: &'static str, mut values: Vec<f64>) -> Option<Chart> {
    values.retain(|v| v.is_finite());
    values.sort_by(f64::total_cmp);
    let (&least, &greatest) = (values.first()?, values.last()?);
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    // One value far off must not squeeze all others into the first bar.
    let top = if greatest > 4.0 * at(0.99).max(1e-9) { at(0.99) * 1.2 } else { greatest };
    let is_whole = values.iter().all(|v| v.fract() == 0.0);
    // Whole numbers that are few get a bar each.
    let n_bars = if is_whole && top - least < N_BARS as f64 { (top - least) as usize + 1 } else { N_BARS };
    let width = if is_whole && n_bars < N_BARS { 1.0 } else { ((top - least) / n_bars as f64).max(f64::MIN_POSITIVE) };
    let mut counts = vec![0u64; n_bars];
    for value in &values {
        counts[(((value - least) / width) as usize).min(n_bars - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let bar = 300.0 / n_bars as f64;
    let mut path = String::new();
    for (i, &n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        // A bar of one value is still seen.
        let height = (HEIGHT * n as f64 / most).max(1.5);
        let w = (bar * 0.84).min(40.0);
        let x = i as f64 * bar + (bar - w) / 2.0;
        let _ = write!(path, "M{x:.1} {HEIGHT}v-{height:.1}h{w:.1}v{height:.1}z");
    }
    let svg = format!(
        "<svg class=\"bars\" viewBox=\"0 0 300 {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name}\">\
         <path d=\"{path}\"/></svg>"
    );
    Some(Chart { name, unit, svg, least: short(least), median: short(at(0.5)), greatest: short(greatest) })
}

/// A number in few characters.
fn short(value: f64) -> String {
    let text = if value.fract() == 0.0 && value.abs() < 1e15 { format!("{value:.0}") } else { format!("{value:.2}") };
    let Some(digits) = text.strip_prefix('-').or(Some(&text)).filter(|d| d.len() > 4 && !d.contains('.')) else {
        return text;
    };
    let mut grouped = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(c);
    }
    if value < 0.0 { format!("-{grouped}") } else { grouped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_whole_numbers_get_a_bar_each_and_one_far_off_stays_in_sight() {
        let few = chart("n", "", vec![1.0, 2.0, 2.0, 4.0]).unwrap();
        assert_eq!(few.svg.matches('M').count(), 3);
        let mut values: Vec<f64> = (0..1000).map(f64::from).collect();
        values.push(1e9);
        let far = chart("n", "", values).unwrap();
        assert!(far.svg.matches('M').count() > 20, "{}", far.svg);
        assert_eq!(far.greatest.replace('\u{202f}', ""), "1000000000");
        assert!(chart("n", "", vec![]).is_none());
        assert!(chart("n", "", vec![0.5]).is_some());
    }
}
