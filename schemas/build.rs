//! What a build finds on this machine; the build script of every crate that has tests over real files.
//!
//! In: `IMP_SHARED`, a folder with `data/` and `golden/`. Out: the cfg `real_data`, which builds those tests; a warning where JPEGs will be slow.
//! Never: a test that is there and passes without its files: without the folder it is not built.

use std::process::{Command, Stdio};

fn main() {
    println!("cargo::rerun-if-env-changed=IMP_SHARED");
    println!("cargo::rustc-check-cfg=cfg(real_data)");
    if std::env::var_os("IMP_SHARED").is_some_and(|folder| !folder.is_empty()) {
        println!("cargo::rustc-cfg=real_data");
    }
    // Only the crate that decodes: `mozjpeg-sys` does without its assembler and says nothing.
    let decodes = std::env::var_os("CARGO_FEATURE_MEDIA").is_some();
    let assembles = std::env::var_os("CARGO_CFG_TARGET_ARCH").is_some_and(|arch| arch == "x86_64");
    if decodes && assembles && !runs("nasm") {
        println!(
            "cargo::warning=`nasm` is not installed: JPEGs are decoded without SIMD, about half as fast. Install it, then \
             `cargo clean -p mozjpeg-sys -p imp-schemas`"
        );
    }
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}
