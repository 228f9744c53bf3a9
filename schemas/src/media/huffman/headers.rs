//! The headers before a scan → how it is coded.
//!
//! In: tidy segments, one behind the other. Out: tables of codes and the restart interval. Never: coding of another kind.

use super::table::Codes;

/// Tables of a kind that a picture may have at a time.
const N_TABLES: usize = 4;

/// What stands before a scan and says how it is coded.
#[derive(Default)]
pub(super) struct Headers<'a> {
    /// Of the first coefficients of blocks, and of the others.
    pub(super) codes: [[Option<Codes<'a>>; N_TABLES]; 2],
    pub(super) restart_interval: u32,
}

impl<'a> Headers<'a> {
    /// `bytes` are those up to the scan, one segment behind the other. `None` if they are not those of a sequential scan of Huffman codes.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut headers = Self::default();
        let mut rest = bytes.strip_prefix(&[0xFF, 0xD8])?;
        let mut is_sequential = false;
        while !rest.is_empty() {
            let (&[0xFF, marker, high, low], _) = rest.split_first_chunk()? else { return None };
            let segment;
            (segment, rest) = rest[2..].split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
            let segment = segment.get(2..)?;
            match marker {
                0xC0 | 0xC1 => is_sequential = true,
                0xC4 => headers.read_codes(segment)?,
                0xDD => headers.restart_interval = u32::from(u16::from_be_bytes(segment.try_into().ok()?)),
                0xDA if rest.is_empty() => return is_sequential.then_some(headers),
                _ => {}
            }
        }
        None
    }

    fn read_codes(&mut self, mut segment: &'a [u8]) -> Option<()> {
        while let Some((&class_and_place, rest)) = segment.split_first() {
            let (counts, rest) = rest.split_first_chunk()?;
            let symbols;
            (symbols, segment) = rest.split_at_checked(counts.iter().map(|&n| usize::from(n)).sum())?;
            let tables = self.codes.get_mut(usize::from(class_and_place >> 4))?;
            *tables.get_mut(usize::from(class_and_place & 15))? = Some((counts, symbols));
        }
        Some(())
    }
}
