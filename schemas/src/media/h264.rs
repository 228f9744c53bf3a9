//! H.264 byte streams: parameter sets, and length-prefixed units → start codes.
//!
//! In: an `avcC` record and access units as containers hold them. Out: what openh264 takes, and what the stream is.
//! Never: decoding. Source: ITU-T H.264 7.3 and annex B; ISO/IEC 14496-15 5.3.3.

use super::MediaError;

/// What decides whether openh264 can decode the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StreamParams {
    /// Pixels, coded.
    pub width: u64,
    pub height: u64,
    /// 1 is 4:2:0.
    pub chroma_format: u32,
    pub bit_depth: u32,
    pub interlaced: bool,
    /// Luma 0 to 255 instead of 16 to 235.
    pub full_range: bool,
}

/// The decoder configuration of a track.
#[derive(Debug, Clone, Default)]
pub(super) struct Config {
    /// Bytes of a unit's length prefix, 1 to 4.
    pub length_size: usize,
    /// Parameter sets with start codes.
    pub header: Vec<u8>,
    pub params: Option<StreamParams>,
}

const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// Reads an `avcC` record.
pub(super) fn config(avcc: &[u8]) -> Result<Config, MediaError> {
    let short = || MediaError::Corrupt { detail: "the H.264 configuration record is too short".to_owned() };
    let &[_, _, _, _, length, n_sps, ref rest @ ..] = avcc else { return Err(short()) };
    let mut config = Config { length_size: usize::from(length & 3) + 1, ..Config::default() };
    let mut rest = rest;
    let mut sets = |n: u8, rest: &mut &[u8]| -> Result<(), MediaError> {
        for _ in 0..n {
            let (len, after) = rest.split_first_chunk::<2>().ok_or_else(short)?;
            let (set, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*len))).ok_or_else(short)?;
            *rest = after;
            if set.first().is_some_and(|b| b & 0x1F == 7) && config.params.is_none() {
                config.params = stream_params(set);
            }
            config.header.extend(START_CODE);
            config.header.extend(set);
        }
        Ok(())
    };
    sets(n_sps & 0x1F, &mut rest)?;
    let (&n_pps, mut rest) = rest.split_first().ok_or_else(short)?;
    sets(n_pps, &mut rest)?;
    Ok(config)
}

/// The units of one sample, without their length prefixes.
///
/// # Errors
/// A length that goes past the sample's end.
pub(super) fn units(sample: &[u8], length_size: usize) -> Result<Vec<&[u8]>, MediaError> {
    let mut units = Vec::new();
    let mut rest = sample;
    while rest.len() > length_size {
        let (prefix, after) = rest.split_at(length_size);
        let len = prefix.iter().fold(0_usize, |n, &b| (n << 8) | usize::from(b));
        let (unit, after) = after.split_at_checked(len).ok_or_else(|| MediaError::Corrupt {
            detail: format!("an H.264 unit of {len} bytes in a sample of {}", sample.len()),
        })?;
        if !unit.is_empty() {
            units.push(unit);
        }
        rest = after;
    }
    Ok(units)
}

/// Appends a unit behind a start code.
pub(super) fn push_unit(out: &mut Vec<u8>, unit: &[u8]) {
    out.extend(START_CODE);
    out.extend(unit);
}

/// A unit's type, 5 bits: 5 is a slice that decodes without another frame, 7 a parameter set of the sequence.
pub(super) fn unit_type(unit: &[u8]) -> u8 {
    unit.first().map_or(0, |b| b & 0x1F)
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Option<u32> {
        let byte = *self.bytes.get(self.at / 8)?;
        let bit = (byte >> (7 - self.at % 8)) & 1;
        self.at += 1;
        Some(u32::from(bit))
    }

    fn bits(&mut self, n: u32) -> Option<u32> {
        (0..n).try_fold(0, |value, _| Some((value << 1) | self.bit()?))
    }

    /// Exp-Golomb.
    fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.bit()? == 0 {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        Some((1 << zeros) - 1 + self.bits(zeros)?)
    }

    fn se(&mut self) -> Option<i64> {
        let code = i64::from(self.ue()?);
        Some(if code % 2 == 0 { -code / 2 } else { (code + 1) / 2 })
    }
}

/// Reads a sequence parameter set, the unit's first byte included; `None` if it ends early.
pub(super) fn stream_params(sps: &[u8]) -> Option<StreamParams> {
    // Emulation prevention: in `00 00 03` the 3 is not part of the payload.
    let mut payload = Vec::with_capacity(sps.len());
    for &byte in sps {
        if byte == 3 && payload.ends_with(&[0, 0]) {
            continue;
        }
        payload.push(byte);
    }
    let mut bits = Bits { bytes: payload.get(1..)?, at: 0 };
    let profile = bits.bits(8)?;
    bits.bits(16)?;
    bits.ue()?;
    let (mut chroma_format, mut bit_depth) = (1, 8);
    if matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
        chroma_format = bits.ue()?;
        if chroma_format == 3 {
            bits.bit()?;
        }
        bit_depth = 8 + bits.ue()?.max(bits.ue()?);
        bits.bit()?;
        if bits.bit()? == 1 {
            for list in 0..if chroma_format == 3 { 12 } else { 8 } {
                if bits.bit()? == 1 {
                    scaling_list(&mut bits, if list < 6 { 16 } else { 64 })?;
                }
            }
        }
    }
    bits.ue()?;
    match bits.ue()? {
        0 => {
            bits.ue()?;
        }
        1 => {
            bits.bit()?;
            bits.se()?;
            bits.se()?;
            for _ in 0..bits.ue()?.min(255) {
                bits.se()?;
            }
        }
        _ => {}
    }
    bits.ue()?;
    bits.bit()?;
    let (width, height) = (bits.ue()?, bits.ue()?);
    let frames_only = bits.bit()? == 1;
    let fields = if frames_only { 1 } else { 2 };
    let (width, height) = ((u64::from(width) + 1) * 16, (u64::from(height) + 1) * 16 * fields);
    // What follows only says how values map to light; a stream that ends here is limited range.
    let full_range = full_range(&mut bits, frames_only).unwrap_or(false);
    Some(StreamParams { width, height, chroma_format, bit_depth, interlaced: !frames_only, full_range })
}

fn scaling_list(bits: &mut Bits<'_>, n: usize) -> Option<()> {
    let (mut last, mut next) = (8_i64, 8_i64);
    for _ in 0..n {
        if next != 0 {
            next = (last + bits.se()? + 256).rem_euclid(256);
        }
        last = if next == 0 { last } else { next };
    }
    Some(())
}

fn full_range(bits: &mut Bits<'_>, frames_only: bool) -> Option<bool> {
    if !frames_only {
        bits.bit()?;
    }
    bits.bit()?;
    if bits.bit()? == 1 {
        for _ in 0..4 {
            bits.ue()?;
        }
    }
    if bits.bit()? == 0 {
        return Some(false);
    }
    if bits.bit()? == 1 && bits.bits(8)? == 255 {
        bits.bits(32)?;
    }
    if bits.bit()? == 1 {
        bits.bit()?;
    }
    if bits.bit()? == 0 {
        return Some(false);
    }
    bits.bits(3)?;
    Some(bits.bit()? == 1)
}
