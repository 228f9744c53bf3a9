//! The page as a whole: what a run says is on it, and nothing outside it is needed to see it.

use imp_schemas::store::Store;

use super::*;

const METRICS: &str = r#"{"step":0,"task":"image-text","view":0,"n":64,"tokens":2048,"loss":4.1,"lr":1e-4,"grad_norm":0.9,"seconds":0.3,"wait_seconds":0.0,"batch_digest":"a"}
{"step":1,"task":"audio-text","view":0,"n":64,"tokens":4096,"loss":4.0,"lr":2e-4,"grad_norm":0.9,"seconds":0.1,"wait_seconds":0.0,"batch_digest":"b"}
{"step":2,"task":"image-text","view":1,"n":64,"tokens":2048,"loss":3.5,"lr":2e-4,"grad_norm":0.9,"seconds":0.3,"wait_seconds":0.3,"batch_digest":"c"}
"#;
const SCORES: &str = r#"{"step":3,"scores":[
{"name":"images","kind":"zero-shot","corpus":"c","split":"test","modality":"image","top1":0.625,"top5":0.9,"chance":0.04,"n":240,"n_classes":25,
"confusions":[{"class":"red ring","taken_for":"red disc","n":7,"of":10}]},
{"name":"probe","kind":"linear-probe","corpus":"c","split":"test","modality":"image","top1":0.715,"top5":0.9,"chance":0.04,"n":240,"n_classes":25,"n_train":960},
{"name":"clips","kind":"retrieval","corpus":"g","split":"test","modality":"video+audio","r_at_1":0.1,"r_at_5":0.2,"r_at_10":0.5,"median_rank":11.0,"chance_r_at_10":0.1,"n":99,"n_texts":99}],
"examples":[]}"#;

fn run() -> (tempfile::TempDir, Place) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let store = Store::open(&at("run")).unwrap();
    store.put("metrics/00000000.jsonl", METRICS.into()).unwrap();
    store.put("scores.json", SCORES.into()).unwrap();
    let config = dir.path().join("my run.toml");
    std::fs::write(&config, "store = \"s\"\nrun = \"r\"\n# <script>\n").unwrap();
    let place = Place { config, store: Some(at("store")), run: Some(at("run")), root: None };
    (dir, place)
}

#[test]
fn the_page_shows_every_score_and_cost_of_the_run_and_links_to_nothing() {
    let (dir, place) = run();
    let path = dir.path().join("out/report.html");
    let steps = [Step { command: "imp-train fit --config 'a b.toml'".to_owned(), seconds: 1.25 }];
    write(&place, &steps, &path).unwrap();
    let html = std::fs::read_to_string(path).unwrap();
    for wanted in [
        "62.5",
        "15.6",
        "71.5",
        "linear probe",
        "<td>red ring</td><td class=\"text\">red disc</td><td>7</td>",
        "50.0",
        "5.0",
        "image-text",
        "audio-text",
        "my run",
        "<svg",
        "imp-train fit",
    ] {
        assert!(html.contains(wanted), "no {wanted}");
    }
    assert!(html.contains("&lt;script&gt;") && !html.contains("# <script>"), "the config is text, not markup");
    let outside = ["src=\"http", "href=\"http", "url(http", "<link", "<script"];
    assert!(outside.iter().all(|link| !html.contains(link)), "the page must stand alone");
}

#[test]
fn a_metrics_line_that_does_not_parse_is_named_with_its_part_and_line() {
    let (_dir, place) = run();
    let store = Store::open(place.run.as_deref().unwrap()).unwrap();
    store.put("metrics/00000003.jsonl", "{}\n".into()).unwrap();
    let message = metrics::read(&store).unwrap_err().to_string();
    assert!(message.contains("metrics/00000003.jsonl") && message.contains("line 1"), "{message}");
}

#[test]
fn costs_add_up_to_the_run() {
    let (_dir, place) = run();
    let store = Store::open(place.run.as_deref().unwrap()).unwrap();
    let steps = metrics::read(&store).unwrap();
    let costs = serde_json::to_value(metrics::costs(&steps)).unwrap();
    assert_eq!(costs[1]["task"], "image-text");
    assert_eq!(
        (&costs[1]["n_steps"], &costs[1]["share"], &costs[1]["wait"]),
        (&2.into(), &"86".into(), &"50.0".into())
    );
    assert_eq!(costs[0]["share"], "14");
}
