//! What this processor can do at most, measured: products, and bytes to and from memory.
//!
//! In: nothing. Out: two rates of all threads together. Never: a promise: on a processor whose cache holds the arrays the second is the cache's.

use std::time::Instant;

use super::product::{Dst, Mat, MatMut, Packed, packed_product};
use super::{host, simd};

/// Sides of the products: large enough for the product to be all that counts.
const SIDE: usize = 512;
/// Numbers of each of a thread's two arrays: 64 MiB a thread, more than its share of most caches.
const N_ADDED: usize = 8 << 20;
/// The best of as many counts: what disturbs makes slower only.
const N_TRIES: usize = 5;

/// GFLOP/s of products in f32.
pub fn gflops(n_threads: usize) -> f64 {
    const PRODUCTS: usize = 16;
    let jobs = || {
        (0..n_threads).map(|_| {
            let b = Packed::new(Mat::new(&vec![0.25; SIDE * SIDE], SIDE, SIDE));
            (vec![0.5; SIDE * SIDE], b, vec![0.0; SIDE * SIDE])
        })
    };
    let seconds = best(|| {
        let jobs: Vec<_> = jobs().collect();
        let begin = Instant::now();
        host::run(jobs, |(a, b, mut to)| {
            for _ in 0..PRODUCTS {
                let to = MatMut::new(&mut to, SIDE, SIDE);
                packed_product(to, Dst::Overwrite, Mat::new(&a, SIDE, SIDE), &b);
            }
            to
        });
        begin.elapsed().as_secs_f64()
    });
    (n_threads * PRODUCTS * 2 * SIDE * SIDE * SIDE) as f64 / seconds / 1e9
}

/// GB/s of adding one array to another: two are read, one is written.
pub fn gb_per_s(n_threads: usize) -> f64 {
    let mut arrays: Vec<_> = (0..n_threads).map(|_| (vec![1.0; N_ADDED], vec![1.0; N_ADDED])).collect();
    let seconds = best(|| {
        let begin = Instant::now();
        host::run(arrays.iter_mut().collect(), |(to, from): &mut (Vec<f32>, Vec<f32>)| simd::add(to, from));
        begin.elapsed().as_secs_f64()
    });
    (n_threads * 3 * 4 * N_ADDED) as f64 / seconds / 1e9
}

fn best(mut run: impl FnMut() -> f64) -> f64 {
    (0..N_TRIES).map(|_| run()).fold(f64::INFINITY, f64::min)
}
