//! Records → examples: decode, crop, resize, waveform or spectrogram, tokens; one file per modality.
//!
//! In: one record and the recipe of its task. Out: the arrays of one example, or why its content cannot make one. Never:
//! I/O, a size that depends on the content, a draw that depends on another.

pub mod audio;
pub mod image;
pub mod log_mel;
pub mod planes;
pub mod video;

use std::sync::Arc;

use imp_schemas::batch::ExampleId;
use imp_schemas::media::{
    Frame, MediaLimits, Needed, Picture, Planes, read_audio, read_audio_part, read_frames, read_image, read_planes,
    read_raw_frames,
};
use imp_schemas::resolution::{Resolution, n_kept};
use imp_schemas::task::{Decode, View};

use crate::augment::{CropBox, Draw, Draws, Jitter, centre_box, flip, kept_tokens, random_box};
use crate::cache::{Cache, CacheKey, Form, Held};
use crate::error::ContentFault;
use crate::pool::Pool;
use crate::recipe::{Recipe, Window};
use crate::record::{Meta, Record};
use audio::{Placement, Sounds, place};
use image::{Pixels, reduced_size};
use log_mel::MelTables;
use planes::PlaneResizer;

/// The arrays of one example.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Example {
    /// `[frames, height, width, 3]`.
    pub pixels: Option<Vec<u8>>,
    pub kept_vision: Option<Vec<u32>>,
    /// `[frames, mels]` or `[samples]`.
    pub sound: Option<Vec<f32>>,
    pub kept_audio: Option<Vec<u32>>,
    pub ids: Option<Vec<i32>>,
    /// Small columns: the labels, and what evaluation wants.
    pub meta: Arc<Meta>,
}

/// What one thread needs to decode.
pub struct Workbench {
    pixels: Pixels,
    planes: PlaneResizer,
    /// Of the JPEG that was read last; kept for its memory.
    coded: Planes,
    sounds: Sounds,
    cache: Arc<Cache>,
    /// Of the pixels of examples.
    pool: Arc<Pool>,
    limits: MediaLimits,
}

impl Workbench {
    pub fn new(tables: &Arc<MelTables>, cache: &Arc<Cache>, pool: &Arc<Pool>) -> Self {
        let (pixels, sounds) = (Pixels::default(), Sounds::new(tables));
        Self {
            pixels,
            planes: PlaneResizer::default(),
            coded: Planes::default(),
            sounds,
            cache: Arc::clone(cache),
            pool: Arc::clone(pool),
            limits: MediaLimits::default(),
        }
    }

    /// The example that `record` makes at `view`.
    ///
    /// # Errors
    /// Why the content cannot make one.
    pub fn example(
        &mut self,
        recipe: &Recipe,
        view: &View,
        id: &ExampleId,
        record: &Record,
    ) -> Result<Example, ContentFault> {
        let draws = Draws::new(recipe.seed, recipe.task_idx, id);
        if recipe.needs_label && record.meta.labels.is_empty() {
            return Err(ContentFault::NoLabel);
        }
        let mut example = Example { meta: Arc::clone(&record.meta), ..Example::default() };
        // A clip's first frame places its sound.
        let mut start_seconds = None;
        match recipe.vision(view) {
            Some(Resolution::Image { height, width }) => {
                example.pixels = Some(self.picture(recipe, &draws, record, height, width)?);
            }
            Some(Resolution::Video { frames, height, width }) => {
                let clip = self.clip(recipe, view, &draws, record, [frames, height, width])?;
                example.pixels = Some(clip.0);
                start_seconds = clip.1;
            }
            Some(Resolution::Audio { .. } | Resolution::Waveform { .. } | Resolution::Text { .. }) | None => {}
        }
        match recipe.audio(view) {
            Some(Resolution::Audio { frames, .. }) => {
                let wanted = self.sounds.n_samples(frames);
                let samples = self.sound(recipe, &draws, record, wanted, start_seconds)?;
                example.sound = Some(self.sounds.log_mel(&samples));
            }
            Some(Resolution::Waveform { samples }) => {
                example.sound = Some(self.sound(recipe, &draws, record, samples, start_seconds)?);
            }
            Some(Resolution::Image { .. } | Resolution::Video { .. } | Resolution::Text { .. }) | None => {}
        }
        if let Some(Resolution::Text { tokens }) = recipe.text(view) {
            example.ids = Some(captions(recipe, &draws, &record.meta, tokens, view.n_captions())?);
        }
        if !recipe.evaluates() && view.drop_rate() > 0.0 {
            let kept = |resolution: Option<Resolution>, draw| {
                let n = resolution?.n_tokens(&recipe.patching).unwrap_or(0);
                Some(kept_tokens(&mut draws.rng(draw), n, n_kept(n, view.drop_rate())))
            };
            example.kept_vision = kept(recipe.vision(view), Draw::KeptVision);
            example.kept_audio = kept(recipe.audio(view), Draw::KeptAudio);
        }
        Ok(example)
    }

    fn picture(
        &mut self,
        recipe: &Recipe,
        draws: &Draws,
        record: &Record,
        height: usize,
        width: usize,
    ) -> Result<Vec<u8>, ContentFault> {
        let mut out = self.pool.take(height * width * 3);
        let form = Form::Picture { side: recipe.working_side, decode: recipe.decode };
        if let Some(Held::Pictures(held)) = record.form(form) {
            let picture = held.first().ok_or(ContentFault::NoMedium)?;
            let crop = crop_of(recipe, draws, (picture.width, picture.height), height, width);
            self.pixels.crop_resize(picture, crop, width, height, &mut out)?;
        } else {
            let bytes = record.medium().ok_or(ContentFault::NoMedium)?;
            let has_planes = self.read_planes(recipe, draws, bytes, [height, width])?;
            if has_planes && recipe.resizes_planes() {
                let crop = crop_of(recipe, draws, (self.coded.width, self.coded.height), height, width);
                self.planes.crop_resize(&self.coded.view(), crop, width, height, &mut out)?;
            } else {
                let picture = if has_planes {
                    self.reduce_planes(recipe.working_side)?
                } else {
                    self.pixels.reduce(read_image(bytes, &self.limits)?.1, recipe.working_side)?
                };
                let crop = crop_of(recipe, draws, (picture.width, picture.height), height, width);
                self.pixels.crop_resize(&picture, crop, width, height, &mut out)?;
                if !recipe.resizes_planes() {
                    self.cache.put(key(record, form), Held::Pictures(Arc::new(vec![picture])));
                }
            }
        }
        recolour(recipe, draws, &mut out, width);
        Ok(out)
    }

    /// Reads the planes of a JPEG, as small as the view or the working side lets them be; `false` if the task wants every pixel, or
    /// the picture has no planes.
    fn read_planes(
        &mut self,
        recipe: &Recipe,
        draws: &Draws,
        bytes: &[u8],
        [height, width]: [usize; 2],
    ) -> Result<bool, ContentFault> {
        if recipe.decode == Decode::Full {
            return Ok(false);
        }
        let read = read_planes(bytes, &self.limits, &mut self.coded, |across, down| {
            if recipe.working_side.is_some() {
                let at_least = reduced_size(across, down, recipe.working_side);
                return Some(Needed { at_least, columns: 0..across, rows: 0..down });
            }
            let crop = crop_of(recipe, draws, (across, down), height, width);
            let at_least = ((across * width).div_ceil(crop.width), (down * height).div_ceil(crop.height));
            let (columns, rows) = (crop.left..crop.left + crop.width, crop.top..crop.top + crop.height);
            Some(Needed { at_least, columns, rows })
        })?;
        Ok(read.is_some())
    }

    /// The whole picture of the planes that were read last, with its shorter side at `side` pixels; as large as it is, if it is that
    /// small.
    fn reduce_planes(&mut self, side: Option<usize>) -> Result<Picture, ContentFault> {
        let Planes { width: across, height: down, .. } = self.coded;
        let (width, height) = reduced_size(across, down, side);
        let mut rgb = vec![0; width * height * 3];
        let whole = CropBox { left: 0, top: 0, width: across, height: down };
        self.planes.crop_resize(&self.coded.view(), whole, width, height, &mut rgb)?;
        Ok(Picture { width, height, rgb })
    }

    /// Pixels of a clip, and the second of the source at which it starts if the source is longer than the clip.
    fn clip(
        &mut self,
        recipe: &Recipe,
        view: &View,
        draws: &Draws,
        record: &Record,
        [frames, height, width]: [usize; 3],
    ) -> Result<(Vec<u8>, Option<f64>), ContentFault> {
        let impossible =
            |found: usize| ContentFault::Impossible { what: "a number of frames of", found: found.to_string() };
        let n = record.meta.num_frames.filter(|&n| n > 0).ok_or_else(|| impossible(0))?;
        let wanted = video::clip_frames(n, frames, view.stride(), |room| match recipe.evaluates() {
            true => recipe.window.start(room),
            false => draws.rng(Draw::Start).below(room as u64 + 1) as usize,
        });
        let frame_len = height * width * 3;
        let mut out = self.pool.take(frames * frame_len);
        if let Some(all) = self.all_frames(recipe, record, n)? {
            for (to, &i) in out.chunks_exact_mut(frame_len).zip(&wanted) {
                let frame = all.get(i).ok_or_else(|| impossible(all.len()))?;
                let crop = crop_of(recipe, draws, (frame.width, frame.height), height, width);
                self.pixels.crop_resize(frame, crop, width, height, to)?;
            }
        } else {
            self.few_frames(recipe, draws, record, &wanted, [height, width], &mut out)?;
        }
        recolour(recipe, draws, &mut out, width);
        let span = (frames.saturating_sub(1)) * view.stride() + 1;
        let seconds = record.meta.fps.filter(|&fps| fps > 0.0 && n >= span).map(|fps| wanted[0] as f64 / fps);
        Ok((out, seconds))
    }

    /// Every frame at the working side, if they are or can be kept.
    fn all_frames(
        &mut self,
        recipe: &Recipe,
        record: &Record,
        n: usize,
    ) -> Result<Option<Arc<Vec<Picture>>>, ContentFault> {
        if recipe.resizes_planes() {
            return Ok(None);
        }
        let form = Form::Frames { side: recipe.working_side, decode: recipe.decode };
        if let Some(Held::Pictures(frames)) = record.form(form) {
            return Ok(Some(Arc::clone(frames)));
        }
        let (Some(width), Some(height)) = (record.meta.width, record.meta.height) else { return Ok(None) };
        let shorter = width.min(height).max(1);
        let side = recipe.working_side.unwrap_or(shorter).min(shorter);
        let frame_bytes = (width * side / shorter + 1) * (height * side / shorter + 1) * 3 + size_of::<Picture>();
        if !self.cache.has_room(n * frame_bytes) {
            return Ok(None);
        }
        let bytes = record.medium().ok_or(ContentFault::NoMedium)?;
        let mut frames = Vec::with_capacity(n);
        let all: Vec<usize> = (0..n).collect();
        let pixels = &mut self.pixels;
        let read = read_frames(bytes, &all, &self.limits, &mut |_, picture| {
            frames.extend(pixels.reduce(picture, recipe.working_side));
        });
        if read.is_err() || frames.len() < n {
            // Whether a damaged clip makes an example must not hang on the cache's room: the frames that are wanted decide.
            return Ok(None);
        }
        let frames = Arc::new(frames);
        self.cache.put(key(record, form), Held::Pictures(Arc::clone(&frames)));
        Ok(Some(frames))
    }

    /// Frames `wanted` straight to the view's size: the source's full-size frames never lie side by side, and if the task lets them
    /// be scaled as planes, they never become RGB.
    fn few_frames(
        &mut self,
        recipe: &Recipe,
        draws: &Draws,
        record: &Record,
        wanted: &[usize],
        [height, width]: [usize; 2],
        out: &mut [u8],
    ) -> Result<(), ContentFault> {
        let bytes = record.medium().ok_or(ContentFault::NoMedium)?;
        let mut distinct = wanted.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let frame_len = height * width * 3;
        let (mut n_made, mut fault) = (0, None);
        let Self { pixels, planes, limits, .. } = self;
        let crop = |of| crop_of(recipe, draws, of, height, width);
        // Frames come in the order of `distinct`, and lie there in that order first.
        let mut make = |frame: &Frame<'_>| {
            let to = &mut out[n_made * frame_len..][..frame_len];
            let upright = if recipe.resizes_planes() { frame.planes()? } else { None };
            if let Some(of) = upright {
                planes.crop_resize(&of, crop((of.width, of.height)), width, height, to)?;
            } else {
                let frame = pixels.reduce(frame.picture()?, recipe.working_side)?;
                pixels.crop_resize(&frame, crop((frame.width, frame.height)), width, height, to)?;
            }
            n_made += 1;
            Ok::<_, ContentFault>(())
        };
        read_raw_frames(bytes, &distinct, limits, &mut |_, frame| {
            if fault.is_none() {
                fault = make(frame).err();
            }
            Ok(())
        })?;
        if let Some(fault) = fault {
            return Err(fault);
        }
        if n_made < distinct.len() {
            return Err(ContentFault::Impossible { what: "a number of frames of", found: n_made.to_string() });
        }
        // Backwards, because no frame moves forward: a clip that is repeated begins with all of its frames.
        for (at, frame_idx) in wanted.iter().enumerate().rev() {
            if let Ok(made) = distinct.binary_search(frame_idx)
                && made < at
            {
                out.copy_within(made * frame_len..(made + 1) * frame_len, at * frame_len);
            }
        }
        Ok(())
    }

    /// `wanted` samples of the record's sound, cut out of it or in silence.
    fn sound(
        &mut self,
        recipe: &Recipe,
        draws: &Draws,
        record: &Record,
        wanted: usize,
        start_seconds: Option<f64>,
    ) -> Result<Vec<f32>, ContentFault> {
        if record.meta.has_audio == Some(false) {
            return Err(ContentFault::NoSound);
        }
        let shift = recipe.augment.as_ref().is_some_and(|a| a.time_shift);
        let rate = f64::from(self.sounds.sample_rate());
        let placed = |n: usize| {
            let at = |room: usize, window: Window| {
                if shift { draws.rng(Draw::Shift).below(room as u64 + 1) as usize } else { window.start(room) }
            };
            if n <= wanted {
                return Placement::Pad(at(wanted - n, Window::MIDDLE));
            }
            let room = n - wanted;
            let with_clip = start_seconds.map(|s| (s * rate).round() as usize);
            Placement::Cut(with_clip.map_or_else(|| at(room, recipe.window), |start| start.min(room)))
        };
        // What will not be kept is decoded no farther than the view reaches.
        let part = record.meta.sound.and_then(|(rate, n)| match placed(self.sounds.resampled_len(rate, n)) {
            Placement::Cut(at) => Some((rate, n, at)),
            Placement::Pad(_) => None,
        });
        let kept =
            part.is_none_or(|(rate, n, _)| self.cache.has_room(self.sounds.resampled_len(rate, n) * size_of::<f32>()));
        let held = match record.form(Form::Sound) {
            Some(Held::Sound(samples)) => Some(Arc::clone(samples)),
            _ if kept => match self.whole_sound(record) {
                Ok(samples) => Some(samples),
                // Whether a damaged sound makes an example must not hang on the cache's room: the part that is wanted decides.
                Err(_) if part.is_some() => None,
                Err(fault) => return Err(fault),
            },
            _ => None,
        };
        let (samples, placement) = match (held, part) {
            (Some(samples), _) => {
                let placement = placed(samples.len());
                (samples, placement)
            }
            (None, Some((rate, n, at))) => {
                let (bytes, limits) = (record.medium().ok_or(ContentFault::NoMedium)?, &self.limits);
                let read = |part| Ok(read_audio_part(bytes, limits, part)?);
                (Arc::new(self.sounds.resample_part(rate, n, at..at + wanted, read)?), Placement::Cut(0))
            }
            (None, None) => return Err(ContentFault::NoMedium),
        };
        let gain_db = recipe.augment.as_ref().map_or(0.0, |a| a.gain_db);
        let gain = if gain_db > 0.0 {
            10f64.powf(draws.rng(Draw::Gain).between(-gain_db, gain_db) / 20.0) as f32
        } else {
            1.0
        };
        Ok(place(&samples, wanted, placement, gain))
    }

    /// Every sample at the spectrogram's rate, which the cache may keep.
    fn whole_sound(&mut self, record: &Record) -> Result<Arc<Vec<f32>>, ContentFault> {
        let (_, waveform) = read_audio(record.medium().ok_or(ContentFault::NoMedium)?, &self.limits)?;
        let samples = Arc::new(self.sounds.resample(waveform)?);
        self.cache.put(key(record, Form::Sound), Held::Sound(Arc::clone(&samples)));
        Ok(samples)
    }
}

fn key(record: &Record, form: Form) -> CacheKey {
    CacheKey { corpus: record.place.corpus, row: record.place.row, form }
}

/// The part of a picture of this width and height that the example shows; frames of one size get one part.
fn crop_of(recipe: &Recipe, draws: &Draws, of: (usize, usize), height: usize, width: usize) -> CropBox {
    match &recipe.augment {
        Some(augment) => random_box(&mut draws.rng(Draw::Crop), of.0, of.1, (width, height), augment),
        None => centre_box(of.0, of.1, width, height),
    }
}

fn recolour(recipe: &Recipe, draws: &Draws, rgb: &mut [u8], width: usize) {
    let Some(augment) = &recipe.augment else { return };
    if augment.flip && draws.rng(Draw::Flip).chance(0.5) {
        flip(rgb, width);
    }
    let mut rng = draws.rng(Draw::Jitter);
    if augment.jitter > 0.0 && rng.chance(augment.jitter) {
        Jitter::draw(&mut rng).apply(rgb);
    }
}

/// Ids of captions, each cropped or padded with 0 to `n_tokens`: in training `n_captions`, a random one and those after it that are not empty, around
/// the end; in evaluation the first.
fn captions(
    recipe: &Recipe,
    draws: &Draws,
    meta: &Meta,
    n_tokens: usize,
    n_captions: usize,
) -> Result<Vec<i32>, ContentFault> {
    let n = meta.tokens.len();
    let (first, n_captions) = match recipe.evaluates() {
        true => (0, 1),
        false => (draws.rng(Draw::Caption).below(n as u64) as usize, n_captions),
    };
    if meta.tokens.get(first).is_none_or(Vec::is_empty) {
        return Err(ContentFault::NoCaption);
    }
    let (before, from) = meta.tokens.split_at(first);
    let bag = from.iter().chain(before).filter(|ids| !ids.is_empty()).cycle().take(n_captions);
    let mut rows = Vec::with_capacity(n_captions * n_tokens);
    for (nth, ids) in bag.enumerate() {
        rows.extend(ids.iter().take(n_tokens));
        rows.resize((nth + 1) * n_tokens, 0);
    }
    Ok(rows)
}
