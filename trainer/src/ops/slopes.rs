//! Every op's gradient against finite differences, taken in f64 of the op's formula written out in f64.
//!
//! In: small shapes drawn at random. The formulas here are plain loops that share nothing with the ops but their definition.

use dfdx::prelude::*;
use imp_schemas::rng::{Rng, Role, rng_for};

use super::experts::{Choice, Groups};
use super::linear::Linear;
use super::*;

type Owned = OwnedTape<f32, Cpu>;
type Arrays = Vec<Vec<f64>>;

const EPS: f64 = 1e-6;

fn arrays(rng: &mut Rng, sizes: &[(usize, f64)]) -> Arrays {
    // Values that f32 holds exactly, so that both sides start from the same numbers.
    sizes.iter().map(|&(n, std)| (0..n).map(|_| f64::from((std * rng.normal()) as f32)).collect()).collect()
}

fn leaves(arrays: &Arrays) -> Vec<Flat<Cpu>> {
    let flat = |values: &Vec<f64>| {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        let n = values.len();
        Cpu::default().tensor_from_vec(values, (n,))
    };
    arrays.iter().map(flat).collect()
}

/// Holds `grads`, of `sum(weights * op)`, to central differences of `sum(weights * formula(arrays))`.
fn check(what: &str, arrays: &Arrays, weights: &[f64], formula: &dyn Fn(&Arrays) -> Vec<f64>, grads: &[Vec<f32>]) {
    let value = |arrays: &Arrays| -> f64 { formula(arrays).iter().zip(weights).map(|(y, w)| y * w).sum() };
    for (k, grad) in grads.iter().enumerate() {
        let slopes: Vec<f64> = (0..arrays[k].len())
            .map(|i| {
                let at = |by: f64| {
                    let mut moved = arrays.clone();
                    moved[k][i] += by;
                    value(&moved)
                };
                // In f64 the difference errs by about 1e-9 of the value.
                (at(1e-5) - at(-1e-5)) / 2e-5
            })
            .collect();
        let most = slopes.iter().fold(1e-3_f64, |most, s| most.max(s.abs()));
        assert_eq!(slopes.len(), grad.len(), "{what}, array {k}");
        for (i, (slope, &g)) in slopes.iter().zip(grad).enumerate() {
            // What is left is the rounding of the op's own f32 sums.
            assert!((slope - f64::from(g)).abs() <= 5e-5 * most, "{what}, array {k}[{i}]: {g}, slope {slope}");
        }
    }
}

/// Gradients of `sum(weights * y)` at the leaves.
fn gradients<S: Shape>(y: Tensor<S, f32, Cpu, Owned>, weights: &[f64], leaves: &[Flat<Cpu>]) -> Vec<Vec<f32>> {
    let weights: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
    let weights = Cpu::default().tensor_from_vec(weights, *y.shape());
    let mut grads = y.try_mul(weights).unwrap().sum::<(), _>().backward();
    leaves.iter().map(|leaf| grads.get_or_alloc_mut(leaf).unwrap().to_vec()).collect()
}

fn weights(rng: &mut Rng, n: usize) -> Vec<f64> {
    arrays(rng, &[(n, 1.0)]).remove(0)
}

// The formulas.

fn layer_norm(x: &[f64], scale: &[f64], bias: &[f64]) -> Vec<f64> {
    let d = scale.len();
    x.chunks(d)
        .flat_map(|row| {
            let mean = row.iter().sum::<f64>() / d as f64;
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
            let of = move |i: usize| (row[i] - mean) / (var + EPS).sqrt() * scale[i] + bias.get(i).unwrap_or(&0.0);
            (0..d).map(of)
        })
        .collect()
}

fn product(x: &[f64], w: &[f64], n_in: usize) -> Vec<f64> {
    let n_out = w.len() / n_in;
    x.chunks(n_in)
        .flat_map(|row| (0..n_out).map(move |j| (0..n_in).map(|i| row[i] * w[i * n_out + j]).sum::<f64>()))
        .collect()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = row.iter().map(|v| (v - most).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

fn logsumexp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = values.clone().fold(f64::NEG_INFINITY, f64::max);
    most + values.map(|v| (v - most).exp()).sum::<f64>().ln()
}

fn added(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn unit_rows(x: &[f64], d: usize) -> Vec<f64> {
    let length = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt() + EPS;
    x.chunks(d).flat_map(|row| row.iter().map(move |v| v / length(row))).collect()
}

/// Arrays: x, norm_sa, q, k, v, o, q scale, k scale, norm_ffn, wi, wo.
fn block(a: &Arrays, (n, t, d, heads): (usize, usize, usize, usize), valid: &[bool]) -> Vec<f64> {
    let h = layer_norm(&a[0], &a[1], &[]);
    let width = d / heads;
    let [q, k, v] = [2, 3, 4].map(|i| product(&h, &a[i], d));
    let (q, k) = (layer_norm(&q, &a[6], &[]), layer_norm(&k, &a[7], &[]));
    let mut joined = vec![0.0; n * t * d];
    for (item, head) in (0..n).flat_map(|item| (0..heads).map(move |head| (item, head))) {
        let at = |token: usize| (item * t + token) * d + head * width;
        for i in 0..t {
            let score = |j: usize| {
                let dot: f64 = (0..width).map(|c| q[at(i) + c] * k[at(j) + c]).sum();
                let open = valid[item * t + i] && valid[item * t + j];
                // In f32 what is added swallows the score: a padded query weighs all keys alike.
                if open { dot / (width as f64).sqrt() } else { f64::from(blocks::MASKED) }
            };
            let p = softmax(&(0..t).map(score).collect::<Vec<f64>>());
            for c in 0..width {
                joined[at(i) + c] = (0..t).map(|j| p[j] * v[at(j) + c]).sum();
            }
        }
    }
    let x = added(&a[0], &product(&joined, &a[5], d));
    let hidden: Vec<f64> = product(&layer_norm(&x, &a[8], &[]), &a[9], d).into_iter().map(gelu).collect();
    added(&x, &product(&hidden, &a[10], a[9].len() / d))
}

/// Arrays: x, scale, router, wi, wo. The tokens and, behind them, the router's losses.
fn experts_layer(a: &Arrays, routing: &Routing, (n, t, d): (usize, usize, usize)) -> Vec<f64> {
    let (e, rows) = (routing.n_experts, n * t);
    let f = a[3].len() / (e * d);
    let h = layer_norm(&a[0], &a[1], &[]);
    let logits = product(&h, &a[2], d);
    let p: Vec<f64> = logits.chunks(e).flat_map(softmax).collect();
    let mut y = a[0].clone();
    let f32s: Vec<f32> = p.iter().map(|&p| p as f32).collect();
    for (expert, tokens) in experts::choose::assign(&f32s, routing, (n, t)).tokens.iter().enumerate() {
        for &token in tokens {
            let token = token as usize;
            let wi = &a[3][expert * d * f..(expert + 1) * d * f];
            let wo = &a[4][expert * d * f..(expert + 1) * d * f];
            let hidden: Vec<f64> = product(&h[token * d..(token + 1) * d], wi, d).into_iter().map(gelu).collect();
            for (y, out) in y[token * d..(token + 1) * d].iter_mut().zip(product(&hidden, wo, f)) {
                *y += p[token * e + expert] * out;
            }
        }
    }
    let z = logits.chunks(e).map(|row| logsumexp(row.iter().copied()).powi(2)).sum::<f64>() / rows as f64;
    let first = experts::choose::first_choices(&f32s, e);
    let mean = |expert: usize| p.iter().skip(expert).step_by(e).sum::<f64>() / rows as f64;
    let balance = e as f64 * (0..e).map(|expert| f64::from(first[expert]) * mean(expert)).sum::<f64>();
    y.push(f64::from(routing.z_weight) * z + f64::from(routing.balance_weight) * balance);
    y
}

/// Arrays: x, scale, router, the router's scale, wi, wo; `t` tokens an example.
fn soft_layer(a: &Arrays, e: usize, n_slots: usize, (t, d): (usize, usize)) -> Vec<f64> {
    let (slots, f) = (e * n_slots, a[4].len() / (e * d));
    let h = layer_norm(&a[0], &a[1], &[]);
    let length = |s: usize| (0..d).map(|i| a[2][i * slots + s].powi(2)).sum::<f64>().sqrt() + EPS;
    let columns: Vec<f64> = (0..d * slots).map(|i| a[3][0] * a[2][i] / length(i % slots)).collect();
    let logits = product(&unit_rows(&h, d), &columns, d);
    let mut y = a[0].clone();
    for (example, (h, y)) in h.chunks(t * d).zip(y.chunks_mut(t * d)).enumerate() {
        let l = |token: usize, slot: usize| logits[(example * t + token) * slots + slot];
        for slot in 0..slots {
            let into = softmax(&(0..t).map(|token| l(token, slot)).collect::<Vec<_>>());
            let mixed: Vec<f64> = (0..d).map(|i| (0..t).map(|token| into[token] * h[token * d + i]).sum()).collect();
            let of = slot / n_slots * d * f..(slot / n_slots + 1) * d * f;
            let hidden: Vec<f64> = product(&mixed, &a[4][of.clone()], d).into_iter().map(gelu).collect();
            let out = product(&hidden, &a[5][of], f);
            for (token, y) in y.chunks_mut(d).enumerate() {
                let back = softmax(&(0..slots).map(|slot| l(token, slot)).collect::<Vec<_>>())[slot];
                y.iter_mut().zip(&out).for_each(|(y, out)| *y += back * out);
            }
        }
    }
    y
}

/// Arrays: u, v, temperature.
fn nce_loss(a: &Arrays, form: TemperatureForm, n: usize, (n_u, n_v): (usize, usize), d: usize) -> f64 {
    let (u, v) = (unit_rows(&a[0], d), unit_rows(&a[1], d));
    let tau = match form {
        TemperatureForm::Relu => a[2][0].max(0.0) + EPS,
        TemperatureForm::Log => a[2][0].exp(),
    };
    let s = |i: usize, j: usize| (0..d).map(|c| u[i * d + c] * v[j * d + c]).sum::<f64>() / tau;
    let own = |i: usize| {
        logsumexp((0..n_u).flat_map(|a| (0..n_v).map(move |b| (a, b))).map(|(a, b)| s(i * n_u + a, i * n_v + b)))
    };
    let of = |i: usize| {
        let by_u = logsumexp((0..n_u).flat_map(|a| (0..n * n_v).map(move |j| (a, j))).map(|(a, j)| s(i * n_u + a, j)));
        let by_v = logsumexp((0..n_v).flat_map(|b| (0..n * n_u).map(move |j| (b, j))).map(|(b, j)| s(j, i * n_v + b)));
        (by_u + by_v) / 2.0 - own(i)
    };
    (0..n).map(of).sum::<f64>() / n as f64
}

#[test]
fn rows() {
    for seed in 0..4 {
        let rng = &mut rng_for(seed, Role::Synth, &[20]);
        let (n, d, m) = (5, 9, 7);
        let a = arrays(rng, &[(n * d, 1.5), (d, 1.0), (d, 1.0)]);
        let w = weights(rng, n * d);
        let l = leaves(&a);
        let norm = Norm { scale: l[1].clone(), bias: Some(l[2].clone()) };
        let y = Cpu::layer_norm(l[0].retaped::<Owned>().reshape_like(&(n, d)), &norm).unwrap();
        check("layer norm", &a, &w, &|a| layer_norm(&a[0], &a[1], &a[2]), &gradients(y, &w, &l));
        let y = Cpu::l2_normalise(l[0].retaped::<Owned>().reshape_like(&(n, d))).unwrap();
        check("l2", &a, &w, &|a| unit_rows(&a[0], d), &gradients(y, &w, &l[..1]));

        let a = arrays(rng, &[(n * d, 1.0), (d * m, 0.4), (m, 1.0)]);
        let w = weights(rng, n * m);
        let l = leaves(&a);
        for with_gelu in [false, true] {
            let layer = Linear {
                kernel: l[1].clone(),
                bias: Some(l[2].clone()),
                n_out: m,
                gelu: with_gelu,
                input_grad: InputGrad::Wanted,
            };
            let y = Cpu::linear(l[0].retaped::<Owned>().reshape_like(&(n, d)), &layer).unwrap();
            let formula = |a: &Arrays| -> Vec<f64> {
                let y = product(&a[0], &a[1], d).into_iter().enumerate().map(|(i, y)| y + a[2][i % m]);
                y.map(|y| if with_gelu { gelu(y) } else { y }).collect()
            };
            check("linear", &a, &w, &formula, &gradients(y, &w, &l));
        }
    }
}

#[test]
fn blocks_with_mask_and_normalised_queries_and_keys() {
    for seed in 0..3 {
        let rng = &mut rng_for(seed, Role::Synth, &[21]);
        let (n, t, heads, f) = (2, 4, 2, 10);
        let d = 3 * heads * 2;
        let std = 1.0 / (d as f64).sqrt();
        let kernels = [(d * d, std); 4];
        let mut sizes = vec![(n * t * d, 1.0), (d, 1.0)];
        sizes.extend(kernels);
        sizes.extend([(d / heads, 1.0), (d / heads, 1.0), (d, 1.0), (d * f, std), (f * d, 0.3)]);
        let a = arrays(rng, &sizes);
        let mut w = weights(rng, n * t * d);
        let l = leaves(&a);
        let layer = Block {
            norm_sa: l[1].clone(),
            q: l[2].clone(),
            k: l[3].clone(),
            v: l[4].clone(),
            o: l[5].clone(),
            qk_norm: Some((l[6].clone(), l[7].clone())),
            ffn: Some(FeedForward { norm: l[8].clone(), wi: l[9].clone(), wo: l[10].clone() }),
            packs: Packs::default(),
        };
        let mask = Mask { valid: (0..n * t).map(|i| i % t == 0 || rng.chance(0.6)).collect(), n_tokens: t };
        // What comes out at padding goes nowhere. Its gradient would be no slope: in f32 the mask swallows the scores that it is added to.
        for (w, _) in w.chunks_mut(d).zip(&mask.valid).filter(|(_, valid)| !**valid) {
            w.fill(0.0);
        }
        let x = l[0].retaped::<Owned>().reshape_like(&(n, t, d));
        let y = Cpu::blocks(x, Some(&mask), std::slice::from_ref(&layer), heads, Keep::Everything).unwrap();
        check("block", &a, &w, &|a| block(a, (n, t, d, heads), &mask.valid), &gradients(y, &w, &l));
    }
}

#[test]
fn experts_and_their_routers_losses() {
    for seed in 0..4 {
        let rng = &mut rng_for(seed, Role::Synth, &[22]);
        let (n, t, d, f, e) = (3, 5, 6, 8, 3);
        let a = arrays(rng, &[(n * t * d, 1.0), (d, 1.0), (d * e, 1.0), (e * d * f, 0.4), (e * f * d, 0.4)]);
        let routing = Routing {
            n_experts: e,
            choice: if seed % 2 == 0 { Choice::Experts } else { Choice::Tokens { top_k: 2 } },
            capacity_factor: 0.8,
            groups: Groups::OfAtMost(8),
            z_weight: 0.5,
            balance_weight: 0.25,
        };
        let w = weights(rng, n * t * d + 1);
        let l = leaves(&a);
        let layer = Experts {
            norm: Some(l[1].clone()),
            router: l[2].clone(),
            router_scale: None,
            wi: l[3].clone(),
            wo: l[4].clone(),
            packs: Packs::default(),
        };
        let routed = Cpu::experts(l[0].retaped::<Owned>().reshape_like(&(n, t, d)), &layer, &routing).unwrap();
        let to_host: Vec<f32> = w.iter().map(|&w| w as f32).collect();
        let on_tokens = Cpu::default().tensor_from_vec(to_host[..n * t * d].to_vec(), (n, t, d));
        let loss = (routed.tokens * on_tokens).sum::<(), _>()
            + routed.router_loss.put_tape(Owned::default()) * to_host[n * t * d];
        let mut grads = loss.backward();
        let grads: Vec<Vec<f32>> = l.iter().map(|l| grads.get_or_alloc_mut(l).unwrap().to_vec()).collect();
        check("experts", &a, &w, &|a| experts_layer(a, &routing, (n, t, d)), &grads);
    }
}

#[test]
fn soft_experts() {
    for seed in 0..3 {
        let rng = &mut rng_for(seed, Role::Synth, &[26]);
        let (n, t, d, f, e, n_slots) = (2, 4, 5, 6, 3, 2);
        let sizes = [n * t * d, d, d * e * n_slots, 1, e * d * f, e * f * d];
        let a = arrays(rng, &sizes.map(|n| (n, 0.7)));
        let routing = Routing {
            n_experts: e,
            choice: Choice::Nobody { n_slots },
            capacity_factor: 1.0,
            groups: Groups::OfAtMost(7),
            z_weight: 0.5,
            balance_weight: 0.0,
        };
        let (w, l) = (weights(rng, n * t * d), leaves(&a));
        let layer = Experts {
            norm: Some(l[1].clone()),
            router: l[2].clone(),
            router_scale: Some(l[3].clone()),
            wi: l[4].clone(),
            wo: l[5].clone(),
            packs: Packs::default(),
        };
        let x = l[0].retaped::<Owned>().reshape_like(&(n, t, d));
        let routed = experts::soft::layer(x, None, &layer, &routing, n_slots).unwrap();
        let want = soft_layer(&a, e, n_slots, (t, d));
        for (got, want) in routed.tokens.as_vec().into_iter().zip(&want) {
            assert!((f64::from(got) - want).abs() < 1e-5, "{got}, want {want}");
        }
        assert!((routed.stats.usage.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        check("soft experts", &a, &w, &|a| soft_layer(a, e, n_slots, (t, d)), &gradients(routed.tokens, &w, &l));
    }
}

#[test]
fn positions_lookup_and_pooling() {
    for seed in 0..3 {
        let rng = &mut rng_for(seed, Role::Synth, &[23]);
        let (n, t, d) = (2, 5, 6);
        let a = arrays(rng, &[(n * t * d, 1.0), (4 * d, 1.0), (3 * d, 1.0), (d, 1.0), (d, 1.0)]);
        let l = leaves(&a);
        let rows: Vec<u32> = (0..t).flat_map(|_| [rng.below(4) as u32, rng.below(3) as u32]).collect();
        let positions = Positions { rows: rows.clone(), kept: None };
        let norm = Norm { scale: l[3].clone(), bias: Some(l[4].clone()) };
        let x = || l[0].retaped::<Owned>().reshape_like(&(n, t, d));
        let formula = |a: &Arrays| -> Vec<f64> {
            let of_row = |table: &[f64], row: u32| table[row as usize * d..(row as usize + 1) * d].to_vec();
            let sums = rows.chunks(2).flat_map(|at| added(&of_row(&a[1], at[0]), &of_row(&a[2], at[1])));
            let normed = layer_norm(&sums.collect::<Vec<f64>>(), &a[3], &a[4]);
            a[0].chunks(t * d).flat_map(|item| added(item, &normed)).collect()
        };
        let w = weights(rng, n * t * d);
        let y = Cpu::add_positions(x(), &positions, &l[1..3], &norm).unwrap();
        check("positions", &a, &w, &formula, &gradients(y, &w, &l));

        let ids: Vec<u32> = (0..6).map(|_| rng.below(4) as u32).collect();
        let w = weights(rng, 6 * d);
        let y = Cpu::lookup::<Owned>(&l[1], d, &ids).unwrap();
        let table = vec![a[1].clone()];
        let formula =
            |a: &Arrays| ids.iter().flat_map(|&id| a[0][id as usize * d..(id as usize + 1) * d].to_vec()).collect();
        check("lookup", &table, &w, &formula, &gradients(y, &w, &l[1..2]));

        let mask = Mask { valid: (0..n * t).map(|i| i % t == 1 || rng.chance(0.5)).collect(), n_tokens: t };
        let w = weights(rng, n * d);
        let y = Cpu::mean_pool(x(), Some(&mask)).unwrap();
        let formula = |a: &Arrays| -> Vec<f64> {
            let mean = |item: usize, c: usize| {
                let valid = (0..t).filter(|&i| mask.valid[item * t + i]);
                let count = valid.clone().count() as f64 + EPS;
                valid.map(|i| a[0][(item * t + i) * d + c]).sum::<f64>() / count
            };
            (0..n).flat_map(|item| (0..d).map(move |c| mean(item, c))).collect()
        };
        check("pool", &a, &w, &formula, &gradients(y, &w, &l[..1]));
    }
}

#[test]
fn losses() {
    for seed in 0..3 {
        let rng = &mut rng_for(seed, Role::Synth, &[24]);
        let (n, n_u, n_v, d) = (4, 1 + seed as usize % 2, 2, 5);
        let mut a = arrays(rng, &[(n * n_u * d, 1.0), (n * n_v * d, 1.0), (1, 0.0)]);
        a[2][0] = f64::from(0.4_f32);
        let l = leaves(&a);
        let u = l[0].retaped::<Owned>().reshape_like(&(n, n_u, d));
        let v = l[1].retaped::<Owned>().reshape_like(&(n, n_v, d));
        let form = if seed == 0 { TemperatureForm::Log } else { TemperatureForm::Relu };
        let y = Cpu::nce(u, v, &l[2], form).unwrap();
        check("nce", &a, &[1.0], &|a| vec![nce_loss(a, form, n, (n_u, n_v), d)], &gradients(y, &[1.0], &l));

        let a = arrays(rng, &[(n * d, 2.0)]);
        let l = leaves(&a);
        let targets: Vec<f64> = (0..n * d).map(|_| f64::from(rng.unit() as f32)).collect();
        let to_host: Vec<f32> = targets.iter().map(|&t| t as f32).collect();
        let x = || l[0].retaped::<Owned>().reshape_like(&(n, d));
        let y = Cpu::softmax_cross_entropy(x(), &to_host).unwrap();
        let of_softmax = |a: &Arrays| {
            let each = a[0].chunks(d).zip(targets.chunks(d)).map(|(x, t)| {
                let all = logsumexp(x.iter().copied());
                x.iter().zip(t).map(|(x, t)| t * (all - x)).sum::<f64>()
            });
            vec![each.sum::<f64>() / n as f64]
        };
        check("softmax", &a, &[1.0], &of_softmax, &gradients(y, &[1.0], &l));
        let y = Cpu::sigmoid_cross_entropy(x(), &to_host).unwrap();
        let of_sigmoid = |a: &Arrays| {
            let each = a[0].iter().zip(&targets).map(|(x, t)| (1.0 + x.exp()).ln() - t * x);
            vec![each.sum::<f64>() / (n * d) as f64]
        };
        check("sigmoid", &a, &[1.0], &of_sigmoid, &gradients(y, &[1.0], &l));
    }
}
