//! Workers that are killed at any moment, and a store that fails now and then: the bytes are those of an undisturbed run.
//!
//! The program is the real one, a process each; the store is a real S3-protocol server over HTTP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imp_schemas::media_index::MediaIndex;
use imp_schemas::record::{column, media_column};
use imp_schemas::shard::{
    Digest, manifest_key, media_index_key, rejects_key, shard_key, tokenizer_key, tombstones_key,
};
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::Store;
use testkit::s3::{Faults, S3Server};
use testkit::world::{self, Scale};

const CORPORA: [&str; 3] = ["world-image", "world-video", "world-audio"];
/// Moments at which all workers are killed; the feature `long-tests` takes the whole count that the promise is made for.
const N_KILLS: usize = if cfg!(feature = "long-tests") { 200 } else { 15 };
const MAX_WORKERS: usize = 3;

/// A small world and a run file that cuts it into many units.
fn corpora(dir: &Path) -> std::path::PathBuf {
    world::write(&dir.join("corpora"), &Scale::tiny(), 7).unwrap();
    // One file that is no picture and two rows of one file: rejects have to survive as well.
    std::fs::write(dir.join("corpora/world-image/broken.jpg"), "no picture").unwrap();
    let table = dir.join("corpora/world-image/captions.csv");
    let mut rows = std::fs::read_to_string(&table).unwrap();
    rows += "broken.jpg,a picture that is none,red-circle-small,train\n";
    std::fs::write(table, rows).unwrap();
    let path = dir.join("run.toml");
    let root = dir.join("corpora");
    let text = format!(
        "store = 'unused'\nrun = 'unused'\n[ingest]\nroot = '{}'\nunit_records = 4\nshard_mib = 1\nmax_reject_share = 0.5\n\
         tokenizer = {{ train = {{ vocab_size = 320 }} }}\n\
         [[ingest.corpus]]\nname = 'world-image'\nkind = 'image-text'\npath = 'world-image/captions.csv'\n\
         [[ingest.corpus]]\nname = 'world-video'\nkind = 'video-text'\npath = 'world-video/*.tar'\n\
         split = {{ from_path = {{ train = 'world-video-train-*', test = 'world-video-test-*' }} }}\n\
         [[ingest.corpus]]\nname = 'world-audio'\nkind = 'audio-text'\npath = 'world-audio'\n\
         split = {{ from_path = {{ train = 'train/*', test = 'test/*' }} }}\n",
        root.display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn worker(config: &Path, store: &str, server: &S3Server, rank: usize, of: usize) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imp-ingest"));
    command.arg("run").arg("--config").arg(config).arg("--store").arg(store);
    command.args(["--progress", "plain", "--rank", &rank.to_string(), "--of", &of.to_string()]);
    command.envs(server.env()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// What the newest snapshots name, by key; panics if a named object is missing or another.
fn published(store: &Store) -> BTreeMap<String, Digest> {
    let sizes: BTreeMap<String, u64> = store.list("").unwrap().into_iter().map(|l| (l.key, l.n_bytes)).collect();
    let mut named = BTreeMap::new();
    for corpus in CORPORA {
        let Some(snapshot) = store.newest_snapshot(corpus).unwrap() else { continue };
        assert_eq!(snapshot.version, 1, "{corpus} was published more than once");
        let manifest = snapshot.manifest;
        named.insert(manifest_key(corpus, 1), snapshot.digest);
        named.insert(tokenizer_key(&manifest.tokenizer.digest), manifest.tokenizer.digest.clone());
        for shard in &manifest.shards {
            let key = shard_key(corpus, &shard.digest);
            assert_eq!(sizes.get(&key), Some(&shard.n_bytes), "{key} is named, and not there as it should be");
            named.insert(key, shard.digest.clone());
        }
        named.extend(manifest.rejects.iter().map(|t| (rejects_key(corpus, &t.digest), t.digest.clone())));
        named.extend(manifest.media_index.iter().map(|t| (media_index_key(corpus, &t.digest), t.digest.clone())));
        named.extend(manifest.tombstones.iter().map(|t| (tombstones_key(corpus, &t.digest), t.digest.clone())));
    }
    for (key, digest) in &named {
        assert_eq!(Digest::of(&store.get(key).unwrap()), *digest, "{key}");
    }
    named
}

/// Uniform in [0, 1), by a name and a number: the same kills in every run of the test.
fn draw(name: &str, n: usize) -> f64 {
    let hash = blake3::hash(format!("{name} {n}").as_bytes());
    f64::from(u32::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], hash.as_bytes()[3]]))
        / 2.0_f64.powi(32)
}

#[test]
fn workers_killed_at_any_moment_leave_the_bytes_of_an_undisturbed_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpora(dir.path());
    let server = S3Server::start().unwrap();
    let open = |name: &str| Store::open_with(&server.url(name), &server.options()).unwrap();
    let started = Instant::now();
    assert!(worker(&config, &server.url("undisturbed"), &server, 0, 1).wait().unwrap().success());
    let whole = started.elapsed();
    let wanted = published(&open("undisturbed"));
    assert!(wanted.len() > 15, "{wanted:?}");

    let (mut n_kills, mut n_runs, mut round) = (0, 0, 0);
    while n_kills < N_KILLS {
        // Each round starts from nothing and goes on until it is published, whatever happens to its workers.
        let name = format!("round{round}");
        let store = open(&name);
        loop {
            let of = 1 + (draw("workers", n_runs) * MAX_WORKERS as f64) as usize;
            let mut workers: Vec<Child> =
                (0..of).map(|rank| worker(&config, &server.url(&name), &server, rank, of)).collect();
            // A run that goes on from the journal is shorter than a whole one: moments lie close to the start as well.
            let moment = whole.mul_f64(draw("moment", n_runs).powi(2) * 1.2);
            n_runs += 1;
            std::thread::sleep(moment);
            let running =
                workers.iter_mut().filter_map(|worker| worker.try_wait().unwrap().is_none().then_some(())).count();
            for worker in &mut workers {
                worker.kill().unwrap();
                worker.wait().unwrap();
            }
            n_kills += usize::from(running > 0);
            let seen = published(&store);
            if seen == wanted {
                break;
            }
            let all: BTreeSet<&String> = wanted.keys().collect();
            assert!(seen.keys().all(|key| all.contains(key)), "a reader sees what the undisturbed run has not");
            // Now and then the workers are left to finish, so that a round ends in bounded time.
            if n_runs % 12 == 0 {
                let last: Vec<Child> =
                    (0..of).map(|rank| worker(&config, &server.url(&name), &server, rank, of)).collect();
                for mut worker in last {
                    assert!(worker.wait().unwrap().success());
                }
                assert_eq!(published(&store), wanted, "round {round}");
                break;
            }
        }
        round += 1;
    }
    assert!(round > 1, "{round} rounds, {n_kills} kills");
    println!("{n_kills} kills in {round} rounds of {n_runs} runs, {:.1} s", started.elapsed().as_secs_f64());
    assert!(started.elapsed() < Duration::from_secs(1200));
}

#[test]
fn a_store_that_refuses_stalls_and_cuts_gets_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpora(dir.path());
    let server = S3Server::start().unwrap();
    let open = |name: &str| Store::open_with(&server.url(name), &server.options()).unwrap();
    assert!(worker(&config, &server.url("calm"), &server, 0, 1).wait().unwrap().success());
    let wanted = published(&open("calm"));
    for seed in 0..3 {
        let name = format!("rough{seed}");
        // 5 % in all: refused, late, or broken half-way.
        server.faults(Some(Faults { share_refused: 0.02, share_slow: 0.01, share_cut: 0.02, seed }));
        let mut workers: Vec<Child> =
            (0..2).map(|rank| worker(&config, &server.url(&name), &server, rank, 2)).collect();
        for worker in &mut workers {
            assert!(worker.wait().unwrap().success());
        }
        server.faults(None);
        assert_eq!(published(&open(&name)), wanted, "seed {seed}");
    }
}

#[test]
fn of_two_workers_that_overtake_each_other_one_publishes() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpora(dir.path());
    let server = S3Server::start().unwrap();
    let open = |name: &str| Store::open_with(&server.url(name), &server.options()).unwrap();
    assert!(worker(&config, &server.url("alone"), &server, 0, 1).wait().unwrap().success());
    let wanted = published(&open("alone"));
    // Each is the last one on a corpus: when one leaves the pictures, and the other the sounds, units of the other are missing.
    let doors = [server.second_door().unwrap(), server.second_door().unwrap()];
    doors[0].late("world-image/commits/", Duration::from_millis(100));
    doors[1].late("world-audio/commits/", Duration::from_millis(400));
    let workers = doors.iter().enumerate().map(|(rank, door)| worker(&config, &server.url("both"), door, rank, 2));
    for mut worker in workers.collect::<Vec<Child>>() {
        assert!(worker.wait().unwrap().success());
    }
    assert_eq!(published(&open("both")), wanted);
}

#[test]
fn a_random_record_is_one_range_of_its_own_size() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpora(dir.path());
    let server = S3Server::start().unwrap();
    let url = server.url("store");
    assert!(worker(&config, &url, &server, 0, 1).wait().unwrap().success());
    let store = Store::open_with(&url, &server.options()).unwrap();
    for corpus in CORPORA {
        let snapshot = store.manifest(corpus).unwrap();
        let index = MediaIndex::load(&store, &snapshot).unwrap().unwrap();
        assert_eq!(index.n_rows(), snapshot.manifest.n_records);
        let medium = format!("{}.{}", media_column(snapshot.manifest.kind), column::MEDIA_BYTES);
        let mut row = 0;
        for entry in &snapshot.manifest.shards {
            let reader = ShardReader::open(&store, corpus, entry).unwrap();
            for batch in reader.read_all(&[&medium]).unwrap() {
                let media = arrow::array::AsArray::as_struct(batch.column(0)).column(0).clone();
                let media = arrow::array::AsArray::as_binary::<i32>(&media);
                for i in 0..batch.num_rows() {
                    server.take_log();
                    assert_eq!(index.get(row).unwrap().unwrap(), media.value(i), "{corpus}, row {row}");
                    let asked = server.take_log();
                    assert_eq!((asked.len(), asked[0].n_bytes), (1, media.value(i).len() as u64), "{asked:?}");
                    row += 1;
                }
            }
        }
        assert_eq!(index.get(row).unwrap(), None);
    }
}
