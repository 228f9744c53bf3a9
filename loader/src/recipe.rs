//! How the records of a task become examples: everything that decoding and assembling need to know of it.

use imp_schemas::modality::{Modality, RecordKind};
use imp_schemas::resolution::{Patching, Resolution};
use imp_schemas::task::{Augment, Decode, View};

use crate::cache::Form;

/// A task, or an evaluation, as the pipeline sees it.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// For messages.
    pub name: String,
    pub seed: u64,
    pub task_idx: usize,
    /// Index among the opened splits, for each of the task's corpora.
    pub splits: Vec<usize>,
    pub modalities: Vec<Modality>,
    pub views: Vec<View>,
    pub patching: Patching,
    /// `None` in evaluation: centre crops, centred sounds, every token, the first caption.
    pub augment: Option<Augment>,
    pub working_side: Option<usize>,
    pub decode: Decode,
    /// In evaluation: which of the windows of a clip or a sound, evenly spaced over it, this recipe takes.
    pub window: Window,
    /// A record without a label is no example.
    pub needs_label: bool,
}

/// The `nth` of `of` windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub nth: usize,
    pub of: usize,
}

impl Window {
    /// The one in the middle.
    pub const MIDDLE: Self = Self { nth: 0, of: 1 };

    /// Where it starts, if the last one that there is room for starts at `room`: the only one in the middle, of several the first at
    /// the start and the last at the end.
    pub fn start(self, room: usize) -> usize {
        match self.of {
            0 | 1 => room / 2,
            of => room * self.nth / (of - 1),
        }
    }
}

impl Recipe {
    pub fn has(&self, modality: Modality) -> bool {
        self.modalities.contains(&modality)
    }

    /// Whether this is an evaluation, which also wants keys and captions.
    pub fn evaluates(&self) -> bool {
        self.augment.is_none()
    }

    /// Whether planes go straight to the view's size. What of them is needed hangs on the crop, so nothing is kept.
    pub fn resizes_planes(&self) -> bool {
        self.decode == Decode::Scaled && self.working_side.is_none()
    }

    /// The size of pictures or clips, if the task has any. An evaluation may use less than its view could give.
    pub fn vision(&self, view: &View) -> Option<Resolution> {
        view.vision().filter(|_| self.has(Modality::Image) || self.has(Modality::Video))
    }

    /// The size of spectrograms or waveforms, if the task has sound.
    pub fn audio(&self, view: &View) -> Option<Resolution> {
        view.audio().filter(|_| self.has(Modality::Audio))
    }

    /// The length of captions, if the task has text.
    pub fn text(&self, view: &View) -> Option<Resolution> {
        view.text().filter(|_| self.has(Modality::Text))
    }

    /// What decoding makes of a record of `kind` before anything is drawn; small columns first.
    pub fn forms(&self, kind: RecordKind) -> Vec<Form> {
        let mut forms = vec![Form::Meta];
        let side = self.working_side;
        for modality in &self.modalities {
            match modality {
                Modality::Image => forms.push(Form::Picture { side, decode: self.decode }),
                Modality::Video => forms.push(Form::Frames { side, decode: self.decode }),
                Modality::Audio => forms.push(Form::Sound),
                Modality::Text => {}
            }
        }
        debug_assert!(self.modalities.iter().all(|&m| kind.gives(m)));
        forms
    }

    /// Bytes of the arrays of `n` examples at `view`.
    pub fn output_bytes(&self, view: &View, n: usize) -> usize {
        let bytes = |resolution: Option<Resolution>| match resolution {
            Some(Resolution::Image { height, width }) => height * width * 3,
            Some(Resolution::Video { frames, height, width }) => frames * height * width * 3,
            Some(Resolution::Audio { frames, mels }) => frames * mels * 4,
            Some(Resolution::Waveform { samples }) => samples * 4,
            Some(Resolution::Text { tokens }) => view.n_captions() * tokens * 4,
            None => 0,
        };
        n * (bytes(self.vision(view)) + bytes(self.audio(view)) + bytes(self.text(view)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_spaced_evenly_from_the_start_to_the_end() {
        let starts = |of: usize, room| (0..of).map(|nth| Window { nth, of }.start(room)).collect::<Vec<_>>();
        assert_eq!(starts(1, 9), [4]);
        assert_eq!(starts(4, 9), [0, 3, 6, 9]);
        assert_eq!(starts(3, 0), [0, 0, 0]);
    }
}
