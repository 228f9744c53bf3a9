//! What the fused ops stand on: chunks of examples in parallel, strided matrices, products by `gemm`.
//!
//! In: host slices. Out: host slices. Never: a result that depends on the number of threads or on timing: how work is cut depends on
//! its sizes alone, a number is one thread's from start to end, and sums over chunks are taken in their order.

use std::cell::RefCell;
use std::sync::OnceLock;

use dfdx::prelude::{CopySlice, Cpu, HasShape, Shape, Tensor};
use rayon::ThreadPool;
use rayon::prelude::*;

/// Rows of a chunk, if an example has no more: what a block makes of them stays in the processor's cache. Part of what a loss
/// means to the last bit, therefore no setting, and so are the two below.
const CHUNK_ROWS: usize = 256;
/// A batch is cut into as many chunks at least, if it has as many examples. More would leave few rows to each where a step is small,
/// and a product of 32 rows with a kernel that comes from memory has 0.6 of the speed of one of 256. More threads than chunks have nothing to do.
const LEAST_CHUNKS: usize = 2;
/// Rows of a tile of a kernel whose gradient is summed, at most.
const TILE_ROWS: usize = 256;

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

/// Runs `work` on every job, jobs in parallel, and returns the results in the jobs' order.
pub fn run<J: Send, R: Send>(jobs: Vec<J>, work: impl Fn(J) -> R + Send + Sync) -> Vec<R> {
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

/// Cuts `n` examples of `n_rows` rows into chunks: their sizes, in order, none zero unless `n` is.
pub fn chunk_sizes(n: usize, n_rows: usize) -> Vec<usize> {
    let n_chunks = (n * n_rows).div_ceil(CHUNK_ROWS).max(LEAST_CHUNKS).min(n).max(1);
    (0..n_chunks).map(|chunk| (chunk + 1) * n / n_chunks - chunk * n / n_chunks).collect()
}

/// Cuts `data` of `per_example` values an example at the chunks' borders.
pub fn split<'a, T>(mut data: &'a [T], chunks: &[usize], per_example: usize) -> Vec<&'a [T]> {
    let mut parts = Vec::with_capacity(chunks.len());
    for n in chunks {
        let (part, rest) = data.split_at(n * per_example);
        parts.push(part);
        data = rest;
    }
    parts
}

/// As [`split`].
pub fn split_mut<'a, T>(mut data: &'a mut [T], chunks: &[usize], per_example: usize) -> Vec<&'a mut [T]> {
    let mut parts = Vec::with_capacity(chunks.len());
    for n in chunks {
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

thread_local! {
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lets `change` change the values of a tensor, which has to be copied out and back; the room for that stays with the thread.
pub fn change_values<S: Shape>(tensor: &mut Tensor<S, f32, Cpu>, change: impl FnOnce(&mut [f32])) {
    ROOM.with_borrow_mut(|room| {
        let n = tensor.shape().num_elements();
        room.resize(room.len().max(n), 0.0);
        Cpu::copy_into(tensor, &mut room[..n]);
        change(&mut room[..n]);
        tensor.copy_from(&room[..n]);
    });
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

    /// Columns `range` alone.
    fn columns(self, range: std::ops::Range<usize>) -> Self {
        assert!(range.end <= self.cols, "columns of a matrix that it has not");
        Self { data: &self.data[(range.start * self.col_stride).min(self.data.len())..], cols: range.len(), ..self }
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
    // SAFETY: `MatMut` holds every element that its sizes and stride address inside its slice, rows of it do not overlap, and it
    // is borrowed mutably, so it aliases neither `a` nor `b`.
    unsafe { multiply(to.data.as_mut_ptr(), to.row_stride, dst, scale, a, b) }
}

/// `scale * a b`, row-major.
pub fn product_of(scale: f32, a: Mat<'_>, b: Mat<'_>) -> Vec<f32> {
    assert!(a.cols == b.rows, "the sizes of a product disagree");
    let n = a.rows * b.cols;
    let mut to = Vec::with_capacity(n);
    // SAFETY: the vector has room for every element, each is written and none read before, so that all are set at the end.
    unsafe {
        multiply(to.as_mut_ptr(), b.cols, Dst::Overwrite, scale, a, b);
        to.set_len(n);
    }
    to
}

/// The product, to rows `row_stride` apart.
///
/// # Safety
/// `to` may be written where `a.rows` rows of `b.cols` lie, and nothing else reads or writes there; with [`Dst::Accumulate`] it is set.
unsafe fn multiply(to: *mut f32, row_stride: usize, dst: Dst, scale: f32, a: Mat<'_>, b: Mat<'_>) {
    let stride = |n: usize| n as isize;
    // SAFETY: of `to` the caller says it; `Mat` holds every element that its sizes and strides address inside its slice.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            to,
            1,
            stride(row_stride),
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

/// A kernel's gradient: `into`, (in, out), gets the sum over `parts` of `left^T right` added, where `left` is `[rows, in]` and `right`
/// `[rows, out]`.
pub struct KernelGrad<'a> {
    pub into: &'a mut [f32],
    pub n_out: usize,
    pub parts: Vec<(Mat<'a>, Mat<'a>)>,
}

/// Sums kernels' gradients over all chunks where they belong. A tile of a kernel is one thread's, so that no chunk needs a sum of its own.
pub fn add_kernel_grads(kernels: Vec<KernelGrad<'_>>) {
    let mut jobs = Vec::new();
    let shared: Vec<_> = kernels.iter().map(|kernel| kernel.parts.clone()).collect();
    for (KernelGrad { into, n_out, .. }, parts) in kernels.into_iter().zip(&shared) {
        let n_in = into.len() / n_out;
        let tile_rows = n_in.div_ceil(n_in.div_ceil(TILE_ROWS).max(1)).max(1);
        let tiles = into.chunks_mut(tile_rows * n_out).enumerate();
        jobs.extend(tiles.map(|(i, tile)| (i * tile_rows, tile, n_out, parts)));
    }
    // Large ones first, so that none is left to one thread at the end.
    jobs.sort_by_key(|(_, tile, ..)| std::cmp::Reverse(tile.len()));
    run(jobs, |(start, tile, n_out, parts)| {
        let rows = tile.len() / n_out;
        for (left, right) in parts {
            let left = left.columns(start..start + rows).t();
            product(MatMut::new(tile, rows, n_out), Dst::Accumulate, 1.0, left, *right);
        }
    });
}
