//! Promises of a whole model, on a tiny one and made-up batches.

use dfdx::prelude::Cpu;
use imp_schemas::resolution::{Patching, Resolution};
use imp_schemas::rng::{Role, rng_for};

use super::*;
use crate::objective::{Classes, Form};
use crate::ops;
use crate::optim::{AdamW, AdamWSettings, Moments};

pub(super) fn tiny() -> ModelConfig {
    with_experts(None)
}

/// The tiny model with experts in its second block.
fn with_experts(experts: Option<RawExperts>) -> ModelConfig {
    let raw = RawModel {
        depth: Some(2),
        width: Some(32),
        heads: Some(4),
        ffn_width: Some(48),
        common_width: Some(24),
        vision_table: [2, 4, 4],
        spectrogram_table: [4, 4],
        text_table: 8,
        experts: experts.map(|experts| RawExperts { blocks: Some(1), ..experts }),
        ..RawModel::preset(Preset::S)
    };
    let patching = Patching { tube: [2, 8, 8], ..Patching::default() };
    let classifiers = vec![Classifier { corpus: "digits".into(), stream: Stream::Vision, n_classes: 5 }];
    ModelConfig::check(raw, 50, patching, vec![(Stream::Text, Stream::Vision)], classifiers).unwrap()
}

/// Two slots of each of three experts.
fn soft() -> RawExperts {
    RawExperts { router: Router::Soft, slots: Some(2), ..RawExperts::of(3) }
}

/// A made-up batch that `tiny()` takes, with drop and padding.
fn batch(seed: u64, n: usize) -> Batch {
    let mut rng = rng_for(seed, Role::Synth, &[9]);
    let mut below = |n: u64| rng.below(n);
    let resolution = Resolution::Video { frames: 4, height: 32, width: 32 };
    let vision = VisionBatch {
        resolution,
        pixels: (0..n * 4 * 32 * 32 * 3).map(|_| below(256) as u8).collect(),
        kept: Some((0..n).flat_map(|_| (0..32u32).filter(|k| k % 2 == 0)).collect()),
    };
    let ids = (0..n * 8).map(|i| if i % 8 > 4 { 0 } else { below(49) as i32 + 1 }).collect();
    let labels = (0..n).map(|_| vec![below(5) as u32]).collect();
    let examples = (0..n as u64).map(|row| imp_schemas::batch::ExampleId { corpus_idx: 0, row, epoch: 0 }).collect();
    let text = TextBatch { n_tokens: 8, ids };
    Batch {
        step: 0,
        task_idx: 0,
        view_idx: 0,
        examples,
        vision: Some(vision),
        audio: None,
        text: Some(text),
        labels: Some(labels),
    }
}

/// Each objective, and two at once.
fn goals() -> [Goal; 4] {
    let classes = |form, label_smoothing| Some(Classes { corpus: "digits".to_owned(), form, label_smoothing });
    [
        Goal::nce(),
        Goal::softmax("digits"),
        Goal { nce: false, classes: classes(Form::Sigmoid, 0.0) },
        Goal { nce: true, classes: classes(Form::Softmax, 0.2) },
    ]
}

#[test]
fn what_is_made_again_on_the_way_back_is_what_was_there_to_the_last_bit() {
    for config in [tiny(), with_experts(Some(RawExperts::of(3))), with_experts(Some(soft()))] {
        let mut model = Imp::new(&config, 4, &Cpu::default()).unwrap();
        let batch = batch(8, 11);
        let gradients = |model: &Imp<Cpu>| {
            let mut loss = model.loss(&Goal::nce(), &batch).unwrap();
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let grads = model.gradients(&mut loss.grads).unwrap().into_iter().map(|(name, g)| (name, bits(g)));
            (loss.value.to_bits(), grads.collect::<Vec<_>>())
        };
        let kept = gradients(&model);
        model.keep(ops::Keep::Inputs);
        assert_eq!(gradients(&model), kept);
    }
}

#[test]
fn a_caption_that_stands_twice_in_its_bag_weighs_as_one() {
    let model = Imp::new(&tiny(), 4, &Cpu::default()).unwrap();
    let one = batch(8, 5);
    let mut twice = one.clone();
    let text = twice.text.as_mut().unwrap();
    text.ids = text.ids.chunks(8).flat_map(|ids| [ids, ids].concat()).collect();
    let value = |batch: &Batch| model.loss_value(&Goal::nce(), batch).unwrap();
    assert!((value(&one) - value(&twice)).abs() < 1e-5, "{} {}", value(&one), value(&twice));
    // Three sentences are no bags of five examples.
    twice.text.as_mut().unwrap().ids.truncate(3 * 8);
    let message = model.loss_value(&Goal::nce(), &twice).unwrap_err().to_string();
    assert!(message.contains("vectors of a stream"), "{message}");
}

#[test]
fn the_loss_of_several_objectives_is_their_sum() {
    let model = Imp::new(&tiny(), 4, &Cpu::default()).unwrap();
    let batch = batch(3, 7);
    let value = |goal: &Goal| model.loss_value(goal, &batch).unwrap();
    let [nce, _, _, both] = goals();
    let classes = Goal { nce: false, ..both.clone() };
    assert!((value(&both) - value(&nce) - value(&classes)).abs() < 1e-5);
    assert!((value(&classes) - value(&Goal::softmax("digits"))).abs() > 1e-4, "smoothing changes the loss");
}

#[test]
fn two_runs_of_one_seed_have_equal_losses_to_the_last_bit() {
    let run = || {
        let mut model = Imp::new(&with_experts(Some(RawExperts::of(3))), 3, &Cpu::default()).unwrap();
        let mut optimizer = AdamW::new(&model, AdamWSettings::default()).unwrap();
        let mut losses = Vec::new();
        for step in 0..6 {
            let goal = if step % 2 == 0 { Goal::nce() } else { Goal::softmax("digits") };
            let Loss { value: loss, grads, .. } = model.loss(&goal, &batch(step, 10)).unwrap();
            assert!((loss - model.loss_value(&goal, &batch(step, 10)).unwrap()).abs() < 1e-6);
            optimizer.step(&mut model, grads, 1e-2).unwrap();
            losses.push(loss.to_bits());
        }
        let last = model.tensor("encoder/layer_1/moe/experts/wo/kernel").unwrap().1;
        (losses, last.iter().map(|v| v.to_bits()).collect::<Vec<u32>>())
    };
    assert_eq!(run(), run());
}

#[test]
fn the_whole_models_gradient_is_the_slope_of_its_loss() {
    // A step along a direction must not change which expert takes which token: here each takes all of them.
    let experts = RawExperts { capacity_factor: 3.0, z_weight: 0.1, ..RawExperts::of(3) };
    let runs = [None, Some(experts), Some(soft())].into_iter().flat_map(|e| goals().map(|goal| (e.clone(), goal)));
    for (experts, goal) in runs {
        let mut model = Imp::new(&with_experts(experts), 11, &Cpu::default()).unwrap();
        let mut batch = batch(5, 6);
        if let (Some(text), true) = (&mut batch.text, model.config.experts.is_some()) {
            // Padding is routed too, and in f32 the mask swallows a padded token's scores: its gradient there is no slope.
            text.ids.iter_mut().for_each(|id| *id = (*id).max(1));
        }
        check_slopes(&mut model, &goal, &batch);
    }
}

/// Holds the gradient of every parameter to the slope of the loss.
fn check_slopes(model: &mut Imp<Cpu>, goal: &Goal, batch: &Batch) {
    let grads = model.loss(goal, batch).unwrap().grads;
    let mut rng = rng_for(1, Role::Synth, &[]);
    for name in model.names() {
        let i = model.index[&name];
        let (shape, values) = model.tensor(&name).unwrap();
        let mut taken = grads.0.clone();
        let gradient = taken.get_or_alloc_mut(&model.parameters[i].tensor).unwrap().to_vec();
        // Along a random direction, scaled so that the loss changes by far more than f32 rounds.
        let direction: Vec<f32> = values.iter().map(|_| rng.normal() as f32).collect();
        let length = direction.iter().map(|d| d * d).sum::<f32>().sqrt();
        let step = 1e-2 / length;
        let mut at = |by: f32| {
            let moved: Vec<f32> = values.iter().zip(&direction).map(|(v, d)| v + by * d).collect();
            model.load(&name, &shape, &moved).unwrap();
            f64::from(model.loss_value(goal, batch).unwrap())
        };
        let slope = (at(step) - at(-step)) / f64::from(2.0 * step);
        at(0.0);
        let want: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
        // Central differences err by the square of the step; 3 % of the gradient's length covers it on these sizes.
        let size = f64::from(gradient.iter().map(|g| g * g).sum::<f32>().sqrt());
        assert!((slope - want).abs() <= 0.03 * size + 2e-4 * f64::from(length), "{name}: {slope} {want} {size}");
    }
}

/// A tiny model of both kinds of sounds.
fn of_sounds() -> ModelConfig {
    let raw = RawModel {
        depth: Some(1),
        width: Some(32),
        heads: Some(4),
        ffn_width: Some(48),
        common_width: Some(24),
        spectrogram_table: [4, 4],
        waveform_table: 4,
        text_table: 8,
        ..RawModel::preset(Preset::S)
    };
    let patching = Patching { waveform: 16, ..Patching::default() };
    let pairs = vec![(Stream::Text, Stream::Waveform), (Stream::Spectrogram, Stream::Text)];
    let classifiers = vec![Classifier { corpus: "digits".into(), stream: Stream::Waveform, n_classes: 5 }];
    ModelConfig::check(raw, 50, patching, pairs, classifiers).unwrap()
}

/// The made-up batch with sounds of `n_values` in place of clips.
fn batch_of_sounds(resolution: Resolution, n_values: usize, kept: Option<&[u32]>) -> Batch {
    let mut batch = Batch { vision: None, ..batch(5, 6) };
    let mut rng = rng_for(6, Role::Synth, &[9]);
    batch.audio = Some(AudioBatch {
        resolution,
        values: (0..batch.n() * n_values).map(|_| rng.between(-1.0, 1.0) as f32).collect(),
        kept: kept.map(|kept| kept.repeat(batch.n())),
    });
    batch
}

#[test]
fn a_model_has_a_stream_for_each_kind_of_sound_and_waveforms_train_their_own() {
    let mut model = Imp::new(&of_sounds(), 11, &Cpu::default()).unwrap();
    let of_waveforms: Vec<String> = model.names().into_iter().filter(|name| name.contains("waveform")).collect();
    let wanted = "waveform/embed/kernel waveform/embed/bias waveform/pos_t/embedding waveform/pos_norm/scale \
        waveform/pos_norm/bias waveform/pre/kernel waveform/pre/bias waveform/post/kernel waveform/post/bias \
        waveform/to_text/wi/kernel waveform/to_text/wi/bias waveform/to_text/wo/kernel waveform/to_text/wo/bias \
        waveform/to_text/norm/scale waveform/to_text/norm/bias text/to_waveform/wi/kernel text/to_waveform/wi/bias \
        text/to_waveform/wo/kernel text/to_waveform/wo/bias text/to_waveform/norm/scale text/to_waveform/norm/bias \
        temperature/text_waveform";
    assert_eq!(of_waveforms, wanted.split_whitespace().collect::<Vec<_>>());
    assert_eq!(model.tensor("waveform/embed/kernel").unwrap().0, [16, 32]);
    assert_eq!(model.tensor("waveform/pos_t/embedding").unwrap().0, [4, 32]);

    // Eight tokens, five of which are kept.
    let waveforms = batch_of_sounds(Resolution::Waveform { samples: 128 }, 128, Some(&[0, 2, 3, 5, 7]));
    let [.., both] = goals();
    check_slopes(&mut model, &both, &waveforms);
    let mut loss = model.loss(&both, &waveforms).unwrap();
    for (name, gradient) in model.gradients(&mut loss.grads).unwrap() {
        let of_spectrograms = name.contains("spectrogram");
        assert!(!of_spectrograms || gradient.iter().all(|&g| g == 0.0), "{name}");
        assert!(of_spectrograms || gradient.iter().any(|&g| g != 0.0), "{name}");
    }
    let parts = model.loss_in_parts(&both, &waveforms, 2).unwrap();
    assert!((loss.value - parts.value).abs() < 1e-5, "{} {}", loss.value, parts.value);

    let spectrograms = batch_of_sounds(Resolution::Audio { frames: 32, mels: 32 }, 32 * 32, None);
    assert!(model.loss(&Goal::nce(), &spectrograms).is_ok());
    let audio = spectrograms.audio.as_ref().unwrap();
    assert_eq!(model.embed_audio(audio, Stream::Text).unwrap().len(), 6 * 24);
    let message = model.loss_value(&both, &spectrograms).unwrap_err().to_string();
    assert!(message.contains("waveform"), "{message}");
}

#[test]
fn a_waveforms_patches_are_its_samples_in_order() {
    let patching = Patching { waveform: 4, ..Patching::default() };
    let samples: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let resolution = Resolution::Waveform { samples: 12 };
    let all = sound_patches(resolution, &samples, None, &patching).unwrap();
    assert_eq!((all.n, all.grid, all.n_tokens, all.values), (2, [3, 1, 1], 3, samples.clone()));
    let kept = sound_patches(resolution, &samples, Some(&[0, 2, 1, 2]), &patching).unwrap();
    assert_eq!(kept.values, [&samples[..4], &samples[8..12], &samples[16..24]].concat());
    let message = sound_patches(resolution, &samples[..13], None, &patching).unwrap_err().to_string();
    assert!(message.contains("samples") && message.contains("13"), "{message}");
}

#[test]
fn a_batch_in_parts_has_the_loss_and_the_gradients_of_the_whole() {
    // Groups of one example: what experts choose does not depend on where a batch is cut.
    let experts = RawExperts { group_tokens: 1, capacity_factor: 2.0, ..RawExperts::of(2) };
    for config in [tiny(), with_experts(Some(experts)), with_experts(Some(soft()))] {
        let model = Imp::new(&config, 4, &Cpu::default()).unwrap();
        let mut bags = batch(8, 11);
        // Two captions of four tokens in place of one of eight.
        bags.text.as_mut().unwrap().n_tokens = 4;
        let runs = goals().map(|goal| (batch(8, 11), goal)).into_iter().chain([(bags, Goal::nce())]);
        for (batch, goal) in runs {
            let whole = model.loss(&goal, &batch).unwrap();
            for most in [1, 4, 10] {
                let parts = model.loss_in_parts(&goal, &batch, most).unwrap();
                assert!((whole.value - parts.value).abs() < 1e-5, "{goal:?}, {most}: {} {}", whole.value, parts.value);
                let (mut want, mut got) = (whole.grads.0.clone(), parts.grads.0);
                for p in &model.parameters {
                    let want = want.get_or_alloc_mut(&p.tensor).unwrap().to_vec();
                    let most = want.iter().fold(1e-4f32, |most, g| most.max(g.abs()));
                    let got = got.get_or_alloc_mut(&p.tensor).unwrap();
                    let close = |(g, w): (&f32, &f32)| (g - w).abs() <= 2e-4 * most;
                    assert!(got.len() == want.len() && got.iter().zip(&want).all(close), "{goal:?}: {}", p.name);
                }
                let z = |loss: &Loss<Cpu>| loss.routing.map(|r| r.z_loss);
                assert_eq!(z(&whole).is_some(), model.config.experts.is_some());
                assert!(z(&whole).zip(parts.routing.map(|r| r.z_loss)).is_none_or(|(a, b)| (a - b).abs() < 1e-4));
            }
        }
    }
}

#[test]
fn padding_enters_no_slot_of_a_soft_expert() {
    let model = Imp::new(&with_experts(Some(soft())), 9, &Cpu::default()).unwrap();
    let embed = |n_tokens: usize| {
        let mut ids = vec![7, 8, 9];
        ids.resize(n_tokens, 0);
        model.embed_text(&TextBatch { n_tokens, ids }, Stream::Vision).unwrap()
    };
    for (bare, padded) in embed(3).iter().zip(embed(8)) {
        assert!((bare - padded).abs() < 1e-6, "{bare} {padded}");
    }
}

#[test]
fn a_task_with_moments_of_its_own_steps_as_if_it_were_alone_with_the_parameters() {
    let fresh = || Imp::new(&tiny(), 3, &Cpu::default()).unwrap();
    let settings = AdamWSettings { moments: Moments::PerTask, weight_decay: 0.0, ..AdamWSettings::default() };
    let mut model = fresh();
    let mut optimizer = AdamW::for_tasks(&model, settings, 2).unwrap();
    let grads = |model: &Imp<Cpu>, step: u64| {
        let goal = if step.is_multiple_of(2) { Goal::nce() } else { Goal::softmax("digits") };
        model.loss(&goal, &batch(step, 6)).unwrap().grads
    };
    let values = |model: &Imp<Cpu>| model.names().iter().map(|name| model.tensor(name).unwrap().1).collect::<Vec<_>>();
    let gradients = grads(&model, 0);
    optimizer.step_of(0, &mut model, gradients, 1e-2).unwrap();
    // The other task's first step is that of an optimiser that has seen nothing.
    let mut alone = fresh();
    for name in model.names() {
        let (shape, values) = model.tensor(&name).unwrap();
        alone.load(&name, &shape, &values).unwrap();
    }
    let mut first = AdamW::new(&alone, settings).unwrap();
    let before = values(&model);
    let gradients = grads(&model, 1);
    optimizer.step_of(1, &mut model, gradients, 1e-2).unwrap();
    let gradients = grads(&alone, 1);
    first.step(&mut alone, gradients, 1e-2).unwrap();
    assert_eq!(values(&model), values(&alone));
    // Sentences have no part in classes: shared moments would have moved them on.
    let words = model.names().iter().position(|name| name == "text/embed/embedding").unwrap();
    assert_eq!(values(&model)[words], before[words]);
    // And what is saved is all there is.
    let mut loaded = AdamW::for_tasks(&model, settings, 2).unwrap();
    for name in optimizer.names() {
        let (shape, values) = optimizer.tensor(&name).unwrap();
        loaded.load(&name, &shape, &values).unwrap();
    }
    loaded.set_updates(optimizer.n_updates());
    let mut other = fresh();
    for name in model.names() {
        let (shape, values) = model.tensor(&name).unwrap();
        other.load(&name, &shape, &values).unwrap();
    }
    for (optimizer, model) in [(&mut optimizer, &mut model), (&mut loaded, &mut other)] {
        let gradients = grads(model, 2);
        optimizer.step_of(0, model, gradients, 1e-2).unwrap();
    }
    assert_eq!(values(&model), values(&other));
    assert!(loaded.load("mu.2/text/embed/embedding", &[1], &[0.0]).is_err());
    assert!(loaded.load("mu/text/embed/embedding", &[1], &[0.0]).is_err());
}

#[test]
fn the_mean_of_the_parameters_follows_them_at_its_decay() {
    let mut model = Imp::new(&tiny(), 3, &Cpu::default()).unwrap();
    let settings = AdamWSettings { ema: 0.5, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(&model, settings).unwrap();
    let name = "text/pre/kernel";
    let mut want = model.tensor(name).unwrap().1;
    for step in 0..6 {
        let loss = model.loss(&Goal::nce(), &batch(step, 6)).unwrap();
        optimizer.step(&mut model, loss.grads, 1e-2).unwrap();
        let decay = 0.5f32.min((2.0 + step as f32) / (11.0 + step as f32));
        let now = model.tensor(name).unwrap().1;
        want.iter_mut().zip(&now).for_each(|(mean, now)| *mean = decay * *mean + (1.0 - decay) * now);
    }
    let got = optimizer.tensor(&format!("ema/{name}")).unwrap().1;
    assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6));
    assert!(got != model.tensor(name).unwrap().1);
    let plain = AdamW::new(&model, AdamWSettings::default()).unwrap();
    assert!(plain.tensor(&format!("ema/{name}")).is_none() && !plain.names().iter().any(|n| n.starts_with("ema/")));
}

#[test]
fn a_parameter_of_the_wrong_name_or_shape_is_refused_by_name() {
    let mut model = Imp::new(&tiny(), 1, &Cpu::default()).unwrap();
    let message = model.load("vision/pre/kernal", &[1], &[0.0]).unwrap_err().to_string();
    assert!(
        message.contains("no parameter `vision/pre/kernal`") && message.contains("`vision/pre/kernel`"),
        "{message}"
    );
    let message = model.load("vision/pre/bias", &[31], &[0.0; 31]).unwrap_err().to_string();
    assert!(message.contains("shape [31], the model wants [32]"), "{message}");
    let text = TextBatch { n_tokens: 2, ids: vec![1, 50] };
    let message = model.embed_text(&text, Stream::Vision).unwrap_err().to_string();
    assert!(message.contains("token id 50 is out of range, must be below 50"), "{message}");
    let message =
        model.embed_text(&TextBatch { n_tokens: 1, ids: vec![1] }, Stream::Spectrogram).unwrap_err().to_string();
    assert!(message.contains("no head from text to spectrogram"), "{message}");
}

#[test]
fn embeddings_have_length_one_and_do_not_depend_on_their_neighbours() {
    let by_example = RawExperts { eval_groups: EvalGroups::Example, ..RawExperts::of(3) };
    assert!(distance_from_neighbours(tiny()) < 1e-5);
    assert!(distance_from_neighbours(with_experts(Some(by_example))) < 1e-5);
    assert!(distance_from_neighbours(with_experts(Some(soft()))) < 1e-5);
    // Experts that choose among a batch's tokens are another matter (IMP.md, trap T10).
    assert!(distance_from_neighbours(with_experts(Some(RawExperts::of(3)))) > 1e-3);
}

/// How far the embedding of an example is from what it is in company.
fn distance_from_neighbours(config: ModelConfig) -> f32 {
    let model = Imp::new(&config, 1, &Cpu::default()).unwrap();
    let all = batch(2, 7);
    let vision = all.vision.unwrap();
    let together = model.embed_vision(&vision, Stream::Text).unwrap();
    let width = model.config().common_width();
    for row in together.chunks_exact(width) {
        assert!((ops::simd::sum_of_squares(row) - 1.0).abs() < 1e-4);
    }
    let per = vision.pixels.len() / 7;
    let kept = vision.kept.as_ref().map(|k| k[..k.len() / 7].to_vec());
    let alone = VisionBatch { pixels: vision.pixels[..per].to_vec(), kept, ..vision.clone() };
    let alone = model.embed_vision(&alone, Stream::Text).unwrap();
    alone.iter().zip(&together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
