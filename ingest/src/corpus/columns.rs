//! Which column of a table says what.
//!
//! In: the config's names and the table's. Out: the column of each part of a record, or an error that names what there is.

use imp_schemas::reject::RejectReason;

use super::spool::Target;
use crate::config::{Column, Columns};
use crate::error::IngestError;
use crate::text::{Refusal, Wording, did_you_mean, safe_path};

/// Bytes of a path or URL; a longer one is neither.
const MAX_TARGET_BYTES: usize = 8192;

/// What a table's rows lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leads {
    /// To files or URLs.
    Away,
    /// Nowhere: the media lie within.
    Within,
}

/// The column of each part of a record.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used<'a> {
    pub(super) target: Option<&'a str>,
    /// Every target must be a URL.
    pub(super) is_url: bool,
    pub(super) key: Option<&'a str>,
    pub(super) caption: Option<&'a str>,
    pub(super) label: Option<&'a str>,
    pub(super) split: Option<&'a str>,
}

impl<'a> Used<'a> {
    /// The columns among `names` that `columns` asks for.
    pub(super) fn of(columns: &Columns, leads: Leads, needs_split: bool, names: &[&'a str]) -> Self {
        let exactly = |column: &Column| names.iter().copied().find(|name| *name == column.name);
        let any_case = |wanted: &[&str]| {
            let near = |wanted: &&str| names.iter().copied().find(|name| name.eq_ignore_ascii_case(wanted));
            wanted.iter().find_map(near)
        };
        let loosely = |column: &Column, more: &[&str]| {
            let found = exactly(column);
            if column.named { found } else { found.or_else(|| any_case(more)) }
        };
        let path = exactly(&columns.path);
        let url = loosely(&columns.url, &["url"]);
        // A URL column that is asked for by name goes before a path column that merely happens to be there.
        let is_url = path.is_none() || columns.url.named && !columns.path.named;
        let is_url = is_url && url.is_some();
        let target = if is_url { url } else { path };
        let has_keys = columns.key.named || is_url || leads == Leads::Within;
        Self {
            target: target.filter(|_| leads == Leads::Away),
            is_url,
            key: exactly(&columns.key).filter(|_| has_keys),
            caption: loosely(&columns.caption, &["caption", "text", "captions"]),
            label: exactly(&columns.label),
            split: exactly(&columns.split).filter(|_| needs_split),
        }
    }

    /// As [`Used::of`], for a table that must have what a record needs: a target, one of caption and label, and every
    /// column that the config names.
    pub(super) fn check(
        table: &str,
        columns: &Columns,
        leads: Leads,
        needs_split: bool,
        names: &[&'a str],
    ) -> Result<Self, IngestError> {
        let used = Self::of(columns, leads, needs_split, names);
        let Columns { path, url, media, key, caption, label, split } = columns;
        let has = |column: &Column| names.contains(&column.name.as_str());
        let asked = match leads {
            Leads::Away => [Some(path), Some(url)],
            Leads::Within => [Some(media), None],
        };
        let asked =
            asked.into_iter().chain([Some(key), Some(caption), Some(label), Some(split).filter(|_| needs_split)]);
        if let Some(column) = asked.flatten().find(|c| c.named && !has(c)) {
            return Err(missing(table, &[column], names));
        }
        if leads == Leads::Away && used.target.is_none() {
            return Err(missing(table, &[path, url], names));
        }
        if used.caption.is_none() && used.label.is_none() {
            return Err(missing(table, &[caption, label], names));
        }
        Ok(used)
    }
}

fn missing(table: &str, wanted: &[&Column], names: &[&str]) -> IngestError {
    let quoted = |names: &mut dyn Iterator<Item = &str>| names.map(|n| format!("`{n}`")).collect::<Vec<_>>();
    let hint = wanted.iter().map(|w| did_you_mean(&w.name, names)).find(|hint| !hint.is_empty());
    IngestError::MissingColumn {
        table: table.to_owned(),
        wanted: quoted(&mut wanted.iter().map(|w| w.name.as_str())).join(" or "),
        found: quoted(&mut names.iter().copied()).join(", "),
        hint: hint.unwrap_or_default(),
    }
}

/// One row as its table writes it; blank cells are none.
#[derive(Debug, Default)]
pub(super) struct Cells {
    pub(super) target: Option<String>,
    pub(super) key: Option<String>,
    pub(super) wording: Wording,
    pub(super) split: Option<String>,
}

/// One row that leads to a medium and says something about it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) target: Target,
    pub(super) key: Option<String>,
    pub(super) wording: Wording,
    pub(super) split: Option<String>,
}

impl Row {
    /// Settles what a row of `used` columns says; a refusal comes with as much of the record's key as is known.
    pub(super) fn of(used: &Used<'_>, cells: Cells) -> Result<Self, (String, Refusal)> {
        let Cells { target, key, wording, split } = cells;
        let target = target_of(target, used.is_url).map_err(|(text, refusal)| (stem(&text).to_owned(), refusal))?;
        if used.key.is_some() && key.is_none() {
            let detail = format!("`{}` has a blank key", target.text());
            return Err((key_of(&target), (RejectReason::MalformedRow, detail)));
        }
        if wording == Wording::default() {
            let detail = format!("`{}` has neither a caption nor a label here", target.text());
            return Err((key.unwrap_or_else(|| key_of(&target)), (RejectReason::EmptyCaption, detail)));
        }
        Ok(Self { target, key, wording, split })
    }
}

/// The key of a record whose table gives it none: a path without its extension, or the first 16 bytes of the BLAKE3 of a
/// URL, in hex.
pub(super) fn key_of(target: &Target) -> String {
    match target {
        Target::Path(path) => stem(path).to_owned(),
        Target::Url(url) => blake3::hash(url.as_bytes()).to_hex()[..32].to_owned(),
    }
}

fn target_of(text: Option<String>, is_url: bool) -> Result<Target, (String, Refusal)> {
    let malformed = |detail: &str| (RejectReason::MalformedRow, detail.to_owned());
    let Some(text) = text else {
        let what = if is_url { "the URL is blank" } else { "the path is blank" };
        return Err((String::new(), malformed(what)));
    };
    if text.len() > MAX_TARGET_BYTES {
        let detail = format!("the path or URL has {} bytes, the limit is {MAX_TARGET_BYTES}", text.len());
        return Err((String::new(), (RejectReason::TooLarge, detail)));
    }
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("http" | "https" | "s3") if text.contains(char::is_control) => {
            let detail = format!("`{}` holds a control character", text.escape_debug());
            Err((text, (RejectReason::MalformedRow, detail)))
        }
        Some("http" | "https" | "s3") => Ok(Target::Url(text)),
        None if is_url => {
            let detail = format!("`{text}` is no URL, wanted `http://`, `https://` or `s3://`");
            Err((text, (RejectReason::MalformedRow, detail)))
        }
        Some(_) | None => match safe_path(&text) {
            Ok(path) => Ok(Target::Path(path)),
            Err(refusal) => Err((text, refusal)),
        },
    }
}

/// `path` without the extension of its name.
pub(super) fn stem(path: &str) -> &str {
    let name_at = path.rfind('/').map_or(0, |at| at + 1);
    path[name_at..].rfind('.').filter(|&dot| dot > 0).map_or(path, |dot| &path[..name_at + dot])
}
