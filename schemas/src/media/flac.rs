//! A FLAC file whose header counts its last, shorter block → one that symphonia reads.
//!
//! In: bytes that begin with `fLaC`. Out: the same bytes with one number mended, or nothing to mend. Never: decoding.
//! Blocks of a fixed-size stream are all alike but the last, and the header's smallest size is to leave that one out
//! (RFC 9639, 8.2). Some encoders, flacenc 0.5 among them, count it; symphonia 0.6 then takes the stream for one of
//! variable sizes and finds no frame.

/// The mended file; `None` if it is right as it stands.
pub(super) fn tidy(bytes: &[u8]) -> Option<Vec<u8>> {
    // Marker, block header, then smallest and largest block size of STREAMINFO.
    let (least, greatest) = (bytes.get(8..10)?, bytes.get(10..12)?);
    if bytes.get(4)? & 0x7F != 0 || least == greatest {
        return None;
    }
    let mut at = 4;
    loop {
        let &[kind, l2, l1, l0] = bytes.get(at..at + 4)? else { return None };
        at += 4 + ((usize::from(l2) << 16) | (usize::from(l1) << 8) | usize::from(l0));
        if kind & 0x80 != 0 {
            break;
        }
    }
    // A frame begins with 14 ones, a zero, and a zero for fixed sizes.
    if bytes.get(at..at + 2)? != [0xFF, 0xF8] {
        return None;
    }
    let mut mended = bytes.to_vec();
    mended.copy_within(10..12, 8);
    Some(mended)
}
