//! Tars that the mutations of a fuzzer would not come to by themselves: their headers have a checksum.
//!
//! In: bytes. Out: the same tar with right checksums, or a tar of the members that the bytes spell. Never: a tar that is
//! right otherwise.

const BLOCK: usize = 512;
/// Members that a built tar may have.
const MAX_MEMBERS: usize = 2000;
/// Types of members: file, links, folder, device, GNU long name and link, PAX, sparse, none known.
const TYPES: &[u8; 16] = b"0000\0LLKxxg1257S";

/// `tar` with the checksum of every block that says it is a header.
pub fn mended(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    for block in tar.as_chunks_mut::<BLOCK>().0 {
        if &block[257..262] == b"ustar" {
            mend(block);
        }
    }
    tar
}

/// A tar of members, each a byte of type and lies, the bytes of its name and body (one and two bytes), name and body.
pub fn built(mut parts: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    for _ in 0..MAX_MEMBERS {
        let Some((&[kind, n_name, low, high], rest)) = parts.split_first_chunk::<4>() else { break };
        let (name, rest) = rest.split_at(rest.len().min(usize::from(n_name % 101)));
        let n_body = usize::from(u16::from_le_bytes([low, high]) % 2048);
        let (body, rest) = rest.split_at(rest.len().min(n_body));
        parts = rest;
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name);
        let claimed = match kind >> 4 & 7 {
            6 => body.len() as u64 + 1 + u64::from(low),
            7 => u64::MAX >> (low & 63),
            _ => body.len() as u64,
        };
        // Base 256 says what octal digits have no room for.
        header[124] = 0x80;
        header[128..136].copy_from_slice(&claimed.to_be_bytes());
        header[156] = TYPES[usize::from(kind & 15)];
        header[257..265].copy_from_slice(if kind & 128 == 0 { b"ustar\x0000" } else { b"ustar  \0" });
        mend(&mut header);
        tar.extend_from_slice(&header);
        tar.extend_from_slice(body);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    // What is left over is what stands behind the last member.
    tar.extend_from_slice(parts);
    tar
}

fn mend(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
