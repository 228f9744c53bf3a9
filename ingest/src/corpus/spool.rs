//! A listing of any length on disk, in units: every input lies in the unit that its record's key draws.
//!
//! In: pieces of records with their keys, in any order. Out: the pieces of one unit, those of one key in the order they
//! came. Never: holds a listing in memory (4096 buffers of 8 KiB at most), a piece in two units, a unit that depends on
//! the order of the listing.
//!
//! ```text
//! listing ─► log (as it comes) ─► cells (4096, by the first 12 bits of BLAKE3 of the key) ─► unit: some cells, or part of one
//! ```

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use imp_schemas::reject::RejectReason;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::Sidecar;
use crate::error::IngestError;
use crate::text::{Refusal, Wording};

const CELL_BITS: u32 = 12;
const N_CELLS: usize = 1 << CELL_BITS;
/// Of a cell's buffer; 4096 of them are 32 MiB.
const BUFFER_BYTES: usize = 8 << 10;
/// Before a piece: its key's hash and its length.
const HEAD_BYTES: usize = 12;

/// What one input says about its record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Piece {
    /// A file that may be the medium of `key`. `stamp` changes when the file does.
    Medium { key: String, source: String, row: u64, len: u64, stamp: String },
    /// A file beside it.
    Words { key: String, source: String, row: u64, kind: Sidecar, read: Result<Wording, Refusal> },
    /// A file of `key` that cannot be used.
    Refused { key: String, source: String, row: u64, refusal: Refusal },
    /// A row of table number `table`.
    Row { table: usize, row: u64, key: Option<String>, target: Target, wording: Wording, split: Option<String> },
    /// A row that says nothing usable.
    Lost { table: usize, row: u64, key: String, reason: RejectReason, detail: String },
}

/// Where a row of a table leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Target {
    /// Relative to the media root, and safe.
    Path(String),
    Url(String),
}

impl Target {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Path(path) => path,
            Self::Url(url) => url,
        }
    }
}

/// A spool that still takes pieces, in the order of the listing.
pub(super) struct OpenSpool {
    log: BufWriter<NamedTempFile>,
    cell_bytes: Vec<u64>,
}

impl OpenSpool {
    pub(super) fn new() -> Result<Self, IngestError> {
        let log = NamedTempFile::new().map_err(failed)?;
        Ok(Self { log: BufWriter::with_capacity(1 << 18, log), cell_bytes: vec![0; N_CELLS] })
    }

    /// Adds a piece of the record `key`.
    pub(super) fn push(&mut self, key: &str, piece: &Piece) -> Result<(), IngestError> {
        let bytes = serde_json::to_vec(piece).map_err(|e| failed(e.into()))?;
        let hash = hash_of(key);
        let len = u32::try_from(bytes.len()).map_err(|e| failed(std::io::Error::other(e)))?;
        self.cell_bytes[cell_of(hash)] += (HEAD_BYTES + bytes.len()) as u64;
        self.log.write_all(&hash.to_le_bytes()).map_err(failed)?;
        self.log.write_all(&len.to_le_bytes()).map_err(failed)?;
        self.log.write_all(&bytes).map_err(failed)
    }

    /// Sorts the pieces into units of about `unit_records` of the `n_records` records.
    pub(super) fn close(self, n_records: u64, unit_records: u64) -> Result<Spool, IngestError> {
        let mut starts = Vec::with_capacity(N_CELLS + 1);
        let mut at = 0;
        for n_bytes in &self.cell_bytes {
            starts.push(at);
            at += n_bytes;
        }
        starts.push(at);
        let log = self.log.into_inner().map_err(|e| failed(e.into_error()))?;
        let file = NamedTempFile::new().map_err(failed)?;
        distribute(&log, &file, &starts).map_err(failed)?;
        let n_units = n_records.div_ceil(unit_records.max(1)).max(1).next_power_of_two();
        Ok(Spool { file, starts, unit_bits: n_units.trailing_zeros() })
    }
}

/// Copies every piece of the log to its cell.
fn distribute(log: &NamedTempFile, file: &NamedTempFile, starts: &[u64]) -> std::io::Result<()> {
    let mut log = BufReader::with_capacity(1 << 18, log.reopen()?);
    let mut file = file.reopen()?;
    let mut cells: Vec<(u64, Vec<u8>)> = starts[..N_CELLS].iter().map(|&start| (start, Vec::new())).collect();
    let mut flush = |(at, buffer): &mut (u64, Vec<u8>)| -> std::io::Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        file.seek(SeekFrom::Start(*at))?;
        file.write_all(buffer)?;
        *at += buffer.len() as u64;
        // A buffer that one long caption has grown is given back.
        *buffer = Vec::new();
        Ok(())
    };
    let mut body = Vec::new();
    while let Some((head, hash)) = next_piece(&mut log, &mut body)? {
        let cell = &mut cells[cell_of(hash)];
        cell.1.extend_from_slice(&head);
        cell.1.extend_from_slice(&body);
        if cell.1.len() >= BUFFER_BYTES {
            flush(cell)?;
        }
    }
    cells.iter_mut().try_for_each(flush)
}

/// Reads a piece's bytes into `body`; `None` at the end.
fn next_piece(from: &mut dyn Read, body: &mut Vec<u8>) -> std::io::Result<Option<([u8; HEAD_BYTES], u64)>> {
    let mut head = [0; HEAD_BYTES];
    match from.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [h0, h1, h2, h3, h4, h5, h6, h7, l0, l1, l2, l3] = head;
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    body.resize(len as usize, 0);
    from.read_exact(body)?;
    Ok(Some((head, u64::from_le_bytes([h0, h1, h2, h3, h4, h5, h6, h7]))))
}

/// A whole listing, sorted into units.
#[derive(Debug)]
pub(super) struct Spool {
    file: NamedTempFile,
    /// Where each cell begins, and where the last one ends.
    starts: Vec<u64>,
    /// The first so many bits of a key's hash are its unit.
    unit_bits: u32,
}

impl Spool {
    pub(super) fn n_units(&self) -> usize {
        1 << self.unit_bits
    }

    /// Hands the pieces of `unit` to `take`, with the bytes that they are.
    pub(super) fn read(&self, unit: usize, take: &mut dyn FnMut(Piece, &[u8])) -> Result<(), IngestError> {
        let (start, end) = self.range(unit);
        let mut file: File = self.file.reopen().map_err(failed)?;
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        let mut from = BufReader::with_capacity(1 << 18, file.take(end - start));
        let mut body = Vec::new();
        while let Some((_, hash)) = next_piece(&mut from, &mut body).map_err(failed)? {
            if self.unit_of(hash) == unit {
                take(serde_json::from_slice(&body).map_err(|e| failed(e.into()))?, &body);
            }
        }
        Ok(())
    }

    /// Bytes of its pieces; where units are parts of cells, about.
    pub(super) fn weight(&self, unit: usize) -> u64 {
        let (start, end) = self.range(unit);
        (end - start) >> self.unit_bits.saturating_sub(CELL_BITS)
    }

    /// Where the cells of `unit` begin and end.
    fn range(&self, unit: usize) -> (u64, u64) {
        let cells = match CELL_BITS.checked_sub(self.unit_bits) {
            Some(bits) => unit << bits..(unit + 1) << bits,
            None => {
                let cell = unit >> (self.unit_bits - CELL_BITS);
                cell..cell + 1
            }
        };
        (self.starts[cells.start], self.starts[cells.end])
    }

    fn unit_of(&self, hash: u64) -> usize {
        // A shift by all 64 bits is none in Rust.
        hash.checked_shr(64 - self.unit_bits).unwrap_or(0) as usize
    }
}

fn hash_of(key: &str) -> u64 {
    let digest = blake3::hash(key.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

fn cell_of(hash: u64) -> usize {
    (hash >> (64 - CELL_BITS)) as usize
}

fn failed(source: std::io::Error) -> IngestError {
    IngestError::Read { path: std::env::temp_dir(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(key: &str, row: u64) -> Piece {
        Piece::Lost { table: 0, row, key: key.to_owned(), reason: RejectReason::MalformedRow, detail: "x".to_owned() }
    }

    /// Keys and rows by unit.
    fn spooled(keys: &[String], unit_records: u64) -> Vec<Vec<(String, u64)>> {
        let mut open = OpenSpool::new().unwrap();
        for (row, key) in keys.iter().enumerate() {
            open.push(key, &lost(key, row as u64)).unwrap();
        }
        let spool = open.close(keys.len() as u64, unit_records).unwrap();
        let read = |unit| {
            let mut pieces = Vec::new();
            let mut take = |piece, _: &[u8]| match piece {
                Piece::Lost { key, row, .. } => pieces.push((key, row)),
                other => panic!("{other:?}"),
            };
            spool.read(unit, &mut take).unwrap();
            pieces
        };
        (0..spool.n_units()).map(read).collect()
    }

    #[test]
    fn units_are_a_power_of_two_and_hold_every_piece_once_by_key_alone() {
        let keys: Vec<String> = (0..5000).map(|i| format!("k{}", i % 2500)).collect();
        // One cell a unit, several cells a unit, several units a cell.
        for (unit_records, n_units) in [(5000, 1), (10_000, 1), (1000, 8), (1, 8192)] {
            let units = spooled(&keys, unit_records);
            assert_eq!(units.len(), n_units);
            assert_eq!(units.iter().map(Vec::len).sum::<usize>(), keys.len());
            let keys_of = |unit: &[(String, u64)]| {
                let mut keys: Vec<String> = unit.iter().map(|(key, _)| key.clone()).collect();
                keys.sort();
                keys
            };
            let reversed: Vec<String> = keys.iter().rev().cloned().collect();
            let again = spooled(&reversed, unit_records);
            for (unit, again) in units.iter().zip(&again) {
                assert_eq!(keys_of(unit), keys_of(again));
                // Those of one key lie in one unit, in the order they came.
                for (key, row) in unit {
                    let rows: Vec<u64> = unit.iter().filter(|(k, _)| k == key).map(|(_, row)| *row).collect();
                    assert!(rows.len() == 2 && rows[0] < rows[1] && rows.contains(row));
                }
            }
        }
    }

    #[test]
    fn an_empty_listing_is_one_empty_unit() {
        assert_eq!(spooled(&[], 10), [Vec::new()]);
    }
}
