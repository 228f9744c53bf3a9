//! What Python hands over → what the loader takes, by the rules of the run file.
//!
//! In: TOML text, dictionaries, the path of a run file. Out: a mixture, settings, a cursor, checked. Never: a default that
//! the run file does not have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use imp_loader::LoaderSettings;
use imp_schemas::cursor::Cursor;
use imp_schemas::run_file::RunFile;
use imp_schemas::store::Store;
use imp_schemas::task::{Mixture, RawMixture};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::WheelError;

/// What of a run file the loader reads; the rest of `[train]` is the trainer's.
#[derive(Debug, Deserialize)]
struct OfTrain {
    #[serde(default)]
    loader: LoaderSettings,
    mixture: Option<RawMixture>,
}

/// Store, mixture and settings of a run file.
///
/// # Errors
/// It cannot be read, or has a key that does not exist.
pub fn run_file(path: &Path) -> Result<(String, Mixture, LoaderSettings), WheelError> {
    let file = RunFile::read(path)?;
    let of_train: OfTrain = file.table(path, "train")?;
    let raw = of_train.mixture.ok_or_else(|| WheelError::NoMixture { path: path.to_owned() })?;
    Ok((file.store, raw.try_into()?, of_train.loader))
}

/// A mixture from TOML text, or from a dictionary of the same keys.
///
/// # Errors
/// It is neither, or not a mixture.
pub fn mixture(given: &Bound<'_, PyAny>) -> PyResult<Mixture> {
    let raw: RawMixture = match given.cast::<PyString>() {
        Ok(text) => toml::from_str(text.to_str()?).map_err(|source| WheelError::MixtureToml { source })?,
        Err(_) => of_dict(given, "mixture")?,
    };
    Ok(Mixture::try_from(raw).map_err(WheelError::from)?)
}

/// `settings` with what the caller names in place of what stands there.
///
/// # Errors
/// A name that is no setting, or a value that is no number.
pub fn settings(settings: LoaderSettings, given: Option<&Bound<'_, PyDict>>) -> PyResult<LoaderSettings> {
    let Some(given) = given else { return Ok(settings) };
    let failed = |source| WheelError::Dict { name: "settings", source };
    let mut all = serde_json::to_value(settings).map_err(failed)?;
    let given: serde_json::Map<String, serde_json::Value> = of_dict(given.as_any(), "settings")?;
    if let Some(all) = all.as_object_mut() {
        all.extend(given);
    }
    Ok(serde_json::from_value(all).map_err(failed)?)
}

/// # Errors
/// It is not what `state_dict` gave.
pub fn cursor(given: &Bound<'_, PyAny>) -> PyResult<Cursor> {
    of_dict(given, "state")
}

/// # Errors
/// The address is no store's.
pub fn store(url: &str, options: Option<BTreeMap<String, String>>) -> Result<Store, WheelError> {
    Ok(match options {
        Some(options) => Store::open_with(url, &options.into_iter().collect::<Vec<_>>())?,
        None => Store::open(url)?,
    })
}

/// Text, or anything with `__fspath__`.
///
/// # Errors
/// It is neither, or not UTF-8.
pub fn url(given: &Bound<'_, PyAny>) -> PyResult<String> {
    match given.cast::<PyString>() {
        Ok(text) => Ok(text.to_str()?.to_owned()),
        Err(_) => Ok(given.extract::<PathBuf>()?.display().to_string()),
    }
}

/// What Python's `json` makes of `given`, as a `T`.
fn of_dict<T: DeserializeOwned>(given: &Bound<'_, PyAny>, name: &'static str) -> PyResult<T> {
    let json: String = given.py().import("json")?.call_method1("dumps", (given,))?.extract()?;
    Ok(serde_json::from_str(&json).map_err(|source| WheelError::Dict { name, source })?)
}

/// `value` as dictionaries, lists, numbers and texts of Python.
///
/// # Errors
/// It is not one that JSON can say.
pub fn to_dict<'py, T: serde::Serialize>(
    py: Python<'py>,
    name: &'static str,
    value: &T,
) -> PyResult<Bound<'py, PyAny>> {
    let json = serde_json::to_string(value).map_err(|source| WheelError::Dict { name, source })?;
    py.import("json")?.call_method1("loads", (json,))
}
