//! Any bytes are a tar, plain or compressed, every sample of which is a candidate or a reject.
//!
//! The first byte says how the rest becomes one: bits 0 and 1 what it is compressed with here, so that what is compressed is
//! mutated too; 2 and 3 whether it is a tar already, one whose checksums are mended here, or the parts of one; 4 and 5 the
//! corpus's lines.
#![no_main]

use std::io::Write;

use imp_fuzz::{bench, held, tars};
use libfuzzer_sys::fuzz_target;

const CORPORA: [&str; 4] = [
    "kind = \"image-text\"",
    "kind = \"image-text\"\ntar_in_key = true",
    "kind = \"audio-text\"\ncaption_if_none = [\"a sound\"]",
    "kind = \"video-text\"",
];

fuzz_target!(|bytes: &[u8]| {
    held(|| {
        let Some((&choice, bytes)) = bytes.split_first() else { return };
        let tar = match choice >> 2 & 3 {
            0 | 1 => bytes.to_vec(),
            2 => tars::mended(bytes),
            _ => tars::built(bytes),
        };
        let (name, tar) = match choice & 3 {
            0 | 3 => ("t.tar", tar),
            1 => ("t.tar.gz", gzipped(&tar)),
            _ => ("t.tar.zst", zstd::bulk::compress(&tar, 1).expect("any bytes can be compressed")),
        };
        let corpus = CORPORA[usize::from(choice >> 4 & 3)];
        if let Err(error) = bench().read(name, &tar, "limits = { max_media_mib = 1 }", corpus) {
            panic!("a tar is no reason to stop a run: {error}");
        }
    });
});

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).and_then(|()| gz.finish()).expect("a vector takes what it is given")
}
