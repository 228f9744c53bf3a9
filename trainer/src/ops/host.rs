//! What the fused ops stand on: chunks of examples in parallel, values of tensors.
//!
//! In: host slices. Out: host slices. Never: a result that depends on the number of threads or on timing: how work is cut depends on
//! its sizes alone, a number is one thread's from start to end, and sums over chunks are taken in their order.

use std::cell::Cell;
use std::sync::{Mutex, OnceLock, PoisonError};

use dfdx::prelude::{CopySlice, Cpu, HasShape, Shape, Tensor};
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
    static ROOM: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Lends `n` numbers of any content, which stay with the thread.
fn with_room<R>(n: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut room = ROOM.take();
    room.resize(room.len().max(n), 0.0);
    let out = work(&mut room[..n]);
    ROOM.set(room);
    out
}

/// Shows `look` the values of a tensor, which have to be copied out.
pub fn with_values<S: Shape, R>(tensor: &Tensor<S, f32, Cpu>, look: impl FnOnce(&[f32]) -> R) -> R {
    with_room(tensor.shape().num_elements(), |values| {
        Cpu::copy_into(tensor, values);
        look(values)
    })
}

/// Lets `change` change the values of a tensor, which have to be copied out and back.
pub fn change_values<S: Shape>(tensor: &mut Tensor<S, f32, Cpu>, change: impl FnOnce(&mut [f32])) {
    with_room(tensor.shape().num_elements(), |values| {
        Cpu::copy_into(tensor, values);
        change(values);
        tensor.copy_from(values);
    });
}
