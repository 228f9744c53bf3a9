//! Where the media of finished shards lie, on disk until the snapshot is known that they are indexed for.
//!
//! In: the places of each unit's shards, in whatever order units are done. Out: the index of a snapshot, in the order of its
//! manifest. Memory: a number for each shard. Never: the places of more than a unit in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use imp_schemas::manifest::ShardEntry;
use imp_schemas::media_index::MediaPlace;
use imp_schemas::shard::Digest;
use imp_schemas::shard_writer::{MediaIndexWriter, WrittenMediaIndex};

use crate::error::IngestError;
use crate::pack::PROGRAM;

/// A place on disk: offset, length.
const PLACE_BYTES: usize = 16;
/// Rows that are handed to the writer of an index at once.
const BATCH_ROWS: usize = 1 << 15;

/// Places of any number of shards.
pub(crate) struct PlaceSpool {
    file: BufWriter<File>,
    n_places: u64,
    /// Number of the first place of each shard.
    starts: HashMap<Digest, u64>,
}

impl PlaceSpool {
    pub(crate) fn new() -> Result<Self, IngestError> {
        let file = BufWriter::new(tempfile::tempfile().map_err(failed)?);
        Ok(Self { file, n_places: 0, starts: HashMap::new() })
    }

    /// The next places are those of `shards`, shard after shard.
    pub(crate) fn begin(&mut self, shards: &[ShardEntry]) {
        let mut start = self.n_places;
        for shard in shards {
            self.starts.insert(shard.digest.clone(), start);
            start += shard.n_rows;
        }
    }

    /// # Errors
    /// The disk is full.
    pub(crate) fn push(&mut self, places: &[MediaPlace]) -> Result<(), IngestError> {
        for MediaPlace { offset, len } in places {
            self.file.write_all(&offset.to_le_bytes()).map_err(failed)?;
            self.file.write_all(&len.to_le_bytes()).map_err(failed)?;
        }
        self.n_places += places.len() as u64;
        Ok(())
    }

    /// The index of `shards` in this order.
    ///
    /// # Errors
    /// The places of one of them were never pushed, or the disk is full.
    pub(crate) fn index(self, corpus: &str, shards: &[ShardEntry]) -> Result<WrittenMediaIndex, IngestError> {
        let unwritten = |source| IngestError::Shard { corpus: corpus.to_owned(), source };
        let mut file = BufReader::new(self.file.into_inner().map_err(|e| failed(e.into_error()))?);
        let mut index = MediaIndexWriter::create(PROGRAM).map_err(unwritten)?;
        let mut batch = Vec::new();
        for shard in shards {
            let lost = || failed(std::io::Error::other(format!("no places of shard {}", shard.digest)));
            let start = self.starts.get(&shard.digest).ok_or_else(lost)?;
            file.seek(SeekFrom::Start(start * PLACE_BYTES as u64)).map_err(failed)?;
            for _ in 0..shard.n_rows {
                let (mut offset, mut len) = ([0; 8], [0; 8]);
                file.read_exact(&mut offset).and_then(|()| file.read_exact(&mut len)).map_err(failed)?;
                batch.push(MediaPlace { offset: u64::from_le_bytes(offset), len: u64::from_le_bytes(len) });
                if batch.len() == BATCH_ROWS {
                    index.write(&batch).map_err(unwritten)?;
                    batch.clear();
                }
            }
        }
        index.write(&batch).map_err(unwritten)?;
        index.seal().map_err(unwritten)
    }
}

fn failed(source: std::io::Error) -> IngestError {
    IngestError::Read { path: std::env::temp_dir(), source }
}
