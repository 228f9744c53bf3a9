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

/// The number that the uppermost 63 - `shift` bits stand for, none to 15 of them (T.81, F.2.2.1, `EXTEND`). Those that begin with a 0 are the
/// negative ones, all bits inverted.
#[inline(always)]
pub(super) fn value_at(bits: u64, shift: u32) -> i32 {
    let is_negative = !(bits as i64 >> 63);
    let magnitude = (bits ^ is_negative as u64) >> 1;
    (magnitude.wrapping_shr(shift) as i32 ^ is_negative as i32).wrapping_sub(is_negative as i32)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Dc,
    Ac,
}

impl Kind {
    /// What a code of this length says. A block's end skips more than there are, to where nothing is changed.
    fn code(self, n_bits: u32, symbol: u8) -> Code {
        let (n_skipped, size) = match (self, symbol >> 4, symbol & 15) {
            (Self::Dc, _, size) => (0, size),
            (Self::Ac, 0..15, 0) => (BLOCK_LEN, 0),
            (Self::Ac, run, size) => (usize::from(run), size),
        };
        Code { n_bits, n_skipped, size: u32::from(size) }
    }
}

/// How many codes there are of each length, and what they stand for.
pub(super) type Codes<'a> = (&'a [u8; LONGEST_CODE], &'a [u8]);

/// A table of codes, made for looking them up.
pub(super) struct Table {
    kind: Kind,
    counts: [u8; LONGEST_CODE],
    looks: [Look; 1 << LOOK],
    /// Of the codes of each length, as 16 bits: where those that are longer begin, and what to add to one for its symbol's place.
    limits: [(u32, i32); LONGEST_CODE + 1],
    symbols: Vec<u8>,
}

/// A code: its bits, how many coefficients to skip, and the bits of the value behind it.
#[derive(Clone, Copy, Default)]
pub(super) struct Code {
    pub(super) n_bits: u32,
    pub(super) n_skipped: usize,
    pub(super) size: u32,
}

impl Code {
    fn is_end(self) -> bool {
        self.n_skipped >= BLOCK_LEN
    }

    /// With its value.
    fn n_bits_of_all(self) -> u32 {
        self.n_bits + self.size
    }
}

/// What the next bits begin with: a code and its value, which may reach beyond the look; behind them mostly another, or a block's end, and
/// then its value lies here.
#[derive(Clone, Copy)]
pub(super) struct Look(u64);

impl Look {
    /// No code is as short as this: skips all.
    const NONE: Self = Self((BLOCK_LEN as u64 - 1) << 18);

    fn new(first: Code, second: Option<(Code, i32)>) -> Self {
        // An end is the second's. What it writes is a zero, behind all coefficients; where there is no second, it is written over.
        let (n_skipped, step, value) = match second {
            None if first.is_end() => (0, BLOCK_LEN, 0),
            None => (first.n_skipped, 0, 0),
            Some((second, _)) if second.is_end() => (first.n_skipped, BLOCK_LEN, 0),
            Some((second, value)) => (first.n_skipped, 1 + second.n_skipped, value),
        };
        let n_bits = first.n_bits_of_all() + second.map_or(0, |(second, _)| second.n_bits_of_all());
        let shifts = u64::from(n_bits | first.n_bits << 6 | (63 - first.size) << 12);
        Self(shifts | (n_skipped as u64) << 18 | (step as u64) << 24 | (value as u64) << 32)
    }

    /// Of both with their values.
    #[inline(always)]
    pub(super) fn n_bits(self) -> u32 {
        self.0 as u32 & 63
    }

    /// Coefficients before the first; so many that none is left, if its code is longer than a look, or there is none.
    #[inline(always)]
    pub(super) fn n_skipped(self) -> usize {
        (self.0 >> 18 & 63) as usize
    }

    /// From the bits that were looked at.
    #[inline(always)]
    pub(super) fn first_value(self, buffer: u64) -> i32 {
        value_at(buffer.wrapping_shl((self.0 >> 6) as u32), (self.0 >> 12) as u32)
    }

    /// How far the second lies behind the first: 0 if there is none, and all that there are to a block's end.
    #[inline(always)]
    pub(super) fn step(self) -> usize {
        (self.0 >> 24 & 127) as usize
    }

    #[inline(always)]
    pub(super) fn second_value(self) -> i32 {
        (self.0 >> 32) as i32
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
        let looks = [Look::NONE; 1 << LOOK];
        let mut table = Self { kind, counts: *counts, looks, limits: Default::default(), symbols: symbols.to_vec() };
        let mut codes = [Code::default(); 1 << LOOK];
        let (mut code, mut n_symbols) = (0_u32, 0);
        for (length, &count) in (1_u32..).zip(counts) {
            // The first code of this length, and the first place that belongs to a longer one.
            let first = code;
            for &symbol in symbols.get(n_symbols..n_symbols + usize::from(count))? {
                if length <= LOOK {
                    let from = (code << (LOOK - length)) as usize;
                    codes.get_mut(from..from + (1 << (LOOK - length)))?.fill(kind.code(length, symbol));
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
        for (at, look) in table.looks.iter_mut().enumerate().filter(|&(at, _)| codes[at].n_bits > 0) {
            // The bits behind the first code and value, and how many they are.
            let (first, rest) = (codes[at], at << codes[at].n_bits_of_all() & ((1 << LOOK) - 1));
            let n_left = LOOK.saturating_sub(first.n_bits_of_all());
            let second = codes[rest];
            let is_there = kind == Kind::Ac
                && !first.is_end()
                && (1..=n_left).contains(&second.n_bits)
                && second.n_bits_of_all() <= n_left;
            let value = || value_at((rest as u64) << (64 - LOOK + second.n_bits), 63 - second.size);
            *look = Look::new(first, is_there.then(|| (second, value())));
        }
        Some(table)
    }

    /// The code that comes next, however long; `None` if there is none.
    #[cold]
    #[inline(never)]
    pub(super) fn code(&self, buffer: u64) -> Option<Code> {
        let code = (buffer >> (64 - LONGEST_CODE)) as u32;
        let (length, limit) = self.limits.iter().enumerate().find(|(_, limit)| code < limit.0)?;
        let symbol = self.symbols.get((limit.1 + (code >> (LONGEST_CODE - length)) as i32) as usize)?;
        Some(self.kind.code(length as u32, *symbol))
    }

    #[inline(always)]
    pub(super) fn at(&self, buffer: u64) -> Look {
        self.looks[(buffer >> (64 - LOOK)) as usize]
    }
}
