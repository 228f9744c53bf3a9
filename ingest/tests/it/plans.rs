//! What a plan says before a run, against what the run then does: the store's server counts its requests, the report its records
//! and bytes.

use imp_ingest::{Progress, estimate};
use imp_schemas::store::Store;
use testkit::http::{Fault, HttpServer};
use testkit::s3::S3Server;

use crate::common::{World, tar_of};

/// A plan is a sample's word; more than this and nobody can budget by it.
const TOLERANCE: f64 = 0.15;

/// A picture that does not compress: about `3 * side * side` bytes.
fn noise(side: u32, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let picture = image::RgbImage::from_fn(side, side, |_, _| {
        image::Rgb(std::array::from_fn(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 16) as u8
        }))
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Every `odd`-th of the media is no picture.
fn medium(side: u32, seed: u32, odd: u32) -> Vec<u8> {
    if odd > 0 && seed % odd == odd / 2 { b"no picture".to_vec() } else { noise(side, seed) }
}

fn near(what: &str, planned: u64, found: u64) {
    let off = (planned as f64 - found as f64).abs() / found.max(1) as f64;
    assert!(off <= TOLERANCE, "{what}: {planned} planned, {found} found, {:.1} % off", off * 100.0);
}

/// Plans and runs `ingest` into an empty store.
fn check(name: &str, world: &World, ingest: &str) {
    let config = world.config(&format!("workers = 2\nmax_reject_share = 0.5\n{ingest}")).unwrap();
    let plan = estimate(&config, &mut Progress::silent()).unwrap();
    let server = S3Server::start().unwrap();
    let store = Store::open_with(&server.url("store"), &server.options()).unwrap();
    let report = imp_ingest::run(&config, &store, &mut Progress::silent()).unwrap();
    let n_asked = server.take_log().len() as u64;
    near(&format!("{name}: requests"), plan.n_store_requests, n_asked);
    for (planned, done) in plan.corpora.iter().zip(&report.corpora) {
        near(&format!("{name}: inputs"), planned.n_inputs, done.n_inputs);
        near(&format!("{name}: records"), planned.n_records, done.n_records);
        near(&format!("{name}: bytes of shards"), planned.shard_bytes, done.shard_bytes);
        near(&format!("{name}: shards"), planned.n_shards, done.n_shards as u64);
    }
}

/// Tars of different sizes, `n` records in all.
fn tars(world: &World, n: u32, side: u32, odd: u32) {
    let (mut first, mut number) = (0, 0);
    while first < n {
        let end = (first + 20 + number % 7).min(n);
        let members: Vec<(String, Vec<u8>)> = (first..end)
            .flat_map(|seed| {
                let caption = format!("picture {seed} of a series that has a number in each of its captions");
                [(format!("{seed:06}.png"), medium(side, seed, odd)), (format!("{seed:06}.txt"), caption.into_bytes())]
            })
            .collect();
        let members: Vec<(&str, &[u8])> = members.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        world.put(&format!("t/{number:03}.tar"), tar_of(&members));
        (first, number) = (end, number + 1);
    }
}

const TARS: &str = "[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"t/*.tar\"\n";

#[test]
fn a_plan_of_tars_comes_true() {
    for (odd, side) in [(0, 100), (25, 64)] {
        let world = World::new();
        tars(&world, 500, side, odd);
        check(&format!("tars, side {side}"), &world, &format!("shard_mib = 1\n{TARS}"));
        let rules = "split = { hold_out = { test = 0.2 } }\nclean = { duplicates = \"drop\" }\n";
        check(&format!("tars, split, side {side}"), &world, &format!("shard_mib = 2\n{TARS}{rules}"));
    }
}

#[test]
fn a_plan_of_shards_that_go_up_in_parts_comes_true() {
    let world = World::new();
    tars(&world, 160, 320, 0);
    check("parts", &world, &format!("shard_mib = 20\n{TARS}"));
    check("parts, none to compare with", &world, &format!("shard_mib = 200\n{TARS}"));
}

/// A table of `n` pictures, in `n / 100` units or so.
fn table(world: &World, n: u32, odd: u32) -> String {
    let mut rows = "path,caption\n".to_owned();
    for seed in 0..n {
        world.put(&format!("files/{seed}.png"), medium(24 + seed % 40, seed, odd));
        rows += &format!("files/{seed}.png,picture {seed} of a table\n");
        if odd > 0 && seed % 50 == 0 {
            rows += &format!("files/none{seed}.png,a picture that is not there\n");
        }
    }
    world.put("t.csv", rows);
    "unit_records = 100\n[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"t.csv\"\n".to_owned()
}

#[test]
fn a_plan_of_a_table_comes_true() {
    for odd in [0, 20, 150] {
        let world = World::new();
        let config = table(&world, 1500, odd);
        check(&format!("table, odd {odd}"), &world, &config);
        let rules = "split = { hold_out = { test = 0.1, val = 0.1 } }\n";
        check(&format!("table, splits, odd {odd}"), &world, &format!("{config}{rules}"));
        let rules = "clean = { near = { caption_jaccard = 1.0 } }\n";
        check(&format!("table, near, odd {odd}"), &world, &format!("{config}{rules}"));
    }
}

#[test]
fn a_plan_of_a_folder_of_classes_and_of_two_corpora_comes_true() {
    let world = World::new();
    for seed in 0..900 {
        world.put(&format!("classes/kind {}/{seed}.png", seed % 9), medium(40, seed, 30));
    }
    let folder = "unit_records = 60\n[[ingest.corpus]]\nname = \"f\"\nkind = \"image-text\"\npath = \"classes\"\n\
                  caption_from_label = [\"a picture of {}\", \"{}\"]\n";
    check("classes", &world, folder);
    tars(&world, 200, 100, 0);
    check("classes and tars", &world, &format!("shard_mib = 1\n{folder}{TARS}"));
}

#[test]
fn a_plan_of_requests_to_hosts_comes_true() {
    let world = World::new();
    let mut rows = "url,caption\n".to_owned();
    for seed in 0..1200 {
        world.put(&format!("files/{seed}.png"), noise(24, seed));
    }
    let server = HttpServer::start(&world.root().join("files")).unwrap();
    (0..1200).for_each(|seed| rows += &format!("{},picture {seed}\n", server.url(&format!("{seed}.png"))));
    world.put("t.csv", rows);
    server.set_share(1, 0.1, Fault::Status { status: 404, retry_after_s: None, times: u64::MAX });
    // Asked for by the plan as by the run, these fail each time until tries are up.
    server.set_share(2, 0.1, Fault::Status { status: 500, retry_after_s: None, times: u64::MAX });
    let config = world
        .config(
            "max_reject_share = 0.5\nunit_records = 100\n\
             fetch = { n_tries = 3, backoff_s = 0.001, n_per_host = 16 }\n\
             [[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"t.csv\"\n",
        )
        .unwrap();
    let plan = estimate(&config, &mut Progress::silent()).unwrap();
    let n_before = server.log().len();
    let report = imp_ingest::run(&config, &world.store("store"), &mut Progress::silent()).unwrap();
    near("requests to hosts", plan.corpora[0].n_media_requests, (server.log().len() - n_before) as u64);
    near("records from hosts", plan.corpora[0].n_records, report.corpora[0].n_records);
    near("bytes from hosts", plan.corpora[0].shard_bytes, report.corpora[0].shard_bytes);
}
