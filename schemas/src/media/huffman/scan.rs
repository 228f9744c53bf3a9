//! The bytes of a scan → the coefficients of one unit of coding after the other.
//!
//! In: what the headers say, and the bytes behind them. Out: blocks as libjpeg wants them. Never: a read or a write beside the data or the blocks,
//! whatever the data.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::rc::Rc;

use mozjpeg_sys::jpeg_decompress_struct;

use super::Kept;
use super::headers::Headers;
use super::table::{Code, Kind, Table, value_at};

/// Coefficients of a block.
pub(super) const BLOCK_LEN: usize = 64;
/// Blocks of a unit of coding that libjpeg allows.
const MAX_BLOCKS: usize = 10;
const N_COMPONENTS: usize = 4;
/// Zeroes behind the data: whoever reads one of the first half has read too far, and may read on from there.
const PADDING: usize = 2 * size_of::<u64>();
/// A code and its value take at most 31 bits, and those that a look finds 25: so many fit into a filled buffer.
const LOOKS_PER_FILL: usize = 2;

/// Where in a block, row by row, the coefficient of a place in the order of coding lies. What lies behind the last, libjpeg
/// writes there too.
const NATURAL_ORDER: [u8; 2 * BLOCK_LEN] = {
    let mut order = [63; 2 * BLOCK_LEN];
    let (mut row, mut column, mut i) = (0, 0, 0);
    while i < BLOCK_LEN {
        order[i] = (row * 8 + column) as u8;
        // Diagonals, up and down in turn.
        if (row + column) % 2 == 0 {
            match (row, column) {
                (_, 7) => row += 1,
                (0, _) => column += 1,
                _ => (row, column) = (row - 1, column + 1),
            }
        } else {
            match (row, column) {
                (7, _) => column += 1,
                (_, 0) => row += 1,
                _ => (row, column) = (row + 1, column - 1),
            }
        }
        i += 1;
    }
    order
};

pub(super) type Block = [i16; BLOCK_LEN];

/// How the blocks of a unit are coded, and how far they have been read.
pub(super) struct Scan {
    pub(super) blocks: Vec<Coded>,
    /// Of each component, the first coefficient of its last block.
    last: [i32; N_COMPONENTS],
    /// Without stuffing and markers, and behind it zeroes.
    data: Vec<u8>,
    /// Where the parts between restarts end; the first is the one that is read.
    ends: VecDeque<usize>,
    bits: Bits,
    /// Units between restarts, if there are any, and units until the next.
    restarts: Option<(u32, u32)>,
    kept: Option<Kept>,
    /// Column and row of the next unit, and units of a row.
    place: (usize, usize),
    units_per_row: usize,
    pub(super) is_clean: bool,
}

/// How a block is coded.
pub(super) struct Coded {
    component: usize,
    dc: Rc<Table>,
    ac: Rc<Table>,
}

impl Scan {
    /// # Safety
    /// The header of `info` has been read from `bytes`.
    pub(super) unsafe fn read(info: &jpeg_decompress_struct, bytes: &[u8], kept: Option<Kept>) -> Option<Self> {
        // SAFETY: then libjpeg has described every component, and points to the bytes that are left.
        let (described, n_left) = unsafe {
            (std::slice::from_raw_parts(info.comp_info, info.num_components as usize), (*info.src).bytes_in_buffer)
        };
        let (headers, scan) = bytes.split_at_checked(bytes.len().checked_sub(n_left)?)?;
        let headers = Headers::read(headers)?;
        if described.len() > N_COMPONENTS {
            return None;
        }
        // All components are in this scan, so they are in the order of the frame: libjpeg refuses another.
        let mut blocks = Vec::with_capacity(MAX_BLOCKS);
        let table = |kind: Kind, i: c_int| Table::of(kind, (*headers.codes[kind as usize].get(i as usize)?)?);
        for (component, of) in described.iter().enumerate() {
            let (dc, ac) = (table(Kind::Dc, of.dc_tbl_no)?, table(Kind::Ac, of.ac_tbl_no)?);
            // A component alone in its scan has units of one block, whatever its sampling (T.81, A.2.2).
            let n_blocks = if described.len() == 1 { 1 } else { of.h_samp_factor * of.v_samp_factor };
            for _ in 0..n_blocks {
                blocks.push(Coded { component, dc: Rc::clone(&dc), ac: Rc::clone(&ac) });
            }
        }
        if blocks.len() > MAX_BLOCKS {
            return None;
        }
        let (data, ends) = without_markers(scan)?;
        let restarts = (headers.restart_interval > 0).then_some((headers.restart_interval, headers.restart_interval));
        let (last, bits) = ([0; N_COMPONENTS], Bits::default());
        // A component alone has units of another size.
        let kept = kept.filter(|_| described.len() > 1);
        let most_across = described.iter().map(|of| of.h_samp_factor as usize).max()?;
        let (place, units_per_row) = ((0, 0), (info.image_width as usize).div_ceil(8 * most_across.max(1)));
        Some(Self { blocks, last, data, ends, bits, restarts, kept, place, units_per_row, is_clean: true })
    }

    /// Whether there may be units that are not kept.
    pub(super) fn has_others(&self) -> bool {
        self.kept.is_some()
    }

    /// Reads a unit into its blocks, if it is kept, and whether it is; `None` if that is not for us.
    pub(super) fn next_unit<'a>(&mut self, blocks: impl Iterator<Item = &'a mut Block>) -> Option<bool> {
        if let Some((interval, to_go)) = &mut self.restarts {
            if *to_go == 0 {
                *to_go = *interval;
                let end = self.ends.pop_front().unwrap_or_default();
                // What is left over are bits that fill a byte.
                if end != self.bits.n_read().div_ceil(8) {
                    return None;
                }
                self.last = [0; N_COMPONENTS];
                self.bits = Bits { next: end, ..Bits::default() };
            }
            *to_go -= 1;
        }
        let &end = self.ends.front()?;
        let (column, row) = self.place;
        self.place = if column + 1 < self.units_per_row { (column + 1, row) } else { (0, row + 1) };
        let is_kept = self.kept.as_ref().is_none_or(|kept| row >= kept.first_row && kept.columns.contains(&column));
        let mut bits = self.bits;
        for (coded, block) in self.blocks.iter().zip(blocks) {
            let difference = bits.difference(&self.data, &coded.dc)?;
            let last = &mut self.last[coded.component];
            *last = last.wrapping_add(difference);
            if is_kept {
                block[0] = *last as i16;
                bits.others::<true>(&self.data, &coded.ac, block)?;
            } else {
                bits.others::<false>(&self.data, &coded.ac, block)?;
            }
        }
        self.bits = bits;
        (bits.n_read() <= 8 * end).then_some(is_kept)
    }
}

/// The bytes of a scan up to the marker that ends it, without what was stuffed between them, and where its parts end that restart
/// markers part. `None` if there is no such end.
fn without_markers(mut scan: &[u8]) -> Option<(Vec<u8>, VecDeque<usize>)> {
    let mut data = Vec::with_capacity(scan.len() + PADDING);
    let mut ends = VecDeque::new();
    loop {
        let at = memchr::memchr(0xFF, scan)?;
        let marker = *scan.get(at + 1)?;
        let is_stuffed = marker == 0;
        data.extend_from_slice(&scan[..at + usize::from(is_stuffed)]);
        if !is_stuffed {
            ends.push_back(data.len());
            if usize::from(marker) != 0xD0 + (ends.len() - 1) % 8 {
                break;
            }
        }
        scan = &scan[at + 2..];
    }
    data.resize(data.len() + PADDING, 0);
    Some((data, ends))
}

/// Bits that come next, from the highest, and how many of them count.
#[derive(Clone, Copy, Default)]
struct Bits {
    buffer: u64,
    n: u32,
    /// The byte after them.
    next: usize,
}

impl Bits {
    /// Bits that have been taken since the beginning of the data.
    fn n_read(&self) -> usize {
        8 * self.next - self.n as usize
    }

    /// Makes it 56 bits or more.
    #[inline(always)]
    fn fill(&mut self, data: &[u8]) {
        // Behind the data there are zeroes, and who reads too far goes on reading the last of them.
        let from = self.next.min(data.len().wrapping_sub(PADDING / 2));
        // SAFETY: eight bytes up to the end at most; data is never shorter than its padding.
        let word = unsafe { data.as_ptr().wrapping_add(from).cast::<[u8; PADDING / 2]>().read_unaligned() };
        self.buffer |= u64::from_be_bytes(word).wrapping_shr(self.n);
        self.next = self.next.wrapping_add((63_u32.wrapping_sub(self.n) / 8) as usize);
        self.n |= 56;
    }

    #[inline(always)]
    fn take(&mut self, n: u32) {
        self.buffer = self.buffer.wrapping_shl(n);
        self.n = self.n.wrapping_sub(n);
    }

    /// A code, whatever its length, and its value.
    #[inline(always)]
    fn one(&mut self, data: &[u8], table: &Table) -> Option<(Code, i32)> {
        let code = table.code(self.buffer)?;
        self.take(code.n_bits);
        let value = value_at(self.buffer, 63 - code.size);
        self.take(code.size);
        self.fill(data);
        Some((code, value))
    }

    /// By how much a block's first coefficient differs from the last one's.
    #[inline(always)]
    fn difference(&mut self, data: &[u8], table: &Table) -> Option<i32> {
        self.fill(data);
        let look = table.at(self.buffer);
        if look.n_skipped() > 0 {
            return Some(self.one(data, table)?.1);
        }
        let value = look.first_value(self.buffer);
        self.take(look.n_bits());
        Some(value)
    }

    /// All coefficients of a block but its first; or no more than what follows them.
    #[inline(always)]
    fn others<const ARE_KEPT: bool>(&mut self, data: &[u8], table: &Table, block: &mut Block) -> Option<()> {
        let mut put = |at: usize, value: i32| {
            if ARE_KEPT {
                // Masks that change nothing: at most 63 + 64, and within a block.
                block[usize::from(NATURAL_ORDER[at % NATURAL_ORDER.len()]) % BLOCK_LEN] = value as i16;
            }
        };
        // Where the last one was put.
        let (mut bits, mut at) = (*self, 0);
        loop {
            bits.fill(data);
            for _ in 0..LOOKS_PER_FILL {
                let look = table.at(bits.buffer);
                let first = look.n_skipped().wrapping_add(at).wrapping_add(1);
                // Behind the last coefficient of all, the second is another block's.
                if first < BLOCK_LEN - 1 {
                    at = first.wrapping_add(look.step());
                    put(at, look.second_value());
                    put(first, look.first_value(bits.buffer));
                    bits.take(look.n_bits());
                } else {
                    let (code, value) = bits.one(data, table)?;
                    at += 1 + code.n_skipped;
                    put(at, value);
                }
                if at >= BLOCK_LEN - 1 {
                    *self = bits;
                    return Some(());
                }
            }
        }
    }
}
