//! One medium: decodes it and holds it to its planning columns.

use imp_schemas::media::{MediaLimits, check_audio, read_image, read_video};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::column;

use crate::ShardsError;
use crate::finding::Findings;
use crate::rows::Rows;

pub(crate) fn check(
    rows: &Rows<'_>,
    i: usize,
    kind: RecordKind,
    bytes: &[u8],
    place: &str,
    findings: &mut Findings,
) -> Result<(), ShardsError> {
    let limits = MediaLimits::default();
    let measured: Result<Vec<(&'static str, i64)>, _> = match kind {
        RecordKind::ImageText => read_image(bytes, &limits)
            .map(|(meta, _)| vec![(column::WIDTH, meta.width as i64), (column::HEIGHT, meta.height as i64)]),
        RecordKind::VideoText => read_video(bytes, &limits).map(|meta| {
            vec![
                (column::WIDTH, meta.width as i64),
                (column::HEIGHT, meta.height as i64),
                (column::NUM_FRAMES, meta.num_frames as i64),
            ]
        }),
        RecordKind::AudioText => check_audio(bytes, &limits).map(|meta| {
            vec![
                (column::SAMPLING_RATE, i64::from(meta.sampling_rate)),
                (column::CHANNELS, meta.channels as i64),
                (column::NUM_SAMPLES, meta.num_samples as i64),
            ]
        }),
    };
    let measured = match measured {
        Ok(measured) => measured,
        Err(error) => {
            let remedy = "ingest the corpus again; what does not decode is rejected there with its reason";
            findings.push("decode", place, error.to_string(), remedy);
            return Ok(());
        }
    };
    for (name, found) in measured {
        let planned = rows.numbers(name)?[i];
        if planned != Some(found) {
            let found = format!("`{name}` is {planned:?}, the decoded medium has {found}");
            findings.push("planning", place, found, "ingest the corpus again with this version of imp-ingest");
        }
    }
    Ok(())
}
