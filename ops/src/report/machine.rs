//! The machine that a report was written on, and the versions of what ran.

use std::process::Command;

/// Label and value of each fact.
pub type Facts = Vec<(String, String)>;

/// Processor, cores, memory, system.
pub fn facts() -> Facts {
    let line_of = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let memory = line_of("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut facts = vec![("cores".to_owned(), cores.to_string())];
    let mut add = |name: &str, value: Option<String>| {
        facts.extend(value.map(|value| (name.to_owned(), value)));
    };
    add("processor", line_of("/proc/cpuinfo", "model name"));
    add("memory", memory.map(|kib| format!("{:.0} GiB", kib / f64::from(1 << 20))));
    add("system", Some(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)));
    facts
}

/// This program, the compiler, the commit.
pub fn versions() -> Facts {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|text| !text.is_empty())
    };
    let mut versions = vec![("imp-ops".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
    let mut add = |name: &str, value: Option<String>| {
        versions.extend(value.map(|value| (name.to_owned(), value)));
    };
    add("compiler", said("rustc", &["--version"]));
    add("commit", said("git", &["rev-parse", "--short=12", "HEAD"]));
    versions
}
