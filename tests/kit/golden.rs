//! Reference numbers: a folder of safetensors, each tensor with its own tolerance in the file's metadata.
//!
//! In: a folder and a file's name. Out: tensors by name, and a comparison that names the worst element. Never: reads
//! pictures, decides which tolerance is right. `shared/golden/README.md` of the project says how the numbers were made.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// Relative part of every tolerance; the absolute part belongs to one tensor.
pub const RTOL: f64 = 1e-5;

/// The folder of golden numbers: the one named by `IMP_GOLDEN`, else the repository's own copy.
pub fn folder() -> PathBuf {
    match std::env::var_os("IMP_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"),
    }
}

/// A golden file that cannot be used, or numbers that differ from it.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    #[error("cannot read golden file `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("golden file `{}` is no safetensors file", path.display())]
    Format { path: PathBuf, source: safetensors::SafeTensorError },
    #[error("golden file `{}` has no tensor `{name}`", path.display())]
    NoTensor { path: PathBuf, name: String },
    #[error("tensor `{name}` is {found:?}, wanted {wanted}")]
    Dtype { name: String, found: Dtype, wanted: &'static str },
    #[error("tensor `{name}`: got {got} values, wanted {want}")]
    Length { name: String, got: usize, want: usize },
    #[error(
        "tensor `{name}`[{at}]: got {got:e}, want {want:e}, tolerance {tolerance:e}; {n_wrong} of {n} values differ"
    )]
    Differs { name: String, at: usize, got: f64, want: f64, tolerance: f64, n_wrong: usize, n: usize },
}

/// One tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Values,
    /// Absolute part of the tolerance; 0 where the file states none.
    pub atol: f64,
}

/// The element types that golden files use.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    I32(Vec<i32>),
    I16(Vec<i16>),
    U8(Vec<u8>),
}

/// One file of golden numbers.
#[derive(Debug, Clone)]
pub struct Golden {
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    /// Reads `<folder>/<name>.safetensors`.
    ///
    /// # Errors
    /// The file is absent, no safetensors, or has an element type that golden files do not use.
    pub fn read(folder: &Path, name: &str) -> Result<Self, GoldenError> {
        let path = folder.join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).map_err(|source| GoldenError::Read { path: path.clone(), source })?;
        let format = |source| GoldenError::Format { path: path.clone(), source };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(format)?;
        let notes = metadata.metadata().clone().unwrap_or_default();
        let mut tensors = HashMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes).map_err(format)?.tensors() {
            let atol = notes.get(&format!("atol/{name}")).and_then(|text| text.parse().ok()).unwrap_or(0.0);
            let values = values_of(&name, view.dtype(), view.data())?;
            tensors.insert(name, Tensor { shape: view.shape().to_vec(), values, atol });
        }
        Ok(Self { path, tensors })
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// First parts of the names, sorted: the cases of a file that has several.
    pub fn cases(&self) -> Vec<&str> {
        let mut cases: Vec<&str> = self.names().into_iter().filter_map(|n| n.split_once('/')).map(|(c, _)| c).collect();
        cases.dedup();
        cases
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// # Errors
    /// [`GoldenError::NoTensor`] with the file and the name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, GoldenError> {
        self.tensors.get(name).ok_or_else(|| GoldenError::NoTensor { path: self.path.clone(), name: name.to_owned() })
    }

    /// # Errors
    /// The tensor is absent or not f32.
    pub fn f32s(&self, name: &str) -> Result<&[f32], GoldenError> {
        match &self.tensor(name)?.values {
            Values::F32(values) => Ok(values),
            other => Err(GoldenError::Dtype { name: name.to_owned(), found: other.dtype(), wanted: "F32" }),
        }
    }

    /// # Errors
    /// The tensor is absent or not i32.
    pub fn i32s(&self, name: &str) -> Result<&[i32], GoldenError> {
        match &self.tensor(name)?.values {
            Values::I32(values) => Ok(values),
            other => Err(GoldenError::Dtype { name: name.to_owned(), found: other.dtype(), wanted: "I32" }),
        }
    }

    /// Holds `got` to tensor `name`: `|got - want| <= atol + 1e-5 |want|`, element by element; a NaN never passes.
    ///
    /// # Errors
    /// [`GoldenError::Differs`] with the worst element.
    pub fn check(&self, name: &str, got: &[f32]) -> Result<(), GoldenError> {
        let want = self.f32s(name)?;
        let atol = self.tensor(name)?.atol;
        if got.len() != want.len() {
            return Err(GoldenError::Length { name: name.to_owned(), got: got.len(), want: want.len() });
        }
        let (mut worst, mut n_wrong) = (None::<(f64, usize)>, 0);
        for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
            let excess =
                (f64::from(got) - f64::from(want)).abs() / (atol + RTOL * f64::from(want).abs()).max(f64::MIN_POSITIVE);
            if excess <= 1.0 {
                continue;
            }
            n_wrong += 1;
            if worst.is_none_or(|(most, _)| excess > most || excess.is_nan()) {
                worst = Some((excess, at));
            }
        }
        let Some((_, at)) = worst else { return Ok(()) };
        let (got, want) = (f64::from(got[at]), f64::from(want[at]));
        let tolerance = atol + RTOL * want.abs();
        Err(GoldenError::Differs {
            name: name.to_owned(),
            at,
            got,
            want,
            tolerance,
            n_wrong,
            n: self.f32s(name)?.len(),
        })
    }
}

impl Values {
    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::I32(_) => Dtype::I32,
            Self::I16(_) => Dtype::I16,
            Self::U8(_) => Dtype::U8,
        }
    }
}

fn values_of(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Values, GoldenError> {
    let quads = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    Ok(match dtype {
        Dtype::F32 => Values::F32(quads().map(f32::from_le_bytes).collect()),
        Dtype::I32 => Values::I32(quads().map(i32::from_le_bytes).collect()),
        Dtype::I16 => Values::I16(bytes.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect()),
        Dtype::U8 => Values::U8(bytes.to_vec()),
        found => return Err(GoldenError::Dtype { name: name.to_owned(), found, wanted: "F32, I32, I16 or U8" }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    #[test]
    fn a_value_outside_its_tolerance_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![3], &bytes).unwrap();
        let notes = HashMap::from([("atol/case/y".to_owned(), "0.01".to_owned())]);
        let file = safetensors::serialize([("case/y", view)], Some(notes)).unwrap();
        std::fs::write(dir.path().join("toy.safetensors"), file).unwrap();
        let golden = Golden::read(dir.path(), "toy").unwrap();
        assert_eq!(golden.cases(), ["case"]);
        golden.check("case/y", &[1.005, 2.0, 2.995]).unwrap();
        let message = golden.check("case/y", &[1.0, 2.5, f32::NAN]).unwrap_err().to_string();
        assert!(message.contains("`case/y`[2]: got NaN") && message.contains("2 of 3"), "{message}");
    }
}
