//! Image, video, audio, text; and the kinds of record that pair them.

use serde::{Deserialize, Serialize};

/// What a stream of tokens was made from. Image and video share one embedding: an image is a video of equal frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    Image,
    Video,
    Audio,
    Text,
}

impl Modality {
    /// The name used in configs, manifests, metrics and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
            Self::Text => "text",
        }
    }
}

impl std::fmt::Display for Modality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What every record of a corpus holds besides its key: one medium, and captions or a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordKind {
    ImageText,
    VideoText,
    AudioText,
}

impl RecordKind {
    /// The name used in configs, manifests and footers.
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageText => "image-text",
            Self::VideoText => "video-text",
            Self::AudioText => "audio-text",
        }
    }

    /// The modality of the medium; also the name of the media column.
    pub fn medium(self) -> Modality {
        match self {
            Self::ImageText => Modality::Image,
            Self::VideoText => Modality::Video,
            Self::AudioText => Modality::Audio,
        }
    }

    /// Whether a record of this kind can give a stream of `modality`: a video has a sound track, everything has text.
    pub fn gives(self, modality: Modality) -> bool {
        match modality {
            Modality::Text => true,
            Modality::Image => self == Self::ImageText,
            Modality::Video => self == Self::VideoText,
            Modality::Audio => matches!(self, Self::AudioText | Self::VideoText),
        }
    }
}

impl std::fmt::Display for RecordKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
