//! Files of one stem → one sample: a medium and its sidecars, in whatever order they come.
//!
//! In: media, sidecars and refusals, by key. Out: each key is one candidate or one reject.

use std::collections::HashMap;

use imp_schemas::reject::{Reject, RejectReason};

use super::{Candidate, Found, Place, Sidecar};
use crate::text::{Merged, Refusal, Wording};

#[derive(Debug, Default)]
pub(super) struct Samples {
    in_order: Vec<Sample>,
    by_key: HashMap<String, usize>,
    rejects: Vec<Reject>,
    pub(super) n_ignored: u64,
}

#[derive(Debug)]
struct Sample {
    key: String,
    source: String,
    row: u64,
    medium: Option<Place>,
    words: Merged,
    /// A sidecar other than JSON, which may be about something else.
    has_text: bool,
    has_json: bool,
    refusal: Option<Refusal>,
}

impl Samples {
    /// A medium of `key`. The first one stands; another is a reject of its own.
    pub(super) fn medium(&mut self, key: &str, source: String, row: u64, medium: Place) {
        let sample = self.at(key, &source, row);
        if sample.medium.is_none() {
            (sample.source, sample.row, sample.medium) = (source, row, Some(medium));
            return;
        }
        let detail = format!("`{}` has this key already", sample.source);
        let key = key.to_owned();
        let reason = RejectReason::DuplicateKey;
        self.rejects.push(Reject { source, row, key, reason, detail, first_bytes: Vec::new() });
    }

    /// What a sidecar of `key` says.
    pub(super) fn text(&mut self, key: &str, source: &str, row: u64, kind: Sidecar, read: Result<Wording, Refusal>) {
        let sample = self.at(key, source, row);
        match kind {
            Sidecar::Json => sample.has_json = true,
            Sidecar::Txt | Sidecar::Cls => sample.has_text = true,
        }
        match read {
            Ok(wording) => sample.words.add(wording),
            Err(refusal) => sample.refusal = sample.refusal.take().or(Some(refusal)),
        }
    }

    /// A file of `key` that cannot be used at all.
    pub(super) fn refuse(&mut self, key: &str, source: &str, row: u64, refusal: Refusal) {
        let sample = self.at(key, source, row);
        sample.has_text = true;
        sample.refusal = sample.refusal.take().or(Some(refusal));
    }

    /// A candidate or a reject for every key; with `class_folders`, the folder of a medium is its label.
    pub(super) fn finish(self, class_folders: bool) -> Found {
        let Self { in_order, rejects, n_ignored, .. } = self;
        let mut found = Found { rejects, n_ignored, ..Found::default() };
        for sample in in_order {
            let Sample { key, source, row, words: Merged { mut wording, .. }, .. } = sample;
            let is_bare_json = sample.medium.is_none() && !sample.has_text && wording == Wording::default();
            if is_bare_json {
                found.n_ignored += 1;
                continue;
            }
            let refusal = sample.refusal.or_else(|| {
                let detail = "its caption is here, its medium is not".to_owned();
                sample.medium.is_none().then_some((RejectReason::MissingMedium, detail))
            });
            match (refusal, sample.medium) {
                (None, Some(medium)) => {
                    if class_folders && wording.labels.is_empty() {
                        wording.labels.extend(source.rsplit('/').nth(1).map(str::to_owned));
                    }
                    found.candidates.push(Candidate {
                        key,
                        source,
                        row,
                        listed_in: None,
                        wording,
                        split: None,
                        medium,
                    });
                }
                (Some((reason, detail)), _) => {
                    found.rejects.push(Reject { source, row, key, reason, detail, first_bytes: Vec::new() });
                }
                (None, None) => {}
            }
        }
        found
    }

    fn at(&mut self, key: &str, source: &str, row: u64) -> &mut Sample {
        let at = *self.by_key.entry(key.to_owned()).or_insert_with(|| {
            self.in_order.push(Sample {
                key: key.to_owned(),
                source: source.to_owned(),
                row,
                medium: None,
                words: Merged::default(),
                has_text: false,
                has_json: false,
                refusal: None,
            });
            self.in_order.len() - 1
        });
        &mut self.in_order[at]
    }
}
