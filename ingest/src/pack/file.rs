//! The file that a shard grows in: on disk, its digest taken on the way.
//!
//! In: bytes in order. Out: the finished file, its size, digest and last bytes. Never: the file read again.

use std::io::{BufWriter, Result, Write};

use imp_schemas::shard::Digest;
use tempfile::NamedTempFile;

const BUFFER_BYTES: usize = 256 << 10;

pub(super) struct ShardFile {
    /// `None` once it is finished.
    writer: Option<BufWriter<NamedTempFile>>,
    hasher: blake3::Hasher,
    n_bytes: u64,
    tail: [u8; 8],
}

/// A file whose bytes are final.
pub(super) struct Written {
    pub(super) file: NamedTempFile,
    pub(super) digest: Digest,
    pub(super) n_bytes: u64,
    pub(super) tail: [u8; 8],
}

impl ShardFile {
    pub(super) fn create() -> Result<Self> {
        let writer = Some(BufWriter::with_capacity(BUFFER_BYTES, NamedTempFile::new()?));
        Ok(Self { writer, hasher: blake3::Hasher::new(), n_bytes: 0, tail: [0; 8] })
    }

    pub(super) fn finish(&mut self) -> Result<Written> {
        let writer = self.writer.take().ok_or_else(closed)?;
        let file = writer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let digest = Digest(self.hasher.finalize().to_hex().to_string());
        Ok(Written { file, digest, n_bytes: self.n_bytes, tail: self.tail })
    }
}

impl Write for ShardFile {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.writer.as_mut().ok_or_else(closed)?.write_all(bytes)?;
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        let n_new = bytes.len().min(self.tail.len());
        self.tail.rotate_left(n_new);
        let n_kept = self.tail.len() - n_new;
        self.tail[n_kept..].copy_from_slice(&bytes[bytes.len() - n_new..]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

fn closed() -> std::io::Error {
    std::io::Error::other("the shard is finished")
}
