//! Promises of fetching, against servers on loopback that misbehave.

use std::time::{Duration, Instant};

use testkit::http::{Fault, HttpServer, closed_port};
use testkit::s3::S3Server;

use super::*;
use RejectReason::{
    Connect, Disallowed, Dns, EmptyFile, HttpStatus, MalformedRow, MissingFile, Timeout, TooLarge, Truncated,
};

const MAX: u64 = 1 << 20;

/// Patience of a test: everything happens on this machine.
fn config() -> FetchConfig {
    FetchConfig {
        connect_timeout_s: 2.0,
        idle_timeout_s: 0.5,
        timeout_s: 3.0,
        backoff_s: 0.01,
        ..FetchConfig::default()
    }
}

struct World {
    server: HttpServer,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { server: HttpServer::start(folder.path()).unwrap(), folder }
    }

    /// A file of `n` bytes that tell where they stand, and its address.
    fn file(&self, name: &str, n: usize) -> (Vec<u8>, String) {
        let bytes: Vec<u8> = (0..n).map(|i| (i / 7 + i) as u8).collect();
        std::fs::write(self.folder.path().join(name), &bytes).unwrap();
        (bytes, self.server.url(name))
    }
}

fn fetcher(config: &FetchConfig) -> Fetcher {
    Fetcher::new(config, 64 << 20, &[]).unwrap()
}

fn check(config: &FetchConfig, url: &str) -> Result<Vec<u8>, Refusal> {
    fetcher(config).fetch(&url.into(), MAX).wait()
}

fn reason(config: &FetchConfig, url: &str) -> (RejectReason, String) {
    check(config, url).unwrap_err()
}

#[test]
fn a_medium_comes_whole_and_its_host_is_told_who_asks() {
    let world = World::new();
    let (bytes, url) = world.file("a.jpg", 300_000);
    let config = FetchConfig { contact: Some("https://example.org/bot".to_owned()), ..config() };
    assert_eq!(check(&config, &url).unwrap(), bytes);
    let agent = &world.server.log()[0].user_agent;
    assert!(agent.starts_with("imp-ingest/") && agent.ends_with("(+https://example.org/bot)"), "{agent}");
}

#[test]
fn every_way_to_get_nothing_has_its_reason() {
    let world = World::new();
    let (_, url) = world.file("a.jpg", 1000);
    world.file("empty.jpg", 0);
    let status = |status| Fault::Status { status, retry_after_s: None, times: u64::MAX };
    let header = |name, value: &str| Fault::Header { name, value: value.to_owned() };
    let redirect = |to: &str| Fault::Redirect { to: to.to_owned() };
    for (path, fault) in [
        ("gone.jpg", status(410)),
        ("broken.jpg", status(500)),
        ("silent.jpg", Fault::Silent { times: u64::MAX }),
        ("noai.jpg", header("x-robots-tag", "noai")),
        ("tdm.jpg", header("tdm-reservation", "1")),
        ("loop.jpg", redirect("/loop.jpg")),
        ("escape.jpg", redirect("file:///etc/hostname")),
        ("long.jpg", Fault::TooLong { by: 10 }),
        ("cut.jpg", Fault::CutWithoutRanges { after: 10, times: u64::MAX }),
        ("huge.jpg", Fault::Endless { claims: Some(1 << 40) }),
        ("endless.jpg", Fault::Endless { claims: None }),
        ("drip.jpg", Fault::Slow { piece: 10, pause: Duration::from_secs(1) }),
        ("later.jpg", Fault::Status { status: 429, retry_after_s: Some(900), times: 1 }),
    ] {
        world.file(path, 1000);
        world.server.set(path, fault);
    }
    let at = |path: &str| world.server.url(path);
    let cases = [
        (at("missing.jpg"), HttpStatus, "404", 1),
        (at("gone.jpg"), HttpStatus, "410", 1),
        (at("broken.jpg"), HttpStatus, "500 Internal Server Error (3 tries)", 3),
        (at("silent.jpg"), Timeout, "no answer in", 3),
        (at("noai.jpg"), Disallowed, "noai", 1),
        (at("tdm.jpg"), Disallowed, "TDM-Reservation", 1),
        (at("loop.jpg"), HttpStatus, "more than 5 redirects", 6),
        (at("escape.jpg"), HttpStatus, "wanted http or https", 1),
        (at("long.jpg"), Truncated, "1000 of 1010 bytes", 3),
        (at("cut.jpg"), Truncated, "10 of 1000 bytes", 3),
        (at("huge.jpg"), TooLarge, "1099511627776 bytes, the limit is 1048576", 1),
        (at("endless.jpg"), TooLarge, "the limit is 1048576", 1),
        (at("drip.jpg"), Timeout, "nothing for 0.5 s", 3),
        (at("later.jpg"), HttpStatus, "left alone for 900 s", 1),
        (at("empty.jpg"), EmptyFile, "0 bytes", 1),
        (closed_port().unwrap(), Connect, "refused", 0),
        (url.replace("http://", "https://"), Connect, "", 0),
        ("http://no-such-host.invalid/a.jpg".to_owned(), Dns, "", 0),
        ("file:///etc/hostname".to_owned(), MalformedRow, "wanted http, https or s3", 0),
        ("http://".to_owned(), MalformedRow, "no address", 0),
        ("s3://bucket".to_owned(), MalformedRow, "wanted s3://bucket/key", 0),
    ];
    let config = FetchConfig { connect_timeout_s: 0.5, ..config() };
    for (url, want, detail, n_asked) in cases {
        let n_before = world.server.log().len();
        let (got, said) = reason(&config, &url);
        assert!(got == want && said.contains(detail), "{url}: {got}: {said}");
        assert_eq!(world.server.log().len() - n_before, n_asked, "{url}: {said}");
    }
}

#[test]
fn a_fault_that_passes_costs_a_try_and_not_the_medium() {
    let world = World::new();
    for (i, fault) in [
        Fault::Status { status: 500, retry_after_s: None, times: 2 },
        Fault::Status { status: 429, retry_after_s: Some(0), times: 1 },
        Fault::Silent { times: 1 },
        Fault::Cut { after: 40_000, times: 2 },
        Fault::CutWithoutRanges { after: 40_000, times: 2 },
        Fault::Slow { piece: 20_000, pause: Duration::from_millis(20) },
        Fault::Header { name: "x-robots-tag", value: "otherbot: noai".to_owned() },
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("{i}.jpg");
        let (bytes, url) = world.file(&path, 100_000);
        world.server.set(&path, fault.clone());
        let config = FetchConfig { connect_timeout_s: 0.5, ..config() };
        assert_eq!(check(&config, &url).as_ref(), Ok(&bytes), "{fault:?}");
    }
    let (bytes, _) = world.file("there.jpg", 100);
    world.server.set("here.jpg", Fault::Redirect { to: "over.jpg".to_owned() });
    world.server.set("over.jpg", Fault::Redirect { to: world.server.url_by_name("there.jpg") });
    assert_eq!(check(&config(), &world.server.url("here.jpg")).unwrap(), bytes);
}

#[test]
fn an_opted_out_medium_is_taken_where_the_config_says_so() {
    let world = World::new();
    let (bytes, url) = world.file("a.jpg", 100);
    world.server.set("a.jpg", Fault::Header { name: "x-robots-tag", value: "noai".to_owned() });
    assert_eq!(check(&FetchConfig { respect_opt_out: false, ..config() }, &url).unwrap(), bytes);
}

#[test]
fn a_broken_body_goes_on_where_it_broke() {
    let world = World::new();
    let (bytes, url) = world.file("a.mp4", 200_000);
    world.server.set("a.mp4", Fault::Cut { after: 90_000, times: 2 });
    assert_eq!(check(&config(), &url).unwrap(), bytes);
    let ranges: Vec<Option<String>> = world.server.log().into_iter().map(|asked| asked.range).collect();
    assert_eq!(ranges, [None, Some("bytes=90000-".to_owned()), Some("bytes=180000-".to_owned())]);
}

#[test]
fn a_body_that_was_replaced_meanwhile_is_never_glued_together() {
    let world = World::new();
    let (_, url) = world.file("a.jpg", 50_000);
    let other = vec![9; 60_000];
    world.server.set("a.jpg", Fault::Replaced { after: 20_000, with: other.clone() });
    assert_eq!(check(&config(), &url).unwrap(), other);
}

#[test]
fn a_host_that_asks_for_a_pause_gets_it() {
    let world = World::new();
    let (_, url) = world.file("a.jpg", 10);
    world.server.set("a.jpg", Fault::Status { status: 503, retry_after_s: Some(1), times: 1 });
    check(&config(), &url).unwrap();
    let log = world.server.log();
    assert!(log[1].at - log[0].at >= Duration::from_secs(1));
}

#[test]
fn no_host_sees_more_requests_at_once_than_allowed() {
    let world = World::new();
    let (_, url) = world.file("a.jpg", 2000);
    world.server.set("a.jpg", Fault::Slow { piece: 1000, pause: Duration::from_millis(5) });
    let peak = |n_in_flight, n_per_host| {
        let fetcher = fetcher(&FetchConfig { n_in_flight, n_per_host, ..config() });
        let urls = std::iter::repeat_n(Arc::<str>::from(url.as_str()), 60);
        assert!(fetcher.fetch_all(urls, 40, MAX).all(|got| got.is_ok()));
        world.server.peak_active()
    };
    assert_eq!(peak(64, 3), 3);
    assert_eq!(peak(5, 64), 5);
}

#[test]
fn what_is_under_way_stays_within_its_bytes_and_in_order() {
    let world = World::new();
    let sizes = [700_000, 10, 2_000_000, 1_500_000, 300, 900_000, 2_000_000, 40_000];
    let files: Vec<(Vec<u8>, String)> =
        sizes.iter().enumerate().map(|(i, &n)| world.file(&format!("{i}.bin"), n)).collect();
    // Faults shuffle who is done first.
    world.server.set("0.bin", Fault::Slow { piece: 100_000, pause: Duration::from_millis(20) });
    world.server.set("2.bin", Fault::Cut { after: 1_200_000, times: 1 });
    world.server.set("3.bin", Fault::Status { status: 503, retry_after_s: None, times: 1 });
    const BOUND: u64 = 1_000_000;
    let largest = *sizes.iter().max().unwrap() as u64;
    for (n_in_flight, n_per_host) in [(1, 1), (2, 8), (64, 2), (64, 64)] {
        let config = FetchConfig { n_in_flight, n_per_host, ..config() };
        let fetcher = Fetcher::new(&config, BOUND, &[]).unwrap();
        let wanted: Vec<usize> = (0..40).map(|i| i * 5 % files.len()).collect();
        let urls = wanted.iter().map(|&i| Arc::<str>::from(files[i].1.as_str()));
        let got: Vec<_> = fetcher.fetch_all(urls, 30, 4 << 20).collect();
        for (got, &i) in got.iter().zip(&wanted) {
            assert_eq!(got.as_ref().map(|bytes| bytes == &files[i].0), Ok(true), "file {i}");
        }
        let peak = fetcher.shared.gate.peak_bytes();
        assert!(peak <= BOUND + largest, "{peak} bytes were held");
    }
}

#[test]
fn a_dead_host_holds_nobody_up_who_comes_after() {
    let world = World::new();
    world.file("dead.jpg", 10);
    world.server.set("dead.jpg", Fault::Silent { times: u64::MAX });
    let (bytes, _) = world.file("a.jpg", 10);
    let config = FetchConfig { n_in_flight: 2, connect_timeout_s: 0.5, ..config() };
    let fetcher = fetcher(&config);
    let dead = fetcher.fetch(&world.server.url("dead.jpg").into(), MAX);
    let started = Instant::now();
    for _ in 0..20 {
        assert_eq!(fetcher.fetch(&world.server.url_by_name("a.jpg").into(), MAX).wait().unwrap(), bytes);
    }
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(dead.wait().unwrap_err().0, Timeout);
}

#[test]
fn what_is_given_up_frees_its_place() {
    let world = World::new();
    let (bytes, url) = world.file("a.jpg", 10);
    world.server.set("silent.jpg", Fault::Silent { times: u64::MAX });
    let fetcher = fetcher(&FetchConfig { n_in_flight: 1, idle_timeout_s: 60.0, timeout_s: 60.0, ..config() });
    let silent = fetcher.fetch(&world.server.url("silent.jpg").into(), MAX);
    let waits = fetcher.fetch(&url.into(), MAX);
    drop(silent);
    assert_eq!(waits.wait().unwrap(), bytes);
}

#[test]
fn a_fetcher_that_is_stopped_holds_nobody_up() {
    let world = World::new();
    world.server.set("silent.jpg", Fault::Silent { times: u64::MAX });
    let fetcher = fetcher(&FetchConfig { idle_timeout_s: 60.0, timeout_s: 60.0, ..config() });
    let silent = fetcher.fetch(&world.server.url("silent.jpg").into(), MAX);
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(silent.wait().is_err()));
        std::thread::sleep(Duration::from_millis(50));
        fetcher.stop();
    });
    assert!(fetcher.fetch(&world.server.url("silent.jpg").into(), MAX).wait().is_err());
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_object_of_a_bucket_is_a_medium_too() {
    let server = S3Server::start().unwrap();
    let store = imp_schemas::store::Store::open_with(&server.url("media"), &server.options()).unwrap();
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|i| (i % 251) as u8).collect();
    store.put("a.jpg", bytes.clone().into()).unwrap();
    store.put("empty.jpg", Vec::new().into()).unwrap();
    // As another program names its objects: `Store` itself writes other letters than these as %XX.
    let odd = server.bucket_folder().join("media/odd name+é%20");
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(odd.join("a b.jpg"), b"odd").unwrap();
    let fetcher = Fetcher::new(&config(), 1 << 20, &server.options()).unwrap();
    let get = |key: &str| fetcher.fetch(&server.url(&format!("media/{key}")).into(), 4 << 20).wait();
    assert_eq!(get("a.jpg").as_ref(), Ok(&bytes));
    assert_eq!(get("odd name+é%20/a b.jpg").unwrap(), b"odd");
    assert_eq!(get("none.jpg").unwrap_err().0, MissingFile);
    assert_eq!(get("empty.jpg").unwrap_err().0, EmptyFile);
    let small = fetcher.fetch(&server.url("media/a.jpg").into(), 1000).wait();
    assert_eq!(small.unwrap_err().0, TooLarge);
    server.refuse_next(1);
    assert_eq!(get("a.jpg").as_ref(), Ok(&bytes));
    server.refuse_next(1000);
    let (reason, detail) = get("none.jpg").unwrap_err();
    assert!(reason == RejectReason::Unreadable && detail.contains("503"), "{reason}: {detail}");
}

#[test]
fn two_thousand_addresses_come_back_as_many_outcomes_whatever_their_hosts_do() {
    let world = World::new();
    let (bytes, _) = world.file("a.jpg", 3000);
    for i in 0..500 {
        world.file(&format!("{i}.jpg"), 3000);
    }
    let (seed, dead) = (7, Fault::Status { status: 404, retry_after_s: None, times: u64::MAX });
    world.server.set_share(seed, 0.05, dead.clone());
    world.server.set_share(seed, 0.02, Fault::Slow { piece: 1000, pause: Duration::from_millis(1) });
    world.server.set_share(seed, 0.02, Fault::Status { status: 503, retry_after_s: None, times: 1 });
    world.server.set_share(seed, 0.02, Fault::Cut { after: 1000, times: 1 });
    let fetcher = fetcher(&FetchConfig { n_per_host: 32, ..config() });
    let paths: Vec<String> = (0..2000).map(|i| format!("{}.jpg", i % 500)).collect();
    let urls = paths.iter().map(|path| Arc::<str>::from(world.server.url(path).as_str()));
    let got: Vec<_> = fetcher.fetch_all(urls, 128, MAX).collect();
    assert_eq!(got.len(), paths.len());
    let mut n_dead = 0;
    for (path, got) in paths.iter().zip(got) {
        if world.server.fault_of(path) == Some(dead.clone()) {
            n_dead += 1;
            assert_eq!(got.unwrap_err().0, HttpStatus);
        } else {
            assert_eq!(got.as_ref(), Ok(&bytes), "{path}");
        }
    }
    // 5 % of 500 paths, each four times; five standard deviations of the draw are 24 paths.
    assert!((4..=200).contains(&n_dead), "{n_dead}");
}
