//! Rejects and tokenizer go up, the manifest last: a reader sees a whole corpus or none of it.
//!
//! In: stored shards and counts. Out: a snapshot, new or the one that stands already. Never: a manifest before what it lists,
//! a manifest changed, a version that says what the newest says already.

use bytes::Bytes;
use imp_schemas::manifest::{Manifest, MediaIndexEntry, RejectsEntry, TombstonesEntry};
use imp_schemas::reject::Reject;
use imp_schemas::shard::{Digest, manifest_key, media_index_key, rejects_key, tokenizer_key, tombstones_key};
use imp_schemas::shard_writer::WrittenMediaIndex;
use imp_schemas::store::{Store, StoreError};
use imp_schemas::tombstone::Tombstone;

use crate::error::IngestError;
use crate::pack::{pack_rejects, pack_tombstones};
use crate::report::Published;
use crate::tokenizer::CaptionTokenizer;

/// Versions to try: each is lost to another run that published in the meantime.
const MAX_TRIES: u32 = 16;

/// Puts the table of rejects beside the shards; `None` without rejects.
pub(crate) fn store_rejects(
    store: &Store,
    corpus: &str,
    rejects: &[Reject],
) -> Result<Option<RejectsEntry>, IngestError> {
    if rejects.is_empty() {
        return Ok(None);
    }
    let bytes = pack_rejects(corpus, rejects)?;
    let digest = Digest::of(&bytes);
    store.put_if_absent(&rejects_key(corpus, &digest), bytes)?;
    Ok(Some(RejectsEntry { digest, n_rows: rejects.len() as u64 }))
}

/// Puts the table of tombstones beside the shards; `None` without any.
pub(crate) fn store_tombstones(
    store: &Store,
    corpus: &str,
    tombstones: &[Tombstone],
) -> Result<Option<TombstonesEntry>, IngestError> {
    if tombstones.is_empty() {
        return Ok(None);
    }
    let bytes = pack_tombstones(corpus, tombstones)?;
    let digest = Digest::of(&bytes);
    store.put_if_absent(&tombstones_key(corpus, &digest), bytes)?;
    Ok(Some(TombstonesEntry { digest, n_rows: tombstones.len() as u64 }))
}

/// Puts the index of media beside the shards; one that is there already is left alone.
pub(crate) fn store_media_index(
    store: &Store,
    corpus: &str,
    index: WrittenMediaIndex,
) -> Result<MediaIndexEntry, IngestError> {
    let key = media_index_key(corpus, &index.digest);
    if store.size(&key)? != Some(index.n_bytes) {
        store.put_file(&key, index.file.path())?;
    }
    Ok(MediaIndexEntry { digest: index.digest, n_rows: index.n_rows })
}

/// Puts the tokenizer where all corpora of the run find it.
pub(crate) fn store_tokenizer(store: &Store, tokenizer: &CaptionTokenizer) -> Result<(), StoreError> {
    let bytes = Bytes::copy_from_slice(&tokenizer.bytes);
    store.put_if_absent(&tokenizer_key(&tokenizer.entry.digest), bytes).map(|_| ())
}

/// Publishes `manifest` as the next snapshot, unless the newest one is the same.
pub(crate) fn publish(store: &Store, manifest: &Manifest) -> Result<Published, IngestError> {
    let bytes = Bytes::from(manifest.to_bytes()?);
    let digest = Digest::of(&bytes);
    for _ in 0..MAX_TRIES {
        let newest = match store.newest_snapshot(&manifest.corpus) {
            Ok(Some(newest)) if newest.digest == digest => {
                return Ok(Published { version: newest.version, digest, is_new: false });
            }
            Ok(newest) => newest.map_or(0, |snapshot| snapshot.version),
            Err(error) => return Err(error.into()),
        };
        let version = newest + 1;
        if store.put_if_absent(&manifest_key(&manifest.corpus, version), bytes.clone())? {
            return Ok(Published { version, digest, is_new: true });
        }
    }
    Err(IngestError::LostRace { corpus: manifest.corpus.clone(), n_tries: MAX_TRIES })
}
