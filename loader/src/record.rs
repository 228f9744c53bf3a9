//! One record as the loader holds it: small columns, and the medium's bytes where they lie.
//!
//! In: a record batch of a shard. Out: records. Never: a copy of a medium.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, Int32Array, Int64Array, ListArray, StringArray,
};
use arrow::datatypes::{Float32Type, Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, media_column};
use imp_schemas::shard_reader::ShardReader;

use crate::cache::{Form, Held};

/// The small columns of a record.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Meta {
    /// Ids of each caption, neither cropped nor padded.
    pub tokens: Vec<Vec<i32>>,
    /// The first one first; empty without one.
    pub labels: Vec<u32>,
    /// Source frames of a clip.
    pub num_frames: Option<usize>,
    pub fps: Option<f64>,
    pub width: Option<usize>,
    pub height: Option<usize>,
    /// Of a video.
    pub has_audio: Option<bool>,
    /// Of a sound: Hz, and samples of a channel.
    pub sound: Option<(u32, u64)>,
    /// Evaluation only.
    pub key: String,
    /// Evaluation only.
    pub captions: Vec<String>,
}

impl Meta {
    pub fn n_bytes(&self) -> usize {
        let tokens: usize = self.tokens.iter().map(|t| t.len() * 4 + size_of::<Vec<i32>>()).sum();
        let captions: usize = self.captions.iter().map(|c| c.len() + size_of::<String>()).sum();
        size_of::<Self>() + tokens + captions + self.labels.len() * 4 + self.key.len()
    }
}

/// Where a record lies.
#[derive(Debug, Clone)]
pub struct Place {
    /// Index among the opened corpora.
    pub corpus: usize,
    /// Row of the split.
    pub row: u64,
    /// The shard's key.
    pub shard: Arc<str>,
    pub row_in_shard: u64,
}

/// A record under way to an example.
#[derive(Debug, Clone)]
pub struct Record {
    pub place: Place,
    pub meta: Arc<Meta>,
    /// `None` if everything that needs it was found decoded.
    medium: Option<(BinaryArray, usize)>,
    pub held: Vec<(Form, Held)>,
}

impl Record {
    pub fn new(place: Place, meta: Arc<Meta>, held: Vec<(Form, Held)>) -> Self {
        Self { place, meta, medium: None, held }
    }

    pub fn with_medium(mut self, media: &BinaryArray, i: usize) -> Self {
        self.medium = Some((media.clone(), i));
        self
    }

    /// The encoded medium; `None` if the record has none.
    pub fn medium(&self) -> Option<&[u8]> {
        let (media, i) = self.medium.as_ref()?;
        media.is_valid(*i).then(|| media.value(*i))
    }

    /// The decoded form, if it was found.
    pub fn form(&self, form: Form) -> Option<&Held> {
        self.held.iter().find(|(f, _)| *f == form).map(|(_, held)| held)
    }
}

/// Columns of the shard that [`Columns::of`] wants: `full` adds what only evaluation needs.
pub fn wanted_columns(shard: &ShardReader, kind: RecordKind, full: bool) -> Vec<String> {
    let mut wanted = vec![column::TOKENS, column::LABEL_ID];
    if shard.has(column::LABEL_IDS) {
        wanted.push(column::LABEL_IDS);
    }
    match kind {
        RecordKind::ImageText => {}
        RecordKind::VideoText => {
            wanted.extend([column::WIDTH, column::HEIGHT, column::NUM_FRAMES, column::FPS, column::HAS_AUDIO]);
        }
        RecordKind::AudioText => wanted.extend([column::SAMPLING_RATE, column::NUM_SAMPLES]),
    }
    if full {
        wanted.extend([column::KEY, column::CAPTIONS]);
    }
    let mut wanted: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
    wanted.push(format!("{}.{}", media_column(kind), column::MEDIA_BYTES));
    wanted
}

/// The columns of a record batch, each of the type that [`imp_schemas::record::record_schema`] says.
pub struct Columns {
    tokens: ListArray,
    label: Int32Array,
    /// Absent from shards before 1.2.
    labels: Option<ListArray>,
    width: Option<Int32Array>,
    height: Option<Int32Array>,
    num_frames: Option<Int32Array>,
    fps: Option<Float32Array>,
    has_audio: Option<BooleanArray>,
    sampling_rate: Option<Int32Array>,
    num_samples: Option<Int64Array>,
    key: Option<StringArray>,
    captions: Option<ListArray>,
    pub media: BinaryArray,
}

impl Columns {
    /// # Errors
    /// The name of a column that is absent or of another type.
    pub fn of(batch: &RecordBatch, kind: RecordKind, full: bool) -> Result<Self, &'static str> {
        let get = |name: &'static str| batch.column_by_name(name).ok_or(name);
        let video = kind == RecordKind::VideoText;
        let int = |name: &'static str| typed(get(name)?, name, |a| a.as_primitive_opt::<Int32Type>().cloned());
        let optional_int = |name| if video { int(name).map(Some) } else { Ok(None) };
        let name = media_column(kind);
        let medium = typed(get(name)?, name, |a| {
            a.as_struct_opt().and_then(|s| s.column_by_name(column::MEDIA_BYTES)).cloned()
        })?;
        Ok(Self {
            tokens: typed(get(column::TOKENS)?, column::TOKENS, |a| a.as_list_opt::<i32>().cloned())?,
            label: int(column::LABEL_ID)?,
            labels: match batch.column_by_name(column::LABEL_IDS) {
                Some(lists) => Some(typed(lists, column::LABEL_IDS, |a| a.as_list_opt::<i32>().cloned())?),
                None => None,
            },
            width: optional_int(column::WIDTH)?,
            height: optional_int(column::HEIGHT)?,
            num_frames: optional_int(column::NUM_FRAMES)?,
            fps: if video {
                Some(typed(get(column::FPS)?, column::FPS, |a| a.as_primitive_opt::<Float32Type>().cloned())?)
            } else {
                None
            },
            has_audio: if video {
                Some(typed(get(column::HAS_AUDIO)?, column::HAS_AUDIO, |a| a.as_boolean_opt().cloned())?)
            } else {
                None
            },
            sampling_rate: if kind == RecordKind::AudioText { Some(int(column::SAMPLING_RATE)?) } else { None },
            num_samples: if kind == RecordKind::AudioText {
                let name = column::NUM_SAMPLES;
                Some(typed(get(name)?, name, |a| a.as_primitive_opt::<Int64Type>().cloned())?)
            } else {
                None
            },
            key: if full {
                Some(typed(get(column::KEY)?, column::KEY, |a| a.as_string_opt::<i32>().cloned())?)
            } else {
                None
            },
            captions: if full {
                Some(typed(get(column::CAPTIONS)?, column::CAPTIONS, |a| a.as_list_opt::<i32>().cloned())?)
            } else {
                None
            },
            media: typed(&medium, name, |a| a.as_binary_opt::<i32>().cloned())?,
        })
    }

    /// The small columns of row `i`.
    pub fn meta(&self, i: usize) -> Meta {
        let number = |column: &Option<Int32Array>| {
            let column = column.as_ref()?;
            if column.is_valid(i) { usize::try_from(column.value(i)).ok() } else { None }
        };
        Meta {
            tokens: token_lists(&self.tokens, i),
            labels: self.labels(i),
            num_frames: number(&self.num_frames),
            fps: self.fps.as_ref().filter(|c| c.is_valid(i)).map(|c| f64::from(c.value(i))),
            width: number(&self.width),
            height: number(&self.height),
            has_audio: self.has_audio.as_ref().filter(|c| c.is_valid(i)).map(|c| c.value(i)),
            sound: number(&self.sampling_rate).zip(self.num_samples.as_ref()).and_then(|(rate, n)| {
                let n = if n.is_valid(i) { u64::try_from(n.value(i)).ok() } else { None };
                u32::try_from(rate).ok().filter(|&rate| rate > 0).zip(n.filter(|&n| n > 0))
            }),
            key: self.key.as_ref().map_or(String::new(), |c| c.value(i).to_owned()),
            captions: self.captions.as_ref().map_or(Vec::new(), |c| strings(c, i)),
        }
    }

    fn labels(&self, i: usize) -> Vec<u32> {
        let several = self.labels.as_ref().filter(|lists| lists.is_valid(i)).map(|lists| lists.value(i));
        let ids = several.as_ref().and_then(|ids| ids.as_primitive_opt::<Int32Type>());
        let ids = ids.cloned().unwrap_or_else(|| self.label.slice(i, 1));
        ids.iter().flatten().filter_map(|id| u32::try_from(id).ok()).collect()
    }
}

fn typed<T>(array: &ArrayRef, name: &'static str, cast: impl Fn(&ArrayRef) -> Option<T>) -> Result<T, &'static str> {
    cast(array).ok_or(name)
}

fn token_lists(lists: &ListArray, i: usize) -> Vec<Vec<i32>> {
    if lists.is_null(i) {
        return Vec::new();
    }
    let captions = lists.value(i);
    let Some(captions) = captions.as_list_opt::<i32>() else { return Vec::new() };
    let ids =
        |j: usize| captions.value(j).as_primitive_opt::<Int32Type>().map_or(Vec::new(), |ids| ids.values().to_vec());
    (0..captions.len()).map(ids).collect()
}

fn strings(lists: &ListArray, i: usize) -> Vec<String> {
    if lists.is_null(i) {
        return Vec::new();
    }
    let captions = lists.value(i);
    let Some(captions) = captions.as_string_opt::<i32>() else { return Vec::new() };
    captions.iter().map(|c| c.unwrap_or_default().to_owned()).collect()
}
