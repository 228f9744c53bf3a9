//! How the values of a planning column are spread, in bins that never depend on the data.
//!
//! In: values. Out: counts that can be added up over shards and runs. Never: a bin whose edge a library's rounding moves: it is
//! read off the bits of the number.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bins of each doubling.
const PER_OCTAVE: i32 = 4;

/// Counts of values by size: bin `4 e + q` holds the values from `2^e (1 + q/4)` up to the next edge, for `q` of 0 to 3.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Values that are zero, negative or no number.
    #[serde(default)]
    pub n_below: u64,
    pub bins: BTreeMap<i32, u64>,
}

impl Histogram {
    /// Counts one value.
    pub fn push(&mut self, value: f64) {
        match bin_of(value) {
            Some(bin) => *self.bins.entry(bin).or_insert(0) += 1,
            None => self.n_below += 1,
        }
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.n_below += other.n_below;
        for (&bin, &n) in &other.bins {
            *self.bins.entry(bin).or_insert(0) += n;
        }
    }

    /// Values counted.
    pub fn n(&self) -> u64 {
        self.n_below + self.bins.values().sum::<u64>()
    }

    /// Least value of `bin`; that of `bin + 1` is where it ends.
    pub fn edge(bin: i32) -> f64 {
        let (octave, quarter) = (bin.div_euclid(PER_OCTAVE), bin.rem_euclid(PER_OCTAVE));
        2.0_f64.powi(octave) * (1.0 + f64::from(quarter) / f64::from(PER_OCTAVE))
    }
}

fn bin_of(value: f64) -> Option<i32> {
    if !(value.is_normal() && value > 0.0) {
        return None;
    }
    let bits = value.to_bits();
    let octave = ((bits >> 52) & 0x7FF) as i32 - 1023;
    let quarter = ((bits >> 50) & 3) as i32;
    Some(octave * PER_OCTAVE + quarter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_between_the_edges_of_its_bin() {
        for value in [1e-9, 0.3, 0.5, 1.0, 1.2499, 1.25, 1.5, 1.99, 2.0, 7.0, 255.0, 256.0, 1e12] {
            let bin = bin_of(value).unwrap();
            assert!(Histogram::edge(bin) <= value && value < Histogram::edge(bin + 1), "{value} {bin}");
        }
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(bin_of(value), None);
        }
    }

    #[test]
    fn counts_of_parts_add_up_to_the_whole() {
        let (mut a, mut b, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for i in 0..100 {
            let value = f64::from(i) * 1.7;
            if i % 3 == 0 { &mut a } else { &mut b }.push(value);
            both.push(value);
        }
        a.merge(&b);
        assert_eq!(a, both);
        assert_eq!(a.n(), 100);
    }
}
