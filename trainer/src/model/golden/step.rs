//! One contrastive step of a tiny sparse model, start to end: every intermediate tensor, every gradient, the update.

use dfdx::prelude::*;
use imp_schemas::batch::TextBatch;
use imp_schemas::resolution::{Patching, Resolution};
use testkit::golden::Golden;

use super::{Tape, block, check, read, setting};
use crate::model::encoder::Call;
use crate::model::experts::Purpose;
use crate::model::{Grads, HostTokens, Imp, ModelConfig, Preset, RawExperts, RawModel, Stream, patches};
use crate::objective::nce::{Pair, mean_over_pairs};
use crate::ops::experts::{self, Groups};
use crate::ops::{Backend, Experts, Mask, Packs, Routed, TemperatureForm, Tokens, nce};
use crate::optim::{AdamW, AdamWSettings, Moments};

/// The model of a step file; its parameters are loaded by name.
fn model_of(golden: &Golden) -> Imp<Cpu> {
    let shape = |name: &str| golden.tensor(&format!("param/{name}")).unwrap().shape.clone();
    let ints = |name: &str| golden.i32s(&format!("cfg/{name}")).unwrap().to_vec();
    let sizes = |name: &str| [0, 1, 2].map(|i| ints(name)[i] as usize);
    let (depth, sparse) = (ints("n_layers")[0] as usize, ints("n_moe_layers")[0] as usize);
    let experts = RawExperts {
        blocks: Some(sparse),
        capacity_factor: decimal(golden, "cfg/capacity_factor"),
        z_weight: decimal(golden, "cfg/z_weight"),
        ..RawExperts::of(ints("n_experts")[0] as usize)
    };
    let hidden = *shape(&format!("encoder/layer_{}/moe/experts/wi/kernel", depth - 1)).last().unwrap();
    let raw = RawModel {
        preset: None,
        depth: Some(depth),
        width: Some(shape("vision/pre/kernel")[0]),
        ffn_width: Some(hidden),
        heads: Some(ints("n_heads")[0] as usize),
        common_width: Some(shape("vision/to_text/wo/kernel")[1]),
        vision_table: sizes("table"),
        text_table: shape("text/pos_t/embedding")[0],
        experts: Some(experts),
        ..RawModel::preset(Preset::S)
    };
    let patching = Patching { tube: sizes("tube"), ..Patching::default() };
    let vocab = shape("text/embed/embedding")[0];
    let config = ModelConfig::check(raw, vocab, patching, vec![(Stream::Vision, Stream::Text)], Vec::new()).unwrap();
    let mut model = Imp::new(&config, 1, &Cpu::default()).unwrap();
    for name in model.names() {
        let from = of_file(&name);
        let values = golden.f32s(&format!("param/{from}")).unwrap();
        model.load(&name, &golden.tensor(&format!("param/{from}")).unwrap().shape, values).unwrap();
    }
    model
}

/// The file has one pair, and one temperature without its name.
fn of_file(name: &str) -> &str {
    if name.starts_with("temperature/") { "temperature" } else { name }
}

/// A setting as the decimal number that it was written as.
fn decimal(golden: &Golden, name: &str) -> f64 {
    setting(golden, name).to_string().parse().unwrap()
}

/// A step's two inputs, as they enter the model.
struct Inputs {
    vision: HostTokens,
    text: TextBatch,
}

impl Inputs {
    fn of(golden: &Golden, model: &Imp<Cpu>) -> Self {
        let shape = &golden.tensor("pixels").unwrap().shape;
        let resolution = Resolution::Video { frames: shape[1], height: shape[2], width: shape[3] };
        let plain: fn(&[f32], &mut [f32]) = |from, to| to.copy_from_slice(from);
        let pixels = golden.f32s("pixels").unwrap();
        let vision = patches::cut_tubes(resolution, pixels, None, &model.config.patching, plain).unwrap();
        let n_tokens = golden.tensor("ids").unwrap().shape[1];
        Self { vision, text: TextBatch { n_tokens, ids: golden.i32s("ids").unwrap().to_vec() } }
    }
}

/// A call whose routing groups are those of the file.
fn call(golden: &Golden, model: &Imp<Cpu>, stream: Stream, rows: usize) -> Call<Cpu> {
    let mut call = Call::new(&model.config, Purpose::Train);
    let n_groups = setting(golden, &format!("cfg/n_groups_{stream}")) as usize;
    call.routing.as_mut().unwrap().groups = Groups::OfAtMost(rows / n_groups);
    call
}

/// Block by block, so that the first that differs has a name.
fn check_blocks(golden: &Golden, model: &Imp<Cpu>, stream: Stream, mut x: Tokens<Cpu>, mask: Option<&Mask>) {
    let (n, t, _) = *x.shape();
    let routing = call(golden, model, stream, n * t).routing.unwrap();
    for i in 0..model.config.depth {
        let at = format!("param/encoder/layer_{i}");
        x = Cpu::blocks(x, mask, &[block(golden, &at, true)], model.config.heads, crate::ops::Keep::Everything)
            .unwrap();
        if model.config.experts.as_ref().unwrap().is_sparse(i) {
            let flat = |name: &str| super::flat(golden, &format!("{at}/{name}"));
            let layer = Experts {
                router_scale: None,
                norm: Some(flat("norm_ffn/scale")),
                router: flat("moe/router/kernel"),
                wi: flat("moe/experts/wi/kernel"),
                wo: flat("moe/experts/wo/kernel"),
                packs: Packs::default(),
            };
            let (_, probs, chosen) = experts::route(&x, &layer, &routing);
            check(golden, &format!("{stream}/layer_{i}_probs"), &probs);
            let shape = &golden.tensor(&format!("{stream}/layer_{i}_idx")).unwrap().shape;
            let (n_groups, c) = (shape[0], shape[2]);
            let group = n * t / n_groups;
            let idx: Vec<i32> = (0..n_groups)
                .flat_map(|g| chosen.iter().flat_map(move |tokens| &tokens[g * c..(g + 1) * c]).map(move |&t| (t, g)))
                .map(|(token, g)| token as i32 - (g * group) as i32)
                .collect();
            assert_eq!(idx, golden.i32s(&format!("{stream}/layer_{i}_idx")).unwrap(), "{stream}, block {i}");
            let Routed { tokens, stats, .. } = Cpu::experts(x, &layer, &routing).unwrap();
            check(golden, &format!("{stream}/layer_{i}_z_loss"), &[stats.z_loss]);
            x = tokens;
        }
        check(golden, &format!("{stream}/layer_{i}"), &x.as_vec());
    }
}

#[test]
fn a_whole_step_is_the_references() {
    for file in ["step_nopad", "step_pad"] {
        let golden = read(file);
        let mut model = model_of(&golden);
        let Inputs { vision, text } = Inputs::of(&golden, &model);
        let (vision_in, embedded) = model.embed_patches_twice(Stream::Vision, vision.clone());
        check(&golden, "vision/embedded", &embedded);
        check(&golden, "vision/encoder_in", &vision_in.as_vec());
        let (text_in, mask) = model.embed_sentences::<NoneTape>(&text).unwrap();
        check(&golden, "text/encoder_in", &text_in.as_vec());
        let want: Vec<bool> = golden.i32s("mask").unwrap().iter().map(|&m| m != 0).collect();
        assert_eq!(mask.valid, want);
        check_blocks(&golden, &model, Stream::Vision, vision_in, None);
        check_blocks(&golden, &model, Stream::Text, text_in, Some(&mask));

        let mut common = Vec::new();
        let (mut router_losses, mut z_losses) = (Vec::new(), 0.0);
        let tokens = [model.embed_patches::<Tape>(Stream::Vision, vision, None).unwrap(), {
            model.embed_sentences::<Tape>(&text).unwrap().0
        }];
        for (tokens, (stream, target)) in
            tokens.into_iter().zip([(Stream::Vision, Stream::Text), (Stream::Text, Stream::Vision)])
        {
            let mask = (stream == Stream::Text).then_some(&mask);
            let (n, t, _) = *tokens.shape();
            let mut call = call(&golden, &model, stream, n * t);
            let encoded = model.encode(tokens, mask, &mut call).unwrap();
            check(&golden, &format!("{stream}/encoder_out"), &encoded.as_vec());
            let pooled = model.pool(stream, encoded, mask).unwrap();
            check(&golden, &format!("{stream}/pooled"), &pooled.as_vec());
            let vectors = model.common(pooled, stream, target).unwrap();
            check(&golden, &format!("{stream}/common"), &vectors.as_vec());
            common.push(vectors);
            router_losses.extend(call.router_losses);
            z_losses += call.stats.iter().map(|s| s.z_loss).sum::<f32>();
        }
        check(&golden, "z_loss", &[z_losses]);
        let (n, d) = *common[0].shape();
        let p = golden.f32s("param/temperature").unwrap()[0];
        let got =
            nce::on_host(&common[0].as_vec(), &common[1].as_vec(), (p, TemperatureForm::Relu), (n, 1, 1, d), [0.5; 2]);
        check(&golden, "sim", &got.similarity);
        check(&golden, "loss_vision_text", &got.losses[..1]);
        check(&golden, "loss_text_vision", &got.losses[1..]);

        let [u, v] = <[_; 2]>::try_from(common).ok().unwrap();
        let temperature = model.flat("temperature/text_vision").unwrap().clone();
        let pair = Pair { u, v, temperature, form: TemperatureForm::Relu };
        let mut loss = mean_over_pairs(vec![pair], n, Tape::default()).unwrap();
        check(&golden, "loss_nce", &loss.as_vec());
        for router_loss in router_losses {
            loss = loss + router_loss;
        }
        check(&golden, "loss", &loss.as_vec());
        let mut grads = loss.backward();
        let mut gradients = Vec::new();
        for name in model.names() {
            let gradient = grads.get_or_alloc_mut(model.flat(&name).unwrap()).unwrap().to_vec();
            check(&golden, &format!("grad/{}", of_file(&name)), &gradient);
            gradients.push(gradient);
        }
        check_update(&golden, &mut model, grads, &gradients);
    }
}

fn check_update(golden: &Golden, model: &mut Imp<Cpu>, grads: Gradients<f32, Cpu>, gradients: &[Vec<f32>]) {
    let cfg = |name: &str| decimal(golden, &format!("cfg/{name}"));
    let settings = AdamWSettings {
        weight_decay: cfg("weight_decay"),
        clip_norm: cfg("clip_norm"),
        b1: cfg("b1"),
        b2: cfg("b2"),
        eps: cfg("eps"),
        ema: 0.0,
        moments: Moments::Shared,
    };
    let mut optimizer = AdamW::new(model, settings).unwrap();
    let update = optimizer.step(model, Grads(grads), cfg("lr")).unwrap();
    check(golden, "grad_norm", &[update.grad_norm as f32]);
    let clip = (cfg("clip_norm") / update.grad_norm).min(1.0);
    let mut n_left_out = 0;
    for (name, ours) in model.names().into_iter().zip(gradients) {
        let from = of_file(&name);
        let got = model.tensor(&name).unwrap().1;
        let of = |what: &str| golden.f32s(&format!("{what}/{from}")).unwrap();
        let decay = if name.ends_with("/kernel") { cfg("weight_decay") } else { 0.0 };
        let mut steady = Vec::new();
        for (i, (&got, &want)) in got.iter().zip(of("after")).enumerate() {
            // A first step is `lr * g / (|g| + eps)`: where the file's gradient comes near epsilon it magnifies what is within that one's
            // tolerance, so that the file can say nothing of it. What it makes of our own gradient it says everywhere.
            let (p, g) = (f64::from(of("param")[i]), f64::from(ours[i]) * clip);
            let of_ours = p - cfg("lr") * (g / (g.abs() + cfg("eps")) + decay * p);
            let tolerance = |want: f64| 1e-3 * cfg("lr") + 2.4e-7 * want.abs();
            assert!((f64::from(got) - of_ours).abs() <= tolerance(of_ours), "{name}[{i}]: {got}, of {g} {of_ours}");
            let theirs = f64::from(of("grad")[i].abs()) * clip;
            let close = (f64::from(got) - f64::from(want)).abs() <= tolerance(f64::from(want));
            assert!(close || theirs < 1e-5, "{name}[{i}]: {got} {want}, gradient {theirs}");
            let known = theirs == 0.0 || theirs >= 1e-6;
            steady.push(if known { got } else { want });
        }
        check(golden, &format!("after/{from}"), &steady);
        n_left_out += steady.iter().zip(&got).filter(|(a, b)| a != b).count();
    }
    // The file's README counts 220 of 142,273 gradients near epsilon.
    assert!(n_left_out <= 220, "{n_left_out} updates were not compared");
}
