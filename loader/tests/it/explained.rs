//! What `explain` says is what the loader does, and a task that decodes no more than it needs sees the same pictures.

use imp_loader::{Loader, LoaderSettings, explain};
use imp_schemas::batch::Batch;
use imp_schemas::store::Store;
use imp_schemas::task::Mixture;

use crate::batches::{MIXTURE, mixture};
use crate::stores::{three_corpora, video_row};

fn batches(store: &Store, mixture: &Mixture, settings: &LoaderSettings, n: usize) -> Vec<Batch> {
    let mut loader = Loader::open(store, mixture.clone(), settings, None).unwrap();
    (0..n).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn a_step_is_explained_as_it_is_loaded() {
    let (_dir, store) = three_corpora();
    let mixture = mixture(MIXTURE);
    for batch in batches(&store, &mixture, &LoaderSettings::default(), 24) {
        let explained = explain(&store, &mixture, None, batch.step).unwrap();
        let task = &mixture.tasks()[batch.task_idx];
        assert_eq!((explained.task.as_str(), explained.view), (task.name(), batch.view_idx));
        assert_eq!(explained.examples.len(), batch.n());
        for (said, id) in explained.examples.iter().zip(&batch.examples) {
            assert_eq!((&said.corpus, said.epoch), (&task.corpora()[id.corpus_idx as usize], id.epoch));
            assert_eq!(said.lacks, None);
            // Rows are counted over the shards of a split, seven to a shard.
            let (shard, row) = (id.row / 7, id.row % 7);
            assert_eq!(said.row, row);
            let entry = &store.manifest(&said.corpus).unwrap().manifest.shards[shard as usize];
            assert!(said.shard.contains(&entry.digest.0), "{said:?}");
        }
        // A clip's frames are levels that say which they are.
        if let (Some(vision), "video-text") = (&batch.vision, task.name()) {
            let frame_len = vision.pixels.len() / batch.n() / 4;
            for (said, (id, pixels)) in
                explained.examples.iter().zip(batch.examples.iter().zip(vision.pixels.chunks_exact(4 * frame_len)))
            {
                assert_eq!(said.frames.len(), 4);
                assert!(
                    said.frames
                        .iter()
                        .all(|&frame| (frame as i32) < video_row(id.row as usize, 6 + id.row as usize).num_frames)
                );
                for (&frame, pixels) in said.frames.iter().zip(pixels.chunks_exact(frame_len)) {
                    assert!(
                        pixels[frame_len / 2].abs_diff(20 + 8 * frame as u8) <= 3,
                        "{said:?}: {}",
                        pixels[frame_len / 2]
                    );
                }
            }
        }
        if let ("image-text", Some(said)) = (task.name(), explained.examples.first()) {
            let crop = said.crop.unwrap();
            assert_eq!(crop.of.0.min(crop.of.1), 40, "the working side");
            assert!(
                crop.left + crop.width <= crop.of.0 && crop.top + crop.height <= crop.of.1 && said.flipped.is_some()
            );
        }
    }
}

#[test]
fn a_scaled_decode_is_the_same_whatever_the_machinery_and_shows_what_a_full_one_shows() {
    let (_dir, store) = three_corpora();
    let scaled = MIXTURE
        .replace("\"batch\": 6", "\"batch\": 6, \"decode\": \"scaled\"")
        .replace("\"batch\": 5", "\"batch\": 5, \"decode\": \"scaled\"");
    let (full, scaled) = (mixture(MIXTURE), mixture(&scaled));
    assert_ne!(full.digest_before(1), scaled.digest_before(1));
    let plain = LoaderSettings { decoded_cache_mib: 0, decode_threads: 1, ..LoaderSettings::default() };
    let busy = LoaderSettings { decoded_cache_mib: 64, decode_threads: 3, ..LoaderSettings::default() };
    let want = batches(&store, &full, &plain, 30);
    let got = batches(&store, &scaled, &plain, 30);
    let digests = |batches: &[Batch]| batches.iter().map(Batch::digest).collect::<Vec<_>>();
    assert_eq!(digests(&got), digests(&batches(&store, &scaled, &busy, 30)));
    let mut n_other = 0;
    for (want, got) in want.iter().zip(&got) {
        assert_eq!(want.examples, got.examples);
        let (Some(want), Some(got)) = (&want.vision, &got.vision) else { continue };
        assert_eq!(want.resolution, got.resolution);
        let off: u64 = want.pixels.iter().zip(&got.pixels).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = off as f64 / want.pixels.len() as f64;
        // Small pictures with hard edges between colours: a real one is nearer.
        assert!(mean <= 3.0, "{mean:.2} levels");
        n_other += u64::from(off > 0);
    }
    assert!(n_other > 0, "the other way of decoding was not taken");
}
