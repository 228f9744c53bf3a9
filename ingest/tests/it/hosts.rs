//! Media that a table names by URL, from a host that behaves as hosts do.

use std::collections::BTreeSet;

use imp_ingest::{Mode, Progress, Rank, RunOptions, run_as};
use imp_schemas::reject::RejectReason;
use testkit::http::{Fault, HttpServer};

use crate::common::{World, jpeg, seen};

const CONFIG: &str = "max_reject_share = 0.9\n\
    fetch = { n_tries = 2, backoff_s = 0.01, timeout_s = 2.0, idle_timeout_s = 0.5, connect_timeout_s = 1.0 }\n\
    [[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"urls.csv\"\n";

#[test]
fn what_a_host_refuses_is_listed_by_reason_and_a_retry_recovers_what_it_can() {
    let world = World::new();
    for seed in 0..24 {
        world.put(&format!("files/{seed}.jpg"), jpeg(seed));
    }
    world.put("files/page.jpg", "<html>gone</html>");
    let server = HttpServer::start(&world.root().join("files")).unwrap();
    let mut rows = "url,caption\n".to_owned();
    (0..24).for_each(|seed| rows += &format!("{},picture {seed}\n", server.url(&format!("{seed}.jpg"))));
    rows += &format!("{},page\n", server.url("page.jpg"));
    rows += &format!("{},nobody\n", testkit::http::closed_port().unwrap());
    rows += "http://no-such-host.invalid/a.jpg,nowhere\n";
    world.put("urls.csv", rows);
    // For ever, until it is taken back; and once, which the second try survives.
    server.set("3.jpg", Fault::Status { status: 404, retry_after_s: None, times: 1 });
    server.set("4.jpg", Fault::Status { status: 500, retry_after_s: None, times: 1 });
    server.set("5.jpg", Fault::Silent { times: 2 });
    server.set("6.jpg", Fault::Header { name: "x-robots-tag", value: "noai".to_owned() });
    server.set("7.jpg", Fault::Cut { after: 100, times: 1 });

    let config = world.config(CONFIG).unwrap();
    let store = world.store("store");
    imp_ingest::run(&config, &store, &mut Progress::silent()).unwrap();
    let manifest = store.manifest("c").unwrap().manifest;
    let wanted = [
        (RejectReason::UnknownFormat, 1),
        (RejectReason::Dns, 1),
        (RejectReason::Connect, 1),
        (RejectReason::Timeout, 1),
        (RejectReason::HttpStatus, 1),
        (RejectReason::Disallowed, 1),
    ];
    assert_eq!(manifest.n_rejected.into_iter().collect::<Vec<_>>(), wanted);
    assert_eq!((manifest.n_inputs, manifest.n_records), (27, 21));

    // Only the two that may come now are asked for again, and both come.
    let n_asked = server.log().len();
    let mode = Mode::Retry(vec![RejectReason::Timeout, RejectReason::HttpStatus]);
    run_as(&config, &store, &RunOptions { mode, rank: Rank::default() }, &mut Progress::silent()).unwrap();
    let asked: BTreeSet<String> = server.log()[n_asked..].iter().map(|a| a.path.clone()).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    let manifest = store.manifest("c").unwrap().manifest;
    assert_eq!((manifest.n_inputs, manifest.n_records), (27, 23));
    assert_eq!(manifest.n_rejected.len(), 4);
    let media: BTreeSet<Vec<u8>> = seen(&store, "c").into_iter().map(|row| row.media).collect();
    assert!(media.contains(&jpeg(3)) && media.contains(&jpeg(5)) && media.len() == 23);
}
