//! The reference numbers: all files but `logmel` and `image`, which are the loader's.
//!
//! In: the folder named by `IMP_GOLDEN`, else the repository's copy. Every shape and setting is read from the files, so the
//! tests also run on sets of other shapes.

use dfdx::prelude::{Backward, Cpu, Gradients, HasShape, OwnedTape, ReshapeTo, SumTo, TensorFromVec, TryMul};
use imp_schemas::resolution::{Patching, Resolution, n_kept};
use testkit::golden::{Golden, folder};

use super::tests::tiny;
use super::*;
use crate::objective;
use crate::ops::{self, Backend, Block, FeedForward, Flat, Linear, Mask, Norm, Packs, Positions, TemperatureForm, nce};
use crate::optim::{AdamW, AdamWSettings, Moments};
use crate::schedule::{RawSchedule, Schedule};

type Tape = OwnedTape<f32, Cpu>;

fn read(name: &str) -> Golden {
    Golden::read(&folder(), name).unwrap()
}

fn check(golden: &Golden, name: &str, got: &[f32]) {
    if let Err(error) = golden.check(name, got) {
        panic!("{error}");
    }
}

fn flat(golden: &Golden, name: &str) -> Flat<Cpu> {
    let values = golden.f32s(name).unwrap().to_vec();
    let n = values.len();
    Cpu::default().tensor_from_vec(values, (n,))
}

fn setting(golden: &Golden, name: &str) -> f32 {
    golden.f32s(name).map_or_else(|_| golden.i32s(name).unwrap()[0] as f32, |v| v[0])
}

fn tokens(golden: &Golden, name: &str) -> ops::Tokens<Cpu> {
    let shape = &golden.tensor(name).unwrap().shape;
    Cpu::default().tensor_from_vec(golden.f32s(name).unwrap().to_vec(), (shape[0], shape[1], shape[2]))
}

fn rows(golden: &Golden, name: &str) -> ops::Rows<Cpu> {
    let shape = &golden.tensor(name).unwrap().shape;
    Cpu::default().tensor_from_vec(golden.f32s(name).unwrap().to_vec(), (shape[0], shape[1]))
}

fn mask(golden: &Golden, name: &str) -> Option<Mask> {
    let n_tokens = golden.tensor(name).ok()?.shape[1];
    Some(Mask { valid: golden.i32s(name).unwrap().iter().map(|&m| m != 0).collect(), n_tokens })
}

/// Gradients of `sum(y * dy)`.
macro_rules! gradients_of {
    ($y:expr, $golden:expr, $dy:expr) => {{
        let y = $y;
        let dy = Cpu::default().tensor_from_vec($golden.f32s($dy).unwrap().to_vec(), *y.shape());
        y.try_mul(dy).unwrap().sum::<(), _>().backward()
    }};
}

mod experts;
mod step;

fn block(golden: &Golden, at: &str, qk_norm: bool) -> Block<Cpu> {
    let get = |name: &str| {
        let name = format!("{at}/{name}");
        flat(golden, &name)
    };
    Block {
        norm_sa: get("norm_sa/scale"),
        q: get("attn/q/kernel"),
        k: get("attn/k/kernel"),
        v: get("attn/v/kernel"),
        o: get("attn/o/kernel"),
        qk_norm: qk_norm.then(|| (get("attn/q_norm/scale"), get("attn/k_norm/scale"))),
        ffn: golden.has(&format!("{at}/ffn/wi/kernel")).then(|| FeedForward {
            norm: get("norm_ffn/scale"),
            wi: get("ffn/wi/kernel"),
            wo: get("ffn/wo/kernel"),
        }),
        packs: Packs::default(),
    }
}

fn check_block(golden: &Golden, at: &str, block: &Block<Cpu>, grads: &Gradients<f32, Cpu>) {
    let mut parts = vec![("attn/q/kernel", &block.q), ("attn/k/kernel", &block.k), ("attn/v/kernel", &block.v)];
    parts.push(("attn/o/kernel", &block.o));
    if let Some((q, k)) = &block.qk_norm {
        parts.extend([("attn/q_norm/scale", q), ("attn/k_norm/scale", k)]);
    }
    parts.push(("norm_sa/scale", &block.norm_sa));
    if let Some(ffn) = &block.ffn {
        parts.extend([("norm_ffn/scale", &ffn.norm), ("ffn/wi/kernel", &ffn.wi), ("ffn/wo/kernel", &ffn.wo)]);
    }
    for (name, tensor) in parts {
        check(golden, &format!("{at}/{name}"), &grads.get(tensor).as_vec());
    }
}

#[test]
fn layer_norm_and_gelu_are_the_references() {
    let golden = read("layer_norm_gelu");
    for case in ["scale_only", "scale_bias"] {
        let at = |name: &str| format!("{case}/{name}");
        let bias = golden.has(&at("param/bias")).then_some("param/bias").or(golden.has(&at("bias")).then_some("bias"));
        let scale = if golden.has(&at("scale")) { "scale" } else { "param/scale" };
        let norm = Norm { scale: flat(&golden, &at(scale)), bias: bias.map(|b| flat(&golden, &at(b))) };
        assert_eq!(norm.bias.is_some(), case == "scale_bias");
        let x = rows(&golden, &at("x"));
        let y = Cpu::layer_norm(x.retaped::<Tape>(), &norm).unwrap();
        check(&golden, &at("y"), &y.as_vec());
        let grads = gradients_of!(y, golden, &at("dy"));
        check(&golden, &at("grad/x"), &grads.get(&x).as_vec());
        check(&golden, &at("grad/scale"), &grads.get(&norm.scale).as_vec());
        if let Some(bias) = &norm.bias {
            check(&golden, &at("grad/bias"), &grads.get(bias).as_vec());
        }
    }
    let x = golden.f32s("gelu/x").unwrap();
    let (mut y, mut again, mut slope) = (vec![0.0; x.len()], vec![0.0; x.len()], x.to_vec());
    ops::simd::gelu(x, &mut y);
    ops::simd::gelu_with_slope(&mut slope, &mut again);
    assert_eq!(y, again);
    check(&golden, "gelu/y", &y);
    ops::simd::multiply(&mut slope, golden.f32s("gelu/dy").unwrap());
    check(&golden, "gelu/grad/x", &slope);
}

#[test]
fn attention_is_the_references_also_in_fully_masked_rows() {
    let golden = read("attention");
    for case in golden.cases() {
        let at = |name: &str| format!("{case}/{name}");
        let n_heads = setting(&golden, &at("cfg/n_heads")) as usize;
        let qk_norm = setting(&golden, &at("cfg/qk_norm")) != 0.0;
        let x = tokens(&golden, &at("x"));
        let get = |name: &str| flat(&golden, &at(&format!("param/{name}")));
        let layer = Block {
            // Not read: attention alone has no LayerNorm.
            norm_sa: Cpu::default().tensor_from_vec(vec![0.0], (1,)),
            q: get("q/kernel"),
            k: get("k/kernel"),
            v: get("v/kernel"),
            o: get("o/kernel"),
            qk_norm: qk_norm.then(|| (get("q_norm/scale"), get("k_norm/scale"))),
            ffn: None,
            packs: Packs::default(),
        };
        let mask = mask(&golden, &at("mask"));
        type Form = fn(
            ops::Tokens<Cpu, Tape>,
            Option<&Mask>,
            &Block<Cpu>,
            usize,
        ) -> Result<ops::Tokens<Cpu, Tape>, dfdx::prelude::CpuError>;
        let forms: [Form; 2] = [Cpu::attention::<Tape>, ops::blocks::stock_attention::<Cpu, Tape>];
        let runs = [("dy", "grad"), ("dy_valid", "grad_valid"), ("dy_all", "grad_all")];
        for form in forms {
            for (dy, grad) in runs.into_iter().filter(|(dy, _)| golden.has(&at(dy))) {
                let y = form(x.retaped::<Tape>(), mask.as_ref(), &layer, n_heads).unwrap();
                check(&golden, &at("y"), &y.as_vec());
                let grads = gradients_of!(y, golden, &at(dy));
                check(&golden, &at(&format!("{grad}/x")), &grads.get(&x).as_vec());
                let mut parts = vec![("q/kernel", &layer.q), ("k/kernel", &layer.k), ("v/kernel", &layer.v)];
                parts.push(("o/kernel", &layer.o));
                if let Some((q, k)) = &layer.qk_norm {
                    parts.extend([("q_norm/scale", q), ("k_norm/scale", k)]);
                }
                for (name, tensor) in parts {
                    check(&golden, &at(&format!("{grad}/{name}")), &grads.get(tensor).as_vec());
                }
            }
        }
        let probs = ops::blocks::attention_weights(&x, mask.as_ref(), &layer, n_heads);
        check(&golden, &at("probs"), &probs);
    }
}

#[test]
fn blocks_final_norm_and_pooling_are_the_references() {
    let golden = read("encoder");
    for case in golden.cases() {
        let at = |name: &str| format!("{case}/{name}");
        let n_heads = setting(&golden, &at("cfg/n_heads")) as usize;
        let n_layers = setting(&golden, &at("cfg/n_layers")) as usize;
        let qk_norm = setting(&golden, &at("cfg/qk_norm")) != 0.0;
        let name = |root: &str, i: usize| at(&format!("{root}/layer_{i}"));
        let layers: Vec<_> = (0..n_layers).map(|i| block(&golden, &name("param", i), qk_norm)).collect();
        let mask = mask(&golden, &at("mask"));
        let x = tokens(&golden, &at("x"));
        for i in 1..=n_layers {
            if golden.has(&name("h", i - 1)) {
                let h = Cpu::blocks(x.clone(), mask.as_ref(), &layers[..i], n_heads, ops::Keep::Everything).unwrap();
                check(&golden, &name("h", i - 1), &h.as_vec());
            }
        }
        let y = Cpu::blocks(x.retaped::<Tape>(), mask.as_ref(), &layers, n_heads, ops::Keep::Everything).unwrap();
        let grads = if golden.has(&at("dpooled")) {
            let get = |name: &str| flat(&golden, &at(&format!("param/final_norm/{name}")));
            let norm = Norm { scale: get("scale"), bias: Some(get("bias")) };
            let shape @ (n, t, d) = *y.shape();
            let y = Cpu::layer_norm(y.reshape_like(&(n * t, d)), &norm).unwrap().reshape_like(&shape);
            check(&golden, &at("y"), &y.as_vec());
            let pooled = Cpu::mean_pool(y, mask.as_ref()).unwrap();
            check(&golden, &at("pooled"), &pooled.as_vec());
            let grads = gradients_of!(pooled, golden, &at("dpooled"));
            check(&golden, &at("grad/final_norm/scale"), &grads.get(&norm.scale).as_vec());
            check(&golden, &at("grad/final_norm/bias"), &grads.get(norm.bias.as_ref().unwrap()).as_vec());
            grads
        } else {
            check(&golden, &at("y"), &y.as_vec());
            gradients_of!(y, golden, &at("dy"))
        };
        check(&golden, &at("grad/x"), &grads.get(&x).as_vec());
        for (i, layer) in layers.iter().enumerate() {
            check_block(&golden, &name("grad", i), layer, &grads);
        }
    }
}

#[test]
fn positions_are_the_references_on_every_grid() {
    let golden = read("positions");
    let grids: Vec<String> =
        golden.names().iter().filter_map(|n| n.strip_suffix("/cfg/grid")).map(str::to_owned).collect();
    assert!(!grids.is_empty());
    for at in grids {
        let kind = at.split('/').next().unwrap();
        let axes: &[&str] = match kind {
            "vision" => &["t", "h", "w"],
            "spectrogram" => &["t", "f"],
            _ => &["t"],
        };
        let tables: Vec<_> = axes.iter().map(|a| flat(&golden, &format!("{kind}/param/{a}/embedding"))).collect();
        let get = |name: &str| flat(&golden, &format!("{kind}/param/pos_norm/{name}"));
        let norm = Norm { scale: get("scale"), bias: Some(get("bias")) };
        let width = norm.scale.shape().0;
        let mut grid = [1; 3];
        for (to, &from) in grid.iter_mut().zip(golden.i32s(&format!("{at}/cfg/grid")).unwrap()) {
            *to = from as usize;
        }
        let lens: Vec<usize> = tables.iter().map(|t| t.shape().0 / width).collect();
        let rows = if kind == "text" { (0..grid[0] as u32).collect() } else { embed::grid_rows(grid, &lens) };
        let want: Vec<u32> = golden.i32s(&format!("{at}/idx")).unwrap().iter().map(|&i| i as u32).collect();
        assert_eq!(rows, want, "{at}");
        let positions = Positions { rows, kept: None };
        let n = want.len() / axes.len();
        let nothing = Cpu::default().tensor_from_vec(vec![0.0; n * width], (1, n, width));
        for form in [Cpu::add_positions::<Tape>, ops::positions::stock::<Cpu, Tape>] {
            let pos = form(nothing.retaped::<Tape>(), &positions, &tables, &norm).unwrap();
            check(&golden, &format!("{at}/pos"), &pos.as_vec());
            let grads = gradients_of!(pos, golden, &format!("{at}/dpos"));
            for (axis, table) in axes.iter().zip(&tables) {
                check(&golden, &format!("{at}/grad/{axis}/embedding"), &grads.get(table).as_vec());
            }
            check(&golden, &format!("{at}/grad/pos_norm/scale"), &grads.get(&norm.scale).as_vec());
            check(&golden, &format!("{at}/grad/pos_norm/bias"), &grads.get(norm.bias.as_ref().unwrap()).as_vec());
        }
        if golden.has(&format!("{at}/embedded")) {
            let tokens = golden.f32s(&format!("{at}/tokens")).unwrap().to_vec();
            let tokens = Cpu::default().tensor_from_vec(tokens, (1, n, width));
            let embedded = Cpu::add_positions(tokens, &positions, &tables, &norm).unwrap();
            check(&golden, &format!("{at}/embedded"), &embedded.as_vec());
        }
    }
}

#[test]
fn patches_and_kept_tokens_are_the_references() {
    let golden = read("tokens");
    let tube = golden.i32s("video/cfg/tube").unwrap();
    let patching = Patching { tube: [tube[0] as usize, tube[1] as usize, tube[2] as usize], ..Patching::default() };
    let plain: fn(&[f32], &mut [f32]) = |from, to| to.copy_from_slice(from);
    for case in ["video", "still"] {
        let shape = &golden.tensor(&format!("{case}/raw")).unwrap().shape;
        let (frames, height, width) = (shape[0], shape[1], shape[2]);
        let resolution = if case == "still" {
            Resolution::Image { height, width }
        } else {
            Resolution::Video { frames, height, width }
        };
        let raw = golden.f32s(&format!("{case}/raw")).unwrap();
        let got = patches::cut_tubes(resolution, raw, None, &patching, plain).unwrap();
        check(&golden, &format!("{case}/tokens"), &got.values);
    }
    let shape = &golden.tensor("spectrogram/raw").unwrap().shape;
    let resolution = Resolution::Audio { frames: shape[0], mels: shape[1] };
    let got = sound_patches(resolution, golden.f32s("spectrogram/raw").unwrap(), None, &patching).unwrap();
    check(&golden, "spectrogram/tokens", &got.values);

    // A token that is one value wide is its own patch: DropToken of `drop` on a grid of one-pixel tubes.
    let grid: Vec<usize> = golden.i32s("drop/cfg/grid").unwrap().iter().map(|&g| g as usize).collect();
    let keep = golden.i32s("drop/keep_idx").unwrap();
    let shape = &golden.tensor("drop/kept_tokens").unwrap().shape;
    let n_full = grid.iter().product::<usize>();
    let d = shape[2];
    let all = golden.f32s("drop/tokens").unwrap();
    let one = Patching { tube: [1, 1, 1], ..Patching::default() };
    let resolution = Resolution::Video { frames: grid[0], height: grid[1], width: grid[2] };
    let kept: Vec<u32> = keep.iter().map(|&k| k as u32).collect();
    let numbers: Vec<f32> = (0..shape[0] * n_full * 3).map(|i| (i / 3) as f32).collect();
    let got = patches::cut_tubes(resolution, &numbers, Some(&kept), &one, plain).unwrap();
    let gathered: Vec<f32> =
        got.values.chunks_exact(3).flat_map(|token| &all[token[0] as usize * d..][..d]).copied().collect();
    check(&golden, "drop/kept_tokens", &gathered);
    let rows = embed::grid_rows([grid[0], grid[1], grid[2]], &[16, 32, 32]);
    let pos_idx: Vec<i32> = kept.iter().flat_map(|&k| &rows[k as usize * 3..][..3]).map(|&row| row as i32).collect();
    assert_eq!(pos_idx, golden.i32s("drop/pos_idx").unwrap());
    for row in golden.i32s("drop/count_table").unwrap().chunks_exact(4) {
        // Column 2 is the release's count; at least one token is kept.
        assert_eq!(n_kept(row[0] as usize, f64::from(row[1]) / 1000.0) as i32, row[2].max(1), "{row:?}");
    }
}

#[test]
fn contrastive_losses_and_heads_are_the_references() {
    let golden = read("nce");
    for case in ["single", "mil", "small_norm"] {
        let at = |name: &str| format!("{case}/{name}");
        let (u, v) = (tokens(&golden, &at("u")), tokens(&golden, &at("v")));
        let ((n, n_u, d), n_v) = (*u.shape(), v.shape().1);
        let p = golden.f32s(&at("param/temperature")).unwrap()[0];
        for (weights, grad) in [([0.5, 0.5], "grad"), ([1.0, 0.0], "grad_12"), ([0.0, 1.0], "grad_21")] {
            let got = nce::on_host(&u.as_vec(), &v.as_vec(), (p, TemperatureForm::Relu), (n, n_u, n_v, d), weights);
            check(&golden, &at("loss_12"), &got.losses[..1]);
            check(&golden, &at("loss_21"), &got.losses[1..]);
            check(&golden, &at(&format!("{grad}/u")), &got.du);
            check(&golden, &at(&format!("{grad}/v")), &got.dv);
            check(&golden, &at(&format!("{grad}/temperature")), &[got.d_temperature]);
            let mut sim = Vec::new();
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                for (a, b) in (0..n_u).flat_map(|a| (0..n_v).map(move |b| (a, b))) {
                    sim.push(got.similarity[(i * n_u + a) * n * n_v + j * n_v + b]);
                }
            }
            check(&golden, &at("sim"), &sim);
        }
        let temperature = flat(&golden, &at("param/temperature"));
        for form in [Cpu::nce::<Tape>, nce::stock::<Cpu, Tape>] {
            let loss = form(u.retaped(), v.retaped(), &temperature, TemperatureForm::Relu).unwrap();
            check(&golden, &at("loss"), &[loss.as_vec()[0]]);
            let grads = loss.backward();
            check(&golden, &at("grad/u"), &grads.get(&u).as_vec());
            check(&golden, &at("grad/v"), &grads.get(&v).as_vec());
            check(&golden, &at("grad/temperature"), &grads.get(&temperature).as_vec());
        }
    }
}

#[test]
fn the_mean_over_pairs_is_the_references() {
    let golden = read("nce");
    // The file weighs the pairs; with weights all one the objective is the plain mean of its `pair_losses`.
    let names = [("vision", "text"), ("vision", "spectrogram"), ("spectrogram", "text")];
    let temperatures = golden.f32s("three_pairs/param/temperature").unwrap();
    let weights = golden.f32s("three_pairs/weights").unwrap();
    let losses = golden.f32s("three_pairs/pair_losses").unwrap();
    let (mut pairs, mut weighted) = (Vec::new(), 0.0);
    for (i, (a, b)) in names.into_iter().enumerate() {
        let (to, back) = (format!("three_pairs/{a}_to_{b}"), format!("three_pairs/{b}_to_{a}"));
        let (u, v) = (rows(&golden, &to), rows(&golden, &back));
        let (n, d) = *u.shape();
        let got =
            nce::on_host(&u.as_vec(), &v.as_vec(), (temperatures[i], TemperatureForm::Relu), (n, 1, 1, d), [0.5; 2]);
        let loss = (got.losses[0] + got.losses[1]) / 2.0;
        weighted += weights[i] * loss / 3.0;
        // In the whole loss this pair counts `weight / 3`.
        let by = |g: &[f32]| g.iter().map(|g| g * weights[i] / 3.0).collect::<Vec<f32>>();
        check(&golden, &format!("three_pairs/grad/{a}_to_{b}"), &by(&got.du));
        check(&golden, &format!("three_pairs/grad/{b}_to_{a}"), &by(&got.dv));
        let temperature = Cpu::default().tensor_from_vec(vec![temperatures[i]], (1,));
        pairs.push(objective::nce::Pair::<Cpu, Tape> {
            u: u.retaped(),
            v: v.retaped(),
            temperature,
            form: TemperatureForm::Relu,
        });
    }
    check(&golden, "three_pairs/loss", &[weighted]);
    let tensors: Vec<_> = pairs.iter().map(|p| (p.u.retaped::<NoneTape>(), p.temperature.clone())).collect();
    let n = tensors[0].0.shape().0;
    let loss = objective::nce::mean_over_pairs(pairs, n, Tape::default()).unwrap();
    let mean = losses.iter().sum::<f32>() / 3.0;
    assert!((loss.as_vec()[0] - mean).abs() < 5e-6, "{} {mean}", loss.as_vec()[0]);
    let grads = loss.backward();
    for (i, (u, temperature)) in tensors.iter().enumerate() {
        let name = format!("three_pairs/grad/{}_to_{}", names[i].0, names[i].1);
        let got: Vec<f32> = grads.get(u).as_vec().iter().map(|g| g * weights[i]).collect();
        check(&golden, &name, &got);
        let want = golden.f32s("three_pairs/grad/temperature").unwrap()[i];
        let got = grads.get(temperature).as_vec()[0] * weights[i];
        let atol = golden.tensor("three_pairs/grad/temperature").unwrap().atol;
        assert!(f64::from((got - want).abs()) <= atol + 1e-5 * f64::from(want.abs()), "{got} {want}");
    }
}

#[test]
fn the_common_space_head_is_the_references() {
    let golden = read("nce");
    let get = |name: &str| flat(&golden, &format!("head/param/{name}"));
    let x = rows(&golden, "head/x");
    let dense = |name: &str, gelu| {
        let bias = get(&format!("{name}/bias"));
        let n_out = bias.shape().0;
        let kernel = get(&format!("{name}/kernel"));
        Linear { kernel, bias: Some(bias), n_out, gelu, input_grad: ops::InputGrad::Wanted }
    };
    let (wi, wo) = (dense("wi", true), dense("wo", false));
    let norm = Norm { scale: get("norm/scale"), bias: Some(get("norm/bias")) };
    for form in [Cpu::linear::<Tape>, ops::linear::stock::<Cpu, Tape>] {
        let y = form(form(x.retaped(), &wi).unwrap(), &wo).unwrap();
        let y = Cpu::layer_norm(y, &norm).unwrap();
        check(&golden, "head/y", &y.as_vec());
        let grads = gradients_of!(y, golden, "head/dy");
        check(&golden, "head/grad/x", &grads.get(&x).as_vec());
        for (name, layer) in [("wi", &wi), ("wo", &wo)] {
            check(&golden, &format!("head/grad/{name}/kernel"), &grads.get(&layer.kernel).as_vec());
            check(&golden, &format!("head/grad/{name}/bias"), &grads.get(layer.bias.as_ref().unwrap()).as_vec());
        }
        check(&golden, "head/grad/norm/scale", &grads.get(&norm.scale).as_vec());
        check(&golden, "head/grad/norm/bias", &grads.get(norm.bias.as_ref().unwrap()).as_vec());
    }
}

#[test]
fn cross_entropies_and_their_targets_are_the_references() {
    let golden = read("losses");
    for case in golden.cases() {
        let at = |name: &str| format!("{case}/{name}");
        let logits = rows(&golden, &at("logits"));
        let (n, n_classes) = *logits.shape();
        let alpha = setting(&golden, &at("cfg/smoothing"));
        let normalise = golden.has(&at("cfg/normalize")) && setting(&golden, &at("cfg/normalize")) != 0.0;
        let labels = golden.f32s(&at("labels")).unwrap();
        let targets = objective::classes::smoothed(labels, n_classes, alpha, normalise);
        check(&golden, &at("targets"), &targets);
        if golden.has(&at("label_ids")) {
            let ids: Vec<Vec<u32>> = golden.i32s(&at("label_ids")).unwrap().iter().map(|&i| vec![i as u32]).collect();
            assert_eq!(objective::classes::multi_hot(&ids, n_classes).unwrap(), labels);
        }
        let sigmoid = case.starts_with("sigmoid");
        let row = if sigmoid { ops::cross_entropy::sigmoid_row } else { ops::cross_entropy::softmax_row };
        let x = golden.f32s(&at("logits")).unwrap();
        let each = x.chunks(n_classes).zip(targets.chunks(n_classes));
        let per_example: Vec<f32> = each.map(|(x, t)| row(x, t, &mut vec![0.0; n_classes]) as f32).collect();
        check(&golden, &at("per_example"), &per_example);
        assert_eq!(per_example.len(), n);
        let forms = if sigmoid {
            [Cpu::sigmoid_cross_entropy::<Tape>, ops::cross_entropy::stock_sigmoid::<Cpu, Tape>]
        } else {
            [Cpu::softmax_cross_entropy::<Tape>, ops::cross_entropy::stock_softmax::<Cpu, Tape>]
        };
        for form in forms {
            let loss = form(logits.retaped(), &targets).unwrap();
            check(&golden, &at("loss"), &[loss.as_vec()[0]]);
            check(&golden, &at("grad/logits"), &loss.backward().get(&logits).as_vec());
        }
    }
}

/// A model of parameters with any names and shapes, for tests of the optimiser alone.
fn bare(parameters: Vec<(String, Vec<usize>, Vec<f32>)>) -> Imp<Cpu> {
    let dev = Cpu::default();
    let parameters: Vec<Parameter<Cpu>> = parameters
        .into_iter()
        .map(|(name, shape, values)| Parameter {
            name,
            shape,
            tensor: dev.tensor_from_vec(values.clone(), (values.len(),)),
        })
        .collect();
    let index = parameters.iter().enumerate().map(|(i, p)| (p.name.clone(), i)).collect();
    Imp { config: tiny(), dev, parameters, index, keep: ops::Keep::Everything }
}

#[test]
fn ten_updates_are_the_references() {
    let golden = read("adamw");
    for case in golden.cases() {
        let at = |name: &str| format!("{case}/{name}");
        let names: Vec<String> =
            golden.names().iter().filter_map(|n| n.strip_prefix(&at("param/"))).map(str::to_owned).collect();
        let parameters = names
            .iter()
            .map(|name| {
                let tensor = golden.tensor(&at(&format!("param/{name}"))).unwrap();
                (name.clone(), tensor.shape.clone(), golden.f32s(&at(&format!("param/{name}"))).unwrap().to_vec())
            })
            .collect();
        let mut model = bare(parameters);
        // The settings are decimal numbers; as f32 they are not 0.999 but its neighbour, which shows in `1 - b2`.
        let cfg = |name: &str| setting(&golden, &at(&format!("cfg/{name}"))).to_string().parse::<f64>().unwrap();
        let settings = AdamWSettings {
            weight_decay: cfg("weight_decay"),
            clip_norm: cfg("clip_norm"),
            b1: cfg("b1"),
            b2: cfg("b2"),
            eps: cfg("eps"),
            ema: 0.0,
            moments: Moments::Shared,
        };
        let mut optimizer = AdamW::new(&model, settings).unwrap();
        let rates = golden.f32s(&at("lr")).unwrap();
        let mut states = std::collections::BTreeMap::<String, Vec<f32>>::new();
        let mut norms = Vec::new();
        for (step, &lr) in rates.iter().enumerate() {
            let mut grads = Gradients::leaky();
            for p in model.parameters() {
                let all = golden.f32s(&at(&format!("grads/{}", p.name))).unwrap();
                let n = all.len() / rates.len();
                grads.get_or_alloc_mut(&p.tensor).unwrap().copy_from_slice(&all[step * n..(step + 1) * n]);
            }
            norms.push(optimizer.step(&mut model, Grads(grads), f64::from(lr)).unwrap().grad_norm as f32);
            for name in &names {
                let mut note = |key: String, values: Vec<f32>| states.entry(key).or_default().extend(values);
                note(format!("after/{name}"), model.tensor(name).unwrap().1);
                note(format!("mu/{name}"), optimizer.tensor(&format!("mu/{name}")).unwrap().1);
                note(format!("nu/{name}"), optimizer.tensor(&format!("nu/{name}")).unwrap().1);
            }
        }
        check(&golden, &at("grad_norm"), &norms);
        for (name, values) in states {
            check(&golden, &at(&name), &values);
        }
    }
}

#[test]
fn rates_are_the_references() {
    let golden = read("schedule");
    for case in golden.cases() {
        let at = |name: &str| format!("{case}/{name}");
        let cfg = |name: &str| f64::from(setting(&golden, &at(&format!("cfg/{name}"))));
        let schedule = Schedule::try_from(RawSchedule {
            peak_lr: cfg("peak"),
            init_lr: cfg("init"),
            end_lr: cfg("end"),
            warmup_steps: cfg("warmup_steps") as u64,
            decay_steps: cfg("decay_steps") as u64,
            pre_steps: cfg("pre_steps") as u64,
            pre_init_lr: cfg("pre_init"),
        })
        .unwrap();
        let steps = golden.i32s(&at("steps")).unwrap();
        let got: Vec<f32> = steps.iter().map(|&s| schedule.lr_at(s as u64) as f32).collect();
        check(&golden, &at("lr"), &got);
    }
}

impl Imp<Cpu> {
    /// What enters the encoder, and what it was before the stream's projection.
    fn embed_patches_twice(&self, stream: Stream, tokens: HostTokens) -> (ops::Tokens<Cpu>, Vec<f32>) {
        let HostTokens { n, grid, n_tokens, values } = tokens.clone();
        let n_values = values.len() / (n * n_tokens);
        let embed = self.linear("vision/embed", self.config.width, false, ops::InputGrad::Unwanted).unwrap();
        let x = Cpu::linear(self.dev.tensor_from_vec(values, (n * n_tokens, n_values)), &embed).unwrap();
        let lens: Vec<usize> = self.config.tables(stream).into_iter().map(|(_, len)| len).collect();
        let positions = Positions { rows: embed::grid_rows(grid, &lens), kept: None };
        let x = x.reshape_like(&(n, n_tokens, self.config.width));
        let embedded = self.add_positions(stream, x, &positions).unwrap().as_vec();
        (self.embed_patches(stream, tokens, None).unwrap(), embedded)
    }
}
