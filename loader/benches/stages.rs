//! What each stage of the loader costs for one example: `cargo bench -p imp-loader --features benching`.

#![expect(clippy::unwrap_used, reason = "a bench that cannot make its input measures nothing")]

use divan::Bencher;
use divan::counter::ItemsCount;
use imp_loader::benching::{Bench, Steps};
use imp_schemas::media::Planes;
use imp_schemas::rng::{Role, rng_for};
use imp_schemas::task::{Mixture, RawMixture};

fn main() {
    divan::main();
}

/// A picture as large as those of the web, with detail everywhere.
fn jpeg() -> Vec<u8> {
    let mut rng = rng_for(1, Role::Synth, &[]);
    let picture = image::RgbImage::from_fn(500, 375, |x, y| {
        let noise = rng.below(32) as u8;
        image::Rgb([(x / 2) as u8 ^ noise, (y / 2) as u8 + noise, ((x + y) / 4) as u8 | noise])
    });
    testkit::media::jpeg_bytes(&picture, 85).unwrap()
}

fn tone(rate: u32, seconds: u32) -> Vec<f32> {
    (0..rate * seconds).map(|i| (i as f32 * 0.05).sin() * 0.5).collect()
}

#[divan::bench]
fn decode_full(bencher: Bencher<'_, '_>) {
    let jpeg = jpeg();
    bencher.counter(ItemsCount::new(1u8)).bench(|| Bench::decode(divan::black_box(&jpeg)));
}

#[divan::bench(args = [375, 187, 93, 46])]
fn decode_planes(bencher: Bencher<'_, '_>, side: usize) {
    let (jpeg, mut planes) = (jpeg(), Planes::default());
    bencher
        .counter(ItemsCount::new(1u8))
        .bench_local(|| Bench::decode_planes(divan::black_box(&jpeg), side, &mut planes));
}

#[divan::bench(args = [128, 224, 384])]
fn resize_rgb(bencher: Bencher<'_, '_>, side: usize) {
    let (picture, mut bench, mut out) = (Bench::decode(&jpeg()), Bench::default(), vec![0; side * side * 3]);
    bencher.counter(ItemsCount::new(1u8)).bench_local(|| bench.resize(divan::black_box(&picture), side, &mut out));
}

#[divan::bench(args = [128, 224, 384])]
fn resize_planes(bencher: Bencher<'_, '_>, side: usize) {
    let mut planes = Planes::default();
    Bench::decode_planes(&jpeg(), side, &mut planes);
    let (mut bench, mut out) = (Bench::default(), vec![0; side * side * 3]);
    bencher
        .counter(ItemsCount::new(1u8))
        .bench_local(|| bench.resize_planes(divan::black_box(&planes), side, &mut out));
}

#[divan::bench(args = [22_050, 44_100, 48_000])]
fn resample_10_s(bencher: Bencher<'_, '_>, rate: u32) {
    let (samples, mut bench) = (tone(rate, 10), Bench::default());
    bencher.counter(ItemsCount::new(1u8)).bench_local(|| bench.resample(rate, divan::black_box(&samples)));
}

#[divan::bench]
fn log_mel_128_frames(bencher: Bencher<'_, '_>) {
    let (samples, mut bench) = (tone(16_000, 10), Bench::default());
    bencher.counter(ItemsCount::new(1u8)).bench_local(|| bench.log_mel(divan::black_box(&samples), 128));
}

#[divan::bench(args = [0, 65_536])]
fn plan_a_step_of_256(bencher: Bencher<'_, '_>, radius: u64) {
    let raw = serde_json::json!({ "seed": 1, "shuffle_radius": (radius > 0).then_some(radius), "tasks": [{ "name": "t",
        "corpora": ["c"], "modalities": ["image", "text"], "objective": "nce", "batch": 256,
        "views": [{ "height": 224, "width": 224, "text_tokens": 16 }] }] });
    let mixture: Mixture = serde_json::from_value::<RawMixture>(raw).unwrap().try_into().unwrap();
    let mut steps = Steps::new(mixture, 1_000_000_000);
    bencher.counter(ItemsCount::new(256u16)).bench_local(|| steps.advance());
}
