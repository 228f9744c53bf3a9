//! The door of the fuzz targets `table` and `tar`: the bytes of one file, as a corpus → everything that its units offer.
//!
//! In: bytes, the file's name, and more lines of its `[[ingest.corpus]]`. Out: how much was offered, or the error that stops
//! a run. A promise that does not hold is a panic that says which. Never: another way of reading than that of a run; a part
//! of a build without the feature `fuzzing`, except of the crate's own tests, which go through the same door.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use imp_schemas::reject::{Reject, RejectReason};
use imp_schemas::run_file::RunFile;
use tempfile::TempDir;

use crate::config::{CorpusConfig, IngestConfig};
use crate::corpus::{Candidate, Found, Listing, Place};
use crate::error::IngestError;
use crate::plan::plan;
use crate::survey::{CaptionSpool, survey};
use crate::text::{Wording, safe_path};

/// The tar beside every corpus, for rows whose media lie in one.
pub const MEDIA_TAR: &str = "media.tar";

/// How much a corpus offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offered {
    pub n_units: usize,
    pub n_candidates: usize,
    pub n_rejects: usize,
}

/// A folder with a few media, a link that leads out of it, and room for one file.
#[derive(Debug)]
pub struct Bench {
    root: PathBuf,
    /// Deleted with the bench.
    _dir: TempDir,
}

impl Bench {
    /// Below the folder of temporary files.
    ///
    /// # Errors
    /// The folder cannot be made or filled.
    pub fn new() -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().canonicalize()?.join("corpus");
        std::fs::create_dir_all(root.join("b"))?;
        std::fs::write(root.join("a.jpg"), "a")?;
        std::fs::write(root.join("b/c.jpg"), "bc")?;
        std::fs::write(dir.path().join("secret.jpg"), "secret")?;
        #[cfg(unix)]
        std::os::unix::fs::symlink("../secret.jpg", root.join("out.jpg"))?;
        let mut media = tar::Builder::new(std::fs::File::create(root.join(MEDIA_TAR))?);
        for name in ["set/a.jpg", "set/b/c.jpg", "other/c.jpg"] {
            let mut header = tar::Header::new_ustar();
            header.set_size(name.len() as u64);
            media.append_data(&mut header, name, name.as_bytes())?;
        }
        media.finish()?;
        Ok(Self { root, _dir: dir })
    }

    /// Reads the corpus that is one file, `name`, of `bytes`, twice as a run does, and holds what it offers to what the rest
    /// of ingest relies on. `ingest` and `corpus` are lines of the tables `[ingest]` and `[[ingest.corpus]]`.
    ///
    /// # Errors
    /// The corpus cannot be read as a whole; it is so both times.
    pub fn read(&self, name: &str, bytes: &[u8], ingest: &str, corpus: &str) -> Result<Offered, IngestError> {
        let path = self.root.join(name);
        std::fs::write(&path, bytes).map_err(|source| IngestError::Read { path, source })?;
        let head = format!("store = \"s\"\nrun = \"r\"\n[ingest]\n{ingest}\n");
        let file = format!("{head}[[ingest.corpus]]\nname = \"c\"\npath = \"{name}\"\n{corpus}\n");
        let file: RunFile = toml::from_str(&file).expect("the lines are TOML");
        let config = IngestConfig::of(&file, Path::new("run.toml"))?.with_root(&self.root);
        let (first, again) = (self.offer(&config, name, bytes), self.offer(&config, name, bytes));
        match (&first, &again) {
            (Ok(first), Ok(again)) => assert_eq!(first, again, "the same bytes offer something else"),
            (Err(first), Err(again)) => assert_eq!(first.to_string(), again.to_string()),
            (first, again) => panic!("the same bytes were read only once: {first:?}, {again:?}"),
        }
        Ok(first?.counts())
    }

    fn offer(&self, config: &IngestConfig, name: &str, bytes: &[u8]) -> Result<Offer, IngestError> {
        let corpus = &config.corpora[0];
        let listing = Listing::open(config, corpus)?;
        let mut words = Vec::new();
        listing.survey(&mut |wording| words.push(wording.clone()))?;
        let surveyed = survey(config, corpus, &listing, None, Some(&mut CaptionSpool::new()?))?;
        assert_eq!(surveyed.n_worded, words.len() as u64, "two passes over the words");
        let mut offer = Offer::default();
        let mut n_unknown = 0;
        for unit in 0..listing.n_units() {
            offer.identities.push(listing.identity(unit)?.0);
            let found = listing.read(unit)?;
            self.check_places(corpus, &found);
            offer.add(&found);
            let (n_inputs, n_rejects) = (found.candidates.len() + found.rejects.len(), found.rejects.len());
            let planned = plan(corpus, found, &surveyed.classes)?;
            let n_planned: usize = planned.splits.iter().map(|(_, records)| records.len()).sum();
            assert_eq!(n_planned + planned.rejects.len(), n_inputs, "the plan lost inputs");
            assert_eq!(planned.n_inputs, n_inputs as u64);
            let is_unknown = |reject: &&Reject| reject.reason == RejectReason::UnknownClass;
            n_unknown += planned.rejects[n_rejects..].iter().filter(is_unknown).count();
        }
        offer.check(name, bytes);
        // What ends a container early ends it elsewhere if its media are left out.
        if !offer.is_broken(name) {
            offer.check_words(name, words);
            assert_eq!(n_unknown, 0, "a label that the survey did not see");
        }
        Ok(offer)
    }

    /// Every medium lies within a file of the corpus or of a spool, and no two of a spool overlap.
    fn check_places(&self, corpus: &CorpusConfig, found: &Found) {
        let mut spooled: BTreeMap<&Path, Vec<(u64, u64)>> = BTreeMap::new();
        for candidate in &found.candidates {
            match &candidate.medium {
                Place::File { file, offset, len } => {
                    let n_bytes = std::fs::metadata(file).expect("the place of a medium is a file").len();
                    let end = offset.checked_add(*len).expect("the place of a medium has an end");
                    assert!(end <= n_bytes, "{candidate:?} ends beyond the {n_bytes} bytes of its file");
                    let is_small = *len <= corpus.limits.max_media_bytes();
                    assert!(is_small || candidate.listed_in.is_some(), "{candidate:?} is above the limit");
                    if found.spools.iter().any(|spool| spool.path() == &**file) {
                        spooled.entry(file).or_default().push((*offset, end));
                    } else {
                        let real = file.canonicalize().expect("the place of a medium has a path");
                        assert!(real.starts_with(&self.root), "{candidate:?} lies outside of its corpus");
                    }
                }
                Place::Url { url } => check_url(corpus.media_root.as_deref(), candidate, url),
            }
        }
        for ranges in spooled.values_mut() {
            ranges.sort_unstable();
            assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "media of a spool overlap");
        }
    }
}

/// A URL is that of the row, or lies below the media root.
fn check_url(media_root: Option<&str>, candidate: &Candidate, url: &str) {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    let is_known = scheme.is_some_and(|scheme| ["http", "https", "s3"].contains(&scheme.as_str()));
    assert!(is_known, "{candidate:?} leads to another scheme");
    if url == candidate.source {
        assert!(!url.contains(char::is_control), "{candidate:?}");
        return;
    }
    let root = media_root.expect("a path that became a URL has a media root");
    assert_eq!(url, format!("{root}/{}", candidate.source));
    // As the client of HTTP reads it.
    if let (Ok(url), Ok(root)) = (reqwest::Url::parse(url), reqwest::Url::parse(root)) {
        let is_below = url.host() == root.host() && url.path().starts_with(&format!("{}/", root.path()));
        assert!(is_below, "{candidate:?} leaves its media root by {url}");
    }
}

/// Everything that a corpus offers, without the names of spools.
#[derive(Debug, Default, PartialEq)]
struct Offer {
    identities: Vec<String>,
    candidates: Vec<Seen>,
    rejects: Vec<Reject>,
    n_ignored: u64,
}

#[derive(Debug, PartialEq)]
struct Seen {
    key: String,
    source: String,
    row: u64,
    is_listed: bool,
    wording: Wording,
    split: Option<String>,
    /// Offset and bytes of a range of a file.
    range: Option<(u64, u64)>,
}

impl Offer {
    fn counts(&self) -> Offered {
        let (n_units, n_candidates) = (self.identities.len(), self.candidates.len());
        Offered { n_units, n_candidates, n_rejects: self.rejects.len() }
    }

    fn add(&mut self, found: &Found) {
        self.candidates.extend(found.candidates.iter().map(|candidate| Seen {
            key: candidate.key.clone(),
            source: candidate.source.clone(),
            row: candidate.row,
            is_listed: candidate.listed_in.is_some(),
            wording: candidate.wording.clone(),
            split: candidate.split.clone(),
            range: match candidate.medium {
                Place::File { offset, len, .. } => Some((offset, len)),
                Place::Url { .. } => None,
            },
        }));
        self.rejects.extend(found.rejects.iter().cloned());
        self.n_ignored += found.n_ignored;
    }

    /// Whether the file could not be read to its end.
    fn is_broken(&self, name: &str) -> bool {
        let is_end = |reject: &Reject| reject.source == name && reject.key.is_empty();
        let is_of_rows = |reject: &Reject| reject.detail.starts_with("cannot be read from this row on");
        self.rejects.iter().any(|reject| is_end(reject) && (is_tar(name) || is_of_rows(reject)))
    }

    /// Keys, sources, rows and words are what their types do not say.
    fn check(&self, name: &str, bytes: &[u8]) {
        assert!(!self.identities.is_empty(), "a corpus has a unit");
        let mut once = BTreeSet::new();
        for seen in &self.candidates {
            let Seen { key, source, wording, split, .. } = seen;
            assert!(!key.is_empty(), "{seen:?}: its key");
            assert!(wording.captions.iter().all(|caption| is_text(caption)), "{seen:?}: its captions");
            assert!(wording.labels.iter().all(|label| is_text(label)), "{seen:?}: its labels");
            assert!(split.as_deref().is_none_or(is_text), "{seen:?}: its split");
            let path = if seen.is_listed {
                assert!(wording.captions.len() + wording.labels.len() > 0, "{seen:?}: no words");
                assert!(once.insert((key.as_str(), source.as_str())), "{seen:?} stands twice");
                source
            } else {
                let member = source.strip_prefix(name).and_then(|rest| rest.strip_prefix('/'));
                let member = member.expect("the source of a medium within a file begins with the file's name");
                assert!(!is_tar(name) || once.insert((key.as_str(), name)), "{seen:?} stands twice");
                member
            };
            let is_url = seen.is_listed && path.contains("://");
            assert!(is_url || safe_path(path).is_ok_and(|safe| safe == *path), "{seen:?}: its source");
            if is_tar(name) {
                let (folders, file) = key.rsplit_once('/').unwrap_or(("", key));
                assert!(!file.is_empty() && !folders.split('/').any(|part| part == ".."), "{seen:?}: its key");
            }
        }
        assert!(self.rejects.iter().all(|reject| !reject.detail.is_empty()), "a reject says why");
        // Every line is one input: a part of a candidate, which is at its first, or a reject.
        if [".csv", ".tsv", ".jsonl"].iter().any(|ending| name.ends_with(ending)) {
            let rows = self.candidates.iter().map(|seen| seen.row).chain(self.rejects.iter().map(|reject| reject.row));
            let n_lines = 1 + bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
            let mut lines = BTreeSet::new();
            for row in rows {
                assert!((1..=n_lines).contains(&row) && lines.insert(row), "line {row} of {n_lines} stands twice");
            }
        }
    }

    /// The survey saw the words of every candidate, and of nothing else than of candidates and rejects.
    fn check_words(&self, name: &str, surveyed: Vec<Wording>) {
        let (n_surveyed, n_candidates) = (surveyed.len(), self.candidates.len());
        assert!(n_surveyed <= n_candidates + self.rejects.len(), "{n_surveyed} with words of {:?}", self.counts());
        assert!(!is_tar(name) || n_surveyed == n_candidates, "{n_surveyed} with words of {:?}", self.counts());
        let mut left: BTreeMap<(Vec<String>, Vec<String>), usize> = BTreeMap::new();
        for Wording { captions, labels } in surveyed {
            *left.entry((captions, labels)).or_default() += 1;
        }
        for seen in &self.candidates {
            let wording = (seen.wording.captions.clone(), seen.wording.labels.clone());
            let n = left.get_mut(&wording).filter(|n| **n > 0);
            *n.unwrap_or_else(|| panic!("{seen:?}: its words were not surveyed")) -= 1;
        }
    }
}

fn is_tar(name: &str) -> bool {
    name.contains(".tar")
}

/// Not blank, and no blanks around it.
fn is_text(text: &str) -> bool {
    !text.is_empty() && text.trim() == text
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGES: &str = "kind = \"image-text\"";

    fn read(name: &str, bytes: &[u8], corpus: &str) -> Result<Offered, IngestError> {
        Bench::new().unwrap().read(name, bytes, "unit_records = 2", corpus)
    }

    #[test]
    fn what_a_table_offers_keeps_every_promise() {
        let csv =
            b"path,caption,label\na.jpg,one,x\na.jpg,two,x\nb/c.jpg,\"three\nlines\",y\nout.jpg,z,z\n../a.jpg,z,z\n\"";
        let offered = read("t.csv", csv, IMAGES).unwrap();
        assert_eq!(offered, Offered { n_units: 4, n_candidates: 2, n_rejects: 3 });
        let tar = format!("{IMAGES}\nmedia_root = \"{MEDIA_TAR}\"");
        let offered = read("t.csv", b"path,caption\na.jpg,one\nc.jpg,two\nb/c.jpg,three\n", &tar).unwrap();
        assert_eq!((offered.n_candidates, offered.n_rejects), (2, 1));
        assert!(matches!(read("t.csv", b"pth\n", IMAGES), Err(IngestError::MissingColumn { .. })));
        assert!(matches!(read("t.parquet", b"PAR1PAR1", IMAGES), Err(IngestError::Table { .. })));
    }

    #[test]
    fn a_schema_as_deep_as_its_file_is_long_is_an_error_and_no_full_stack() {
        // A version, a schema of 40,000 groups of one group each, and what closes a Parquet file.
        let mut footer = vec![0x15, 2, 0x19, 0xfc, 0xc0, 0xb8, 2];
        footer.extend([0x35, 0, 0x18, 1, b'a', 0x15, 2, 0].repeat(40_000));
        footer.push(0);
        let len = (footer.len() as u32).to_le_bytes();
        let file = [b"PAR1", &footer[..], &len, b"PAR1"].concat();
        let error = read("t.parquet", &file, IMAGES).unwrap_err().to_string();
        assert!(error.contains("more than 64 groups"), "{error}");
    }

    #[test]
    fn what_a_tar_offers_keeps_every_promise() {
        let mut tar = tar::Builder::new(Vec::new());
        let members: [(&str, &[u8]); 6] =
            [("a.jpg", b"x"), ("a.txt", b"one"), ("b.jpg", b"y"), ("b\\..\\c.jpg", b"z"), ("d.txt", b"d"), ("e", b"")];
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let wanted = Offered { n_units: 1, n_candidates: 2, n_rejects: 2 };
        assert_eq!(read("t.tar", &tar, IMAGES).unwrap(), wanted);
        assert_eq!(read("t.tar.zst", &zstd::bulk::compress(&tar, 1).unwrap(), IMAGES).unwrap(), wanted);
        // Cut within the header of the second member.
        assert_eq!(read("t.tar", &tar[..1100], IMAGES).unwrap().n_rejects, 1);
        assert_eq!(read("t.tar", b"", IMAGES).unwrap().n_rejects, 1);
    }
}
