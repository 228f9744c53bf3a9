//! One shard: its bytes, its footer, its rows.

use std::collections::BTreeSet;

use imp_schemas::manifest::ShardEntry;
use imp_schemas::media_index::MediaPlace;
use imp_schemas::record::{column, huggingface_features, record_schema};
use imp_schemas::shard::{Digest, footer, shard_key};
use imp_schemas::shard_reader::{ShardReadError, ShardReader};
use imp_schemas::store::{Store, StoreError};
use imp_schemas::version::{Format, Version};
use indicatif::ProgressBar;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, parquet_to_arrow_schema};
use parquet::file::metadata::KeyValue;

use super::corpus::{Corpus, chain};
use super::numbers::Numbers;
use super::{decode, layout};
use crate::ShardsError;
use crate::finding::Findings;
use crate::rows::{Rows, present};

/// Bytes of a shard that are fetched together, and media that are held together.
const WINDOW_BYTES: u64 = 16 << 20;
/// Rows that are held together, whatever they weigh.
const WINDOW_ROWS: usize = 512;
const AGAIN: &str = "copy the shard from where it was ingested, or ingest the corpus again";

/// `first_row` is the shard's first row, counted over the corpus.
pub(crate) fn check(
    corpus: &mut Corpus<'_>,
    entry: &ShardEntry,
    first_row: u64,
    bar: &ProgressBar,
    findings: &mut Findings,
) -> Result<(), ShardsError> {
    let key = shard_key(corpus.name, &entry.digest);
    let Some(n_bytes) = corpus.store.size(&key)? else {
        findings.push("missing_shard", key, "the manifest lists it, the store does not have it", AGAIN);
        return Ok(());
    };
    if n_bytes != entry.n_bytes {
        findings.push("size", key, format!("it has {n_bytes} bytes, the manifest says {}", entry.n_bytes), AGAIN);
        return Ok(());
    }
    let found = digest_of(corpus.store, &key, n_bytes, bar)?;
    let intact = found == entry.digest;
    if !intact {
        findings.push(
            "digest",
            key.as_str(),
            format!("its bytes have digest {}…, its name is another", found.short()),
            AGAIN,
        );
    }
    // A shard of other bytes is still opened: what else is wrong says which part was hit.
    let reader = match ShardReader::open(corpus.store, corpus.name, entry) {
        Ok(reader) => reader,
        Err(error) => return unreadable(error, &key, findings),
    };
    let version = check_footer(corpus, entry, &reader, &key, findings);
    let file = reader.metadata().file_metadata();
    let found = match parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata()) {
        Ok(found) => found,
        Err(error) => {
            findings.push("schema", key, error.to_string(), AGAIN);
            return Ok(());
        }
    };
    if version >= (Version { major: 1, minor: 1 }) {
        check_features(&reader, &key, findings);
    }
    layout::check(corpus.manifest.kind, &reader, &key, findings);
    if !layout::schema(corpus.manifest.kind, version, &found, &key, findings) {
        return Ok(());
    }
    match check_rows(corpus, &reader, entry, first_row, &key, findings) {
        Err(ShardsError::Read(error)) => unreadable(error, &key, findings),
        done => done,
    }
}

/// What the store fails to give stops the check; what is wrong with the bytes is a finding.
fn unreadable(error: ShardReadError, key: &str, findings: &mut Findings) -> Result<(), ShardsError> {
    let from_store = match &error {
        ShardReadError::FetchFooter { source, .. } | ShardReadError::Fetch { source, .. } => Some(source),
        _ => None,
    };
    // A range past the end comes from a footer that lies about offsets.
    if matches!(from_store, Some(StoreError::Runtime { .. } | StoreError::List { .. })) {
        return Err(error.into());
    }
    findings.push("unreadable", key, chain(&error), AGAIN);
    Ok(())
}

/// Of a whole object, a range at a time.
pub(super) fn digest_of(store: &Store, key: &str, n_bytes: u64, bar: &ProgressBar) -> Result<Digest, ShardsError> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < n_bytes {
        let end = (at + WINDOW_BYTES).min(n_bytes);
        hasher.update(&store.get_range(key, at..end)?);
        bar.inc(end - at);
        at = end;
    }
    Ok(Digest(hasher.finalize().to_hex().to_string()))
}

/// Gives the version of the shard's schema; the manifest's if the footer names none that this build reads.
fn check_footer(
    corpus: &Corpus<'_>,
    entry: &ShardEntry,
    reader: &ShardReader,
    key: &str,
    findings: &mut Findings,
) -> Version {
    let manifest = corpus.manifest;
    let metadata = reader.metadata();
    let pairs = metadata.file_metadata().key_value_metadata();
    let value = |name: &str| pairs.into_iter().flatten().find(|kv| kv.key == name).and_then(|kv| kv.value.as_deref());
    let wanted = [
        (footer::SCHEMA, manifest.kind.name().to_owned()),
        (footer::CORPUS, corpus.name.to_owned()),
        (footer::SPLIT, entry.split.clone()),
        (footer::N_ROWS, entry.n_rows.to_string()),
        (footer::TOKENIZER, manifest.tokenizer.digest.0.clone()),
        (footer::HUGGINGFACE, huggingface_features(manifest.kind)),
    ];
    for (name, wanted) in wanted {
        let found = value(name).unwrap_or("absent");
        if found != wanted {
            let found = format!("footer key `{name}` is {found}, wanted {wanted}");
            findings.push("footer", key, found, "ingest the corpus again with one version of imp-ingest");
        }
    }
    for name in [footer::WRITER, footer::MEDIA_DIGEST] {
        if value(name).is_none() {
            findings.push("footer", key, format!("footer key `{name}` is absent"), "ingest the corpus again");
        }
    }
    let version = check_version(manifest.schema_version, value(footer::SCHEMA_VERSION), key, findings);
    let counts =
        [("rows", reader.n_rows(), entry.n_rows), ("row groups", metadata.num_row_groups() as u64, entry.n_row_groups)];
    for (what, found, wanted) in counts {
        if found != wanted {
            findings.push("count", key, format!("it has {found} {what}, the manifest says {wanted}"), AGAIN);
        }
    }
    version
}

/// Readers that find an Arrow schema in the footer take its metadata and no other pair, so the features must stand there too.
/// Before 1.1 they did not.
fn check_features(reader: &ShardReader, key: &str, findings: &mut Findings) {
    let file = reader.metadata().file_metadata();
    let pairs = file.key_value_metadata().into_iter().flatten();
    let embedded: Vec<KeyValue> = pairs.filter(|pair| pair.key == ARROW_SCHEMA_META_KEY).cloned().collect();
    if embedded.is_empty() {
        return;
    }
    // An embedded schema that does not parse is found where the whole is read.
    let Ok(schema) = parquet_to_arrow_schema(file.schema_descr(), Some(&embedded)) else { return };
    if !schema.metadata().contains_key(footer::HUGGINGFACE) {
        let found = format!("the Arrow schema in its footer has no `{}`", footer::HUGGINGFACE);
        findings.push(
            "footer",
            key,
            found,
            "ingest the corpus again: Hugging Face datasets shows raw bytes without it",
        );
    }
}

/// A shard may be of a later minor version than the manifest, which names the least of its shards'.
fn check_version(least: Version, found: Option<&str>, key: &str, findings: &mut Findings) -> Version {
    let name = footer::SCHEMA_VERSION;
    let version = match found.map(str::parse::<Version>) {
        Some(Ok(version)) => version,
        _ => {
            let found = format!("footer key `{name}` is {}, wanted {least}", found.unwrap_or("absent"));
            findings.push("version", key, found, "ingest the corpus again with one version of imp-ingest");
            return least;
        }
    };
    if let Err(error) = Format::Shard.check(version) {
        findings.push("version", key, error.to_string(), "use a build of that major version");
    } else if version < least {
        let found = format!("footer key `{name}` is {version}, the manifest says that no shard is before {least}");
        findings.push("version", key, found, "run imp-shards upgrade");
    }
    version
}

fn check_rows(
    corpus: &mut Corpus<'_>,
    reader: &ShardReader,
    entry: &ShardEntry,
    first_row: u64,
    key: &str,
    findings: &mut Findings,
) -> Result<(), ShardsError> {
    let kind = corpus.manifest.kind;
    let schema = record_schema(kind);
    let all = present(reader, &schema);
    let hidden = corpus.hidden.rows(&entry.digest);
    let mut numbers = Numbers::default();
    let mut media_digests = blake3::Hasher::new();
    let mut media_bytes = 0;
    let mut start = 0;
    while start < reader.n_rows() {
        // Sizes first, so that a window of media never weighs more than its allowance.
        let end = (start + WINDOW_ROWS as u64).min(reader.n_rows());
        let rows: Vec<u64> = (start..end).collect();
        let planned = reader.read(&rows, &[column::BYTES_LEN])?;
        let sizes = Rows { corpus: corpus.name, batch: &planned }.numbers(column::BYTES_LEN)?;
        let mut from = 0;
        while from < rows.len() {
            let mut weight = 0;
            let mut to = from;
            while to < rows.len() && (to == from || weight + sizes[to].unwrap_or(0) as u64 <= WINDOW_BYTES) {
                weight += sizes[to].unwrap_or(0).max(0) as u64;
                to += 1;
            }
            let batch = reader.read(&rows[from..to], &all)?;
            let rows_here = Rows { corpus: corpus.name, batch: &batch };
            numbers.add(&rows_here, &mut corpus.histograms)?;
            let window =
                Window { first_row: first_row + rows[from], start: rows[from], rows: rows_here, key, hidden: &hidden };
            media_bytes += window.check(corpus, entry, &mut media_digests, findings)?;
            from = to;
        }
        start = end;
    }
    numbers.check(entry, key, findings);
    if media_bytes != entry.media_bytes {
        let found = format!("its media have {media_bytes} bytes, the manifest says {}", entry.media_bytes);
        findings.push("count", key, found, AGAIN);
    }
    let pairs = reader.metadata().file_metadata().key_value_metadata();
    let claimed =
        pairs.into_iter().flatten().find(|kv| kv.key == footer::MEDIA_DIGEST).and_then(|kv| kv.value.as_deref());
    let found = media_digests.finalize().to_hex();
    if claimed.is_some_and(|claimed| claimed != found.as_str()) {
        findings.push("footer", key, format!("`{}` is not the digest of its rows", footer::MEDIA_DIGEST), AGAIN);
    }
    Ok(())
}

/// Some rows of a shard with everything that belongs to them.
struct Window<'a> {
    /// Counted over the corpus.
    first_row: u64,
    /// Counted within the shard.
    start: u64,
    rows: Rows<'a>,
    key: &'a str,
    /// Hidden rows of the shard, rising.
    hidden: &'a [u64],
}

impl Window<'_> {
    /// Gives the bytes of the media.
    fn check(
        &self,
        corpus: &mut Corpus<'_>,
        entry: &ShardEntry,
        media_digests: &mut blake3::Hasher,
        findings: &mut Findings,
    ) -> Result<u64, ShardsError> {
        let kind = corpus.manifest.kind;
        let (keys, splits) = (self.rows.texts(column::KEY)?, self.rows.texts(column::SPLIT)?);
        let (digests, sizes) = (self.rows.texts(column::DIGEST)?, self.rows.numbers(column::BYTES_LEN)?);
        let media = self.rows.media(kind)?;
        self.check_words(corpus, findings)?;
        let mut n_bytes = 0;
        for (i, &bytes) in media.iter().enumerate() {
            let row = self.first_row + i as u64;
            let place = |what: Option<&str>| format!("{}, row {row} (key `{}`)", self.key, what.unwrap_or("null"));
            let here = place(keys[i]);
            // A hidden row may repeat another's key: that may be why it is hidden.
            let is_hidden = self.hidden.binary_search(&(self.start + i as u64)).is_ok();
            match keys[i] {
                Some(_) if is_hidden => {}
                None | Some("") => findings.push("key", place(None), "its key is null or empty", AGAIN),
                Some(text) => {
                    let mut short = [0; 16];
                    short.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
                    if !corpus.keys.insert(short) {
                        findings.push("duplicate_key", here.as_str(), "its key stood in this corpus before", AGAIN);
                    }
                }
            }
            if splits[i] != Some(entry.split.as_str()) {
                let found = format!("its split is `{}`, the shard's `{}`", splits[i].unwrap_or("null"), entry.split);
                findings.push("split", here.as_str(), found, AGAIN);
            }
            let digest = digests[i].unwrap_or("null");
            media_digests.update(digest.as_bytes());
            let Some(bytes) = bytes else {
                findings.push("media", here, "it has no media", "ingest the corpus again");
                continue;
            };
            n_bytes += bytes.len() as u64;
            if sizes[i] != Some(bytes.len() as i64) {
                let found = format!("`bytes_len` is {:?}, its media have {} bytes", sizes[i], bytes.len());
                findings.push("media", here.as_str(), found, AGAIN);
            }
            let found = Digest::of(bytes);
            if found.0 != digest {
                let found = format!("its media have digest {}…, the `digest` column says {digest:.12}…", found.short());
                findings.push("media_digest", here.as_str(), found, AGAIN);
            }
            let place = corpus.places.as_ref().and_then(|places| places.get(row as usize)).copied();
            let is_probed = corpus.probe_every > 0 && row.is_multiple_of(corpus.probe_every);
            self.check_place(corpus, place, bytes, is_probed, &here, findings)?;
            if is_probed {
                corpus.n_decoded += 1;
                decode::check(&self.rows, i, kind, bytes, &here, findings)?;
            }
        }
        Ok(n_bytes)
    }

    /// The index names the bytes of the medium; those of a probed row are read where it says.
    fn check_place(
        &self,
        corpus: &Corpus<'_>,
        place: Option<MediaPlace>,
        bytes: &[u8],
        is_probed: bool,
        here: &str,
        findings: &mut Findings,
    ) -> Result<(), ShardsError> {
        let Some(MediaPlace { offset, len }) = place else { return Ok(()) };
        let is_there = len == bytes.len() as u64
            && (!is_probed || corpus.store.get_range(self.key, offset..offset.saturating_add(len))? == bytes);
        if !is_there {
            let found =
                format!("the index says bytes {offset}..{}, which are not its medium", offset.saturating_add(len));
            findings.push("media_index", here, found, "ingest the corpus again; the shards are not affected");
        }
        Ok(())
    }

    /// Captions, tokens and labels.
    fn check_words(&self, corpus: &Corpus<'_>, findings: &mut Findings) -> Result<(), ShardsError> {
        let (captions, tokens) = (self.rows.captions()?, self.rows.tokens()?);
        let (labels, label_ids) = (self.rows.texts(column::LABEL)?, self.rows.numbers(column::LABEL_ID)?);
        let (all_labels, all_ids) = (self.rows.labels()?, self.rows.label_ids()?);
        let vocab_size = corpus.manifest.tokenizer.vocab_size;
        for i in 0..captions.len() {
            let place = format!("{}, row {}", self.key, self.first_row + i as u64);
            if captions[i].iter().any(|c| c.is_none_or(|c| c.trim().is_empty())) {
                findings.push("caption", place.as_str(), "it has a blank caption", AGAIN);
            }
            if captions[i].is_empty() && labels[i].is_none() {
                findings.push("caption", place.as_str(), "it has neither caption nor label", AGAIN);
            }
            if tokens[i].len() != captions[i].len() {
                let found = format!("{} captions, but tokens of {}", captions[i].len(), tokens[i].len());
                findings.push("tokens", place.as_str(), found, AGAIN);
            }
            let wrong = tokens[i].iter().flatten().find(|id| **id < 1 || **id as usize >= vocab_size);
            if let Some(id) = wrong {
                let found = format!("token id {id}, wanted 1 to {}", vocab_size.saturating_sub(1));
                findings.push("tokens", place.as_str(), found, AGAIN);
            }
            let class = label_ids[i].map(|id| usize::try_from(id).ok().and_then(|id| corpus.manifest.classes.get(id)));
            let known = match (labels[i], class) {
                (None, None) => true,
                (Some(label), Some(Some(class))) => label == class,
                (Some(_), None) => corpus.manifest.classes.is_empty(),
                _ => false,
            };
            if !known {
                let found = format!(
                    "label {:?} with id {:?} of {} classes",
                    labels[i],
                    label_ids[i],
                    corpus.manifest.classes.len()
                );
                findings.push("label", place.as_str(), found, AGAIN);
            }
            if !agree(labels[i], &all_labels[i], &all_ids[i], &corpus.manifest.classes) {
                let found = format!("label {:?} of labels {:?} with ids {:?}", labels[i], all_labels[i], all_ids[i]);
                findings.push("label", place, found, AGAIN);
            }
        }
        Ok(())
    }
}

/// Whether `all` labels are `first` alone, with no ids, or several distinct classes, `first` leading, each with its id.
fn agree(first: Option<&str>, all: &[&str], ids: &[i32], classes: &[String]) -> bool {
    if ids.is_empty() {
        return all.len() < 2 && all.first().copied() == first;
    }
    let class = |id: &i32| usize::try_from(*id).ok().and_then(|id| classes.get(id)).map(String::as_str);
    let named: Vec<&str> = ids.iter().filter_map(class).collect();
    let distinct: BTreeSet<&i32> = ids.iter().collect();
    named == all && all.len() > 1 && all.first().copied() == first && distinct.len() == ids.len()
}
