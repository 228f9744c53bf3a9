//! Where things are: the repository, the programs that cargo builds, what a run file points to.
//!
//! In: the working directory and a run file. Out: paths and URLs. Never: starts a step of a run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imp_schemas::run_file::RunFile;

use crate::error::OpsError;

/// A run file, and what the command line puts in place of its settings.
#[derive(Debug, Clone)]
pub struct Place {
    pub config: PathBuf,
    pub store: Option<String>,
    pub run: Option<String>,
    pub root: Option<PathBuf>,
}

impl Place {
    /// The run file, with the command line's store and run in place.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> Result<RunFile, OpsError> {
        let mut file = RunFile::read(&self.config)?;
        file.store = self.store.clone().unwrap_or(file.store);
        file.run = self.run.clone().unwrap_or(file.run);
        Ok(file)
    }
}

/// The repository that the working directory lies in.
///
/// # Errors
/// [`OpsError::NoRepository`] outside of one.
pub fn repository() -> Result<PathBuf, OpsError> {
    let here = std::env::current_dir().map_err(|source| OpsError::File {
        what: "find the folder",
        path: PathBuf::from("."),
        source,
    })?;
    let is_ours = |folder: &Path| {
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        manifest.contains("[workspace]") && folder.join("ops/configs").is_dir()
    };
    here.ancestors().find(|folder| is_ours(folder)).map(Path::to_owned).ok_or(OpsError::NoRepository(here))
}

/// The cargo that runs this, or the one on the path.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"))
}

/// The three programs, built in the profile that the tests use too.
#[derive(Debug, Clone)]
pub struct Programs {
    pub ingest: PathBuf,
    pub shards: PathBuf,
    pub train: PathBuf,
}

/// Builds the programs; cargo's own output is shown.
///
/// # Errors
/// Cargo cannot be started, or the build fails.
pub fn build() -> Result<Programs, OpsError> {
    let repository = repository()?;
    // Without `-p`, so that features resolve as for `cargo ops` itself and nothing is built twice.
    let args = ["build", "--bin", "imp-ingest", "--bin", "imp-shards", "--bin", "imp-train"];
    let shown = format!("cargo {}", args.join(" "));
    println!("$ {shown}");
    let output = Command::new(cargo())
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(&repository)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| OpsError::Start { command: shown.clone(), source })?;
    if !output.status.success() {
        return Err(OpsError::Failed { command: shown, status: output.status });
    }
    // Cargo says where it put each program: no guess about target folders.
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let programs: Vec<PathBuf> = messages.filter_map(|m| m.get("executable")?.as_str().map(PathBuf::from)).collect();
    let find = |name: &'static str| {
        let found = programs.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
        found.map(|path| nearer(path)).ok_or(OpsError::NoProgram(name))
    };
    Ok(Programs { ingest: find("imp-ingest")?, shards: find("imp-shards")?, train: find("imp-train")? })
}

/// `path` relative to the working directory if it lies below it: shorter to read and to type.
fn nearer(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).map_or_else(|_| path.to_owned(), Path::to_owned)
}

/// `path`, below the working directory of the user, as seen from the repository `root`.
pub fn seen_from(root: &Path, path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.strip_prefix(root).map_or_else(|_| absolute.clone(), Path::to_owned)
}
