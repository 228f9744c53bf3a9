//! The run's ledger of records that could not make an example: `substituted.jsonl` in the run, a line for each record.
//!
//! In: what the loader has counted. Out: the file, whole at every moment, with what earlier starts of the run found. Never: a
//! record twice, a line about a record that is only slow to read.

use std::collections::BTreeSet;

use imp_loader::Substituted;
use imp_schemas::store::{Store, StoreError};

/// Relative to the run.
pub const LEDGER_KEY: &str = "substituted.jsonl";

/// What the file holds.
#[derive(Debug)]
pub struct Ledger {
    records: BTreeSet<Substituted>,
}

impl Ledger {
    /// What earlier starts of the run wrote.
    ///
    /// # Errors
    /// The run's store failed, or the file is not such a ledger.
    pub fn open(run: &Store) -> Result<Self, LedgerError> {
        let bytes = match run.get(LEDGER_KEY) {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Ok(Self { records: BTreeSet::new() }),
            Err(error) => return Err(error.into()),
        };
        let mut records = BTreeSet::new();
        for (line_idx, line) in bytes.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let malformed = |source| LedgerError::Malformed { url: run.url().to_owned(), line: line_idx + 1, source };
            records.insert(serde_json::from_slice(line).map_err(malformed)?);
        }
        Ok(Self { records })
    }

    /// Adds what is new of `found`; writes the file if anything is.
    ///
    /// # Errors
    /// The run's store failed.
    pub fn add(&mut self, run: &Store, found: &[Substituted]) -> Result<(), StoreError> {
        let n_before = self.records.len();
        self.records.extend(found.iter().cloned());
        if self.records.len() == n_before {
            return Ok(());
        }
        let mut lines = Vec::new();
        for record in &self.records {
            // A record of strings and a number is always JSON.
            lines.extend(serde_json::to_vec(record).unwrap_or_default());
            lines.push(b'\n');
        }
        run.put(LEDGER_KEY, lines.into())
    }

    pub fn records(&self) -> &BTreeSet<Substituted> {
        &self.records
    }
}

/// A ledger that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "`{url}/{LEDGER_KEY}`, line {line}: not a record of the ledger; move the file away to go on without what it says"
    )]
    Malformed { url: String, line: usize, source: serde_json::Error },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_stands_once_however_often_the_run_starts() {
        let dir = tempfile::tempdir().unwrap();
        let run = Store::open(dir.path().to_str().unwrap()).unwrap();
        let record = |row: u64| Substituted {
            corpus: "photos".to_owned(),
            shard: "photos/shards/a.parquet".to_owned(),
            row,
            reason: "the bytes end early".to_owned(),
        };
        let mut ledger = Ledger::open(&run).unwrap();
        ledger.add(&run, &[]).unwrap();
        assert!(run.get(LEDGER_KEY).is_err(), "no file without records");
        ledger.add(&run, &[record(2), record(1)]).unwrap();
        let mut again = Ledger::open(&run).unwrap();
        again.add(&run, &[record(1), record(3)]).unwrap();
        assert_eq!(Ledger::open(&run).unwrap().records().iter().map(|r| r.row).collect::<Vec<_>>(), [1, 2, 3]);
        run.put(LEDGER_KEY, "nonsense\n".into()).unwrap();
        assert!(Ledger::open(&run).unwrap_err().to_string().contains("line 1"));
    }
}
