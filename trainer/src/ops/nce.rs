//! Symmetric noise-contrastive loss of one pair of streams.
//!
//! In: common-space vectors of both, not normalised, `[batch, instances, width]`, and the pair's raw temperature. Out: the
//! loss. Never: negatives from outside the batch.
//!
//! `s = cosine / temperature`, the temperature a [`TemperatureForm`] of the pair's parameter; each direction is the mean over examples of `logsumexp` over everything minus
//! `logsumexp` over the example's own instances. With one instance this is symmetric InfoNCE.
//! Source: Akbari et al. 2023, arXiv:2305.06324, and the authors' release.

use dfdx::prelude::*;
use serde::{Deserialize, Serialize};

use super::host::{self, values};
use super::product::{Dst, Mat, MatMut, product};
use super::{Flat, SMALL, Scalar, Tokens, l2_norm, simd};

/// How a pair's parameter `p` becomes its temperature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemperatureForm {
    /// `relu(p) + 1e-6`, the release's; pushed to 0 or below it has no gradient any more (IMP.md, trap T8).
    #[default]
    Relu,
    /// `exp(p)`, held between [`LEAST_TEMPERATURE`] and [`GREATEST_TEMPERATURE`]. Beyond a bound only a gradient that leads back is one.
    Log,
}

/// The bound of Radford et al. 2021, arXiv:2103.00020: logits of 100.
pub const LEAST_TEMPERATURE: f32 = 0.01;
pub const GREATEST_TEMPERATURE: f32 = 10.0;

impl TemperatureForm {
    /// The parameter of a temperature.
    pub fn parameter(self, temperature: f64) -> f64 {
        match self {
            Self::Relu => temperature,
            Self::Log => temperature.ln(),
        }
    }

    /// The temperature of a parameter.
    fn temperature(self, p: f32) -> f32 {
        match self {
            Self::Relu => p.max(0.0) + SMALL,
            Self::Log => p.exp().clamp(LEAST_TEMPERATURE, GREATEST_TEMPERATURE),
        }
    }

    /// The gradient at the parameter, by that at the temperature.
    fn gradient(self, p: f32, tau: f32, d_tau: f32) -> f32 {
        match self {
            Self::Relu => {
                if p > 0.0 {
                    d_tau
                } else {
                    0.0
                }
            }
            Self::Log => {
                // A step goes against the gradient.
                let leads_out =
                    (p < LEAST_TEMPERATURE.ln() && d_tau > 0.0) || (p > GREATEST_TEMPERATURE.ln() && d_tau < 0.0);
                if leads_out { 0.0 } else { d_tau * tau }
            }
        }
    }
}

/// The stock composition.
pub fn stock<D: Device<f32>, T: Tape<f32, D>>(
    u: Tokens<D, T>,
    v: Tokens<D, T>,
    temperature: &Flat<D>,
    form: TemperatureForm,
) -> Result<Scalar<D, T>, D::Err> {
    let (n, n_u, d) = *u.shape();
    let n_v = v.shape().1;
    let u = l2_norm::stock(u.try_reshape_like(&(n * n_u, d))?)?;
    let v = l2_norm::stock(v.try_reshape_like(&(n * n_v, d))?)?.try_permute::<_, Axes2<1, 0>>()?;
    let tau = match form {
        TemperatureForm::Relu => temperature.retaped::<T>().try_relu()?.try_add(SMALL)?,
        // Here the gradient goes on beyond the bounds, either way.
        TemperatureForm::Log => {
            let p = temperature.as_vec()[0];
            let held = p.clamp(LEAST_TEMPERATURE.ln(), GREATEST_TEMPERATURE.ln());
            temperature.retaped::<T>().try_add(held - p)?.try_exp()?
        }
    };
    let tau = tau.try_sum::<(), _>()?;
    let s = u.try_matmul(v)?;
    let s = s.try_div(tau.try_broadcast_like(&(n * n_u, n * n_v))?)?;
    let s = s.try_reshape_like(&(n, n_u, n, n_v))?.try_permute::<_, Axes4<0, 2, 1, 3>>()?;
    let s = s.try_reshape_like(&(n, n, n_u * n_v))?;
    let own = s.device().try_tensor_from_vec((0..n).collect::<Vec<usize>>(), (n,))?;
    let positive = s.with_empty_tape().try_select(own)?.try_logsumexp::<(usize,), Axis<1>>()?.try_mean::<(), _>()?;
    let (s, tape) = s.split_tape();
    let other = s.clone().retaped::<T>().try_permute::<_, Axes3<1, 0, 2>>()?;
    let s = s.put_tape(tape);
    let by_u = s.try_reshape_like(&(n, n * n_u * n_v))?.try_logsumexp::<(usize,), Axis<1>>()?.try_mean::<(), _>()?;
    let by_v =
        other.try_reshape_like(&(n, n * n_u * n_v))?.try_logsumexp::<(usize,), Axis<1>>()?.try_mean::<(), _>()?;
    by_u.try_add(by_v)?.try_mul(0.5)?.try_sub(positive)
}

/// Both directions' losses, and the gradient of their weighted sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Nce {
    /// `[loss of u → v, loss of v → u]`
    pub losses: [f32; 2],
    /// `[batch * instances of u, batch * instances of v]`
    pub similarity: Vec<f32>,
    pub du: Vec<f32>,
    pub dv: Vec<f32>,
    pub d_temperature: f32,
}

/// The loss on host arrays, `p` the pair's parameter; `weights` are those of the two directions in the gradient. `sizes` is (batch, instances of u,
/// instances of v, width).
pub fn on_host(
    u: &[f32],
    v: &[f32],
    (p, form): (f32, TemperatureForm),
    sizes: (usize, usize, usize, usize),
    weights: [f32; 2],
) -> Nce {
    let (n, n_u, n_v, d) = sizes;
    let (rows, cols) = (n * n_u, n * n_v);
    let (u_unit, u_norms) = l2_norm::forward(u, d);
    let (v_unit, v_norms) = l2_norm::forward(v, d);
    let tau = form.temperature(p);
    let mut s = vec![0.0; rows * cols];
    let (u_mat, v_mat) = (Mat::new(&u_unit, rows, d), Mat::new(&v_unit, cols, d));
    product(MatMut::new(&mut s, rows, cols), Dst::Overwrite, 1.0 / tau, u_mat, v_mat.t());
    let (loss_u, mut ds) = direction(&s, n, n_u, n_v, weights[0]);
    let (loss_v, ds_v) = direction(&simd::transposed(&s, rows, cols), n, n_v, n_u, weights[1]);
    simd::add(&mut ds, &simd::transposed(&ds_v, cols, rows));
    let d_tau = -simd::dot(&ds, &s) / tau;
    let mut d_unit = vec![0.0; rows * d];
    let ds_mat = Mat::new(&ds, rows, cols);
    product(MatMut::new(&mut d_unit, rows, d), Dst::Overwrite, 1.0 / tau, ds_mat, v_mat);
    let mut du = vec![0.0; rows * d];
    l2_norm::backward(u, &u_norms, &d_unit, &mut du, d);
    let mut d_unit = vec![0.0; cols * d];
    product(MatMut::new(&mut d_unit, cols, d), Dst::Overwrite, 1.0 / tau, ds_mat.t(), u_mat);
    let mut dv = vec![0.0; cols * d];
    l2_norm::backward(v, &v_norms, &d_unit, &mut dv, d);
    Nce { losses: [loss_u, loss_v], similarity: s, du, dv, d_temperature: form.gradient(p, tau, d_tau) }
}

/// One direction's loss, and `weight` times its gradient. `s` is `[n * n_own, n * n_other]`.
fn direction(s: &[f32], n: usize, n_own: usize, n_other: usize, weight: f32) -> (f32, Vec<f32>) {
    let width = n * n_other;
    let mut ds = vec![0.0; s.len()];
    let mut total = 0.0f64;
    let weight = weight / n as f32;
    for (i, (s, ds)) in s.chunks_exact(n_own * width).zip(ds.chunks_exact_mut(n_own * width)).enumerate() {
        let most = simd::max(s);
        let all = simd::exp_minus(s, most, ds);
        simd::scale(ds, weight / all);
        let own: Vec<f32> =
            s.chunks_exact(width).flat_map(|row| &row[i * n_other..(i + 1) * n_other]).copied().collect();
        let most_own = simd::max(&own);
        let mut weights = vec![0.0; own.len()];
        let positive = simd::exp_minus(&own, most_own, &mut weights);
        for (ds, weights) in ds.chunks_exact_mut(width).zip(weights.chunks_exact(n_other)) {
            simd::add_scaled(&mut ds[i * n_other..(i + 1) * n_other], weights, -weight / positive);
        }
        total += f64::from(most - most_own) + f64::from(all).ln() - f64::from(positive).ln();
    }
    ((total / n as f64) as f32, ds)
}

/// The fused form: one crossing; gradients are made on the way forward, because they cost little more than the loss.
pub(super) fn fused<T: Tape<f32, Cpu>>(
    u: Tokens<Cpu, T>,
    v: Tokens<Cpu, T>,
    temperature: &Flat<Cpu>,
    form: TemperatureForm,
) -> Result<Scalar<Cpu, T>, CpuError> {
    let (n, n_u, d) = *u.shape();
    let n_v = v.shape().1;
    let (u, u_tape) = u.split_tape();
    let (v, v_tape) = v.split_tape();
    let mut tape = u_tape.merge(v_tape);
    let dev = u.device().clone();
    let p = host::values(temperature)[0];
    let nce = on_host(&values(&u), &values(&v), (p, form), (n, n_u, n_v, d), [0.5; 2]);
    let loss = dev.try_tensor_from_vec(vec![(nce.losses[0] + nce.losses[1]) * 0.5], ())?;
    let (u_ghost, v_ghost, loss_ghost, temperature) = (u.ghost(), v.ghost(), loss.ghost(), temperature.clone());
    tape.add_backward_op(move |grads| {
        let by = grads.get_or_alloc_mut(&loss_ghost)?[0];
        simd::add_scaled(grads.get_or_alloc_mut(&u_ghost)?, &nce.du, by);
        simd::add_scaled(grads.get_or_alloc_mut(&v_ghost)?, &nce.dv, by);
        grads.get_or_alloc_mut(&temperature)?[0] += by * nce.d_temperature;
        Ok(())
    });
    Ok(loss.put_tape(tape))
}
