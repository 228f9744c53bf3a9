//! Which values of one side of a plane make up each value of the resized side, and with which weights.
//!
//! In: a stretch of a side and the number of values that it shall have. Out: as many weights for each. Never: a value outside of the
//! stretch.
//! Source: Pillow's bilinear: a triangle widened by the reduction factor, plain bilinear when enlarging.

/// What pixels of one side are in values of a plane: whole values that hold them, and where in those they begin and end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    pub first: usize,
    pub n: usize,
    pub offset: f64,
    pub len: f64,
}

impl Span {
    /// `len` pixels from `start`, `step` pixels a value, on a side of `n_values`.
    pub fn of(start: usize, len: usize, step: usize, n_values: usize) -> Self {
        let first = (start / step).min(n_values.saturating_sub(1));
        let n = (start + len).div_ceil(step).min(n_values).saturating_sub(first);
        let (offset, len) = ((start as f64 / step as f64 - first as f64).max(0.0), len as f64 / step as f64);
        Self { first, n, offset, len: len.min(n as f64 - offset) }
    }
}

/// What all weights of a value sum up to: the most that 16 bits hold.
const ONE: f64 = 65_535.0;

/// Weights by which a stretch is resized.
#[derive(Debug, Default)]
pub struct Taps {
    of: Option<(Span, usize)>,
    n: usize,
    firsts: Vec<usize>,
    /// `[values, n]`.
    weights: Vec<u16>,
    /// Of one value, before they sum up to one.
    raw: Vec<f64>,
}

impl Taps {
    /// Those of `span` at `n_out` values; nothing is done if they are that already. `false` if there is nothing to resize.
    pub fn fit(&mut self, span: Span, n_out: usize) -> bool {
        if span.n == 0 || span.len <= 0.0 || n_out == 0 {
            return false;
        }
        if self.of == Some((span, n_out)) {
            return true;
        }
        let scale = span.len / n_out as f64;
        let reach = scale.max(1.0);
        let slope = 1.0 / reach;
        self.of = Some((span, n_out));
        self.n = ((2.0 * reach).ceil() as usize).min(span.n);
        self.firsts.clear();
        self.weights.clear();
        self.weights.resize(n_out * self.n, 0);
        self.raw.resize(self.n, 0.0);
        for (i, weights) in self.weights.chunks_exact_mut(self.n).enumerate() {
            let centre = span.offset + (i as f64 + 0.5) * scale;
            // Casts cut off, and what is below zero is zero.
            let first = ((centre - reach + 0.5) as usize).min(span.n - self.n);
            let (mut off, mut all) = (first as f64 + 0.5 - centre, 0.0);
            for raw in &mut self.raw {
                *raw = (1.0 - (off * slope).abs()).max(0.0);
                all += *raw;
                off += 1.0;
            }
            // Sums are rounded, not weights, so that all of them together are one.
            let (unit, mut sum, mut before) = (ONE / all, 0.5, 0);
            for (weight, raw) in weights.iter_mut().zip(&self.raw) {
                sum += raw * unit;
                let here = sum as i32;
                *weight = (here - before) as u16;
                before = here;
            }
            self.firsts.push(first);
        }
        true
    }

    /// The first value of the stretch that counts for each of the resized side.
    pub fn firsts(&self) -> &[usize] {
        &self.firsts
    }

    /// `[values, weights of a value]`.
    pub fn weights(&self) -> &[u16] {
        &self.weights
    }

    /// The weights of the value at `i`.
    pub fn weights_of(&self, i: usize) -> &[u16] {
        &self.weights[i * self.n..][..self.n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_up_to_one_and_lie_around_the_middle_of_their_value() {
        for (start, len, step, n_values, n_out) in
            [(0, 375, 1, 375, 224), (7, 301, 2, 155, 224), (0, 1, 1, 1, 5), (3, 97, 2, 50, 100), (0, 4000, 1, 4000, 7)]
        {
            let span = Span::of(start, len, step, n_values);
            let mut taps = Taps::default();
            assert!(taps.fit(span, n_out));
            for i in 0..n_out {
                let weights = taps.weights_of(i);
                assert_eq!(weights.iter().map(|&w| u32::from(w)).sum::<u32>(), 65_535);
                let first = taps.firsts()[i];
                assert!(first + weights.len() <= span.n);
                let middle: f64 =
                    weights.iter().zip(first..).map(|(&w, at)| f64::from(w) / ONE * (at as f64 + 0.5)).sum();
                let wanted = span.offset + (i as f64 + 0.5) * span.len / n_out as f64;
                // At an edge one half of the triangle is cut off.
                let reach = (span.len / n_out as f64).max(1.0);
                if wanted > reach && wanted < span.n as f64 - reach {
                    assert!((middle - wanted).abs() < 0.3, "{i} of {n_out} from {len}: {middle}, {wanted}");
                }
            }
        }
    }

    #[test]
    fn a_stretch_of_nothing_is_refused() {
        for (span, n_out) in [(Span::of(9, 3, 1, 0), 4), (Span::of(0, 0, 1, 5), 4), (Span::of(0, 5, 1, 5), 0)] {
            assert!(!Taps::default().fit(span, n_out));
        }
    }
}
