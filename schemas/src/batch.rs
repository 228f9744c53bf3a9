//! What a step gets: host arrays of one task at one resolution.
//!
//! Arrays are dense and row-major, without padding between examples; pixels stay u8, because the trainer normalises them
//! and a quarter of the bytes crosses the channel. An absent stream is `None`, never an empty array.

use crate::resolution::Resolution;

/// Which record an example was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExampleId {
    /// Index into the task's corpora.
    pub corpus_idx: u32,
    /// Row of the corpus's split, counted over its shards in manifest order.
    pub row: u64,
    /// How often the task had gone through its rows before.
    pub epoch: u64,
}

/// Pictures or clips of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisionBatch {
    /// [`Resolution::Image`] or [`Resolution::Video`].
    pub resolution: Resolution,
    /// `[n, frames, height, width, 3]`, u8, sRGB; an image has one frame.
    pub pixels: Vec<u8>,
    /// DropToken: `[n, n_kept]` token positions in raster order (t, h, w), rising within each example. `None` keeps all.
    pub kept: Option<Vec<u32>>,
}

/// Sounds of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioBatch {
    /// [`Resolution::Audio`] or [`Resolution::Waveform`].
    pub resolution: Resolution,
    /// `[n, frames, mels]`, natural logarithm, or `[n, samples]`, in [-1, 1] but for what a gain or a filter adds.
    pub values: Vec<f32>,
    /// As [`VisionBatch::kept`], positions in raster order: (time, frequency), or time alone.
    pub kept: Option<Vec<u32>>,
}

/// Token ids, cropped or padded to one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextBatch {
    /// Length of every row.
    pub n_tokens: usize,
    /// `[n, n_tokens]`, or `[n, captions, n_tokens]` where an example has several; 0 is padding and is masked.
    pub ids: Vec<i32>,
}

/// One step's examples.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub step: u64,
    /// Index into the mixture's tasks.
    pub task_idx: usize,
    /// Index into the task's views.
    pub view_idx: usize,
    pub examples: Vec<ExampleId>,
    pub vision: Option<VisionBatch>,
    pub audio: Option<AudioBatch>,
    pub text: Option<TextBatch>,
    /// `[n]`, of each example its labels, indices into the manifest's classes: at least one, distinct, the record's first
    /// label first. Present if every record of the batch has one.
    pub labels: Option<Vec<Vec<u32>>>,
}

impl Batch {
    /// Number of examples.
    pub fn n(&self) -> usize {
        self.examples.len()
    }

    /// Bytes of the arrays.
    pub fn n_bytes(&self) -> usize {
        let kept = |kept: &Option<Vec<u32>>| kept.as_ref().map_or(0, |k| k.len() * 4);
        self.vision.as_ref().map_or(0, |v| v.pixels.len() + kept(&v.kept))
            + self.audio.as_ref().map_or(0, |a| a.values.len() * 4 + kept(&a.kept))
            + self.text.as_ref().map_or(0, |t| t.ids.len() * 4)
            + self.labels.iter().flatten().map(|of_example| of_example.len() * 4).sum::<usize>()
    }

    /// BLAKE3 of what the `i`-th example holds, whichever batch or rank's part of one it stands in.
    pub fn example_digest(&self, i: usize) -> String {
        let mut hasher = blake3::Hasher::new();
        fn part<T>(all: &[T], n: usize, i: usize) -> &[T] {
            let len = all.len() / n.max(1);
            &all[i * len..][..len]
        }
        let n = self.n();
        if let Some(vision) = &self.vision {
            hasher.update(format!("vision {}", vision.resolution).as_bytes());
            hasher.update(part(&vision.pixels, n, i));
            vision.kept.iter().flat_map(|kept| part(kept, n, i)).for_each(|k| _ = hasher.update(&k.to_le_bytes()));
        }
        if let Some(audio) = &self.audio {
            hasher.update(format!("audio {}", audio.resolution).as_bytes());
            part(&audio.values, n, i).iter().for_each(|v| _ = hasher.update(&v.to_bits().to_le_bytes()));
            audio.kept.iter().flat_map(|kept| part(kept, n, i)).for_each(|k| _ = hasher.update(&k.to_le_bytes()));
        }
        if let Some(text) = &self.text {
            hasher.update(format!("text {}", text.n_tokens).as_bytes());
            part(&text.ids, n, i).iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
        }
        if let Some(labels) = &self.labels {
            labels[i].iter().for_each(|label| _ = hasher.update(&label.to_le_bytes()));
        }
        hasher.finalize().to_hex().to_string()
    }

    /// BLAKE3 of everything in the batch: two runs trained on the same bytes exactly if their digests agree.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for number in [self.step, self.task_idx as u64, self.view_idx as u64] {
            hasher.update(&number.to_le_bytes());
        }
        for example in &self.examples {
            for number in [u64::from(example.corpus_idx), example.row, example.epoch] {
                hasher.update(&number.to_le_bytes());
            }
        }
        if let Some(vision) = &self.vision {
            hasher.update(format!("vision {}", vision.resolution).as_bytes());
            hasher.update(&vision.pixels);
            hash_kept(&mut hasher, &vision.kept);
        }
        if let Some(audio) = &self.audio {
            hasher.update(format!("audio {}", audio.resolution).as_bytes());
            for value in &audio.values {
                hasher.update(&value.to_bits().to_le_bytes());
            }
            hash_kept(&mut hasher, &audio.kept);
        }
        if let Some(text) = &self.text {
            hasher.update(format!("text {}", text.n_tokens).as_bytes());
            for id in &text.ids {
                hasher.update(&id.to_le_bytes());
            }
        }
        if let Some(labels) = &self.labels {
            hasher.update(b"labels");
            for label in labels.iter().filter_map(|of_example| of_example.first()) {
                hasher.update(&label.to_le_bytes());
            }
            // Batches of one label an example keep the digest that they had before there were several.
            if labels.iter().any(|of_example| of_example.len() > 1) {
                hasher.update(b"label sets");
                for of_example in labels {
                    hasher.update(&(of_example.len() as u64).to_le_bytes());
                    of_example.iter().for_each(|label| _ = hasher.update(&label.to_le_bytes()));
                }
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn hash_kept(hasher: &mut blake3::Hasher, kept: &Option<Vec<u32>>) {
    if let Some(kept) = kept {
        hasher.update(b"kept");
        for position in kept {
            hasher.update(&position.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_labels_are_in_the_digest_and_single_ones_are_in_it_as_before() {
        let batch = |labels: &[&[u32]]| Batch {
            step: 3,
            task_idx: 1,
            view_idx: 0,
            examples: (0..labels.len() as u64).map(|row| ExampleId { corpus_idx: 0, row, epoch: 0 }).collect(),
            vision: None,
            audio: None,
            text: None,
            labels: Some(labels.iter().map(|of_example| of_example.to_vec()).collect()),
        };
        let single = batch(&[&[1], &[2]]);
        // As it was written when a batch had one label an example.
        let mut hasher = blake3::Hasher::new();
        [3_u64, 1, 0, 0, 0, 0, 0, 1, 0].iter().for_each(|number| _ = hasher.update(&number.to_le_bytes()));
        hasher.update(b"labels");
        [1_u32, 2].iter().for_each(|label| _ = hasher.update(&label.to_le_bytes()));
        assert_eq!(single.digest(), hasher.finalize().to_hex().to_string());
        let several: [&[&[u32]]; 4] = [&[&[1], &[2, 0]], &[&[1, 0], &[2]], &[&[1, 2], &[0]], &[&[1, 2, 0], &[2]]];
        let mut digests: Vec<String> = several.iter().map(|labels| batch(labels).digest()).collect();
        digests.push(single.digest());
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 5);
        assert_eq!((single.n_bytes(), batch(several[3]).n_bytes()), (8, 16));
        assert_ne!(batch(several[0]).example_digest(1), single.example_digest(1));
        assert_eq!(batch(several[0]).example_digest(0), single.example_digest(0));
    }
}
