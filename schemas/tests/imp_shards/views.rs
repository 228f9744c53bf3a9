//! Promises of the commands that show: `show`, `stats`, `snapshots`, `diff`, `page`.

use crate::store::{CORPUS, Plan, keys, with_labels, write, write_into};
use crate::{imp_shards, stdout};

#[test]
fn rows_and_counts_are_shown() {
    let corpus = write(&Plan::default());
    let store = corpus.store();
    let text = stdout(&["show", "--store", store, CORPUS, "--split", "train", "--rows", "2"]);
    assert!(text.contains("small picture") && text.contains("8x6"), "{text}");
    let stats: serde_json::Value = serde_json::from_str(&stdout(&["stats", "--store", store, "--json"])).unwrap();
    let stats = &stats["corpora"][0];
    assert_eq!(stats["n_records"], 3);
    assert_eq!(stats["n_by_class"]["dog"], 3);
    assert_eq!(stats["splits"]["train"]["n_shards"], 1);
    assert_eq!(stats["tokens_per_caption"]["mean"], 3.0);
    assert_eq!(stats["n_rejected"]["corrupt"], 1);
    let lines = stdout(&["stats", "--store", store]);
    assert!(lines.contains("rejects: corrupt 1") && lines.contains("classes: 2, 1 seen"), "{lines}");
}

#[test]
fn every_label_of_a_record_is_shown_counted_and_compared() {
    let corpus = write(&Plan::default());
    let batch = |batch| with_labels(&batch, &["dog", "cat"], &[1, 0]);
    write_into(corpus.folder.path(), &Plan { batch, snapshot: 2, ..Plan::default() });
    let store = corpus.store();
    assert!(stdout(&["show", "--store", store, CORPUS]).contains("dog | cat"));
    let read = |arguments: &[&str]| serde_json::from_str::<serde_json::Value>(&stdout(arguments)).unwrap();
    let stats = read(&["stats", "--store", store, "--json"]);
    let by_class = &stats["corpora"][0]["n_by_class"];
    assert_eq!((&by_class["dog"], &by_class["cat"]), (&3.into(), &1.into()));
    let records = &read(&["diff", "--store", store, CORPUS, "--from", "1", "--json"])["records"];
    assert_eq!((&records["n_changed"], &records["n_label_changed"]), (&1.into(), &1.into()));
    assert_eq!(records["classes"]["cat"]["to"], 1);
    assert!(records["classes"]["dog"].is_null(), "{records}");
    let page = corpus.folder.path().join("page.html");
    stdout(&["page", "--store", store, CORPUS, "--out", page.to_str().unwrap()]);
    assert!(std::fs::read_to_string(page).unwrap().contains("data-label>cat</span>"));
}

#[test]
fn a_hidden_row_is_neither_shown_nor_counted() {
    let corpus = write(&Plan { hidden: Some(1), ..Plan::default() });
    let store = corpus.store();
    let text = stdout(&["show", "--store", store, CORPUS]);
    assert!(text.contains(" a ") && text.contains(" c ") && !text.contains(" b "), "{text}");
    let stats: serde_json::Value = serde_json::from_str(&stdout(&["stats", "--store", store, "--json"])).unwrap();
    assert_eq!(stats["corpora"][0]["n_by_class"]["dog"], 2);
    assert_eq!(stats["corpora"][0]["splits"]["train"]["n_records"], 2);
}

/// A store of two snapshots: `b` is gone, `d` is new, `c` has another caption by its whole shard's.
fn two_snapshots() -> crate::store::Corpus {
    let corpus = write(&Plan::default());
    let second = Plan { keys: keys(&["a", "c", "d", "e"]), caption: "other words", snapshot: 2, ..Plan::default() };
    write_into(corpus.folder.path(), &second);
    corpus
}

#[test]
fn snapshots_are_listed_with_what_they_hold() {
    let corpus = two_snapshots();
    let report: serde_json::Value =
        serde_json::from_str(&stdout(&["snapshots", "--store", corpus.store(), CORPUS, "--json"])).unwrap();
    let lines = report["snapshots"].as_array().unwrap();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["n_records"], &lines[1]["n_records"]), (&3.into(), &4.into()));
    assert_eq!(lines[1]["n_new_shards"], 1);
    let text = stdout(&["snapshots", "--store", corpus.store(), CORPUS]);
    assert!(text.contains("manifest") && text.lines().count() == 6, "{text}");
}

#[test]
fn a_difference_names_what_came_went_and_changed() {
    let corpus = two_snapshots();
    let diff: serde_json::Value =
        serde_json::from_str(&stdout(&["diff", "--store", corpus.store(), CORPUS, "--json"])).unwrap();
    let records = &diff["records"];
    assert_eq!(records["added"], serde_json::json!(["d", "e"]));
    assert_eq!(records["removed"], serde_json::json!(["b"]));
    // `a` is the first picture on both sides, `c` the third and the second.
    assert_eq!(records["changed"], serde_json::json!(["a (captions)", "c (media, captions)"]));
    assert_eq!(records["classes"]["dog"], serde_json::json!({ "from": 3, "to": 4 }));
    assert_eq!(diff["shards"]["n_new"], 1);
    assert_eq!(diff["config"][0]["key"], "limits.max_pixels");
    let text = stdout(&["diff", "--store", corpus.store(), CORPUS]);
    for line in ["3 → 4 (+1): 2 added, 1 removed, 2 changed", "removed    b", "limits.max_pixels: 1 → 2"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn a_tombstone_is_a_removed_record_and_two_stores_compare() {
    let corpus = write(&Plan::default());
    let other = write(&Plan { hidden: Some(2), snapshot: 2, ..Plan::default() });
    let arguments = ["diff", "--store", corpus.store(), CORPUS, "--other-store", other.store(), "--json"];
    let diff: serde_json::Value = serde_json::from_str(&stdout(&arguments)).unwrap();
    assert_eq!(diff["records"]["removed"], serde_json::json!(["c"]));
    assert_eq!(diff["shards"]["n_shared"], 1);
    assert_eq!(diff["hidden"], serde_json::json!({ "from": 0, "to": 1 }));
    let same = stdout(&["diff", "--store", corpus.store(), CORPUS, "--other-store", corpus.store()]);
    assert!(same.contains("byte for byte"), "{same}");
    let alone = imp_shards(&["diff", "--store", corpus.store(), CORPUS]);
    assert_eq!(alone.status.code(), Some(2), "there is nothing before the first snapshot");
}

#[test]
fn two_corpora_that_are_named_are_counted_side_by_side() {
    let corpus = two_snapshots();
    let text = stdout(&["stats", "--store", corpus.store(), "pictures@1", "pictures@2"]);
    assert!(text.contains("pictures@1") && text.contains("split train: records") && text.contains("+1"), "{text}");
    let same = stdout(&["stats", "--store", corpus.store(), "pictures@1", "pictures@1"]);
    assert!(same.contains("count the same"), "{same}");
}

#[test]
fn a_page_holds_its_media_escapes_its_texts_and_asks_for_nothing() {
    let corpus =
        write(&Plan { caption: "<img src=x onerror=alert(1)> & \"so on\"", hidden: Some(1), ..Plan::default() });
    let page = stdout(&["page", "--store", corpus.store(), CORPUS, "--out", "-"]);
    assert_eq!(page, stdout(&["page", "--store", corpus.store(), CORPUS, "--out", "-"]), "the same page each time");
    assert_eq!(page.matches("src=\"data:image/jpeg;base64,").count(), 2, "two rows are seen");
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt; &amp; &quot;so on&quot;"), "captions are escaped");
    for raw in ["<img src=x", "<script>alert", "<b>out</b>", "http://", "https://", "<svg\0"] {
        assert!(!page.contains(raw), "{raw}");
    }
    assert!(page.contains("3c 73 76 67 00") && page.contains("&lt;svg·"), "first bytes as hex and text");
    assert!(page.contains("its owner asked"), "tombstones stand among the rejects");
    let one = stdout(&["page", "--store", corpus.store(), CORPUS, "--n", "1", "--out", "-"]);
    assert_eq!(one.matches("<article").count(), 1);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("page.html");
    stdout(&["page", "--store", corpus.store(), CORPUS, "--out", out.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(out).unwrap(), page);
}
