//! Compiles the CUDA kernels to PTX where the feature `cuda` asks for them.
//!
//! In: `src/ops/cuda/kernels/*.cu`, `nvcc` on the `PATH` or below `CUDA_PATH`, `CUDA_COMPUTE_CAP` (90 if absent). Out: a `.ptx` each in
//! `OUT_DIR`. Never: a build without them that looks like one with them; under `cuda-check` the files are empty, and no device opens.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const KERNELS: &str = "src/ops/cuda/kernels";
const FILES: [&str; 4] = ["norms", "elementwise", "attention", "experts"];

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={KERNELS}");
    println!("cargo:rerun-if-env-changed=CUDA_COMPUTE_CAP");
    println!("cargo:rerun-if-env-changed=CUDA_PATH");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let check_only = std::env::var_os("CARGO_FEATURE_CUDA_CHECK").is_some();
    for file in FILES {
        let ptx = out.join(file).with_extension("ptx");
        let made = if check_only { std::fs::write(&ptx, "").map_err(|e| e.to_string()) } else { compile(file, &ptx) };
        if let Err(error) = made {
            eprintln!("error: {KERNELS}/{file}.cu: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn compile(file: &str, ptx: &Path) -> Result<(), String> {
    let of_toolkit = std::env::var_os("CUDA_PATH").map(|path| PathBuf::from(path).join("bin/nvcc"));
    let nvcc = of_toolkit.filter(|nvcc| nvcc.exists()).unwrap_or_else(|| PathBuf::from("nvcc"));
    let capability = std::env::var_os("CUDA_COMPUTE_CAP").unwrap_or_else(|| "90".into());
    let source = Path::new(KERNELS).join(file).with_extension("cu");
    let status = Command::new(&nvcc)
        .args(["-std=c++17", "-O3", "-ptx", &format!("-arch=compute_{}", capability.display()), "-o"])
        .arg(ptx)
        .arg(&source)
        .status()
        .map_err(|e| format!("{} does not start ({e}); ops/cuda/build.sh brings it", nvcc.display()))?;
    if status.success() { Ok(()) } else { Err(format!("{} failed: {status}", nvcc.display())) }
}
