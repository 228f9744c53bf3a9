//! The file that describes a run from raw corpora to scores. Each program reads its own table of it.
//!
//! ```toml
//! store = "runs/demo/store"   # local folder or s3://bucket/prefix; `--store` overrides
//! run = "runs/demo/run"       # where checkpoints, metrics and scores go; `--run` overrides
//! [ingest]                    # read by imp-ingest
//! [train]                     # read by imp-train
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The file as it stands; `ingest` and `train` are checked by the programs that own them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// Where shards go: a local folder or `s3://bucket/prefix`.
    pub store: String,
    /// Where checkpoints, metrics and scores go.
    pub run: String,
    pub ingest: Option<toml::Table>,
    pub train: Option<toml::Table>,
}

/// A run file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunFileError {
    #[error("cannot read config `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("config `{}`: {detail}", path.display())]
    Parse { path: PathBuf, detail: String },
    #[error("config `{}` has no table `[{table}]`, which this program reads", path.display())]
    MissingTable { path: PathBuf, table: &'static str },
}

impl RunFile {
    /// # Errors
    /// The file cannot be read, is not TOML, or has a key that does not exist; the message names line and key.
    pub fn read(path: &Path) -> Result<Self, RunFileError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| RunFileError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|error| RunFileError::Parse { path: path.to_owned(), detail: explain(&error.to_string()) })
    }

    /// Reads `table` as a `T`.
    ///
    /// # Errors
    /// The table is missing, or a key of it is unknown or has the wrong type; a near miss gets a suggestion.
    pub fn table<T: serde::de::DeserializeOwned>(&self, path: &Path, table: &'static str) -> Result<T, RunFileError> {
        let value = match table {
            "ingest" => &self.ingest,
            _ => &self.train,
        };
        let value = value.clone().ok_or(RunFileError::MissingTable { path: path.to_owned(), table })?;
        value.try_into().map_err(|error: toml::de::Error| RunFileError::Parse {
            path: path.to_owned(),
            detail: format!("in `[{table}]`: {}", explain(&error.to_string())),
        })
    }
}

/// Adds a suggestion to serde's "unknown field `x`, expected one of `a`, `b`".
fn explain(message: &str) -> String {
    let message = message.trim();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some(at) = message.find("unknown field").or_else(|| message.find("unknown variant")) else {
        return message.to_owned();
    };
    let first = message[..at].matches('`').count() / 2;
    let Some((found, expected)) = quoted.get(first..).and_then(<[&str]>::split_first) else {
        return message.to_owned();
    };
    let near = expected.iter().map(|want| (strsim::damerau_levenshtein(found, want), want)).min();
    match near {
        Some((distance, want)) if distance <= 1 + found.len() / 3 => format!("{message}\ndid you mean `{want}`?"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_gets_a_suggestion() {
        let got = toml::from_str::<RunFile>("store = \"a\"\nrun = \"b\"\n[igest]\n").unwrap_err();
        let message = explain(&got.to_string());
        assert!(message.contains("did you mean `ingest`?"), "{message}");
    }
}
