//! One `[[ingest.corpus]]` table: what a corpus is, where it lies, how its records are split.
//!
//! In: the table as it stands in the file. Out: [`CorpusConfig`], checked. Never: a look at the corpus itself.

use std::collections::BTreeMap;

use imp_schemas::modality::RecordKind;
use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use super::limits::{Limits, check_limits};
use super::{broken, check_share};
use crate::error::IngestError;
use crate::filter::config::{CleanRules, RawClean};
use crate::media::config::{Clip, MediaRules, Normalise, RawMediaRules, RawReencode};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCorpus {
    pub(super) name: String,
    kind: RecordKind,
    path: String,
    #[serde(default)]
    columns: RawColumns,
    media_root: Option<String>,
    class_names: Option<String>,
    class_folders: Option<bool>,
    #[serde(default)]
    tar_in_key: bool,
    split: Option<SplitRule>,
    label_separator: Option<String>,
    #[serde(default)]
    caption_from_label: Vec<String>,
    #[serde(default)]
    caption_if_none: Vec<String>,
    max_reject_share: Option<f64>,
    limits: Option<Limits>,
    #[serde(default)]
    normalise: Normalise,
    reencode: Option<RawReencode>,
    clip: Option<Clip>,
    #[serde(default)]
    flac: bool,
    #[serde(default)]
    clean: RawClean,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawColumns {
    path: Option<String>,
    url: Option<String>,
    media: Option<String>,
    key: Option<String>,
    caption: Option<String>,
    label: Option<String>,
    split: Option<String>,
}

/// Which split a record belongs to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SplitRule {
    Constant(String),
    /// Split name → glob over the record's source.
    FromPath(BTreeMap<String, String>),
    /// Split name → share, drawn by a hash of the key; the rest is `train`.
    HoldOut(BTreeMap<String, f64>),
}

impl<'de> Deserialize<'de> for SplitRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Rule {
            FromPath(BTreeMap<String, String>),
            HoldOut(BTreeMap<String, f64>),
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SplitRule;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a split's name, { from_path = { … } } or { hold_out = { … } }")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SplitRule, E> {
                Ok(SplitRule::Constant(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SplitRule, A::Error> {
                Ok(match Rule::deserialize(MapAccessDeserializer::new(map))? {
                    Rule::FromPath(globs) => SplitRule::FromPath(globs),
                    Rule::HoldOut(shares) => SplitRule::HoldOut(shares),
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A column's name, and whether the user gave it: one that is asked for by name must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) named: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns {
    /// Paths below the media root, or URLs.
    pub(crate) path: Column,
    /// URLs; used if there is no path column. Found in any case (`URL`) unless it is named.
    pub(crate) url: Column,
    /// Media within the table, Parquet only: binary, or Hugging Face's struct of `bytes` and `path`.
    pub(crate) media: Column,
    /// Keys of records. A table of paths has none unless it is named: their keys are the paths.
    pub(crate) key: Column,
    /// Found as `text` too, in any case, unless it is named.
    pub(crate) caption: Column,
    /// One label, or a list of them.
    pub(crate) label: Column,
    pub(crate) split: Column,
}

/// One corpus: its name is a folder's name, its shares are shares, its templates hold `{}`.
#[derive(Debug, Clone)]
pub(crate) struct CorpusConfig {
    pub(crate) name: String,
    pub(crate) kind: RecordKind,
    pub(crate) path: String,
    pub(crate) columns: Columns,
    pub(crate) media_root: Option<String>,
    pub(crate) class_names: Option<String>,
    pub(crate) class_folders: Option<bool>,
    pub(crate) tar_in_key: bool,
    pub(crate) split: Option<SplitRule>,
    /// What stands between the labels of one text.
    pub(crate) label_separator: Option<String>,
    pub(crate) caption_from_label: Vec<String>,
    /// Captions of records that have neither their own nor one from a label.
    pub(crate) caption_if_none: Vec<String>,
    pub(crate) max_reject_share: f64,
    pub(crate) limits: Limits,
    pub(crate) media: MediaRules,
    pub(crate) clean: CleanRules,
}

pub(super) fn check_corpus(raw: RawCorpus, share: f64, limits: Limits) -> Result<CorpusConfig, IngestError> {
    let key = |rest: &str| format!("ingest.corpus.{}.{rest}", raw.name);
    let usable = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    if raw.name.is_empty() || raw.name.starts_with('.') || !raw.name.chars().all(usable) || raw.name == "tokenizers" {
        let rule = "must be letters, digits, `-`, `_` or `.`, not begin with `.`, and not be `tokenizers`: it is a folder of the store";
        return Err(broken("ingest.corpus.name", format!("`{}`", raw.name), rule.to_owned()));
    }
    if raw.path.trim().is_empty() {
        return Err(broken(
            &key("path"),
            "blank".to_owned(),
            "must name a folder, tars, a table or Parquet files, here or in `s3://`".to_owned(),
        ));
    }
    if raw.caption_if_none.iter().any(|caption| caption.trim().is_empty()) {
        return Err(broken(&key("caption_if_none"), "blank".to_owned(), "must be sentences".to_owned()));
    }
    if raw.label_separator.as_ref().is_some_and(String::is_empty) {
        let rule = "must be what stands between two labels, such as `;`".to_owned();
        return Err(broken(&key("label_separator"), "empty".to_owned(), rule));
    }
    if let Some(bad) = raw.caption_from_label.iter().find(|t| t.matches("{}").count() != 1) {
        let rule = "every template must hold `{}` once, where the label goes".to_owned();
        return Err(broken(&key("caption_from_label"), format!("`{bad}`"), rule));
    }
    match &raw.split {
        Some(SplitRule::Constant(name)) => check_split_name(&key("split"), name)?,
        Some(SplitRule::FromPath(globs)) if globs.is_empty() => {
            return Err(broken(&key("split.from_path"), "empty".to_owned(), "must name a glob per split".to_owned()));
        }
        Some(SplitRule::FromPath(globs)) => {
            globs.keys().try_for_each(|name| check_split_name(&key("split.from_path"), name))?;
        }
        Some(SplitRule::HoldOut(shares)) => {
            for (name, &share) in shares {
                check_split_name(&key("split.hold_out"), name)?;
                check_share(&key(&format!("split.hold_out.{name}")), share)?;
            }
            let sum: f64 = shares.values().sum();
            if sum > 1.0 {
                return Err(broken(&key("split.hold_out"), format!("{sum} in sum"), "must be at most 1".to_owned()));
            }
        }
        None => {}
    }
    let max_reject_share = match raw.max_reject_share {
        Some(share) => check_share(&key("max_reject_share"), share)?,
        None => share,
    };
    let limits = raw.limits.unwrap_or(limits);
    check_limits(&key("limits"), &limits)?;
    let RawCorpus { normalise, reencode, clip, flac, .. } = raw;
    let media = RawMediaRules { normalise, reencode, clip, flac };
    let media = MediaRules::check(&format!("ingest.corpus.{}", raw.name), raw.kind, &media)?;
    let clean = CleanRules::check(&key("clean"), raw.clean)?;
    if media.clip.is_some() && clean.wants_caption_sketch() {
        let rule = "must be left out: the clips of a film share its captions".to_owned();
        return Err(broken(&key("clean.near.caption_jaccard"), "given together with `clip`".to_owned(), rule));
    }
    let column = |given: Option<String>, default: &str| match given {
        Some(name) => Column { name, named: true },
        None => Column { name: default.to_owned(), named: false },
    };
    let columns = Columns {
        path: column(raw.columns.path, "path"),
        url: column(raw.columns.url, "url"),
        media: column(raw.columns.media, raw.kind.medium().name()),
        key: column(raw.columns.key, "key"),
        caption: column(raw.columns.caption, "caption"),
        label: column(raw.columns.label, "label"),
        split: column(raw.columns.split, "split"),
    };
    Ok(CorpusConfig {
        name: raw.name,
        kind: raw.kind,
        path: raw.path,
        columns,
        media_root: raw.media_root,
        class_names: raw.class_names,
        class_folders: raw.class_folders,
        tar_in_key: raw.tar_in_key,
        split: raw.split,
        label_separator: raw.label_separator,
        caption_from_label: raw.caption_from_label,
        caption_if_none: raw.caption_if_none,
        max_reject_share,
        limits,
        media,
        clean,
    })
}

fn check_split_name(key: &str, name: &str) -> Result<(), IngestError> {
    if name.trim().is_empty() || name.trim() != name {
        return Err(broken(key, format!("`{name}`"), "must be a split's name without blanks around it".to_owned()));
    }
    Ok(())
}
