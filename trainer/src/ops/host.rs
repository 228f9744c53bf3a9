//! What the fused ops stand on: lanes over examples, strided matrices, products by `gemm`.
//!
//! In: host slices. Out: host slices. Never: a result that depends on the number of threads or on timing: work is cut into
//! [`N_LANES`] lanes at most, each lane is one thread's from start to end, and sums over lanes are taken in their order.

use std::sync::OnceLock;

use dfdx::prelude::{CopySlice, Cpu, HasShape, Shape, Tensor};
use rayon::ThreadPool;
use rayon::prelude::*;

/// Most lanes that a batch is cut into. Part of what a loss means to the last bit, therefore no setting.
pub const N_LANES: usize = 4;

/// A thread pool that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ThreadsError {
    #[error("`train.threads` is 0, must be at least 1")]
    Zero,
    #[error(
        "the fused ops already run on {running} threads, cannot change to {wanted}; set the number before the first op"
    )]
    Running { running: usize, wanted: usize },
    #[error("cannot start {wanted} threads for the fused ops")]
    Start { wanted: usize, source: rayon::ThreadPoolBuildError },
}

static POOL: OnceLock<ThreadPool> = OnceLock::new();

/// Fixes the number of threads of the fused ops, before the first of them runs. The same number again is no error.
///
/// # Errors
/// [`ThreadsError::Running`] if another number is already fixed.
pub fn set_threads(n_threads: usize) -> Result<(), ThreadsError> {
    if n_threads == 0 {
        return Err(ThreadsError::Zero);
    }
    if POOL.get().is_none() {
        let pool = build(n_threads).map_err(|source| ThreadsError::Start { wanted: n_threads, source })?;
        // If another thread was first, its pool stays and the check below speaks.
        drop(POOL.set(pool));
    }
    match POOL.get().map_or(n_threads, ThreadPool::current_num_threads) {
        running if running == n_threads => Ok(()),
        running => Err(ThreadsError::Running { running, wanted: n_threads }),
    }
}

fn build(n_threads: usize) -> Result<ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).thread_name(|i| format!("ops-{i}")).build()
}

/// Threads of the fused ops where nothing was set.
const DEFAULT_THREADS: usize = 2;

/// Runs `work` on every job and returns the results in the jobs' order.
pub fn run_lanes<J: Send, R: Send>(jobs: Vec<J>, work: impl Fn(J) -> R + Send + Sync) -> Vec<R> {
    if jobs.len() < 2 {
        return jobs.into_iter().map(work).collect();
    }
    if POOL.get().is_none()
        && let Ok(pool) = build(DEFAULT_THREADS)
    {
        drop(POOL.set(pool));
    }
    match POOL.get() {
        Some(pool) => pool.install(|| jobs.into_par_iter().with_max_len(1).map(work).collect()),
        None => jobs.into_iter().map(work).collect(),
    }
}

/// Cuts `n` examples into lanes: their sizes, in order, none zero.
pub fn lane_sizes(n: usize) -> Vec<usize> {
    let n_lanes = N_LANES.min(n).max(1);
    (0..n_lanes).map(|lane| (lane + 1) * n / n_lanes - lane * n / n_lanes).collect()
}

/// Cuts `data` of `per_example` values an example at the lanes' borders.
pub fn split<'a>(mut data: &'a [f32], lanes: &[usize], per_example: usize) -> Vec<&'a [f32]> {
    let mut parts = Vec::with_capacity(lanes.len());
    for n in lanes {
        let (part, rest) = data.split_at(n * per_example);
        parts.push(part);
        data = rest;
    }
    parts
}

/// As [`split`].
pub fn split_mut<'a>(mut data: &'a mut [f32], lanes: &[usize], per_example: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(lanes.len());
    for n in lanes {
        let (part, rest) = data.split_at_mut(n * per_example);
        parts.push(part);
        data = rest;
    }
    parts
}

/// The values of a tensor: one memcpy.
pub fn values<S: Shape, T>(tensor: &Tensor<S, f32, Cpu, T>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape().num_elements()];
    Cpu::copy_into(tensor, &mut values);
    values
}

/// `into += from`.
pub fn add(into: &mut [f32], from: &[f32]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a += b;
    }
}

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
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// Row-major, dense.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `cols` columns of rows that lie `row_stride` apart.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "a matrix leaves its slice");
        assert!(cols <= row_stride || rows < 2, "rows of a matrix to be written overlap");
        Self { data, rows, cols, row_stride }
    }
}

/// What happens to the values that a product finds in its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dst {
    Overwrite,
    Accumulate,
}

/// `to = scale * a b`, or `to += scale * a b`; on the calling thread alone.
pub fn product(to: MatMut<'_>, dst: Dst, scale: f32, a: Mat<'_>, b: Mat<'_>) {
    assert!(a.cols == b.rows && to.rows == a.rows && to.cols == b.cols, "the sizes of a product disagree");
    let stride = |n: usize| n as isize;
    // SAFETY: `Mat` and `MatMut` hold every element that their sizes and strides address inside their slices, rows of
    // `to` do not overlap, and `to` is borrowed mutably, so it aliases neither `a` nor `b`.
    unsafe {
        gemm::gemm(
            to.rows,
            to.cols,
            a.cols,
            to.data.as_mut_ptr(),
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
