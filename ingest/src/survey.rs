//! What must be known of whole corpora before a record of theirs is packed: their classes, and a tokenizer.
//!
//! In: listings. Out: class names and [`CaptionTokenizer`]. Words stream through a file; no medium is read.
//! Never: a pass over a corpus that the config makes needless (a tokenizer from a file, class names from a file or no labels).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};

use imp_schemas::store::Snapshot;

use crate::config::{CorpusConfig, IngestConfig};
use crate::corpus::Listing;
use crate::error::IngestError;
use crate::plan::Classes;
use crate::text::Wording;

/// What was seen of one corpus.
#[derive(Debug, Default)]
pub(crate) struct Surveyed {
    pub(crate) classes: Classes,
    /// Records with words; 0 if no pass was needed.
    pub(crate) n_worded: u64,
}

/// Captions of a run, a JSON string a line, in a file that goes when this is dropped.
pub(crate) struct CaptionSpool {
    file: BufWriter<std::fs::File>,
    /// Set once a line could not be written: the rest is not written either, and the error is told at the end.
    failed: Option<std::io::Error>,
}

impl CaptionSpool {
    pub(crate) fn new() -> Result<Self, IngestError> {
        let file = tempfile::tempfile().map_err(spool_error)?;
        Ok(Self { file: BufWriter::new(file), failed: None })
    }

    fn push(&mut self, caption: &str) {
        if self.failed.is_none() {
            let line = serde_json::Value::String(caption.to_owned()).to_string();
            self.failed = writeln!(self.file, "{line}").err();
        }
    }

    /// The captions, in the order they came.
    ///
    /// # Errors
    /// The file could not be written or read.
    pub(crate) fn into_captions(mut self) -> Result<impl Iterator<Item = String> + Send, IngestError> {
        if let Some(error) = self.failed.take() {
            return Err(spool_error(error));
        }
        let mut file = self.file.into_inner().map_err(|e| spool_error(e.into_error()))?;
        file.rewind().map_err(spool_error)?;
        // The lines are our own, so one that does not parse can only be a disk's fault, and is left out.
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        Ok(lines.filter_map(|line| serde_json::from_str(&line).ok()))
    }
}

/// Passes over the words of `corpus` if anything needs them.
///
/// # Errors
/// The corpus or its class list cannot be read, or its classes do not go on from those of `base`.
pub(crate) fn survey(
    config: &IngestConfig,
    corpus: &CorpusConfig,
    listing: &Listing,
    base: Option<&Snapshot>,
    mut captions: Option<&mut CaptionSpool>,
) -> Result<Surveyed, IngestError> {
    let named = Classes::given(config, corpus)?;
    if captions.is_none() && named.is_some() {
        return Ok(Surveyed { classes: continued(corpus, base, named, &BTreeMap::new())?, n_worded: 0 });
    }
    let mut labels: BTreeMap<String, u64> = BTreeMap::new();
    let mut n_worded = 0;
    listing.survey(&mut |wording: &Wording| {
        n_worded += 1;
        if let Some(spool) = &mut captions {
            wording.captions.iter().for_each(|caption| spool.push(caption));
        }
        let has_several = wording.labels.len() > 1;
        for label in &wording.labels {
            // Only a label without a caption is worth a sentence to the tokenizer; either makes a class.
            let n_bare = labels.entry(label.clone()).or_insert(0);
            *n_bare += u64::from(wording.captions.is_empty() && !has_several);
        }
        // Sentences about several labels are not counted: there may be as many as records.
        if let (true, true, Some(spool)) = (has_several, wording.captions.is_empty(), &mut captions) {
            let settled = match &named {
                Some(classes) => classes.settle(corpus, wording.clone()),
                None => Classes::of(wording.labels.clone()).settle(corpus, wording.clone()),
            };
            settled.into_iter().flat_map(|(sentences, _)| sentences).for_each(|sentence| spool.push(&sentence));
        }
    })?;
    let classes = continued(corpus, base, named, &labels)?;
    if let Some(spool) = captions {
        for (label, n) in labels {
            let wording = Wording { captions: Vec::new(), labels: vec![label] };
            let Ok((sentences, _)) = classes.settle(corpus, wording) else { continue };
            (0..n).flat_map(|_| &sentences).for_each(|sentence| spool.push(sentence));
        }
    }
    Ok(Surveyed { classes, n_worded })
}

/// The classes of the corpus; those of a snapshot that is added to keep their ids.
fn continued(
    corpus: &CorpusConfig,
    base: Option<&Snapshot>,
    named: Option<Classes>,
    labels: &BTreeMap<String, u64>,
) -> Result<Classes, IngestError> {
    let old: &[String] = base.map_or(&[], |base| &base.manifest.classes);
    match named {
        Some(named) if named.names().starts_with(old) => Ok(named),
        Some(named) => {
            let key = format!("ingest.corpus.{}.class_names", corpus.name);
            let rule = format!("must begin with the {} classes of the corpus that is added to", old.len());
            Err(IngestError::Config { key, found: format!("a list of {} classes", named.names().len()), rule })
        }
        None => {
            let new = labels.keys().filter(|label| !old.contains(label));
            Ok(Classes::of(old.iter().chain(new).cloned().collect()))
        }
    }
}

fn spool_error(source: std::io::Error) -> IngestError {
    IngestError::Read { path: std::env::temp_dir(), source }
}
