//! Tables of Huffman codes, made for looking codes up together with the values behind them.
//!
//! In: a table as a header defines it. Out: what the next bits mean. Never: the same table made twice for pictures that follow each other.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::scan::BLOCK_LEN;

/// Tables that a thread keeps.
const N_KEPT: usize = 8;
/// Bits of a look into a table. More find more values at once and leave less of the first cache to the rest.
const LOOK: u32 = 10;
const LONGEST_CODE: usize = 16;

/// The number that `size` bits stand for (T.81, F.2.2.1, `EXTEND`).
pub(super) fn extended(bits: u32, size: u32) -> i32 {
    let is_negative = size > 0 && bits >> (size - 1) == 0;
    bits as i32 - if is_negative { (1 << size) - 1 } else { 0 }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Dc,
    Ac,
}

impl Kind {
    /// Zeroes before a coefficient, and the bits of its value. A block's end skips more than there are, to where nothing is changed.
    fn run_and_size(self, symbol: u8) -> (usize, u32) {
        match (self, symbol >> 4, symbol & 15) {
            (Self::Dc, _, size) => (0, u32::from(size)),
            (Self::Ac, 0..15, 0) => (BLOCK_LEN, 0),
            (Self::Ac, run, size) => (usize::from(run), u32::from(size)),
        }
    }
}

/// How many codes there are of each length, and what they stand for.
pub(super) type Codes<'a> = (&'a [u8; LONGEST_CODE], &'a [u8]);

/// A table of codes, made for looking them up.
pub(super) struct Table {
    kind: Kind,
    counts: [u8; LONGEST_CODE],
    looks: [Found; 1 << LOOK],
    /// Of the codes of each length, as 16 bits: where those that are longer begin, and what to add to one for its symbol's place.
    limits: [(u32, i32); LONGEST_CODE + 1],
    symbols: Vec<u8>,
}

/// What a look finds: the bits to drop, how many coefficients to skip, the value. Where the value does not fit, how many bits
/// it has; nothing if the code is longer than a look, or there is none.
#[derive(Clone, Copy, Default)]
pub(super) struct Found(u32);

impl Found {
    const WHOLE: u32 = 1 << 15;

    fn whole(n_bits: u32, n_skipped: usize, value: i32) -> Self {
        Self(n_bits | (n_skipped as u32) << 8 | Self::WHOLE | (value as u32) << 16)
    }

    fn code(n_bits: u32, n_skipped: usize, size: u32) -> Self {
        Self(n_bits | (n_skipped as u32) << 8 | size << 16)
    }

    #[inline(always)]
    pub(super) fn is_whole(self) -> bool {
        self.0 & Self::WHOLE != 0
    }

    #[inline(always)]
    pub(super) fn n_bits(self) -> u32 {
        self.0 & 0xFF
    }

    #[inline(always)]
    pub(super) fn n_skipped(self) -> usize {
        (self.0 >> 8 & 0x7F) as usize
    }

    #[inline(always)]
    pub(super) fn size(self) -> u32 {
        self.0 >> 16
    }

    #[inline(always)]
    pub(super) fn value(self) -> i32 {
        self.0 as i32 >> 16
    }
}

thread_local! {
    /// Those of the last pictures: most come from encoders that all use the tables of the standard's annex.
    static MADE: RefCell<VecDeque<Rc<Table>>> = RefCell::default();
}

impl Table {
    /// One that was made before, or a new one.
    pub(super) fn of(kind: Kind, codes: Codes<'_>) -> Option<Rc<Self>> {
        MADE.with_borrow_mut(|made| {
            if let Some(same) = made.iter().find(|made| made.kind == kind && (&made.counts, &made.symbols[..]) == codes)
            {
                return Some(Rc::clone(same));
            }
            let table = Rc::new(Self::new(kind, codes)?);
            if made.len() == N_KEPT {
                made.pop_front();
            }
            made.push_back(Rc::clone(&table));
            Some(table)
        })
    }

    /// `None` if there are more codes than lengths allow, or fewer symbols than codes.
    fn new(kind: Kind, (counts, symbols): Codes<'_>) -> Option<Self> {
        let looks = [Found::default(); 1 << LOOK];
        let mut table = Self { kind, counts: *counts, looks, limits: Default::default(), symbols: symbols.to_vec() };
        let (mut code, mut n_symbols) = (0_u32, 0);
        for (length, &count) in (1_u32..).zip(counts) {
            // The first code of this length, and the first place that belongs to a longer one.
            let first = code;
            for &symbol in symbols.get(n_symbols..n_symbols + usize::from(count))? {
                if length <= LOOK {
                    let from = (code << (LOOK - length)) as usize;
                    let looks = table.looks.get_mut(from..from + (1 << (LOOK - length)))?;
                    Self::set(looks, kind, length, symbol);
                }
                code += 1;
            }
            if code > 1 << length {
                return None;
            }
            let limit = code << (LONGEST_CODE as u32 - length);
            table.limits[length as usize] = (limit, n_symbols as i32 - first as i32);
            n_symbols += usize::from(count);
            code <<= 1;
        }
        Some(table)
    }

    /// All looks that begin with a code of this length.
    fn set(looks: &mut [Found], kind: Kind, length: u32, symbol: u8) {
        let (n_skipped, size) = kind.run_and_size(symbol);
        if length + size > LOOK {
            return looks.fill(Found::code(length, n_skipped, size));
        }
        let n_each = looks.len() >> size;
        for (value, looks) in looks.chunks_exact_mut(n_each).enumerate() {
            looks.fill(Found::whole(length + size, n_skipped, extended(value as u32, size)));
        }
    }

    /// A code that is longer than a look; `None` if it stands for nothing.
    #[cold]
    #[inline(never)]
    pub(super) fn long(&self, buffer: u64) -> Option<Found> {
        let code = (buffer >> (64 - LONGEST_CODE)) as u32;
        let (length, limit) = self.limits.iter().enumerate().find(|(_, limit)| code < limit.0)?;
        let symbol = self.symbols.get((limit.1 + (code >> (LONGEST_CODE - length)) as i32) as usize)?;
        let (n_skipped, size) = self.kind.run_and_size(*symbol);
        Some(Found::code(length as u32, n_skipped, size))
    }

    #[inline(always)]
    pub(super) fn at(&self, buffer: u64) -> Found {
        self.looks[(buffer >> (64 - LOOK)) as usize]
    }
}
