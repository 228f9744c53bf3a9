//! `cargo ops check`: every check of the code that needs no test, in one command; `.ci/run` calls it.
//!
//! In: the repository. Out: each command and whether it passed; all of them run, so that one round shows everything.

use std::process::Command;

use crate::error::OpsError;
use crate::{place, tidy};

/// Arguments of cargo, and variables for it.
type Check = (&'static [&'static str], &'static [(&'static str, &'static str)]);

const CHECKS: [Check; 4] = [
    (&["fmt", "--all", "--check"], &[]),
    (&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]),
    (&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")]),
    // The stand-in for the toolkit lets the CUDA code be type-checked anywhere.
    (&["check", "--workspace", "--features", "imp-trainer/cuda-check"], &[]),
];

/// Runs every check.
///
/// # Errors
/// [`OpsError::Checks`] with the commands that failed.
pub fn check() -> Result<(), OpsError> {
    let root = place::repository()?;
    let mut failed = Vec::new();
    for (args, variables) in CHECKS {
        let set: String = variables.iter().map(|(name, value)| format!("{name}='{value}' ")).collect();
        let shown = format!("{set}cargo {}", args.join(" "));
        println!("$ {shown}");
        let status = Command::new(place::cargo())
            .args(args)
            .envs(variables.iter().copied())
            .current_dir(&root)
            .status()
            .map_err(|source| OpsError::Start { command: shown.clone(), source })?;
        if !status.success() {
            failed.push(format!("`{shown}` failed"));
        }
    }
    println!("$ cargo ops tidy");
    if let Err(error) = tidy::tidy() {
        failed.push(format!("`cargo ops tidy`: {error}"));
    }
    if failed.is_empty() { Ok(()) } else { Err(OpsError::Checks { failed }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ci_script_runs_the_same_commands() {
        let script = include_str!("../../.ci/run");
        for (args, variables) in CHECKS {
            let command = format!("cargo {}", args.join(" "));
            let line = script.lines().find(|line| line.starts_with("part ") && line.ends_with(&command));
            let line = line.unwrap_or_else(|| panic!(".ci/run has no line with `{command}`"));
            assert!(variables.iter().all(|(name, value)| line.contains(&format!("{name}='{value}'"))), "{line}");
        }
    }
}
