//! Pages of media wait for the end of their row group on disk, so that memory does not grow with the row group.
//!
//! In: pages of the media column. Out: the same pages, in the order they are asked for. Pages of small columns stay in memory.
//! Never: a name in a folder: the file is gone when the row group is written.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use bytes::Bytes;
use parquet::column::page_store::{InMemoryPageStore, PageKey, PageStore, PageStoreArgs, PageStoreFactory};
use parquet::errors::Result;

/// Spills the pages of the column at `path`.
#[derive(Debug)]
pub(super) struct SpillMedia {
    pub(super) path: [&'static str; 2],
}

impl PageStoreFactory for SpillMedia {
    fn create(&self, args: &PageStoreArgs<'_>) -> Result<Box<dyn PageStore>> {
        if args.column_descriptor().path().parts() != self.path {
            return Ok(Box::new(InMemoryPageStore::default()));
        }
        Ok(Box::new(FilePageStore { file: tempfile::tempfile()?, end: 0, places: Vec::new() }))
    }
}

struct FilePageStore {
    file: File,
    end: u64,
    /// Offset and length of each page, by key.
    places: Vec<(u64, usize)>,
}

impl PageStore for FilePageStore {
    fn put(&mut self, page: Bytes) -> Result<PageKey> {
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(&page)?;
        self.places.push((self.end, page.len()));
        self.end += page.len() as u64;
        Ok(PageKey::new(self.places.len() as u64 - 1))
    }

    fn take(&mut self, key: PageKey) -> Result<Bytes> {
        let place = usize::try_from(key.get()).ok().and_then(|key| self.places.get(key));
        let &(offset, len) = place.ok_or_else(|| std::io::Error::other("a page that was never put aside"))?;
        self.file.seek(SeekFrom::Start(offset))?;
        let mut page = vec![0; len];
        self.file.read_exact(&mut page)?;
        Ok(page.into())
    }
}
