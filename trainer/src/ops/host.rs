//! What the fused ops stand on: chunks of examples in parallel, values of tensors.
//!
//! In: host slices. Out: host slices. Never: a result that depends on the number of threads or on timing: how work is cut depends on
//! its sizes alone, a number is one thread's from start to end, and sums over chunks are taken in their order.

use std::sync::{Mutex, OnceLock, PoisonError};

use dfdx::prelude::{Cpu, HasShape, Shape, Tensor};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// Rows of a chunk, if an example has no more: what a block makes of them stays in the processor's cache. Part of what a loss
/// means to the last bit, therefore no setting, and so are the two below.
const CHUNK_ROWS: usize = 256;
/// A batch is cut into as many chunks at least, if it has as many examples. More would leave few rows to each where a step is small,
/// and a product of 32 rows with a kernel that comes from memory has 0.6 of the speed of one of 256. More threads than chunks have nothing to do.
const LEAST_CHUNKS: usize = 2;

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

/// Fixes the number of threads of the fused ops, before the first of them runs. The thread that asks is one of them: it takes its part of
/// the work where it would else wait for the others to be woken and to be done. The same number again is no error.
///
/// # Errors
/// [`ThreadsError::Running`] if another number is already fixed.
pub fn set_threads(n_threads: usize) -> Result<(), ThreadsError> {
    if n_threads == 0 {
        return Err(ThreadsError::Zero);
    }
    let running = match pool(|| builder(n_threads).use_current_thread()) {
        Ok(pool) => pool.current_num_threads(),
        Err(source) => return Err(ThreadsError::Start { wanted: n_threads, source }),
    };
    if running == n_threads { Ok(()) } else { Err(ThreadsError::Running { running, wanted: n_threads }) }
}

fn builder(n_threads: usize) -> ThreadPoolBuilder {
    ThreadPoolBuilder::new().num_threads(n_threads).thread_name(|i| format!("ops-{i}"))
}

/// The pool; if there is none yet, that of `builder`.
fn pool(builder: impl FnOnce() -> ThreadPoolBuilder) -> Result<&'static ThreadPool, ThreadPoolBuildError> {
    static BUILDING: Mutex<()> = Mutex::new(());
    if let Some(pool) = POOL.get() {
        return Ok(pool);
    }
    // One at a time: a pool that is dropped again would keep the thread that belongs to it.
    let _alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    match POOL.get() {
        Some(pool) => Ok(pool),
        None => {
            let built = builder().build()?;
            Ok(POOL.get_or_init(|| built))
        }
    }
}

/// Threads of the fused ops where nothing was set.
const DEFAULT_THREADS: usize = 2;

/// Runs `work` on every job, jobs in parallel, and returns the results in the jobs' order.
pub fn run<J: Send, R: Send>(jobs: Vec<J>, work: impl Fn(J) -> R + Send + Sync) -> Vec<R> {
    if jobs.len() < 2 {
        return jobs.into_iter().map(work).collect();
    }
    match pool(|| builder(DEFAULT_THREADS)) {
        // A pool of one thread is the thread that set the number: nobody would take what another brings.
        Ok(pool) if pool.current_num_threads() > 1 => {
            // One after the other as threads are free: in the order that they were given, so that what is large can come first.
            let of_jobs = jobs.into_iter().enumerate().par_bridge().map(|(i, job)| (i, work(job)));
            let mut done: Vec<(usize, R)> = pool.install(|| of_jobs.collect());
            done.sort_unstable_by_key(|&(i, _)| i);
            done.into_iter().map(|(_, result)| result).collect()
        }
        _ => jobs.into_iter().map(work).collect(),
    }
}

/// Does both at the same time; with one thread one after the other.
pub fn both<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    match pool(|| builder(DEFAULT_THREADS)) {
        Ok(pool) if pool.current_num_threads() > 1 => pool.install(|| rayon::join(a, b)),
        _ => (a(), b()),
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

/// The values of a tensor, where they lie and in the order in which they do.
///
/// # Panics
/// They do not lie densely, as a broadcast tensor's.
pub fn view<S: Shape, T>(tensor: &Tensor<S, f32, Cpu, T>) -> &[f32] {
    let n = tensor.shape().num_elements();
    let Some([first, last]) = ends(tensor.shape()) else { return &[] };
    let (start, end) = (&raw const tensor[first], &raw const tensor[last]);
    assert!(end == start.wrapping_add(n - 1), "the values of a tensor do not lie densely");
    // SAFETY: both ends are in the tensor's vector, which is borrowed with it, and `n` values lie from one to the other. dfdx lends no more than single
    // values, and that what is borrowed with one reaches beyond it is sound by Tree Borrows, not by the stricter Stacked Borrows.
    unsafe { std::slice::from_raw_parts(start, n) }
}

/// As [`view`], to be changed; a tensor that shares its values gets its own first.
///
/// # Panics
/// They do not lie densely.
pub fn view_mut<S: Shape>(tensor: &mut Tensor<S, f32, Cpu>) -> &mut [f32] {
    let n = tensor.shape().num_elements();
    let Some([first, last]) = ends(tensor.shape()) else { return &mut [] };
    // The last one first: the pointer that is used is the newest.
    let end = &raw mut tensor[last];
    let start = &raw mut tensor[first];
    assert!(end == start.wrapping_add(n - 1), "the values of a tensor do not lie densely");
    // SAFETY: both ends are in the tensor's vector, which is its alone since one was borrowed mutably, and which is borrowed with it; `n`
    // values lie from one to the other.
    unsafe { std::slice::from_raw_parts_mut(start, n) }
}

/// Indices of the first and the last value, if there are any.
fn ends<S: Shape>(shape: &S) -> Option<[S::Concrete; 2]> {
    let mut last = shape.concrete();
    for axis in 0..S::NUM_DIMS {
        last[axis] = last[axis].checked_sub(1)?;
    }
    Some([S::Concrete::default(), last])
}

/// The values of a tensor: one memcpy.
pub fn values<S: Shape, T>(tensor: &Tensor<S, f32, Cpu, T>) -> Vec<f32> {
    view(tensor).to_vec()
}
