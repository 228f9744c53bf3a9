//! What one record may be.
//!
//! In: `limits` of the run or of a corpus. Out: [`Limits`], checked. Never: a decoder's own limits beyond these.

use imp_schemas::media::MediaLimits;
use serde::{Deserialize, Serialize};

use super::{broken, within};
use crate::error::IngestError;

/// What one record may be; larger is `too_large`, smaller is `too_small`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    pub(crate) max_media_mib: u64,
    pub(crate) max_pixels: u64,
    pub(crate) max_frames: u64,
    pub(crate) max_samples: u64,
    /// Pixels of the shorter side.
    pub(crate) min_side: usize,
    pub(crate) min_seconds: f64,
}

impl Default for Limits {
    fn default() -> Self {
        let media = MediaLimits::default();
        Self {
            max_media_mib: 256,
            max_pixels: media.max_pixels,
            max_frames: media.max_frames,
            max_samples: media.max_samples,
            min_side: 1,
            min_seconds: 0.0,
        }
    }
}

impl Limits {
    pub(crate) fn max_media_bytes(&self) -> u64 {
        self.max_media_mib << 20
    }

    pub(crate) fn media(&self) -> MediaLimits {
        MediaLimits { max_pixels: self.max_pixels, max_frames: self.max_frames, max_samples: self.max_samples }
    }
}

pub(super) fn check_limits(key: &str, limits: &Limits) -> Result<(), IngestError> {
    within(&format!("{key}.max_media_mib"), limits.max_media_mib, 1, 1024)?;
    within(&format!("{key}.max_pixels"), limits.max_pixels, 1, u64::MAX)?;
    within(&format!("{key}.max_frames"), limits.max_frames, 1, u64::MAX)?;
    within(&format!("{key}.max_samples"), limits.max_samples, 1, u64::MAX)?;
    if !(limits.min_seconds >= 0.0 && limits.min_seconds.is_finite()) {
        let rule = "must be a number of seconds, 0 or more".to_owned();
        return Err(broken(&format!("{key}.min_seconds"), limits.min_seconds.to_string(), rule));
    }
    Ok(())
}
