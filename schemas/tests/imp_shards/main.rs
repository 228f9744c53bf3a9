//! Promises of the `imp-shards` program, on small stores written here.
#![cfg_attr(feature = "cli", expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do"))]
#![cfg(feature = "cli")]

mod check;
mod columns;
mod store;
mod views;

use std::process::{Command, Output};

fn imp_shards(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imp-shards")).args(arguments).output().unwrap()
}

/// Standard output of a call that succeeds.
fn stdout(arguments: &[&str]) -> String {
    let done = imp_shards(arguments);
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}
