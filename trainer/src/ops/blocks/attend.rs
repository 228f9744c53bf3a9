//! The core of attention for one example: scores, softmax, weighted sum, head by head.
//!
//! In: one example's queries, keys and values `[tokens, 3 * width]`. Out: joined heads `[tokens, width]`, two numbers for each row of
//! scores. Never: a parameter; all scores of a head at once: queries come [`QUERIES`] at a time, and backward makes the scores again.

use super::chunk::Sizes;
use crate::ops::product::{Dst, Mat, MatMut, product};
use crate::ops::simd::{self, Padding};

/// Queries whose scores are there at a time.
const QUERIES: usize = 256;

/// The parts of one head, and what it makes of some of its queries.
struct Head<'a> {
    qkv: &'a [f32],
    valid: &'a [bool],
    /// Column where the head's queries start.
    at: usize,
    sizes: &'a Sizes,
}

impl<'a> Head<'a> {
    fn width(&self) -> usize {
        self.sizes.width / self.sizes.n_heads
    }

    /// Keys are part 1, values part 2.
    fn all(&self, part: usize) -> Mat<'a> {
        let d = self.sizes.width;
        Mat::strided(&self.qkv[part * d + self.at..], self.sizes.n_tokens, self.width(), 3 * d)
    }

    fn queries(&self, start: usize, n: usize) -> Mat<'a> {
        let d = self.sizes.width;
        Mat::strided(&self.qkv[start * 3 * d + self.at..], n, self.width(), 3 * d)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.width() as f32).sqrt()
    }

    /// Scores of `n` queries with all keys before the softmax, and what of them is padding.
    fn scores<'s>(&self, start: usize, n: usize, room: &'s mut [f32]) -> (&'s mut [f32], Padding<'a>) {
        let n_tokens = self.sizes.n_tokens;
        let scores = &mut room[..n * n_tokens];
        let (q, k) = (self.queries(start, n), self.all(1));
        product(MatMut::new(scores, n, n_tokens), Dst::Overwrite, self.scale(), q, k.t());
        let padding = match self.valid {
            [] => Padding::default(),
            valid => Padding { queries: &valid[start..start + n], keys: valid },
        };
        (scores, padding)
    }
}

fn heads<'a>(qkv: &'a [f32], valid: &'a [bool], sizes: &'a Sizes) -> impl Iterator<Item = Head<'a>> {
    let per_head = sizes.width / sizes.n_heads;
    (0..sizes.n_heads).map(move |head| Head { qkv, valid, at: head * per_head, sizes })
}

/// First query and number of queries of each stretch.
fn stretches(n_tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n_tokens).step_by(QUERIES).map(move |start| (start, QUERIES.min(n_tokens - start)))
}

/// Values of the room that [`forward`] and [`backward`] work in.
pub(super) fn room(sizes: &Sizes) -> usize {
    2 * QUERIES.min(sizes.n_tokens) * sizes.n_tokens
}

/// `joined` gets `[tokens, width]`, `stats` `[heads, tokens]`. `valid` is empty if nothing is padding.
pub(super) fn forward(
    qkv: &[f32],
    valid: &[bool],
    stats: &mut [[f32; 2]],
    joined: &mut [f32],
    room: &mut [f32],
    sizes: &Sizes,
) {
    let (n_tokens, d) = (sizes.n_tokens, sizes.width);
    for (head, stats) in heads(qkv, valid, sizes).zip(stats.chunks_exact_mut(n_tokens)) {
        for (start, n) in stretches(n_tokens) {
            let (p, padding) = head.scores(start, n, room);
            simd::softmax_rows(p, n_tokens, padding, &mut stats[start..start + n]);
            let to = MatMut::strided(&mut joined[start * d + head.at..], n, head.width(), d);
            product(to, Dst::Overwrite, 1.0, Mat::new(p, n, n_tokens), head.all(2));
        }
    }
}

/// `d_qkv` gets `[tokens, 3 * width]`.
pub(super) fn backward(
    qkv: &[f32],
    valid: &[bool],
    stats: &[[f32; 2]],
    d_joined: &[f32],
    d_qkv: &mut [f32],
    room: &mut [f32],
    sizes: &Sizes,
) {
    let (n_tokens, d) = (sizes.n_tokens, sizes.width);
    let (room, other) = room.split_at_mut(room.len() / 2);
    for (head, stats) in heads(qkv, valid, sizes).zip(stats.chunks_exact(n_tokens)) {
        let w = head.width();
        for (start, n) in stretches(n_tokens) {
            let (p, padding) = head.scores(start, n, room);
            simd::softmax_rows_again(p, n_tokens, padding, &stats[start..start + n]);
            let dy = Mat::strided(&d_joined[start * d + head.at..], n, w, d);
            // Keys and values are every stretch's.
            let dst = if start == 0 { Dst::Overwrite } else { Dst::Accumulate };
            let mut to = |part: usize, row: usize, n: usize, dst, scale, a: Mat<'_>, b: Mat<'_>| {
                let at = row * 3 * d + part * d + head.at;
                product(MatMut::strided(&mut d_qkv[at..], n, w, 3 * d), dst, scale, a, b);
            };
            to(2, 0, n_tokens, dst, 1.0, Mat::new(p, n, n_tokens).t(), dy);
            let ds = &mut other[..n * n_tokens];
            product(MatMut::new(ds, n, n_tokens), Dst::Overwrite, 1.0, dy, head.all(2).t());
            simd::softmax_rows_backward(p, ds, n_tokens);
            let ds = Mat::new(ds, n, n_tokens);
            to(0, start, n, Dst::Overwrite, head.scale(), ds, head.all(1));
            to(1, 0, n_tokens, dst, head.scale(), ds.t(), head.queries(start, n));
        }
    }
}

/// `[heads, tokens, tokens]`.
#[cfg(test)]
pub(super) fn weights(qkv: &[f32], valid: &[bool], sizes: &Sizes) -> Vec<f32> {
    let mut all = Vec::new();
    let (mut room, mut stats) = (vec![0.0; room(sizes)], vec![[0.0; 2]; sizes.n_tokens]);
    for head in heads(qkv, valid, sizes) {
        for (start, n) in stretches(sizes.n_tokens) {
            let (p, padding) = head.scores(start, n, &mut room);
            simd::softmax_rows(p, sizes.n_tokens, padding, &mut stats[start..start + n]);
            all.extend_from_slice(p);
        }
    }
    all
}
