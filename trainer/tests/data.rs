//! The loader's program: SIGKILL at any moment, go on with other threads and another number of ranks, and nothing of what
//! the steps train on is lost, repeated or changed; nor by a disk cache that all of them write at once.

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
/// Of the run that reads from a server: fewer, because each start makes a hundred requests.
const N_REMOTE_KILLS: usize = 8;

/// Of the test kit's run file.
const CACHES: &str = "decoded_cache_mib = 8";

/// A world that was ingested, and how its run file reads it.
struct World {
    run_file: PathBuf,
    /// Where the programs find the store.
    env: Vec<(String, String)>,
}

impl World {
    /// Makes the world's media in `dir` and ingests them into `store`; `caches` are the keys of `[train.loader]` for them.
    fn make(dir: &Path, url: &str, store: &Store, env: Vec<(String, String)>, caches: &str) -> Self {
        world::write(&dir.join("corpora"), &Scale::tiny(), 5).unwrap();
        let text = testkit::tiny::run_file(&dir.join("corpora"), url, "unused", 1, 1);
        let run_file = dir.join("run.toml");
        assert!(text.contains(CACHES));
        std::fs::write(&run_file, text.replace(CACHES, caches)).unwrap();
        let config = IngestConfig::read(&run_file).unwrap();
        imp_ingest::run(&config, store, &mut imp_ingest::Progress::silent()).unwrap();
        Self { run_file, env }
    }
}

struct Stint<'a> {
    world: &'a World,
    from_step: usize,
    threads: u64,
    ranks: usize,
    step_ms: u64,
}

impl Stint<'_> {
    fn start(&self, rank: usize, digests: &Path) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imp-train"));
        command.args(["data", "--json", "--config"]).arg(&self.world.run_file).arg("--digests").arg(digests);
        command.envs(self.world.env.iter().map(|(name, value)| (name, value)));
        let mut number = |flag: &str, n: u64| _ = command.args([flag, &n.to_string()]);
        number("--steps", (STEPS - self.from_step - 1) as u64);
        number("--from-step", self.from_step as u64);
        number("--decode-threads", self.threads);
        number("--rank", rank as u64);
        number("--ranks", self.ranks as u64);
        number("--step-ms", self.step_ms);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
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

/// What the steps hold in one go, and the loader's report of it.
fn undisturbed(world: &World, digests: &Path) -> (Vec<Value>, Value) {
    let stint = Stint { world, from_step: 0, threads: 1, ranks: 1, step_ms: 0 };
    let output = stint.start(0, digests).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all = lines(digests);
    assert_eq!(all.len(), STEPS);
    (all, serde_json::from_slice(&output.stdout).unwrap())
}

/// What the steps hold when one or two ranks are killed `n_kills` times, and go on as other ranks with other threads.
fn killed(world: &World, n_kills: usize, dir: &Path) -> Vec<Value> {
    let mut rng = rng_for(1, Role::Synth, &[]);
    let (mut got, mut n_killed): (Vec<Value>, usize) = (Vec::new(), 0);
    while got.len() < STEPS {
        let (threads, ranks) = (1 + rng.below(4), 1 + rng.below(2) as usize);
        let stint = Stint { world, from_step: got.len(), threads, ranks, step_ms: 5 };
        let files: Vec<PathBuf> = (0..ranks).map(|rank| dir.join(format!("{n_killed}-{rank}.jsonl"))).collect();
        let mut children: Vec<Child> = files.iter().enumerate().map(|(rank, file)| stint.start(rank, file)).collect();
        if n_killed < n_kills {
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
    assert_eq!(n_killed, n_kills, "the run ended before it was killed often enough; make it longer");
    got
}

fn assert_same(got: &[Value], want: &[Value]) {
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got, want);
    }
    assert_eq!(got.last().unwrap()["step"], json!(STEPS - 1));
}

#[test]
fn ranks_killed_at_random_moments_lose_repeat_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("store");
    let url = url.to_str().unwrap();
    let world = World::make(dir.path(), url, &Store::open(url).unwrap(), Vec::new(), CACHES);
    let (want, _) = undisturbed(&world, &dir.path().join("alone.jsonl"));
    assert_same(&killed(&world, N_KILLS, dir.path()), &want);
}

#[test]
fn a_disk_cache_that_killed_ranks_share_changes_nothing_and_spares_every_media_request_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = testkit::s3::S3Server::start().unwrap();
    let (url, cache) = (server.url("store"), dir.path().join("cache"));
    let store = Store::open_with(&url, &server.options()).unwrap();
    // Nothing decoded is kept, so that every epoch asks for the bytes again.
    let caches = format!("decoded_cache_mib = 0\ndisk_cache = '{}'\ndisk_cache_gib = 1", cache.display());
    let world = World::make(dir.path(), &url, &store, server.env(), &caches);
    let got = killed(&world, N_REMOTE_KILLS, dir.path());
    let (again, report) = undisturbed(&world, &dir.path().join("again.jsonl"));
    assert_same(&got, &again);
    let reading = &report["stats"]["reading"];
    assert_eq!((&reading["n_requests"], &reading["disk"]["n_misses"]), (&json!(0), &json!(0)), "{reading}");
    assert!(reading["disk"]["n_hits"].as_u64().unwrap() > 0, "{reading}");
    // The same without a cache.
    std::fs::remove_dir_all(&cache).unwrap();
    let text = std::fs::read_to_string(&world.run_file).unwrap();
    std::fs::write(&world.run_file, text.replace(&caches, CACHES)).unwrap();
    let (want, report) = undisturbed(&world, &dir.path().join("alone.jsonl"));
    assert!(report["stats"]["reading"]["n_requests"].as_u64().unwrap() > 0 && !cache.exists(), "{report}");
    assert_same(&got, &want);
}

#[test]
fn every_task_and_view_of_a_run_is_timed_in_both_orders() {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("store");
    let url = url.to_str().unwrap();
    let world = World::make(dir.path(), url, &Store::open(url).unwrap(), Vec::new(), CACHES);
    let mut command = Command::new(env!("CARGO_BIN_EXE_imp-train"));
    command.args(["steps", "--json", "--rounds", "2", "--each", "2", "--config"]).arg(&world.run_file);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut timed: Vec<_> = Vec::new();
    for view in report["views"].as_array().unwrap() {
        assert!(["grouped_seconds", "in_turn_seconds"].iter().all(|key| view[key].as_f64().unwrap() > 0.0), "{view}");
        timed.push((view["task"].as_str().unwrap().to_owned(), view["view"].as_u64().unwrap()));
    }
    let text = std::fs::read_to_string(&world.run_file).unwrap();
    let config: Value = serde_json::to_value(toml::from_str::<toml::Table>(&text).unwrap()).unwrap();
    let tasks = config["train"]["mixture"]["tasks"].as_array().unwrap();
    let n_views = |task: &Value| task["views"].as_array().map_or(1, Vec::len) as u64;
    let want: Vec<_> = tasks
        .iter()
        .flat_map(|task| (0..n_views(task)).map(|view| (task["name"].as_str().unwrap().to_owned(), view)))
        .collect();
    assert_eq!(timed, want);
    assert_eq!((&report["left_out"], report["rounds"].as_array().unwrap().len()), (&json!([]), 2));
}
