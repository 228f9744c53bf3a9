//! The smallest EXIF block there is: the orientation and nothing else.
//!
//! In: an orientation. Out: bytes of a TIFF header with one tag. Never: a block for a picture that is upright.

/// TIFF header, little-endian, one directory with tag 0x0112; `None` for the upright orientation, 1.
pub(super) fn orientation_only(orientation: u8) -> Option<Vec<u8>> {
    if !(2..=8).contains(&orientation) {
        return None;
    }
    let mut block = b"II*\0\x08\0\0\0".to_vec();
    // One entry: the tag, type 3 (16 bits), one value, the value; then no further directory.
    block.extend([1, 0, 0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0, 0, 0]);
    Some(block)
}
