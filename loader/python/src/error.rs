//! Everything that can stop a Python program here: one exception, its message the whole chain of causes.

use std::path::PathBuf;

use imp_schemas::run_file::RunFileError;
use imp_schemas::store::StoreError;
use imp_schemas::task::TaskError;
use pyo3::PyErr;
use pyo3::exceptions::PyRuntimeError;

pyo3::create_exception!(
    imp_loader,
    LoaderError,
    PyRuntimeError,
    "The loader cannot go on. The message says where, what was found and what was wanted, a cause a line."
);

/// Why there is no loader, no batch or no state.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    #[error(transparent)]
    Loader(#[from] imp_loader::LoaderError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    RunFile(#[from] RunFileError),
    #[error(transparent)]
    Mixture(#[from] TaskError),
    #[error("`mixture` is no TOML of a mixture; the path of a run file goes to `Loader.from_run_file`")]
    MixtureToml { source: toml::de::Error },
    #[error("`{name}` is not what this build reads")]
    Dict { name: &'static str, source: serde_json::Error },
    #[error("config `{}` has no table `[train.mixture]`", path.display())]
    NoMixture { path: PathBuf },
    #[error("the loader is closed; `Loader(..., state=loader.state_dict())` goes on from where it was")]
    Closed,
    #[error(
        "the loader was opened in process {opened}, this is process {here}: its threads do not survive a fork; open it in the process that uses it"
    )]
    Forked { opened: u32, here: u32 },
    #[error("`{array}` has {n_values} values, which are no {shape:?}")]
    Shape { array: &'static str, n_values: usize, shape: Vec<usize> },
    #[error("example {row} of epoch {epoch} does not fit into int64")]
    Id { row: u64, epoch: u64 },
}

impl From<WheelError> for PyErr {
    fn from(error: WheelError) -> Self {
        let mut message = error.to_string().trim_end().to_owned();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            message.push_str("\n  caused by: ");
            message.push_str(error.to_string().trim_end());
            cause = error.source();
        }
        LoaderError::new_err(message)
    }
}
