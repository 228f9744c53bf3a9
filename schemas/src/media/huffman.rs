//! The Huffman codes of a sequential JPEG → its coefficients: libjpeg's reader of them takes half of the time in which a picture
//! becomes planes, so here is one that takes less. Everything else, from the markers to the inverse transform, stays libjpeg's.
//!
//! In: the scan, and a decompressor that has read what stands before it. Out: the coefficients that libjpeg would have read, to the bit. Never:
//! a judgement. What is not plain, be it coded otherwise, damaged or cut, is left to libjpeg from the start, with what it says of it.
//!
//! Two things make the difference. Bytes are freed of their stuffing once, so that eight of them are taken at a time and not one;
//! and a look into a table gives a short code together with the value that follows it, which is most of them.
//! Source: ITU-T T.81, F.2.2 (decoding), B.2.4.2 (tables), E.2.4 (restarts).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::rc::Rc;

use mozjpeg_sys::{jpeg_decompress_struct, jpeg_has_multiple_scans};

use super::MediaError;
use super::jpeg::broken;
use super::libjpeg;

/// Coefficients of a block.
const BLOCK_LEN: usize = 64;
/// Blocks of a unit of coding that libjpeg allows.
const MAX_BLOCKS: usize = 10;
const N_COMPONENTS: usize = 4;
const N_TABLES: usize = 4;
/// Tables that a thread keeps.
const N_KEPT: usize = 8;
/// Bits of a look into a table. More find more values at once and leave less of the first cache to the rest.
const LOOK: u32 = 10;
/// Zeroes behind the data: whoever reads one of the first half has read too far, and may read on from there.
const PADDING: usize = 2 * size_of::<u64>();
const LONGEST_CODE: usize = 16;
/// A code and its value take at most 31 bits, and one that was found at once takes [`LOOK`]: this many fit into a filled buffer.
const SYMBOLS_PER_FILL: usize = 3;

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

type Block = [i16; BLOCK_LEN];

/// Decodes with our reader; once more with libjpeg's, if what ours came to is not for it to judge. `decode` gives `None` if
/// [`Attached::is_clean`] says so, and unwinds as under [`libjpeg::guarded`].
///
/// # Errors
/// Those of `decode`, and what libjpeg refuses.
pub(super) fn with_either<T>(mut decode: impl FnMut(ReadBy) -> Result<Option<T>, MediaError>) -> Result<T, MediaError> {
    let mut decode = |by| libjpeg::guarded(|| decode(by)).unwrap_or_else(|refused| Err(broken(refused)));
    if let Some(decoded) = decode(ReadBy::UsIfWeCan)? {
        return Ok(decoded);
    }
    let lost = || MediaError::Corrupt { detail: "libjpeg's own reader was not asked".to_owned() };
    decode(ReadBy::Libjpeg)?.ok_or_else(lost)
}

/// Who reads the codes of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadBy {
    UsIfWeCan,
    Libjpeg,
}

impl ReadBy {
    /// Puts the reader into its place; what it gives is to be kept as long as rows are read.
    ///
    /// # Safety
    /// `info` has just started to decompress `bytes`, and has not given a row yet; it gives none after what this gives is dropped.
    pub(super) unsafe fn attach(self, info: &mut jpeg_decompress_struct, bytes: &[u8]) -> Attached {
        // SAFETY: as above.
        Attached(if self == Self::UsIfWeCan { unsafe { Ours::attach(info, bytes) } } else { None })
    }
}

/// What reads the codes of `info`.
pub(super) struct Attached(Option<Ours>);

impl Attached {
    /// Whether all that was read so far is what libjpeg would have read. If not, rows are wrong from somewhere on.
    pub(super) fn is_clean(&self) -> bool {
        self.0.as_ref().is_none_or(Ours::is_clean)
    }
}

/// Our reader in the place of libjpeg's.
struct Ours(NonNull<Reader>);

impl Ours {
    /// `None` if the scan is not one for ours. What `info` then points to is freed before it is: destroying it does not look there.
    ///
    /// # Safety
    /// As [`ReadBy::attach`].
    unsafe fn attach(info: &mut jpeg_decompress_struct, bytes: &[u8]) -> Option<Self> {
        // SAFETY: as above, the header has been read, up to the bytes that are left.
        let scan = unsafe {
            if jpeg_has_multiple_scans(info) != 0 || info.comp_info.is_null() || info.src.is_null() {
                return None;
            }
            Scan::read(info, bytes)?
        };
        let reader = Box::new(Reader { start_pass: None, decode_mcu: Some(decode_mcu), insufficient_data: 0, scan });
        let reader = NonNull::from(Box::leak(reader));
        // SAFETY: the place is that of a pointer to what `Reader` begins with; what it pointed to is freed with `info`.
        unsafe { place_of_reader(info).write(reader.as_ptr()) };
        Some(Self(reader))
    }

    fn is_clean(&self) -> bool {
        // SAFETY: made in `attach` and freed in `drop`; libjpeg, which changes it, is not running.
        unsafe { self.0.as_ref() }.scan.is_clean
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // SAFETY: leaked in `attach`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Where `info` says who reads the codes: a private field, the fifth from the end.
fn place_of_reader(info: *mut jpeg_decompress_struct) -> *mut *mut Reader {
    const FROM_END: usize = 5 * size_of::<*mut Reader>();
    // A struct of another length is one that somebody has to look at: `jpeglib.h`, from `unread_marker` on.
    #[cfg(target_pointer_width = "64")]
    const _: () = assert!(size_of::<jpeg_decompress_struct>() == 632);
    info.wrapping_byte_add(size_of::<jpeg_decompress_struct>() - FROM_END).cast()
}

/// What libjpeg calls, and what is ours behind it.
#[repr(C)]
struct Reader {
    // `struct jpeg_entropy_decoder` of its `jpegint.h`. The first was called before ours came.
    start_pass: Option<unsafe extern "C-unwind" fn(*mut jpeg_decompress_struct)>,
    decode_mcu: Option<unsafe extern "C-unwind" fn(*mut jpeg_decompress_struct, *const *mut Block) -> c_int>,
    insufficient_data: c_int,
    scan: Scan,
}

/// Reads the blocks of one unit, which are zero; libjpeg's to call.
unsafe extern "C-unwind" fn decode_mcu(info: *mut jpeg_decompress_struct, blocks: *const *mut Block) -> c_int {
    // SAFETY: libjpeg calls the reader that stands in `info`, which is ours, with as many blocks as a unit has, if rows are read and not
    // passed over. `Scan::read` has counted them as it does. Nobody else looks at them or at the reader meanwhile.
    unsafe {
        let reader = &mut **place_of_reader(info);
        let n_blocks = reader.scan.blocks.len();
        let is_clean = reader.scan.is_clean
            && !blocks.is_null()
            && reader.scan.next_unit(std::slice::from_raw_parts(blocks, n_blocks).iter().map(|&block| &mut *block));
        reader.scan.is_clean = is_clean;
        reader.insufficient_data = c_int::from(!is_clean);
    }
    1
}

/// How the blocks of a unit are coded, and how far they have been read.
struct Scan {
    blocks: Vec<Coded>,
    /// Of each component, the first coefficient of its last block.
    last: [i32; N_COMPONENTS],
    /// Without stuffing and markers, and behind it zeroes.
    data: Vec<u8>,
    /// Where the parts between restarts end; the first is the one that is read.
    ends: VecDeque<usize>,
    bits: Bits,
    /// Units between restarts, if there are any, and units until the next.
    restarts: Option<(u32, u32)>,
    is_clean: bool,
}

/// How a block is coded.
struct Coded {
    component: usize,
    dc: Rc<Table>,
    ac: Rc<Table>,
}

impl Scan {
    /// # Safety
    /// The header of `info` has been read from `bytes`.
    unsafe fn read(info: &jpeg_decompress_struct, bytes: &[u8]) -> Option<Self> {
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
        Some(Self { blocks, last, data, ends, bits, restarts, is_clean: true })
    }

    /// Reads a unit into its blocks; `false` if that is not for us.
    fn next_unit<'a>(&mut self, blocks: impl Iterator<Item = &'a mut Block>) -> bool {
        if let Some((interval, to_go)) = &mut self.restarts {
            if *to_go == 0 {
                *to_go = *interval;
                let end = self.ends.pop_front().unwrap_or_default();
                // What is left over are bits that fill a byte.
                if end != self.bits.n_read().div_ceil(8) {
                    return false;
                }
                self.last = [0; N_COMPONENTS];
                self.bits = Bits { next: end, ..Bits::default() };
            }
            *to_go -= 1;
        }
        let Some(&end) = self.ends.front() else { return false };
        let mut bits = self.bits;
        for (coded, block) in self.blocks.iter().zip(blocks) {
            let Some(difference) = bits.difference(&self.data, &coded.dc) else { return false };
            let last = &mut self.last[coded.component];
            *last = last.wrapping_add(difference);
            block[0] = *last as i16;
            if bits.others(&self.data, &coded.ac, block).is_none() {
                return false;
            }
        }
        self.bits = bits;
        bits.n_read() <= 8 * end
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
        let from = self.next.min(data.len() - PADDING / 2);
        // SAFETY: eight bytes up to the end at most; data is never shorter than its padding.
        let word = unsafe { data.as_ptr().add(from).cast::<[u8; PADDING / 2]>().read_unaligned() };
        self.buffer |= u64::from_be_bytes(word).wrapping_shr(self.n);
        self.next += (63_u32.wrapping_sub(self.n) / 8) as usize;
        self.n |= 56;
    }

    #[inline(always)]
    fn take(&mut self, n: u32) {
        self.buffer = self.buffer.wrapping_shl(n);
        self.n = self.n.wrapping_sub(n);
    }

    /// A value of `size` bits, up to 15: those that begin with a 0 are the negative ones.
    #[inline(always)]
    fn value(&mut self, size: u32) -> i32 {
        let value = (self.buffer >> 1 >> (63 - size)) as u32;
        self.take(size);
        extended(value, size)
    }

    /// By how much a block's first coefficient differs from the last one's.
    #[inline(always)]
    fn difference(&mut self, data: &[u8], table: &Table) -> Option<i32> {
        self.fill(data);
        let found = table.at(self.buffer);
        if found.is_whole() {
            self.take(found.n_bits());
            return Some(found.value());
        }
        let found = if found.n_bits() > 0 { found } else { table.long(self.buffer)? };
        self.take(found.n_bits());
        Some(self.value(found.size()))
    }

    /// All coefficients of a block but its first.
    #[inline(always)]
    fn others(&mut self, data: &[u8], table: &Table, block: &mut Block) -> Option<()> {
        let (mut bits, mut at) = (*self, 1);
        loop {
            bits.fill(data);
            for _ in 0..SYMBOLS_PER_FILL {
                let mut found = table.at(bits.buffer);
                let value;
                if found.is_whole() {
                    bits.take(found.n_bits());
                    value = found.value();
                } else {
                    if found.n_bits() == 0 {
                        found = table.long(bits.buffer)?;
                    }
                    bits.take(found.n_bits());
                    value = bits.value(found.size());
                    bits.fill(data);
                }
                at += found.n_skipped();
                // Masks that change nothing: at most 63 + 64, and within a block.
                block[usize::from(NATURAL_ORDER[at % NATURAL_ORDER.len()]) % BLOCK_LEN] = value as i16;
                at += 1;
                if at >= BLOCK_LEN {
                    *self = bits;
                    return Some(());
                }
            }
        }
    }
}

/// The number that `size` bits stand for (T.81, F.2.2.1, `EXTEND`).
fn extended(bits: u32, size: u32) -> i32 {
    let is_negative = size > 0 && bits >> (size - 1) == 0;
    bits as i32 - if is_negative { (1 << size) - 1 } else { 0 }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
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
type Codes<'a> = (&'a [u8; LONGEST_CODE], &'a [u8]);

/// A table of codes, made for looking them up.
struct Table {
    kind: Kind,
    counts: [u8; LONGEST_CODE],

    looks: [Found; 1 << LOOK],
    /// Of the codes of each length, as 16 bits: where those that are longer begin, and what to add to one for its symbol's place.
    limits: [(u32, i32); LONGEST_CODE + 1],
    symbols: Vec<u8>,
}

/// What a look finds: the bits to drop, how many coefficients to skip, the value. Without a value the symbol in its place; nothing if the code is
/// longer than a look.
#[derive(Clone, Copy, Default)]
struct Found(u32);

impl Found {
    const WHOLE: u32 = 1 << 15;

    fn whole(n_bits: u32, n_skipped: usize, value: i32) -> Self {
        Self(n_bits | (n_skipped as u32) << 8 | Self::WHOLE | (value as u32) << 16)
    }

    fn code(n_bits: u32, n_skipped: usize, size: u32) -> Self {
        Self(n_bits | (n_skipped as u32) << 8 | size << 16)
    }

    #[inline(always)]
    fn is_whole(self) -> bool {
        self.0 & Self::WHOLE != 0
    }

    #[inline(always)]
    fn n_bits(self) -> u32 {
        self.0 & 0xFF
    }

    #[inline(always)]
    fn n_skipped(self) -> usize {
        (self.0 >> 8 & 0x7F) as usize
    }

    #[inline(always)]
    fn size(self) -> u32 {
        self.0 >> 16
    }

    #[inline(always)]
    fn value(self) -> i32 {
        self.0 as i32 >> 16
    }
}

thread_local! {
    /// Those of the last pictures: most come from encoders that all use the tables of the standard's annex.
    static MADE: RefCell<VecDeque<Rc<Table>>> = RefCell::default();
}

impl Table {
    /// One that was made before, or a new one.
    fn of(kind: Kind, codes: Codes<'_>) -> Option<Rc<Self>> {
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
    fn long(&self, buffer: u64) -> Option<Found> {
        let code = (buffer >> (64 - LONGEST_CODE)) as u32;
        let (length, limit) = self.limits.iter().enumerate().find(|(_, limit)| code < limit.0)?;
        let symbol = self.symbols.get((limit.1 + (code >> (LONGEST_CODE - length)) as i32) as usize)?;
        let (n_skipped, size) = self.kind.run_and_size(*symbol);
        Some(Found::code(length as u32, n_skipped, size))
    }

    #[inline(always)]
    fn at(&self, buffer: u64) -> Found {
        self.looks[(buffer >> (64 - LOOK)) as usize]
    }
}

/// What stands before a scan and says how it is coded.
#[derive(Default)]
struct Headers<'a> {
    /// Of the first coefficients of blocks, and of the others.
    codes: [[Option<Codes<'a>>; N_TABLES]; 2],
    restart_interval: u32,
}

impl<'a> Headers<'a> {
    /// `bytes` are those up to the scan, one segment behind the other. `None` if they are not those of a sequential scan of Huffman codes.
    fn read(bytes: &'a [u8]) -> Option<Self> {
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

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    use mozjpeg::{ColorSpace, Compress};
    use mozjpeg_sys::jpeg_start_decompress;
    use proptest::prelude::*;

    use super::super::jpeg::decode;
    use super::super::libjpeg::Decompressor;
    use super::*;
    use crate::media::MediaLimits;

    /// What a picture is like and how it is coded.
    #[derive(Debug, Clone)]
    struct Coding {
        width: u16,
        height: u16,
        /// Levels by which pixels differ from their neighbours at most.
        noise: u8,
        seed: u32,
        quality: u8,
        /// Values of brightness for one of colour, across and down.
        sampling: (u8, u8),
        restart_interval: u16,
        /// Then without restarts, and never progressive.
        has_own_tables: bool,
        is_progressive: bool,
    }

    fn coding() -> impl Strategy<Value = Coding> {
        let samplings = [(1, 1), (2, 1), (1, 2), (2, 2)];
        let size = (1_u16..90, 1_u16..90);
        let picture = (size, any::<u8>(), any::<u32>());
        let how = (1_u8..=100, proptest::sample::select(samplings.to_vec()), 0_u16..7, any::<bool>());
        (picture, how).prop_map(
            |(((width, height), noise, seed), (quality, sampling, restart_interval, has_own_tables))| {
                let is_progressive = false;
                Coding {
                    width,
                    height,
                    noise,
                    seed,
                    quality,
                    sampling,
                    restart_interval,
                    has_own_tables,
                    is_progressive,
                }
            },
        )
    }

    impl Coding {
        fn jpeg(&self) -> Vec<u8> {
            let mut state = u64::from(self.seed) | 1;
            let mut noise = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) % (u64::from(self.noise) + 1)) as u8
            };
            let (width, height) = (usize::from(self.width), usize::from(self.height));
            let rgb: Vec<u8> = (0..width * height)
                .flat_map(|i| [i % width, i / width, i].map(|level| (level as u8).wrapping_add(noise())))
                .collect();
            if self.has_own_tables {
                let (h, v) = self.sampling;
                let mut encoder = Compress::new(ColorSpace::JCS_RGB);
                encoder.set_fastest_defaults();
                encoder.set_optimize_coding(true);
                encoder.set_size(width, height);
                encoder.set_quality(f32::from(self.quality));
                encoder.set_chroma_sampling_pixel_sizes((h, v), (h, v));
                let mut encoder = encoder.start_compress(Vec::new()).unwrap();
                encoder.write_scanlines(&rgb).unwrap();
                return encoder.finish().unwrap();
            }
            let mut bytes = Vec::new();
            let mut encoder = Encoder::new(&mut bytes, self.quality);
            encoder.set_sampling_factor(SamplingFactor::from_factors(self.sampling.0, self.sampling.1).unwrap());
            encoder.set_progressive(self.is_progressive);
            if self.restart_interval > 0 {
                encoder.set_restart_interval(self.restart_interval);
            }
            encoder.encode(&rgb, self.width, self.height, ColorType::Rgb).unwrap();
            bytes
        }
    }

    fn by_either(bytes: &[u8]) -> Result<RgbImage, MediaError> {
        with_either(|by| decode(bytes, &MediaLimits::default(), by))
    }

    fn by_libjpeg(bytes: &[u8]) -> Result<RgbImage, MediaError> {
        with_either(|_| decode(bytes, &MediaLimits::default(), ReadBy::Libjpeg))
    }

    /// Whether the scan is one for our reader.
    fn is_ours(bytes: &[u8]) -> bool {
        let mut decompressor = Decompressor::open(bytes);
        // SAFETY: no row is asked for.
        unsafe {
            let info = decompressor.info();
            jpeg_start_decompress(info);
            ReadBy::UsIfWeCan.attach(info, bytes).0.is_some()
        }
    }

    proptest! {
        #[test]
        fn coefficients_are_those_that_libjpeg_reads(coding in coding()) {
            let bytes = coding.jpeg();
            prop_assert!(is_ours(&bytes));
            let decoded = libjpeg::guarded(|| decode(&bytes, &MediaLimits::default(), ReadBy::UsIfWeCan)).unwrap().unwrap();
            prop_assert_eq!(decoded, Some(by_libjpeg(&bytes).unwrap()), "not clean, or not the same");
        }

        #[test]
        fn of_damaged_scans_libjpeg_is_the_judge(
            coding in coding(),
            at in any::<proptest::sample::Index>(),
            flipped in 0_u8..,
            n_cut in 0_usize..20,
        ) {
            let mut bytes = coding.jpeg();
            let scan = bytes.windows(2).position(|two| two == [0xFF, 0xDA]).unwrap();
            let damaged = scan + at.index(bytes.len() - scan);
            bytes[damaged] ^= flipped;
            let n_left = bytes.len() - n_cut.min(bytes.len() - scan);
            prop_assert_eq!(by_either(&bytes[..n_left]), by_libjpeg(&bytes[..n_left]));
        }
    }

    #[test]
    fn units_have_as_many_blocks_as_libjpeg_says_whatever_the_components() {
        let values: Vec<u8> = (0..50_u32 * 40 * 4).map(|i| (i * i / 7) as u8).collect();
        for (kind, n_components) in [(ColorType::Luma, 1), (ColorType::Cmyk, 4)] {
            let mut bytes = Vec::new();
            Encoder::new(&mut bytes, 90).encode(&values[..50 * 40 * n_components], 50, 40, kind).unwrap();
            assert!(is_ours(&bytes));
            assert_eq!(by_either(&bytes), by_libjpeg(&bytes));
            // Another sampling of the first component. A component alone is not interleaved, so its picture stays what it was.
            let frame = bytes.windows(2).position(|two| two == [0xFF, 0xC0]).unwrap();
            for (h, v) in (1..=4).flat_map(|h| (1..=4).map(move |v| (h, v))) {
                bytes[frame + 11] = h << 4 | v;
                assert_eq!(by_either(&bytes), by_libjpeg(&bytes), "{h} x {v} of {n_components}");
                assert!(n_components > 1 || is_ours(&bytes) && by_either(&bytes).is_ok());
            }
        }
    }

    #[test]
    fn what_is_not_one_sequential_scan_is_left_to_libjpeg() {
        let coding = Coding {
            width: 50,
            height: 40,
            noise: 30,
            seed: 1,
            quality: 90,
            sampling: (2, 2),
            restart_interval: 2,
            has_own_tables: false,
            is_progressive: true,
        };
        let progressive = coding.jpeg();
        assert!(!is_ours(&progressive));
        assert_eq!(by_either(&progressive), by_libjpeg(&progressive));
        // A marker that is missing, and one too many.
        let bytes = Coding { is_progressive: false, ..coding }.jpeg();
        let marker = bytes.windows(2).position(|two| two == [0xFF, 0xD1]).unwrap();
        for damaged in [
            [&bytes[..marker], &bytes[marker + 2..]].concat(),
            [&bytes[..marker], &[0xFF, 0xD1], &bytes[marker..]].concat(),
            [&bytes[..marker], &[0x00], &bytes[marker..]].concat(),
        ] {
            assert_eq!(by_either(&damaged), by_libjpeg(&damaged));
            assert!(by_either(&damaged).is_err());
        }
    }
}
