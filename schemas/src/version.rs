//! Format versions, and which code may read which.
//!
//! A version is `major.minor`. A reader takes every minor of its own major and refuses other majors; a new column or key is
//! a minor change, a changed meaning a major one. `tests/golden` keeps a fixture of every past version.

use serde::{Deserialize, Serialize};

/// Version of one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

/// The formats that outlive a process, with the version that this code writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Columns and footers of a shard.
    Shard,
    Manifest,
    Checkpoint,
}

/// A version that this code cannot read, or that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    #[error(
        "{format:?} has format version {found}, this build reads {want}.x; use a build of that major version or ingest again"
    )]
    Unreadable { format: Format, found: Version, want: u32 },
    #[error("`{0}` is not a format version such as `1.0`")]
    Malformed(String),
}

impl Format {
    /// The version that this code writes.
    pub fn current(self) -> Version {
        match self {
            Self::Shard => Version { major: 1, minor: 2 },
            Self::Manifest => Version { major: 1, minor: 1 },
            Self::Checkpoint => Version { major: 1, minor: 0 },
        }
    }

    /// # Errors
    /// [`VersionError::Unreadable`] if `found` has another major version.
    pub fn check(self, found: Version) -> Result<(), VersionError> {
        let want = self.current().major;
        if found.major == want { Ok(()) } else { Err(VersionError::Unreadable { format: self, found, want }) }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;

    fn try_from(text: String) -> Result<Self, VersionError> {
        text.parse()
    }
}

impl std::str::FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let parts = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let (major, minor) = parts.ok_or_else(|| VersionError::Malformed(text.to_owned()))?;
        Ok(Self { major, minor })
    }
}
