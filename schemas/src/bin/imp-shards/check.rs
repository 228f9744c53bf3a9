//! Holds every shard of a corpus to its manifest.
//!
//! In: a store. Out: findings. Never: a whole shard in memory, a stop at the first finding.

mod corpus;
mod decode;
mod layout;
mod media_index;
mod numbers;
mod objects;
mod shard;
mod side_tables;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Table, presets};
use imp_schemas::store::Store;
use indicatif::{ProgressBar, ProgressStyle};

use crate::ShardsError;
use crate::finding::Findings;

pub(crate) use numbers::Numbers;

/// How many media to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    All,
    Sample(u64),
}

impl std::str::FromStr for Probe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        text.parse().map(Self::Sample).map_err(|_| format!("`{text}` is neither a number of media nor `all`"))
    }
}

/// One line of the summary.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Checked {
    pub corpus: String,
    /// Snapshot whose manifest was held to, 0 if it could not be read.
    pub snapshot: u64,
    pub n_shards: usize,
    pub n_records: u64,
    pub n_bytes: u64,
    pub n_decoded: u64,
    pub n_findings: u64,
}

/// Checks and prints; says whether nothing was found.
pub(crate) fn run(
    url: &str,
    named: &[String],
    probe: Probe,
    orphan_age: Duration,
    json: bool,
) -> Result<bool, ShardsError> {
    let store = Store::open(url)?;
    let corpora = crate::select(&store, named)?;
    let mut checked = Vec::new();
    let mut all = Vec::new();
    for corpus in &corpora {
        let mut findings = Findings::of(corpus);
        let mut line = corpus::check(&store, corpus, probe, orphan_age, &mut findings)?;
        line.n_findings = findings.n();
        checked.push(line);
        all.push(findings);
    }
    let clean = checked.iter().all(|c| c.n_findings == 0);
    let mut out = std::io::stdout().lock();
    // A closed pipe (`| head`) is no reason to report anything else than the check's result.
    let _ = if json { print_json(&mut out, &checked, &all) } else { print_lines(&mut out, &checked, &all) };
    Ok(clean)
}

fn print_json(out: &mut impl Write, checked: &[Checked], all: &[Findings]) -> std::io::Result<()> {
    let findings: Vec<_> = all.iter().flat_map(Findings::listed).collect();
    let report = serde_json::json!({ "corpora": checked, "findings": findings });
    writeln!(out, "{report:#}")
}

fn print_lines(out: &mut impl Write, checked: &[Checked], all: &[Findings]) -> std::io::Result<()> {
    for findings in all {
        for finding in findings.listed() {
            writeln!(out, "{finding}")?;
        }
        for (kind, n_more) in findings.unlisted() {
            writeln!(out, "finding [{kind}] and {n_more} more of this kind")?;
        }
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["corpus", "snapshot", "shards", "records", "MiB", "decoded", "findings"]);
    for c in checked {
        let mib = format!("{:.1}", c.n_bytes as f64 / f64::from(1 << 20));
        let counts = [c.snapshot, c.n_shards as u64, c.n_records].map(|n| n.to_string());
        let [snapshot, shards, records] = counts;
        table.add_row([
            c.corpus.clone(),
            snapshot,
            shards,
            records,
            mib,
            c.n_decoded.to_string(),
            c.n_findings.to_string(),
        ]);
    }
    writeln!(out, "{table}")
}

/// A bar over bytes when someone watches.
pub(crate) fn bar(corpus: &str, n_bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(n_bytes).with_message(corpus.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}
