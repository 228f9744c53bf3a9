//! `imp-ops` as a person runs it. That it is built for these tests is what `tests/interop/run` rests on.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::process::{Command, Output};

fn imp_ops(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imp-ops")).args(args).output().unwrap()
}

#[test]
fn the_made_up_world_is_written_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let out = imp_ops(&["synth", dir.path().to_str().unwrap(), "--scale", "tiny"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for corpus in ["world-image/captions.csv", "world-audio"] {
        assert!(dir.path().join(corpus).exists(), "{corpus}");
    }
}

#[test]
fn a_run_file_that_is_not_there_is_named_and_the_exit_code_tells() {
    let out = imp_ops(&["run", "no/such/run.toml"]);
    let told = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), told.contains("no/such/run.toml")), (Some(1), true), "{told}");
}
