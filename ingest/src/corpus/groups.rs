//! The rows of one unit → records: several rows of one path or URL are one record with several captions.
//!
//! In: rows of tables, in order. Out: each row is part of a candidate, or a reject.

use std::collections::HashMap;
use std::sync::Arc;

use imp_schemas::reject::{Reject, RejectReason};

use super::columns::{Row, key_of};
use super::media_root::MediaRoot;
use super::spool::Target;
use super::{Candidate, Depth, Found, Place, reject};
use crate::text::{Merged, Refusal};

/// A table and row of it.
pub(super) type At = (usize, u64);

/// The rows of one record.
#[derive(Debug)]
struct Group {
    key: String,
    target: Target,
    at: At,
    words: Merged,
    split: Option<String>,
}

#[derive(Debug)]
pub(super) struct Groups<'a> {
    /// Names, and how their rows are called: `line` or `row`.
    tables: &'a [(Arc<str>, &'static str)],
    in_order: Vec<Group>,
    by_key: HashMap<(String, String), usize>,
    rejects: Vec<Reject>,
}

impl<'a> Groups<'a> {
    pub(super) fn new(tables: &'a [(Arc<str>, &'static str)]) -> Self {
        Self { tables, in_order: Vec::new(), by_key: HashMap::new(), rejects: Vec::new() }
    }

    /// Adds a row to its record, or rejects it.
    pub(super) fn take(&mut self, at: At, row: Row) {
        let Row { target, key, wording, split } = row;
        let key = key.unwrap_or_else(|| key_of(&target));
        let index = (key, target.text().to_owned());
        let Some(&found) = self.by_key.get(&index) else {
            self.by_key.insert(index.clone(), self.in_order.len());
            self.in_order.push(Group { key: index.0, target, at, words: Merged::of(wording), split });
            return;
        };
        let group = &mut self.in_order[found];
        let is_new = wording.captions.iter().any(|caption| !group.words.says(caption));
        let distinct = |labels: &[String]| labels.iter().cloned().collect::<std::collections::BTreeSet<_>>();
        let [before, now] = [&group.words.wording.labels, &wording.labels].map(|labels| distinct(labels));
        let conflict = if !before.is_empty() && !now.is_empty() && before != now {
            "another label"
        } else if group.split.is_some() && split.is_some() && group.split != split {
            "another split"
        } else if !is_new {
            "the same words"
        } else {
            group.words.add(wording);
            return;
        };
        let (table, unit) = &self.tables[group.at.0];
        let of_table = if group.at.0 == at.0 { String::new() } else { format!(" of `{table}`") };
        let detail = format!("`{}` stood in {unit} {}{of_table} with {conflict}", target.text(), group.at.1);
        self.reject(at, index.0, (RejectReason::DuplicateKey, detail));
    }

    /// A row that says nothing usable.
    pub(super) fn reject(&mut self, (table, row): At, key: String, refusal: Refusal) {
        self.rejects.push(reject(&self.tables[table].0, row, key, refusal));
    }

    /// Candidates with their places; with `any_split`, a record without a split is none.
    pub(super) fn finish(mut self, media: &MediaRoot, any_split: bool, depth: Depth) -> Found {
        let mut candidates = Vec::new();
        for group in std::mem::take(&mut self.in_order) {
            let Group { key, target, at, words: Merged { wording, .. }, split } = group;
            if any_split && split.is_none() {
                let detail = "it has no split, other rows have".to_owned();
                self.reject(at, key, (RejectReason::MalformedRow, detail));
                continue;
            }
            let located = match (&target, depth) {
                (Target::Url(url), _) => Ok(Place::Url { url: Arc::from(url.as_str()) }),
                (Target::Path(_), Depth::Words) => Ok(Place::nowhere()),
                (Target::Path(path), Depth::Media) => media.locate(path),
            };
            match located {
                Ok(medium) => {
                    let (source, listed_in) = (target.text().to_owned(), Some(Arc::clone(&self.tables[at.0].0)));
                    candidates.push(Candidate { key, source, row: at.1, listed_in, wording, split, medium });
                }
                Err(refusal) => self.reject(at, key, refusal),
            }
        }
        Found { candidates, rejects: self.rejects, n_ignored: 0, spools: Vec::new() }
    }
}
