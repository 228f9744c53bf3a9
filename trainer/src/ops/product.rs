//! Matrix products of the fused ops, on the thread that asks.
//!
//! In: strided matrices in slices; kernels, as they are or packed. Out: strided matrices. Never: a sum that depends on the number of threads or on
//! the processor's vectors.
//!
//! The loops are ours (`tile`): `gemm` packs both sides in every call, and a kernel that serves all chunks and streams of a step was packed
//! some ten times, for a tenth of a step's time where chunks have 256 rows and a quarter where they have 64. Here a kernel is packed once a step ([`Packs`]), a left
//! side never, and a right side only where its rows are not dense. On a processor without AVX2 the loops are those of `gemm`.

mod tile;
mod turn;

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use super::host;
use tile::{Isa, LINES, Line, PANEL, STEP};

/// Depth of a panel that is used up before the next: with 64 columns 128 KiB, which stay in the processor's second cache beside the rows that meet it.
const DEPTH: usize = 512;

/// A matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major, dense.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `cols` columns of rows that lie `row_stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "a matrix leaves its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Columns `range` alone.
    fn columns(self, range: std::ops::Range<usize>) -> Self {
        assert!(range.end <= self.cols, "columns of a matrix that it has not");
        Self { data: &self.data[(range.start * self.col_stride).min(self.data.len())..], cols: range.len(), ..self }
    }

    /// Rows `range` alone.
    fn rows(self, range: std::ops::Range<usize>) -> Self {
        assert!(range.end <= self.rows, "rows of a matrix that it has not");
        Self { data: &self.data[(range.start * self.row_stride).min(self.data.len())..], rows: range.len(), ..self }
    }

    /// Transposed.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }
}

/// A row-major matrix inside a slice, to be written.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a mutable borrow of the elements that it addresses, and no other matrix addresses one of them.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// Row-major, dense.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `cols` columns of rows that lie `row_stride` apart.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "a matrix leaves its slice");
        assert!(cols <= row_stride || rows < 2, "rows of a matrix to be written overlap");
        Self { data: data.as_mut_ptr(), rows, cols, row_stride, owner: PhantomData }
    }

    fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { owner: PhantomData, ..*self }
    }

    /// Panel `i` alone.
    fn panel(&mut self, i: usize) -> MatMut<'_> {
        let start = i * PANEL;
        assert!(start < self.cols, "a panel of a matrix that has it not");
        let cols = PANEL.min(self.cols - start);
        MatMut { data: self.data.wrapping_add(start), cols, owner: PhantomData, ..*self }
    }

    /// All panels: columns that no two of them share.
    fn panels(self) -> impl Iterator<Item = MatMut<'a>> {
        let starts = (0..self.cols).step_by(PANEL);
        starts.map(move |start| {
            let cols = PANEL.min(self.cols - start);
            MatMut { data: self.data.wrapping_add(start), cols, owner: PhantomData, ..self }
        })
    }
}

/// What happens to the values that a product finds in its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dst {
    Overwrite,
    Accumulate,
}

/// `to = scale * a b`, or `to += scale * a b`; on the calling thread alone.
///
/// # Panics
/// The sizes disagree.
pub fn product(to: MatMut<'_>, dst: Dst, scale: f32, a: Mat<'_>, b: Mat<'_>) {
    product_with(Isa::widest(), to, dst, scale, a, b);
}

fn product_with(isa: Isa, mut to: MatMut<'_>, dst: Dst, scale: f32, a: Mat<'_>, b: Mat<'_>) {
    assert!(a.cols == b.rows && to.rows == a.rows && to.cols == b.cols, "the sizes of a product disagree");
    if isa == Isa::Any {
        return by_gemm(to, dst, scale, a, b);
    }
    if b.col_stride == 1 && b.cols.is_multiple_of(STEP) {
        return tile::multiply(isa, to, dst, scale, &[(a, b)]);
    }
    for (i, start) in (0..b.cols).step_by(PANEL).enumerate() {
        let right = b.columns(start..(start + PANEL).min(b.cols));
        with_room(b.rows * LINES, |lines| {
            pack(right, lines);
            tile::multiply(isa, to.panel(i), dst, scale, &[(a, tile::panel(lines))]);
        });
    }
}

/// `to = a b`; threads share the columns of `b`.
///
/// # Panics
/// The sizes disagree.
pub fn product_of_few_rows(to: MatMut<'_>, a: Mat<'_>, b: Mat<'_>) {
    assert!(to.cols == b.cols, "the sizes of a product disagree");
    let jobs = to.panels().zip((0..b.cols).step_by(PANEL)).collect();
    host::run(jobs, |(to, start): (MatMut<'_>, usize)| {
        let columns = b.columns(start..start + to.cols);
        product(to, Dst::Overwrite, 1.0, a, columns);
    });
}

/// [`product`] on a processor that the loops are not written for.
fn by_gemm(to: MatMut<'_>, dst: Dst, scale: f32, a: Mat<'_>, b: Mat<'_>) {
    assert!(a.cols == b.rows && to.rows == a.rows && to.cols == b.cols, "the sizes of a product disagree");
    let stride = |n: usize| n as isize;
    // SAFETY: `MatMut` holds every element that its sizes and stride address, rows of it do not overlap, and it is borrowed mutably, so it
    // aliases neither `a` nor `b`; `Mat` holds every element that its sizes and strides address inside its slice.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            to.data,
            1,
            stride(to.row_stride),
            dst == Dst::Accumulate,
            a.data.as_ptr(),
            stride(a.col_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.col_stride),
            stride(b.row_stride),
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

thread_local! {
    /// Where right sides are packed that serve one product.
    static ROOM: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Lends `n` lines of any content, which stay with the thread.
fn with_room<R>(n: usize, work: impl FnOnce(&mut [Line]) -> R) -> R {
    let mut room = ROOM.take();
    room.resize(room.len().max(n), Line([0.0; 16]));
    let out = work(&mut room[..n]);
    ROOM.set(room);
    out
}

/// The right side of products, in panels of 64 columns.
#[derive(Debug)]
pub struct Packed {
    lines: Vec<Line>,
    depth: usize,
    cols: usize,
}

impl Packed {
    /// Packs `b`, whose rows or columns are dense.
    pub fn new(b: Mat<'_>) -> Self {
        let per_panel = b.rows * LINES;
        let mut lines = vec![Line([0.0; 16]); b.cols.div_ceil(PANEL) * per_panel];
        for (start, lines) in (0..b.cols).step_by(PANEL).zip(lines.chunks_mut(per_panel.max(1))) {
            pack(b.columns(start..(start + PANEL).min(b.cols)), lines);
        }
        Self { lines, depth: b.rows, cols: b.cols }
    }

    /// Panel `i` of the depth in `range`.
    fn panel(&self, i: usize, range: std::ops::Range<usize>) -> Mat<'_> {
        tile::panel(&self.lines[(i * self.depth + range.start) * LINES..(i * self.depth + range.end) * LINES])
    }
}

/// Which way a kernel is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Forward,
    /// Transposed.
    Back,
}

impl Way {
    pub fn turn(self, kernel: Mat<'_>) -> Mat<'_> {
        if self == Self::Forward { kernel } else { kernel.t() }
    }
}

/// The packed kernels of a layer for one way: made when they are first asked for, in place of those for the other, and shared by all
/// copies of the layer, so that all streams of a step use the same. Parameters are tensors that do not change while somebody holds them, and
/// a layer holds its own: what is packed cannot grow old. Only the CPU asks.
#[derive(Debug, Clone, Default)]
pub struct Packs(Arc<Mutex<Option<Held>>>);

type Held = (Way, Arc<Vec<Packed>>);

impl Packs {
    /// Those for `way`; `make` makes them.
    pub fn get(&self, way: Way, make: impl FnOnce() -> Vec<Packed>) -> Arc<Vec<Packed>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((of, packs)) if *of == way => packs.clone(),
            // Locked while it is packed: two threads that run one layer are none of the fused ops' own, which the caller waits for.
            _ => {
                // Given back before the others are made: a model's worth of memory.
                *held = None;
                held.insert((way, Arc::new(make()))).1.clone()
            }
        }
    }
}

/// Packs `b`, of at most [`PANEL`] columns, to `lines`; what is missing of a row stays as it was, and nobody reads what it gives.
fn pack(b: Mat<'_>, lines: &mut [Line]) {
    assert!(b.cols <= PANEL && (b.col_stride == 1 || b.row_stride == 1), "a panel's rows or columns are dense");
    let (rows_of_lines, _) = lines.as_chunks_mut::<LINES>();
    assert!(rows_of_lines.len() == b.rows, "a panel has as many rows as what it is packed from");
    if b.col_stride != 1 {
        return turn::columns(b, rows_of_lines);
    }
    for (row, to) in rows_of_lines.iter_mut().enumerate() {
        let (whole, rest) = b.data[row * b.row_stride..][..b.cols].as_chunks::<16>();
        to.iter_mut().zip(whole).for_each(|(line, values)| line.0 = *values);
        if !rest.is_empty() {
            to[whole.len()].0[..rest.len()].copy_from_slice(rest);
        }
    }
}

/// `to = a b`, or `to += a b`; on the calling thread alone.
pub fn packed_product(to: MatMut<'_>, dst: Dst, a: Mat<'_>, b: &Packed) {
    packed_product_with(Isa::widest(), to, dst, a, b);
}

fn packed_product_with(isa: Isa, mut to: MatMut<'_>, dst: Dst, a: Mat<'_>, b: &Packed) {
    assert!(a.cols == b.depth && to.rows == a.rows && to.cols == b.cols, "the sizes of a product disagree");
    assert!(b.depth > 0 || dst == Dst::Accumulate, "a product without depth is nothing to write");
    for start in (0..b.depth).step_by(DEPTH) {
        let range = start..(start + DEPTH).min(b.depth);
        let dst = if start == 0 { dst } else { Dst::Accumulate };
        for i in 0..b.cols.div_ceil(PANEL) {
            let stretch = (a.columns(range.clone()), b.panel(i, range.clone()));
            tile::multiply(isa, to.panel(i), dst, 1.0, &[stretch]);
        }
    }
}

/// `a b`, row-major.
pub fn packed_product_of(a: Mat<'_>, b: &Packed) -> Vec<f32> {
    let n = a.rows * b.cols;
    let mut to = Vec::with_capacity(n);
    let all = MatMut { data: to.as_mut_ptr(), rows: a.rows, cols: b.cols, row_stride: b.cols, owner: PhantomData };
    packed_product(all, Dst::Overwrite, a, b);
    // SAFETY: the vector has room for every element, and each was written, and none read before.
    unsafe { to.set_len(n) };
    to
}

/// A kernel's gradient: `into`, (in, out), gets the sum over `parts` of `left^T right` added, where `left` is `[rows, in]` and `right`
/// `[rows, out]`.
pub struct KernelGrad<'a> {
    pub into: &'a mut [f32],
    pub n_out: usize,
    pub parts: Vec<(Mat<'a>, Mat<'a>)>,
}

/// Sums kernels' gradients over all chunks where they belong, in parallel. A panel of a kernel is one thread's, so that no chunk needs a sum of its own.
pub fn add_kernel_grads(kernels: Vec<KernelGrad<'_>>) {
    let mut jobs = Vec::new();
    let shared: Vec<_> = kernels.iter().map(|kernel| kernel.parts.clone()).collect();
    for (KernelGrad { into, n_out, .. }, parts) in kernels.into_iter().zip(&shared) {
        let n_in = into.len() / n_out;
        jobs.extend(MatMut::new(into, n_in, n_out).panels().enumerate().map(|(i, panel)| (i, panel, parts)));
    }
    // Large ones first, so that none is left to one thread at the end.
    jobs.sort_by_key(|(_, panel, _)| std::cmp::Reverse(panel.rows * panel.cols));
    host::run(jobs, |(i, panel, parts)| add_panel(Isa::widest(), panel, i, parts));
}

/// Adds to panel `i` of a kernel's gradient.
fn add_panel(isa: Isa, mut panel: MatMut<'_>, i: usize, parts: &[(Mat<'_>, Mat<'_>)]) {
    let columns = i * PANEL..i * PANEL + panel.cols;
    let cut = parts.iter().flat_map(|&(left, right)| {
        let right = right.columns(columns.clone());
        (0..left.rows).step_by(DEPTH).map(move |start| {
            let rows = start..(start + DEPTH).min(left.rows);
            (left.rows(rows.clone()), right.rows(rows))
        })
    });
    let cut: Vec<_> = cut.collect();
    let mut rest = &cut[..];
    while !rest.is_empty() {
        // As many as are no deeper than a panel together, so that the sums go to memory once for all of them.
        let mut depth = 0;
        let n = rest.iter().take_while(|(left, _)| {
            depth += left.rows;
            depth <= DEPTH
        });
        let (together, others) = rest.split_at(n.count().max(1));
        with_room(together.iter().map(|(left, _)| left.rows * LINES).sum(), |mut lines| {
            let mut stretches = Vec::with_capacity(together.len());
            for (left, right) in together {
                let (of_part, behind) = lines.split_at_mut(left.rows * LINES);
                pack(*right, of_part);
                stretches.push((left.t(), tile::panel(of_part)));
                lines = behind;
            }
            tile::multiply(isa, panel.reborrow(), Dst::Accumulate, 1.0, &stretches);
        });
        rest = others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 2_654_435_761 + seed * 97) % 1_000) as f32 / 500.0 - 1.0).collect()
    }

    fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..cols).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
    }

    fn near(found: &[f32], wanted: &[f32], depth: usize) {
        let most = (depth as f32) * 2e-7 + 1e-6;
        assert_eq!(found.len(), wanted.len());
        assert!(found.iter().zip(wanted).all(|(f, w)| (f - w).abs() <= most * 4.0), "{found:?}\n{wanted:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// Both ways to pack, both destinations, all instructions: beside `gemm`, with the same bits among those that multiply and add at once,
        /// and nothing written beside the columns asked for.
        #[test]
        fn products_with_packed_kernels_are_those_of_gemm(
            rows in 0usize..20, depth in 1usize..700, cols in 1usize..150, add in any::<bool>(), seed in 0usize..100,
        ) {
            let (a, b) = (values(rows * depth, seed), values(depth * cols, seed + 1));
            let b_t = transposed(&b, depth, cols);
            let (a, b) = (Mat::new(&a, rows, depth), Mat::new(&b, depth, cols));
            let dst = if add { Dst::Accumulate } else { Dst::Overwrite };
            // Three columns behind each row are somebody else's.
            let stride = cols + 3;
            let before = values(rows * stride, seed + 2);
            let mut wanted = before.clone();
            by_gemm(MatMut::strided(&mut wanted, rows, cols, stride), dst, 1.0, a, b);
            let mut exact: Option<Vec<f32>> = None;
            for isa in Isa::all() {
                for packed in [Packed::new(b), Packed::new(Mat::new(&b_t, cols, depth).t())] {
                    let mut found = before.clone();
                    packed_product_with(isa, MatMut::strided(&mut found, rows, cols, stride), dst, a, &packed);
                    near(&found, &wanted, depth);
                    if isa != Isa::Any {
                        prop_assert_eq!(exact.get_or_insert_with(|| found.clone()), &found);
                    }
                }
            }
        }

        /// The same without packing beforehand, right sides that lie either way, scaled.
        #[test]
        fn products_of_any_two_sides_are_those_of_gemm(
            rows in 0usize..20, depth in 0usize..300, cols in 1usize..150, add in any::<bool>(), seed in 0usize..100,
        ) {
            let (a, b) = (values(rows * depth, seed), values(depth * cols, seed + 1));
            let (a_t, b_t) = (transposed(&a, rows, depth), transposed(&b, depth, cols));
            let dst = if add { Dst::Accumulate } else { Dst::Overwrite };
            let before = values(rows * cols, seed + 2);
            for a in [Mat::new(&a, rows, depth), Mat::new(&a_t, depth, rows).t()] {
                for b in [Mat::new(&b, depth, cols), Mat::new(&b_t, cols, depth).t()] {
                    let (mut wanted, mut exact) = (before.clone(), None::<Vec<f32>>);
                    by_gemm(MatMut::new(&mut wanted, rows, cols), dst, 0.7, a, b);
                    for isa in Isa::all() {
                        let mut found = before.clone();
                        product_with(isa, MatMut::new(&mut found, rows, cols), dst, 0.7, a, b);
                        near(&found, &wanted, depth);
                        if isa != Isa::Any {
                            prop_assert_eq!(exact.get_or_insert_with(|| found.clone()), &found);
                        }
                    }
                }
            }
        }

        #[test]
        fn kernels_gradients_are_sums_over_all_parts(
            sizes in proptest::collection::vec(0usize..600, 1..5), n_in in 1usize..40, n_out in 1usize..150, seed in 0usize..100,
        ) {
            let sides: Vec<_> =
                sizes.iter().map(|n| (values(n * n_in, seed), values(n * (n_out + 5), seed + 1), *n)).collect();
            let parts = || {
                let each = sides.iter();
                let each = each.map(|(l, r, n)| (Mat::new(l, *n, n_in), Mat::strided(&r[2.min(r.len())..], *n, n_out, n_out + 5)));
                each.collect::<Vec<_>>()
            };
            let before = values(n_in * n_out, seed + 2);
            let mut wanted = before.clone();
            for (left, right) in parts() {
                by_gemm(MatMut::new(&mut wanted, n_in, n_out), Dst::Accumulate, 1.0, left.t(), right);
            }
            let depth = sizes.iter().sum();
            for isa in Isa::all() {
                let mut found = before.clone();
                for (i, panel) in MatMut::new(&mut found, n_in, n_out).panels().enumerate() {
                    add_panel(isa, panel, i, &parts());
                }
                near(&found, &wanted, depth);
            }
            let mut found = before;
            add_kernel_grads(vec![KernelGrad { into: &mut found, n_out, parts: parts() }]);
            near(&found, &wanted, depth);
        }
    }
}
