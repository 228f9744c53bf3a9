//! Records on disk, in buckets: what does not fit into memory is put aside and comes back a bucket at a time.
//!
//! In: a bucket's number and fields of bytes. Out: the fields of one bucket, in the order they came. One file without a name.
//! Never: more in memory than a small buffer a bucket, and the bucket that is read.

use std::fs::File;
use std::io::{Read, Result, Seek, SeekFrom, Write};

/// Of one bucket's buffer; of [`MAX_BUCKETS`] 64 MiB.
const BUFFER_BYTES: usize = 64 << 10;
pub(super) const MAX_BUCKETS: usize = 1024;

pub(super) struct Spool {
    file: File,
    end: u64,
    buckets: Vec<Bucket>,
}

#[derive(Default, Clone)]
struct Bucket {
    buffer: Vec<u8>,
    /// Offset and length of what was written.
    places: Vec<(u64, usize)>,
}

impl Spool {
    pub(super) fn new(n_buckets: usize) -> Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, end: 0, buckets: vec![Bucket::default(); n_buckets] })
    }

    pub(super) fn push(&mut self, bucket: usize, fields: &[&[u8]]) -> Result<()> {
        let bucket = &mut self.buckets[bucket];
        for field in fields {
            let len = u32::try_from(field.len()).map_err(std::io::Error::other)?;
            bucket.buffer.extend_from_slice(&len.to_le_bytes());
            bucket.buffer.extend_from_slice(field);
        }
        if bucket.buffer.len() >= BUFFER_BYTES {
            self.file.seek(SeekFrom::Start(self.end))?;
            self.file.write_all(&bucket.buffer)?;
            bucket.places.push((self.end, bucket.buffer.len()));
            self.end += bucket.buffer.len() as u64;
            bucket.buffer = Vec::new();
        }
        Ok(())
    }

    /// All bytes of a bucket, for [`Fields`]; the bucket is empty then.
    pub(super) fn take(&mut self, bucket: usize) -> Result<Vec<u8>> {
        let Bucket { buffer, places } = std::mem::take(&mut self.buckets[bucket]);
        let n_written: usize = places.iter().map(|place| place.1).sum();
        let mut bytes = vec![0; n_written];
        let mut rest = &mut bytes[..];
        for (offset, len) in places {
            self.file.seek(SeekFrom::Start(offset))?;
            let (part, after) = rest.split_at_mut(len);
            self.file.read_exact(part)?;
            rest = after;
        }
        bytes.extend_from_slice(&buffer);
        Ok(bytes)
    }
}

/// The fields of a bucket, in order.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let (field, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        self.0 = rest;
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_back_its_fields_in_order_whether_they_went_to_disk_or_not() {
        for n in [0_u32, 3, 40_000] {
            let mut spool = Spool::new(3).unwrap();
            for i in 0..n {
                spool.push((i % 3) as usize, &[&i.to_le_bytes(), b"", b"words"]).unwrap();
            }
            for bucket in 0..3_usize {
                let bytes = spool.take(bucket).unwrap();
                let fields: Vec<&[u8]> = Fields(&bytes).collect();
                let want: Vec<u32> = (0..n).filter(|i| (i % 3) as usize == bucket).collect();
                let got: Vec<u32> = fields.chunks(3).map(|f| u32::from_le_bytes(f[0].try_into().unwrap())).collect();
                assert_eq!(got, want);
                assert!(fields.chunks(3).all(|f| f[1].is_empty() && f[2] == b"words"));
            }
            assert!(spool.take(0).unwrap().is_empty());
        }
    }
}
