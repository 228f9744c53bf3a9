//! The loader's program: SIGKILL at any moment, go on with other threads and another number of ranks, and nothing of what
//! the steps train on is lost, repeated or changed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imp_ingest::IngestConfig;
use imp_schemas::rng::{Role, rng_for};
use imp_schemas::store::Store;
use serde_json::{Value, json};
use testkit::world::{self, Scale};

const STEPS: usize = 300;
const N_KILLS: usize = 20;

struct Stint<'a> {
    run_file: &'a Path,
    from_step: usize,
    threads: u64,
    ranks: usize,
    step_ms: u64,
}

impl Stint<'_> {
    fn start(&self, rank: usize, digests: &Path) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imp-train"));
        command.args(["data", "--json", "--config"]).arg(self.run_file).arg("--digests").arg(digests);
        let mut number = |flag: &str, n: u64| _ = command.args([flag, &n.to_string()]);
        number("--steps", (STEPS - self.from_step - 1) as u64);
        number("--from-step", self.from_step as u64);
        number("--decode-threads", self.threads);
        number("--rank", rank as u64);
        number("--ranks", self.ranks as u64);
        number("--step-ms", self.step_ms);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// Whole lines: what a trainer has got. The last one may be cut.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// One step of all ranks, as one rank would have it.
fn together(parts: &[&Value]) -> Value {
    let mut whole = parts[0].clone();
    for part in &parts[1..] {
        assert_eq!((&part["step"], &part["task"], &part["view"]), (&whole["step"], &whole["task"], &whole["view"]));
        let more = part["examples"].as_array().unwrap().clone();
        whole["examples"].as_array_mut().unwrap().extend(more);
    }
    whole
}

#[test]
fn ranks_killed_at_random_moments_lose_repeat_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    world::write(&dir.path().join("corpora"), &Scale::tiny(), 5).unwrap();
    let store = dir.path().join("store");
    let text = testkit::tiny::run_file(&dir.path().join("corpora"), store.to_str().unwrap(), "unused", 1, 1);
    let run_file = dir.path().join("run.toml");
    std::fs::write(&run_file, text).unwrap();
    let config = IngestConfig::read(&run_file).unwrap();
    imp_ingest::run(&config, &Store::open(store.to_str().unwrap()).unwrap(), &mut imp_ingest::Progress::silent())
        .unwrap();

    let alone = dir.path().join("alone.jsonl");
    let stint = Stint { run_file: &run_file, from_step: 0, threads: 1, ranks: 1, step_ms: 0 };
    let output = stint.start(0, &alone).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let want = lines(&alone);
    assert_eq!(want.len(), STEPS);

    let mut rng = rng_for(1, Role::Synth, &[]);
    let (mut got, mut n_killed): (Vec<Value>, usize) = (Vec::new(), 0);
    while got.len() < STEPS {
        let (threads, ranks) = (1 + rng.below(4), 1 + rng.below(2) as usize);
        let stint = Stint { run_file: &run_file, from_step: got.len(), threads, ranks, step_ms: 5 };
        let files: Vec<PathBuf> = (0..ranks).map(|rank| dir.path().join(format!("{n_killed}-{rank}.jsonl"))).collect();
        let mut children: Vec<Child> = files.iter().enumerate().map(|(rank, file)| stint.start(rank, file)).collect();
        if n_killed < N_KILLS {
            // Somewhere in the first steps: in opening, in a read, in a decode, with batches under way.
            let begin = Instant::now();
            let first = rng.chance(0.8);
            while first && lines(&files[0]).is_empty() && begin.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(Duration::from_secs_f64(rng.between(0.0, 0.06)));
            children.iter_mut().for_each(|child| child.kill().unwrap());
            children.into_iter().for_each(|mut child| _ = child.wait().unwrap());
            n_killed += 1;
        } else {
            for child in children {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
        // A job's checkpoint is of a step that every rank has done.
        let parts: Vec<Vec<Value>> = files.iter().map(|file| lines(file)).collect();
        let done = parts.iter().map(Vec::len).min().unwrap();
        got.extend((0..done).map(|i| together(&parts.iter().map(|part| &part[i]).collect::<Vec<_>>())));
    }
    assert_eq!(n_killed, N_KILLS, "the run ended before it was killed often enough; make it longer");
    for (got, want) in got.iter().zip(&want) {
        assert_eq!(got, want);
    }
    assert_eq!(got.last().unwrap()["step"], json!(STEPS - 1));
}
