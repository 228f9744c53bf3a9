//! SIGKILL at any moment, start again: same tasks, same batches byte for byte, same losses to the last bit.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imp_ingest::IngestConfig;
use imp_schemas::rng::{Role, rng_for};
use imp_schemas::store::Store;
use imp_trainer::train::newest_checkpoint;
use imp_trainer::{metrics, shares};
use testkit::world::{self, Scale};

const STEPS: u64 = 60;

fn fit(run_file: &Path, run: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imp-train"));
    command.args(["fit", "--config"]).arg(run_file).arg("--run").arg(run);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Task, bytes of the batch, bits of the loss of every step.
fn steps_of(run: &Path) -> Vec<(u64, String, String, u32)> {
    let steps = metrics::read(&Store::open(run.to_str().unwrap()).unwrap()).unwrap();
    steps.into_iter().map(|s| (s.step, s.task, s.batch_digest, s.loss.to_bits())).collect()
}

#[test]
fn a_run_killed_at_random_moments_does_the_steps_of_one_that_was_left_alone() {
    check(&|text| text);
}

/// With everything that a step may have besides: experts, a mean of the parameters, moments of each task, batches in parts.
#[test]
fn so_does_a_sparse_run_that_averages_its_parameters_and_takes_batches_in_parts() {
    check(&|text| {
        let sparse = "experts = { n = 2, blocks = 1, group_tokens = 64 }\n\n[train.schedule]";
        let text = text.replace("\n[train.schedule]", sparse);
        let optimizer = "[train.optimizer]\nema = 0.99\nmoments = \"per-task\"\n\n[train.loader]";
        let text = text.replace("[train.loader]", optimizer);
        text.replace("keep_checkpoints = 2", "keep_checkpoints = 2\nmicro_batch = 3")
    });
}

/// Gradients that are accumulated over steps, with experts and a mean: a checkpoint stands between updates only.
#[test]
fn so_does_a_sparse_run_that_accumulates_gradients() {
    check(&|text| {
        let sparse = "experts = { n = 2, blocks = 1, group_tokens = 64 }\n\n[train.schedule]";
        let text = text.replace("\n[train.schedule]", sparse);
        let text = text.replace("[train.loader]", "[train.optimizer]\nema = 0.99\n\n[train.loader]");
        text.replace("keep_checkpoints = 2", "keep_checkpoints = 2\naccumulate = 2")
    });
}

/// How work is cut depends on its sizes alone.
#[test]
fn another_number_of_threads_does_the_same_steps_to_the_last_bit() {
    let dir = tempfile::tempdir().unwrap();
    let run_file = prepared(dir.path(), &|text| text);
    let run = |threads: usize| {
        let text = std::fs::read_to_string(&run_file).unwrap();
        let file = dir.path().join(format!("{threads}.toml"));
        std::fs::write(&file, text.replace("keep_checkpoints", &format!("threads = {threads}\nkeep_checkpoints")))
            .unwrap();
        let run = dir.path().join(format!("run-{threads}"));
        finish(fit(&file, &run));
        steps_of(&run)
    };
    let one = run(1);
    assert_eq!(one.len() as u64, STEPS);
    assert_eq!(run(3), one);
}

fn check(more: &dyn Fn(String) -> String) {
    let dir = tempfile::tempdir().unwrap();
    let run_file = prepared(dir.path(), more);

    let alone = dir.path().join("alone");
    let begin = Instant::now();
    finish(fit(&run_file, &alone));
    let whole = begin.elapsed();

    let killed = dir.path().join("killed");
    let mut rng = rng_for(1, Role::Synth, &[]);
    let mut n_killed = 0;
    let mut child = fit(&run_file, &killed);
    while n_killed < 12 {
        // Anywhere in the run: in start-up, in a step, in the middle of a checkpoint.
        std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * rng.between(0.1, 0.6)));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        n_killed += 1;
        child = fit(&run_file, &killed);
    }
    finish(child);
    assert!(n_killed >= 1, "the run ended before it was killed once; make it longer");
    let wanted = steps_of(&alone);
    assert_eq!(wanted.len() as u64, STEPS);
    assert_eq!(steps_of(&killed), wanted, "killed {n_killed} times");
    let [left_alone, resumed] = [&alone, &killed].map(|run| Store::open(run.to_str().unwrap()).unwrap());
    let last = newest_checkpoint(&left_alone).unwrap().unwrap();
    let again = newest_checkpoint(&resumed).unwrap().unwrap();
    assert_eq!((last.model_digest, last.optimizer_digest), (again.model_digest, again.optimizer_digest));
    for share in shares::of(&resumed).unwrap() {
        assert_eq!((share.n_steps, share.n_examples), share.planned, "{}", share.name);
        assert!(share.n_steps > 0 && share.n_tokens > share.n_examples && share.loss.is_finite(), "{share:?}");
    }
}

/// A run file below `dir`, and the shards that it reads.
fn prepared(dir: &Path, more: &dyn Fn(String) -> String) -> PathBuf {
    world::write(&dir.join("corpora"), &Scale::tiny(), 5).unwrap();
    let store = dir.join("store");
    let text = testkit::tiny::run_file(&dir.join("corpora"), store.to_str().unwrap(), "unused", STEPS, 2);
    let run_file = dir.join("run.toml");
    std::fs::write(&run_file, more(text)).unwrap();
    let config = IngestConfig::read(&run_file).unwrap();
    let store = Store::open(store.to_str().unwrap()).unwrap();
    imp_ingest::run(&config, &store, &mut imp_ingest::Progress::silent()).unwrap();
    run_file
}
