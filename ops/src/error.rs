//! Everything that can stop `imp-ops`, with the place, what was found and what helps.

use std::path::PathBuf;

use imp_schemas::run_file::RunFileError;
use imp_schemas::shard_reader::ShardReadError;
use imp_schemas::store::StoreError;
use testkit::world::WorldError;

/// Why `imp-ops` stopped.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error("cannot start `{command}`")]
    Start { command: String, source: std::io::Error },
    #[error("`{command}` failed ({status}); its own message stands above")]
    Failed { command: String, status: std::process::ExitStatus },
    #[error("cargo built no program `{0}`")]
    NoProgram(&'static str),
    #[error("the made-up corpora cannot be written")]
    World { source: WorldError },
    #[error(transparent)]
    RunFile(#[from] RunFileError),
    #[error("config `{}` has neither `[ingest]` nor `[train]`: nothing to run", .0.display())]
    NothingToRun(PathBuf),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read a medium for the report")]
    Shard(#[from] ShardReadError),
    #[error("`{key}` of run `{run}`, line {line}, is not what imp-train writes")]
    Malformed { run: String, key: String, line: usize, source: serde_json::Error },
    #[error("cannot make the report's page")]
    Template(#[from] minijinja::Error),
    #[error("cannot draw chart `{chart}`: {detail}")]
    Chart { chart: &'static str, detail: String },
    #[error("cannot {what} `{}`", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("no repository here: `{}` and the folders above it hold no Cargo.toml with `[workspace]` and an `ops`", .0.display())]
    NoRepository(PathBuf),
    #[error("cannot read `{}` as TOML: {detail}", path.display())]
    Toml { path: PathBuf, detail: String },
    #[error("{0}")]
    Lost(String),
    #[error("{n} things to tidy up")]
    Untidy { n: usize },
    #[error("{}", failed.join(", "))]
    Checks { failed: Vec<String> },
}
