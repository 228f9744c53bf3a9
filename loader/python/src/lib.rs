//! The loader for Python: `imp_loader._native`, which the package `imp_loader` shows under its own name.
//!
//! In: a store, a mixture, a state. Out: batches, their arrays over the memory that the loader filled. Never: an array that is
//! copied, a wait that holds the interpreter or cannot be interrupted, an order of batches that `imp-loader` does not give.

use pyo3::prelude::*;

mod batch;
mod config;
mod error;
mod loader;

/// The module.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::batch::PyBatch;
    #[pymodule_export]
    use crate::error::LoaderError;
    #[pymodule_export]
    use crate::loader::PyLoader;
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
