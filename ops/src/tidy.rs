//! `cargo ops tidy`: what the compiler does not check about the tree.
//!
//! In: the repository's files. Out: one line per thing that breaks a house rule. Never: changes a file, runs a program.

use std::path::{Path, PathBuf};

use crate::error::OpsError;
use crate::place;

/// Longest `.rs` file, lines with its tests.
const MAX_LINES: usize = 600;
/// Longest file that is nothing but tests: a list of cases is read a case at a time.
const MAX_TEST_LINES: usize = 900;
/// Folders that are no part of the repository.
const SKIPPED: [&str; 4] = ["target", "runs", ".git", "golden"];

/// Which of our crates each may depend on; `tests` is the kit, whose tests see everything through dev-dependencies.
const ARROWS: [(&str, &[&str]); 7] = [
    ("schemas", &[]),
    ("ingest", &["imp-schemas"]),
    ("loader", &["imp-schemas"]),
    ("loader/python", &["imp-schemas", "imp-loader"]),
    ("trainer", &["imp-schemas", "imp-loader"]),
    ("tests", &["imp-schemas"]),
    ("ops", &["imp-schemas", "imp-ingest", "imp-loader", "imp-trainer", "imp-tests"]),
];

/// Libraries that only one crate may name, in dependencies or code.
const OWNED: [(&str, &str); 2] = [("dfdx", "trainer"), ("cudarc", "trainer")];

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Relative to the repository.
    pub path: PathBuf,
    /// From 1; 0 for the whole file.
    pub line: usize,
    pub rule: String,
}

/// Prints every finding.
///
/// # Errors
/// [`OpsError::Untidy`] with their number, or a file cannot be read.
pub fn tidy() -> Result<(), OpsError> {
    let findings = findings(&place::repository()?)?;
    for finding in &findings {
        println!("{}:{}: {}", finding.path.display(), finding.line, finding.rule);
    }
    if findings.is_empty() {
        println!("tidy");
        return Ok(());
    }
    Err(OpsError::Untidy { n: findings.len() })
}

/// Everything that breaks a rule below `root`.
fn findings(root: &Path) -> Result<Vec<Finding>, OpsError> {
    let mut findings = Vec::new();
    for path in files(root)? {
        let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
        let Some(extension) = path.extension().and_then(|e| e.to_str()) else { continue };
        if !["rs", "toml", "md", "sh", "html"].contains(&extension) {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|source| OpsError::File {
            what: "read",
            path: path.clone(),
            source,
        })?;
        let mut found = leftovers(&text);
        if extension == "rs" {
            let most = if is_test_file(&path) { MAX_TEST_LINES } else { MAX_LINES };
            found.extend(check_length(&text, most));
            found.extend(check_source(&relative, &text));
        }
        if relative.starts_with("ops/configs") {
            found.extend(check_config_head(&text));
        }
        findings.extend(found.into_iter().map(|(line, rule)| Finding { path: relative.clone(), line, rule }));
    }
    for (member, allowed) in ARROWS {
        let relative = Path::new(member).join("Cargo.toml");
        let rules = check_manifest(&root.join(&relative), member, allowed)?;
        findings.extend(rules.into_iter().map(|rule| Finding { path: relative.clone(), line: 0, rule }));
    }
    Ok(findings)
}

fn files(root: &Path) -> Result<Vec<PathBuf>, OpsError> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |source| OpsError::File { what: "list", path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if path.is_symlink() || SKIPPED.contains(&name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Words that stand for unfinished work, and paths of one machine. Spelt in halves, so that this file passes itself.
fn leftovers(text: &str) -> Vec<(usize, String)> {
    let words =
        [concat!("TO", "DO"), concat!("to", "do!"), concat!("FIX", "ME"), concat!("dbg", "!"), concat!("/wo", "rk/")];
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        // clippy's names for the same macros are how the lints forbid them.
        for word in words.iter().filter(|word| line.contains(**word)) {
            found.push((at + 1, format!("`{word}` left behind")));
        }
    }
    found
}

fn check_length(text: &str, most: usize) -> Option<(usize, String)> {
    let n_lines = text.lines().count();
    (n_lines > most).then(|| (0, format!("{n_lines} lines, at most {most}: a file is one idea")))
}

/// Whether the file is a module that its parent declares for tests only.
fn is_test_file(path: &Path) -> bool {
    let (Some(folder), Some(stem)) = (path.parent(), path.file_stem().and_then(|stem| stem.to_str())) else {
        return false;
    };
    let parents = [folder.with_extension("rs"), folder.join("lib.rs"), folder.join("main.rs")];
    let declared = [format!("#[cfg(test)]\nmod {stem};"), format!("#[cfg(test)]\npub(crate) mod {stem};")];
    let sources = parents.iter().filter_map(|parent| std::fs::read_to_string(parent).ok());
    sources.into_iter().any(|source| declared.iter().any(|declaration| source.contains(declaration)))
}

fn check_source(path: &Path, text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push((1, "no `//!` header: what comes in, what goes out, what never happens here".to_owned()));
    }
    let member = path.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    let banned = [
        (concat!("#[ig", "nore"), "a test that does not run promises nothing; put it behind a feature"),
        (concat!("#[should_", "panic"), "say which error is wanted"),
        (concat!("#[al", "low("), "`#[expect(…, reason = \"…\")]` says why and goes when it can"),
    ];
    for (at, line) in text.lines().enumerate() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        for (pattern, rule) in banned {
            if code.starts_with(pattern) {
                found.push((at + 1, rule.to_owned()));
            }
        }
        for (library, owner) in OWNED {
            if member != owner && (code.contains(&format!("{library}::")) || code.contains(&format!("use {library}"))) {
                found.push((at + 1, format!("only `{owner}` names {library}")));
            }
        }
    }
    found
}

/// A config's first lines say how to run it, on what, for how long, and what to expect.
fn check_config_head(text: &str) -> Vec<(usize, String)> {
    let head: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
    let wanted = ["Command:", "Hardware:", "Hours:", "Scores"];
    let missing = wanted.into_iter().filter(|word| !head.iter().any(|line| line.contains(word)));
    missing.map(|word| (1, format!("the first lines do not say `{word}`"))).collect()
}

fn check_manifest(path: &Path, member: &str, allowed: &[&str]) -> Result<Vec<String>, OpsError> {
    let text = std::fs::read_to_string(path).map_err(|source| OpsError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })?;
    let table: toml::Table =
        toml::from_str(&text).map_err(|e| OpsError::Toml { path: path.to_owned(), detail: e.to_string() })?;
    let mut rules = Vec::new();
    let dependencies = table.get("dependencies").and_then(toml::Value::as_table);
    for name in dependencies.into_iter().flat_map(toml::Table::keys) {
        if name.starts_with("imp-") && !allowed.contains(&name.as_str()) {
            rules.push(format!("`{member}` must not depend on `{name}`"));
        }
        for (library, owner) in OWNED {
            if name == library && member != owner {
                rules.push(format!("only `{owner}` depends on {library}"));
            }
        }
    }
    let shares = |key: &str| table.get("package").and_then(|p| p.get(key)?.get("workspace")?.as_bool()) == Some(true);
    for key in ["version", "edition", "rust-version", "license", "publish"] {
        if !shares(key) {
            rules.push(format!("`package.{key}` is not the workspace's"));
        }
    }
    if table.get("lints").and_then(|l| l.get("workspace")?.as_bool()) != Some(true) {
        rules.push("the workspace's lints are not on: `[lints] workspace = true`".to_owned());
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let findings = findings(&root).unwrap();
        assert_eq!(findings, [], "`cargo ops tidy` prints them one a line");
    }

    #[test]
    fn a_forbidden_arrow_and_a_missing_header_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("Cargo.toml");
        std::fs::write(
            &manifest,
            "[package]\nname = \"imp-ingest\"\n[dependencies]\nimp-loader = \"1\"\ndfdx = \"1\"\n",
        )
        .unwrap();
        let rules = check_manifest(&manifest, "ingest", &["imp-schemas"]).unwrap();
        assert!(rules.contains(&"`ingest` must not depend on `imp-loader`".to_owned()), "{rules:?}");
        assert!(rules.contains(&"only `trainer` depends on dfdx".to_owned()), "{rules:?}");
        let source = check_source(Path::new("loader/src/lib.rs"), concat!("use df", "dx::prelude::*;\n"));
        assert_eq!(source.len(), 2, "{source:?}");
        assert_eq!(leftovers(concat!("a\n// TO", "DO: later\n")).len(), 1);
    }
}
