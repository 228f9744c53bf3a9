//! Every fused form against its stock composition: values and all gradients, on shapes drawn at random.

use dfdx::prelude::*;
use imp_schemas::rng::{Rng, Role, rng_for};

use super::experts::{Choice, Groups};
use super::linear::Linear;
use super::*;

type Owned = OwnedTape<f32, Cpu>;

pub(super) fn normal(rng: &mut Rng, n: usize, std: f64) -> Flat<Cpu> {
    let values: Vec<f32> = (0..n).map(|_| (std * rng.normal()) as f32).collect();
    Cpu::default().tensor_from_vec(values, (n,))
}

fn size(rng: &mut Rng, least: u64, most: u64) -> usize {
    (least + rng.below(most - least + 1)) as usize
}

fn close(what: &str, got: &[f32], want: &[f32]) {
    // Both are f32 sums of at most a few thousand terms in another order; a wrong formula errs by its own size.
    let most = want.iter().fold(1e-3f32, |most, v| most.max(v.abs()));
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 2e-4 * most, "{what}[{i}]: {g} {w}");
    }
}

/// Compares both forms' outputs, and the gradients of the output's product with fixed random numbers.
fn compare<S: Shape>(
    what: &str,
    rng: &mut Rng,
    fused: Tensor<S, f32, Cpu, Owned>,
    stock: Tensor<S, f32, Cpu, Owned>,
    leaves: &[Flat<Cpu>],
) {
    close(what, &fused.as_vec(), &stock.as_vec());
    let dy = normal(rng, fused.shape().num_elements(), 1.0).reshape_like(fused.shape());
    let mut gradients = [fused, stock].map(|y| y.try_mul(dy.clone()).unwrap().sum::<(), _>().backward());
    for (i, leaf) in leaves.iter().enumerate() {
        let [got, want] = [0, 1].map(|form| gradients[form].get_or_alloc_mut(leaf).unwrap().to_vec());
        close(&format!("{what}, gradient {i}"), &got, &want);
    }
}

#[test]
fn fused_blocks_are_the_stock_blocks() {
    for seed in 0..8 {
        let rng = &mut rng_for(seed, Role::Synth, &[1]);
        let (n, t, heads) = (size(rng, 1, 9), size(rng, 1, 40), size(rng, 1, 4));
        let (d, f) = (heads * size(rng, 2, 20), size(rng, 3, 70));
        // Several stretches of queries; several chunks of more than one example; tiles of kernels that are not alike.
        let (n, t, heads, d, f) = match seed {
            6 => (2, 300, 2, 20, 30),
            7 => (11, 90, 1, 12, 301),
            _ => (n, t, heads, d, f),
        };
        let masked = seed % 2 == 0;
        let layer = |rng: &mut Rng, dense: bool| {
            let std = 1.0 / (d as f64).sqrt();
            Block {
                norm_sa: normal(rng, d, 1.0),
                q: normal(rng, d * d, std),
                k: normal(rng, d * d, std),
                v: normal(rng, d * d, std),
                o: normal(rng, d * d, std),
                qk_norm: (seed % 3 == 0).then(|| (normal(rng, d / heads, 1.0), normal(rng, d / heads, 1.0))),
                ffn: dense.then(|| FeedForward {
                    norm: normal(rng, d, 1.0),
                    wi: normal(rng, d * f, std),
                    wo: normal(rng, f * d, 1.0 / (f as f64).sqrt()),
                }),
                packs: Packs::default(),
            }
        };
        // What stands before experts has no feed-forward.
        let layers = [layer(rng, seed % 4 != 1), layer(rng, seed % 4 != 2)];
        let mask = masked.then(|| Mask { valid: (0..n * t).map(|_| rng.chance(0.7)).collect(), n_tokens: t });
        let flat_x = normal(rng, n * t * d, 1.0);
        let x = || flat_x.retaped::<Owned>().reshape_like(&(n, t, d));
        let fused = Cpu::blocks(x(), mask.as_ref(), &layers, heads, Keep::Everything).unwrap();
        let stock = blocks::stock(x(), mask.as_ref(), &layers, heads).unwrap();
        let mut leaves = vec![flat_x.clone()];
        for l in &layers {
            leaves.extend([&l.norm_sa, &l.q, &l.k, &l.v, &l.o].map(Clone::clone));
            leaves.extend(l.ffn.iter().flat_map(|f| [&f.norm, &f.wi, &f.wo]).cloned());
            leaves.extend(l.qk_norm.iter().flat_map(|(q, k)| [q.clone(), k.clone()]));
        }
        compare(&format!("blocks {n}x{t}x{d}, seed {seed}"), rng, fused, stock, &leaves);
        let [again, stock] = [
            Cpu::blocks(x(), mask.as_ref(), &layers, heads, Keep::Inputs).unwrap(),
            blocks::stock(x(), mask.as_ref(), &layers, heads).unwrap(),
        ];
        compare(&format!("blocks {n}x{t}x{d} made again, seed {seed}"), rng, again, stock, &leaves);
    }
}

#[test]
fn fused_experts_are_the_stock_experts() {
    for seed in 0..12 {
        let rng = &mut rng_for(seed, Role::Synth, &[6]);
        let (n, t, e) = (size(rng, 1, 9), size(rng, 1, 30), size(rng, 1, 7));
        let (d, f) = (size(rng, 4, 40), size(rng, 3, 70));
        let layer = Experts {
            router_scale: None,
            norm: (seed % 3 != 0).then(|| normal(rng, d, 1.0)),
            router: normal(rng, d * e, 1.0 / (d as f64).sqrt()),
            wi: normal(rng, e * d * f, 1.0 / (d as f64).sqrt()),
            wo: normal(rng, e * f * d, 1.0 / (f as f64).sqrt()),
            packs: Packs::default(),
        };
        let routing = Routing {
            n_experts: e,
            choice: if seed % 2 == 0 { Choice::Experts } else { Choice::Tokens { top_k: size(rng, 1, 2).min(e) } },
            capacity_factor: 0.5 + rng.unit() * 1.5,
            groups: if seed % 5 == 0 { Groups::PerExample } else { Groups::OfAtMost(size(rng, 1, 80)) },
            z_weight: 0.3,
            balance_weight: if seed % 4 == 1 { 0.7 } else { 0.0 },
        };
        let flat_x = normal(rng, n * t * d, 1.0);
        let x = || flat_x.retaped::<Owned>().reshape_like(&(n, t, d));
        let forms = [Cpu::experts::<Owned>(x(), &layer, &routing), experts::stock(x(), &layer, &routing)];
        let mut leaves = vec![flat_x.clone(), layer.router.clone(), layer.wi.clone(), layer.wo.clone()];
        leaves.extend(layer.norm.clone());
        let weights = normal(rng, n * t * d, 1.0).reshape_like(&(n, t, d));
        let mut stats = Vec::new();
        // What comes out and what the router adds, in one number: the gradients of both meet in the input.
        let [fused, stock] = forms.map(|routed| {
            let Routed { tokens, router_loss, stats: of_form } = routed.unwrap();
            stats.push(of_form);
            (tokens * weights.clone()).sum::<(), _>() + router_loss
        });
        compare(&format!("experts {n}x{t}x{d}, {e} of {f}, seed {seed}"), rng, fused, stock, &leaves);
        close("losses", &[stats[0].z_loss, stats[0].balance], &[stats[1].z_loss, stats[1].balance]);
        assert_eq!((&stats[0].usage, stats[0].unrouted), (&stats[1].usage, stats[1].unrouted));
    }
}

#[test]
fn a_token_that_no_expert_takes_passes_by_and_the_order_of_examples_changes_nothing() {
    for seed in 0..6 {
        let rng = &mut rng_for(seed, Role::Synth, &[7]);
        let (n, t, e, d, f) = (5, size(rng, 2, 9), 4, 12, 20);
        let layer = Experts {
            router_scale: None,
            norm: Some(normal(rng, d, 1.0)),
            router: normal(rng, d * e, 1.0),
            wi: normal(rng, e * d * f, 0.3),
            wo: normal(rng, e * f * d, 0.3),
            packs: Packs::default(),
        };
        let routing = Routing {
            n_experts: e,
            choice: Choice::Experts,
            capacity_factor: 0.7,
            groups: Groups::OfAtMost(n * t),
            z_weight: 1.0,
            balance_weight: 0.0,
        };
        let values = normal(rng, n * t * d, 1.0).as_vec();
        let run = |values: Vec<f32>| {
            let x = Cpu::default().tensor_from_vec(values, (n, t, d));
            let chosen = experts::route(&x, &layer, &routing).2;
            (Cpu::experts(x, &layer, &routing).unwrap().tokens.as_vec(), chosen)
        };
        let (y, chosen) = run(values.clone());
        let mut n_unpicked = 0;
        for (row, (x, y)) in values.chunks_exact(d).zip(y.chunks_exact(d)).enumerate() {
            let picked = chosen.iter().any(|tokens| tokens.contains(&(row as u32)));
            assert_eq!(x != y, picked, "row {row}");
            n_unpicked += usize::from(!picked);
        }
        assert!(n_unpicked > 0);
        let per = t * d;
        let turned: Vec<f32> = values.chunks_exact(per).rev().flatten().copied().collect();
        let back: Vec<f32> = run(turned).0.chunks_exact(per).rev().flatten().copied().collect();
        close("examples in another order", &back, &y);
    }
}

#[test]
fn fused_row_ops_are_the_stock_ones() {
    for seed in 0..8 {
        let rng = &mut rng_for(seed, Role::Synth, &[2]);
        let (n, n_in, n_out) = (size(rng, 1, 50), size(rng, 1, 70), size(rng, 1, 60));
        let (n, n_in) = if seed == 7 { (601, 301) } else { (n, n_in) };
        let flat_x = normal(rng, n * n_in, 1.5);
        let x = || flat_x.retaped::<Owned>().reshape_like(&(n, n_in));
        let bias = (seed % 2 == 0).then(|| normal(rng, n_out, 1.0));
        let kernel = normal(rng, n_in * n_out, 1.0 / (n_in as f64).sqrt());
        let input_grad = if seed % 3 == 0 { InputGrad::Unwanted } else { InputGrad::Wanted };
        let layer = Linear { kernel, bias, n_out, gelu: seed % 4 < 2, input_grad };
        let mut leaves = vec![layer.kernel.clone()];
        leaves.extend(layer.bias.clone());
        leaves.extend((input_grad == InputGrad::Wanted).then(|| flat_x.clone()));
        let stock = linear::stock(x(), &layer).unwrap();
        compare("linear", rng, Cpu::linear(x(), &layer).unwrap(), stock, &leaves);

        let norm = Norm { scale: normal(rng, n_in, 1.0), bias: (seed % 2 == 1).then(|| normal(rng, n_in, 1.0)) };
        if n_in > 2 {
            let leaves: Vec<_> = [flat_x.clone(), norm.scale.clone()].into_iter().chain(norm.bias.clone()).collect();
            let stock = layer_norm::stock(x(), &norm).unwrap();
            compare("layer norm", rng, Cpu::layer_norm(x(), &norm).unwrap(), stock, &leaves);
        }
        let stock = l2_norm::stock(x()).unwrap();
        compare("l2", rng, Cpu::l2_normalise(x()).unwrap(), stock, std::slice::from_ref(&flat_x));
    }
}

#[test]
fn fused_token_ops_are_the_stock_ones() {
    for seed in 0..8 {
        let rng = &mut rng_for(seed, Role::Synth, &[3]);
        let (n, t, d) = (size(rng, 1, 7), size(rng, 2, 12), size(rng, 3, 40));
        let flat_x = normal(rng, n * t * d, 1.0);
        let x = || flat_x.retaped::<Owned>().reshape_like(&(n, t, d));
        let mask = (seed % 2 == 0)
            .then(|| Mask { valid: (0..n * t).map(|i| i % t == 0 || rng.chance(0.5)).collect(), n_tokens: t });
        let stock = pool::stock(x(), mask.as_ref()).unwrap();
        compare("pool", rng, Cpu::mean_pool(x(), mask.as_ref()).unwrap(), stock, std::slice::from_ref(&flat_x));

        let tables = [normal(rng, 5 * d, 1.0), normal(rng, 3 * d, 1.0)];
        let n_places = if seed % 2 == 0 { t } else { t + 4 };
        let rows = (0..n_places).flat_map(|_| [rng.below(5) as u32, rng.below(3) as u32]).collect();
        let kept = (seed % 2 == 1).then(|| (0..n * t).map(|_| rng.below(n_places as u64) as u32).collect());
        let positions = Positions { rows, kept };
        let norm = Norm { scale: normal(rng, d, 1.0), bias: Some(normal(rng, d, 1.0)) };
        let leaves = [&flat_x, &tables[0], &tables[1], &norm.scale].map(Clone::clone);
        let stock = positions::stock(x(), &positions, &tables, &norm).unwrap();
        compare("positions", rng, Cpu::add_positions(x(), &positions, &tables, &norm).unwrap(), stock, &leaves);

        let ids: Vec<u32> = (0..n * t).map(|_| rng.below(5) as u32).collect();
        let stock = positions::stock_lookup::<Cpu, Owned>(&tables[0], d, &ids).unwrap();
        compare("lookup", rng, Cpu::lookup(&tables[0], d, &ids).unwrap(), stock, &tables[..1]);
    }
}

#[test]
fn fused_losses_are_the_stock_ones() {
    for seed in 0..8 {
        let rng = &mut rng_for(seed, Role::Synth, &[4]);
        let (n, n_u, n_v, d) = (size(rng, 1, 30), size(rng, 1, 3), size(rng, 1, 3), size(rng, 2, 30));
        let (u, v) = (normal(rng, n * n_u * d, 1.0), normal(rng, n * n_v * d, 1.0));
        let (form, p) = [(TemperatureForm::Relu, 0.3), (TemperatureForm::Log, -0.8)][seed as usize % 2];
        let temperature = Cpu::default().tensor_from_vec(vec![p], (1,));
        let [fused, stock] = [Cpu::nce::<Owned>, nce::stock::<Cpu, Owned>].map(|op| {
            let u = u.retaped().reshape_like(&(n, n_u, d));
            op(u, v.retaped().reshape_like(&(n, n_v, d)), &temperature, form).unwrap()
        });
        compare("nce", rng, fused, stock, &[u.clone(), v.clone(), temperature.clone()]);

        let targets: Vec<f32> = (0..n * d).map(|_| rng.unit() as f32).collect();
        let logits = normal(rng, n * d, 3.0);
        let x = || logits.retaped::<Owned>().reshape_like(&(n, d));
        let leaf = std::slice::from_ref(&logits);
        let stock = cross_entropy::stock_softmax(x(), &targets).unwrap();
        compare("softmax", rng, Cpu::softmax_cross_entropy(x(), &targets).unwrap(), stock, leaf);
        let stock = cross_entropy::stock_sigmoid(x(), &targets).unwrap();
        compare("sigmoid", rng, Cpu::sigmoid_cross_entropy(x(), &targets).unwrap(), stock, leaf);
    }
}

#[test]
fn a_temperature_beyond_its_bounds_finds_back() {
    let vectors = |seed| normal(&mut rng_for(seed, Role::Synth, &[8]), 12 * 6, 1.0).as_vec();
    let (u, v) = (vectors(1), vectors(2));
    // What a pair of strangers wants is a higher temperature: the loss falls as it rises.
    for (form, p, stuck) in
        [(TemperatureForm::Relu, -0.1, true), (TemperatureForm::Log, -9.0, false), (TemperatureForm::Log, 9.0, true)]
    {
        let nce = nce::on_host(&u, &v, (p, form), (12, 1, 1, 6), [0.5; 2]);
        assert!(nce.losses.iter().all(|loss| loss.is_finite()), "{form:?} {p}");
        assert_eq!(nce.d_temperature == 0.0, stuck, "{form:?} {p}");
        assert!(nce.d_temperature <= 0.0, "{form:?} {p}: {}", nce.d_temperature);
    }
    assert!((TemperatureForm::Log.parameter(0.2) - 0.2_f64.ln()).abs() < 1e-12);
}

#[test]
fn the_fused_update_is_the_stock_update() {
    let rng = &mut rng_for(1, Role::Synth, &[5]);
    let n = 77;
    let step = AdamWStep {
        grad_scale: 0.5,
        b1: 0.9,
        b2: 0.999,
        rest: (0.1, 0.001),
        correction: (0.19, 0.002),
        eps: 1e-7,
        lr: 0.01,
        t: 2,
        weight_decay: 0.1,
    };
    let (mut p, g) = (normal(rng, n, 1.0), normal(rng, n, 1.0));
    let (mut mu, mut nu) = (normal(rng, n, 0.1), normal(rng, n, 0.1).square());
    let (mut mu_host, mut nu_host) = ([mu.as_vec()], [nu.as_vec()]);
    let mut fused = Cpu::default().tensor_from_vec(p.as_vec(), (n,));
    let mut grads = Gradients::leaky();
    grads.get_or_alloc_mut(&p).unwrap().copy_from_slice(&g.as_vec());
    grads.get_or_alloc_mut(&fused).unwrap().copy_from_slice(&g.as_vec());
    adamw::stock(&mut p, &mut grads, &mut mu, &mut nu, &step).unwrap();
    Cpu::adamw(vec![&mut fused], &mut grads, &mut mu_host, &mut nu_host, &[true], &step).unwrap();
    close("parameter", &fused.as_vec(), &p.as_vec());
    close("mu", &mu_host[0], &mu.as_vec());
    close("nu", &nu_host[0], &nu.as_vec());
}

#[test]
fn a_view_is_the_tensors_own_memory_and_what_shares_it_keeps_its_values() {
    let dev = Cpu::default();
    let mut tensor = dev.tensor_from_vec((0..6).map(|i| i as f32).collect(), (2, 3));
    assert_eq!(host::view(&tensor), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(host::view(&tensor).as_ptr(), host::view(&tensor.clone()).as_ptr());
    let shared = tensor.clone();
    host::view_mut(&mut tensor)[5] = 9.0;
    assert_eq!((tensor[[1, 2]], shared[[1, 2]]), (9.0, 5.0));
    assert!(host::view(&dev.tensor_from_vec(vec![], (0, 3))).is_empty());
    let broadcast = dev.tensor([1.0f32, 2.0, 3.0]).broadcast::<Rank2<4, 3>, _>();
    assert!(std::panic::catch_unwind(|| host::view(&broadcast).len()).is_err());
}

#[test]
fn a_number_of_threads_is_fixed_once() {
    set_threads(2).unwrap();
    set_threads(2).unwrap();
    let message = set_threads(3).unwrap_err().to_string();
    assert!(message.contains("already run on 2 threads, cannot change to 3"), "{message}");
    assert!(matches!(set_threads(0), Err(ThreadsError::Zero)));
}
