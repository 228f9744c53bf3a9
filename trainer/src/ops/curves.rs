//! Fused ops and their update beside the stock ones over 300 steps: differences of the last bits stay what they are.

use dfdx::prelude::*;
use imp_schemas::rng::{Role, rng_for};

use super::linear::Linear;
use super::tests::normal;
use super::*;

type Owned = OwnedTape<f32, Cpu>;

/// Losses of 300 steps of a small contrastive model on fresh examples, from fused ops and their update or from stock ones.
fn curve(fused: bool) -> Vec<f32> {
    let rng = &mut rng_for(1, Role::Synth, &[9]);
    let (n, t, n_values, d, f, heads, common) = (12, 7, 10, 24, 40, 3, 16);
    let std = |n_in: usize| 1.0 / (n_in as f64).sqrt();
    let ones = |n: usize| Cpu::default().tensor_from_vec(vec![1.0; n], (n,));
    let mut p = vec![normal(rng, n_values * d, std(n_values)), normal(rng, d, 0.1)];
    for _ in 0..2 {
        p.push(ones(d));
        p.extend((0..4).map(|_| normal(rng, d * d, std(d))));
        p.extend([ones(d), normal(rng, d * f, std(d)), normal(rng, f * d, std(f))]);
    }
    let temperature = Cpu::default().tensor_from_vec(vec![0.3], (1,));
    p.extend([normal(rng, d * common, std(d)), normal(rng, common, 0.1), temperature]);
    let zeros = |p: &Flat<Cpu>| p.device().zeros_like(p.shape());
    let (mut mu, mut nu) = (p.iter().map(zeros).collect::<Vec<_>>(), p.iter().map(zeros).collect::<Vec<_>>());
    let host = |moments: &[Flat<Cpu>]| moments.iter().map(|m| m.as_vec()).collect::<Vec<_>>();
    let (mut mu_host, mut nu_host) = (host(&mu), host(&nu));
    let mut losses = Vec::new();
    for i in 1..=300 {
        let step = AdamWStep {
            grad_scale: 1.0,
            b1: 0.9,
            b2: 0.999,
            rest: (0.1, 0.001),
            correction: (1.0 - 0.9f32.powi(i), 1.0 - 0.999f32.powi(i)),
            eps: 1e-7,
            lr: 3e-3,
            t: i,
            weight_decay: 1e-3,
        };
        let linear = |at: usize, n_out: usize, gelu: bool| Linear {
            kernel: p[at].clone(),
            bias: Some(p[at + 1].clone()),
            n_out,
            gelu,
            input_grad: InputGrad::Wanted,
        };
        let layers: Vec<Block<Cpu>> = p[2..18]
            .chunks_exact(8)
            .map(|l| Block {
                norm_sa: l[0].clone(),
                q: l[1].clone(),
                k: l[2].clone(),
                v: l[3].clone(),
                o: l[4].clone(),
                qk_norm: None,
                ffn: Some(FeedForward { norm: l[5].clone(), wi: l[6].clone(), wo: l[7].clone() }),
                packs: Packs::default(),
            })
            .collect();
        // Two views of an example: its own numbers in every token, and noise.
        let own = normal(rng, n * n_values, 1.0).as_vec();
        let mut encoded = || {
            let noise = normal(rng, n * t * n_values, 0.7).as_vec();
            let of_token = |(i, x)| own[i / (t * n_values) * n_values + i % n_values] + x;
            let x: Vec<f32> = noise.into_iter().enumerate().map(of_token).collect();
            let x = Cpu::default().tensor_from_vec(x, (n * t, n_values)).put_tape(Owned::default());
            let (embed, head) = (linear(0, d, true), linear(18, common, false));
            let tokens = |x: Rows<Cpu, Owned>| x.reshape_like(&(n, t, d));
            let y = if fused {
                let x = Cpu::blocks(tokens(Cpu::linear(x, &embed).unwrap()), None, &layers, heads, Keep::Everything);
                Cpu::linear(Cpu::mean_pool(x.unwrap(), None).unwrap(), &head).unwrap()
            } else {
                let x = blocks::stock(tokens(linear::stock(x, &embed).unwrap()), None, &layers, heads);
                linear::stock(pool::stock(x.unwrap(), None).unwrap(), &head).unwrap()
            };
            y.reshape_like(&(n, 1, common))
        };
        let (u, v, form) = (encoded(), encoded(), TemperatureForm::Relu);
        let loss = if fused { Cpu::nce(u, v, &p[20], form) } else { nce::stock(u, v, &p[20], form) }.unwrap();
        losses.push(loss.as_vec()[0]);
        let mut grads = loss.backward();
        drop(layers);
        if fused {
            let decays = vec![true; p.len()];
            Cpu::adamw(p.iter_mut().collect(), &mut grads, &mut mu_host, &mut nu_host, &decays, &step).unwrap();
        } else {
            for ((p, mu), nu) in p.iter_mut().zip(&mut mu).zip(&mut nu) {
                adamw::stock(p, &mut grads, mu, nu, &step).unwrap();
            }
        }
    }
    losses
}

#[test]
fn loss_curves_of_300_steps_agree() {
    let [fused, stock] = [true, false].map(curve);
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&stock[..20]), mean(&stock[280..]));
    assert!(last < 0.5 * first, "it learns nothing: {first}, {last}");
    let apart = fused.iter().zip(&stock).map(|(f, s)| (f - s).abs()).fold(0.0, f32::max);
    println!("loss {first} to {last}; greatest distance {apart}");
    assert!(apart < 1e-3 * last, "{apart} of {last}");
}
