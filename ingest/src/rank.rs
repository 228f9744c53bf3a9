//! Which of how many workers this is: from flags, or from the variables of the cluster that started it.
//!
//! In: flags and environment. Out: [`Rank`]. Never: a guess from half of a pair of variables.

use crate::error::IngestError;

/// Worker `rank` of `of`; it does the units whose number leaves `rank` when divided by `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    rank: usize,
    of: usize,
}

/// Variables by which clusters say it: rank, count, and what the first rank is.
const CLUSTERS: [(&str, &str, &str); 5] = [
    // Kubernetes gives an indexed job's pods their index, the count is set beside it in the manifest.
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", ""),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("SLURM_PROCID", "SLURM_NTASKS", ""),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ""),
    ("PMI_RANK", "PMI_SIZE", ""),
];

impl Default for Rank {
    /// The only worker.
    fn default() -> Self {
        Self { rank: 0, of: 1 }
    }
}

impl Rank {
    /// # Errors
    /// [`IngestError::Config`] unless `rank < of`.
    pub fn new(rank: usize, of: usize) -> Result<Self, IngestError> {
        if rank < of {
            return Ok(Self { rank, of });
        }
        let rule = format!("must be below the number of workers ({of}); ranks count from 0");
        Err(IngestError::Config { key: "--rank".to_owned(), found: rank.to_string(), rule })
    }

    /// From flags if they are given, else from the first cluster whose variables are set, else the only worker.
    ///
    /// # Errors
    /// One flag or variable of a pair without the other, or one that is no number.
    pub fn detect(
        rank: Option<usize>,
        of: Option<usize>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, IngestError> {
        let broken = |key: &str, found: String, rule: String| IngestError::Config { key: key.to_owned(), found, rule };
        match (rank, of) {
            (Some(rank), Some(of)) => return Self::new(rank, of),
            (None, None) => {}
            (Some(_), None) => {
                return Err(broken("--of", "absent".to_owned(), "must be given with --rank".to_owned()));
            }
            (None, Some(_)) => {
                return Err(broken("--rank", "absent".to_owned(), "must be given with --of".to_owned()));
            }
        }
        let number = |name: &str| -> Result<Option<usize>, IngestError> {
            let Some(text) = variable(name) else { return Ok(None) };
            let parsed = text.trim().parse().map(Some);
            parsed.map_err(|_| broken(name, format!("`{text}`"), "must be a number".to_owned()))
        };
        for (rank_name, count_name, first_name) in CLUSTERS {
            let Some(rank) = number(rank_name)? else { continue };
            let Some(of) = number(count_name)? else {
                let rule =
                    format!("must be set beside {rank_name} (or give --rank and --of): it is the number of workers");
                return Err(broken(count_name, "absent".to_owned(), rule));
            };
            let first = if first_name.is_empty() { 0 } else { number(first_name)?.unwrap_or(0) };
            return Self::new(rank.saturating_sub(first), of);
        }
        Ok(Self::default())
    }

    /// Whether this worker does `unit`.
    pub(crate) fn does(self, unit: usize) -> bool {
        unit % self.of == self.rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[(&str, &str)], want: Result<(usize, usize), &str>) {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        match (Rank::detect(None, None, &variable), want) {
            (Ok(rank), Ok(want)) => assert_eq!((rank.rank, rank.of), want, "{variables:?}"),
            (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
            (got, want) => panic!("{variables:?}: {got:?}, wanted {want:?}"),
        }
    }

    #[test]
    fn clusters_say_which_worker_this_is() {
        check(&[], Ok((0, 1)));
        check(&[("JOB_COMPLETION_INDEX", "3"), ("JOB_COMPLETIONS", "8")], Ok((3, 8)));
        check(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")], Ok((0, 4)));
        let array = [("SLURM_ARRAY_TASK_ID", "11"), ("SLURM_ARRAY_TASK_COUNT", "4"), ("SLURM_ARRAY_TASK_MIN", "10")];
        check(&array, Ok((1, 4)));
        check(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")], Ok((1, 2)));
        check(&[("JOB_COMPLETION_INDEX", "3")], Err("JOB_COMPLETIONS"));
        check(&[("SLURM_PROCID", "x"), ("SLURM_NTASKS", "4")], Err("must be a number"));
        check(&[("PMI_RANK", "4"), ("PMI_SIZE", "4")], Err("below the number of workers"));
    }

    #[test]
    fn every_unit_is_done_by_one_worker_however_many_there_are() {
        for of in 1..7 {
            for unit in 0..50 {
                let n = (0..of).filter(|&rank| Rank::new(rank, of).unwrap().does(unit)).count();
                assert_eq!(n, 1);
            }
        }
        assert!(Rank::new(2, 2).is_err());
    }
}
