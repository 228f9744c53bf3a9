//! Any bytes are a table, or a Parquet file that holds its media, every row of which is part of a record or a reject; or an
//! error that says what is wrong with the table as a whole.
//!
//! The first byte says how the rest is read: bits 0 and 1 the file's ending, 2 to 4 the corpus's lines, 5 the size of units.
#![no_main]

use imp_fuzz::{bench, held};
use imp_ingest::IngestError;
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 4] = ["t.csv", "t.tsv", "t.jsonl", "t.parquet"];

/// Limits as low as a config may set them, so that no input writes much.
const LIMITS: &str = "limits = { max_media_mib = 1 }";

/// Where the media lie and which columns say what.
const CORPORA: [&str; 8] = [
    "kind = \"image-text\"",
    "kind = \"image-text\"\nsplit = \"train\"",
    "kind = \"image-text\"\nmedia_root = \"media.tar\"",
    "kind = \"image-text\"\nmedia_root = \"https://host.example/all/media\"",
    "kind = \"image-text\"\ncolumns = { key = \"key\", caption = \"text\" }",
    "kind = \"image-text\"\nsplit = { hold_out = { test = 0.5 } }\ncolumns = { url = \"url\", caption = \"TEXT\" }",
    "kind = \"image-text\"\ncolumns = { media = \"jpg\" }",
    "kind = \"audio-text\"\ncaption_from_label = [\"the sound of {}\"]",
];

fuzz_target!(|bytes: &[u8]| {
    held(|| {
        let Some((&choice, bytes)) = bytes.split_first() else { return };
        let name = NAMES[usize::from(choice & 3)];
        let corpus = CORPORA[usize::from(choice >> 2 & 7)];
        let units = if choice & 32 == 0 { "" } else { "unit_records = 20\n" };
        match bench().read(name, bytes, &format!("{units}{LIMITS}"), corpus) {
            Ok(_) | Err(IngestError::Table { .. } | IngestError::MissingColumn { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    });
});
