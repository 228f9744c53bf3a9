//! How well a radius shuffles: `cargo run -p imp-loader --features benching --example shuffle -- [rows] [batch]`.
//!
//! Prints a table of Markdown: for each radius, pairs of neighbours in a batch and the correlation of place and row.

#![expect(clippy::unwrap_used, reason = "an example that cannot make its input shows nothing")]

use imp_loader::benching::Steps;
use imp_schemas::task::{Mixture, RawMixture};

fn main() {
    let number = |nth: usize, or: u64| std::env::args().nth(nth).map_or(or, |text| text.parse().unwrap());
    let (n_rows, batch) = (number(1, 1_000_000), number(2, 256));
    println!("{n_rows} rows, batches of {batch}\n");
    println!(
        "| radius | window | pairs of a batch in one window | of an order drawn at random | correlation of place and row |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for radius in [Some(4096), Some(65_536), Some(524_288), None] {
        let raw = serde_json::json!({ "seed": 1, "shuffle_radius": radius, "tasks": [{ "name": "t", "corpora": ["c"],
            "modalities": ["image", "text"], "objective": "nce", "batch": batch,
            "views": [{ "height": 224, "width": 224, "text_tokens": 16 }] }] });
        let mixture: Mixture = serde_json::from_value::<RawMixture>(raw).unwrap().try_into().unwrap();
        let task = mixture.tasks()[0].clone();
        let quality = Steps::new(mixture, n_rows).quality(&task, radius);
        println!(
            "| {} | {} | {:.2} | {:.2} | {:+.4} |",
            radius.map_or("none".to_owned(), |radius| radius.to_string()),
            quality.window_rows,
            quality.same_window_pairs,
            quality.same_window_pairs_if_random,
            quality.position_correlation
        );
    }
}
