//! A run that cannot be right stops, says why and what to do, and publishes nothing.

use imp_ingest::IngestError;
use imp_schemas::reject::RejectReason;

use crate::common::{World, jpeg, reject_table};

fn two_of_three_bad(world: &World) {
    world.put("c/good.jpg", jpeg(1));
    world.put("c/cut.jpg", &jpeg(2)[..200]);
    world.put("c/page.jpg", "<html>");
    world.put("c/cut2.jpg", &jpeg(3)[..200]);
    world.put("c/t.csv", "path,caption\ngood.jpg,a\ncut.jpg,b\npage.jpg,c\ncut2.jpg,d\n");
}

const CORPUS: &str = "[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"c/t.csv\"\n";

#[test]
fn over_the_budget_no_manifest_is_published_and_the_rejects_are_kept() {
    let world = World::new();
    two_of_three_bad(&world);
    let error = world.ingest(&format!("max_reject_share = 0.5\n{CORPUS}")).unwrap_err();
    let message = error.to_string();
    for part in [
        "3 of 4 inputs",
        "75.00 %",
        "50.00 %",
        "`truncated` (2)",
        "t.csv row 3: truncated: `cut.jpg`",
        "t.csv row 4",
        "t.csv row 5",
        "raise `max_reject_share`",
    ] {
        assert!(message.contains(part), "{part} in\n{message}");
    }
    let IngestError::OverBudget { listed_in, n_rejected: 3, n_inputs: 4, top: RejectReason::Truncated, .. } = error
    else {
        panic!("{error:?}");
    };
    let store = world.store("store");
    assert!(store.newest_snapshot("c").unwrap().is_none());
    let key = listed_in.strip_prefix(&format!("{}/", store.url())).unwrap();
    assert_eq!(reject_table(&store, key).len(), 3);
    // Within the budget the same corpus is published.
    assert_eq!(world.ingest(&format!("max_reject_share = 0.75\n{CORPUS}")).unwrap().corpora[0].n_records, 1);
}

#[test]
fn one_corpus_over_its_budget_stops_the_manifests_of_all() {
    let world = World::new();
    two_of_three_bad(&world);
    world.put("d/a.jpg", jpeg(7));
    world.put("d/a.txt", "fine");
    let good = "[[ingest.corpus]]\nname = \"d\"\nkind = \"image-text\"\npath = \"d\"\n";
    world.ingest(&format!("{good}{CORPUS}")).unwrap_err();
    assert_eq!(world.store("store").corpora().unwrap(), Vec::<String>::new());
    let only = world.config(&format!("{good}{CORPUS}")).unwrap().only(&["d".to_owned()]).unwrap();
    imp_ingest::run(&only, &world.store("store"), &mut imp_ingest::Progress::silent()).unwrap();
    assert_eq!(world.store("store").corpora().unwrap(), ["d"]);
}

#[test]
fn a_table_without_the_column_names_it_what_is_there_and_the_nearest() {
    let world = World::new();
    let cases = [
        (
            "t.csv",
            "path,captoin\na.jpg,x\n",
            "",
            ["`t.csv`", "`caption` or `label`", "`path`, `captoin`", "did you mean `captoin`?"],
        ),
        ("t.csv", "file,caption\na.jpg,x\n", "", ["`t.csv`", "no column `path`", "`file`, `caption`", "`columns`"]),
        (
            "t.csv",
            "path,caption\na.jpg,x\n",
            "columns = { label = \"word\" }",
            ["`t.csv`", "no column `word`", "`path`, `caption`", "`columns`"],
        ),
        (
            "t.csv",
            "path,caption\na.jpg,x\n",
            "columns = { split = \"fold\" }",
            ["`t.csv`", "no column `fold`", "`path`, `caption`", "`columns`"],
        ),
        (
            "t.jsonl",
            "{\"Path\":\"a\",\"text\":\"b\"}\n",
            "",
            ["`t.jsonl`", "no column `path`", "`Path`, `text`", "did you mean `Path`?"],
        ),
        ("t.csv", "a.jpg,x\nb.jpg,y\n", "", ["`t.csv`", "no column `path`", "`a.jpg`, `x`", "`columns`"]),
    ];
    for (file, table, columns, parts) in cases {
        world.put(&format!("c/{file}"), table);
        let config =
            format!("[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"c/{file}\"\n{columns}\n");
        let message = world.ingest(&config).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{table:?}\n{message}");
    }
    assert!(world.store("store").list("c").unwrap().is_empty());
}

#[test]
fn whole_tables_and_paths_that_cannot_be_right_stop_the_run() {
    let world = World::new();
    world.put("c/utf16.csv", b"\xff\xfep\0a\0t\0h\0\n\0");
    world.put("c/empty.csv", "");
    world.put("c/header.csv", "path,caption\n");
    world.put("c/x.parquet", "PAR1");
    world.put("c/x.zip", "PK");
    world.put("tars/a.tar", "");
    let cases = [
        ("c/utf16.csv", vec!["UTF-16", "save it as UTF-8"]),
        ("c/empty.csv", vec!["it is empty"]),
        ("c/header.csv", vec!["nothing to publish", "is empty", "holds no record"]),
        ("c/x.parquet", vec!["table `x.parquet` cannot be read", "too few for a Parquet file"]),
        ("c/x.zip", vec!["`c/x.zip`", "must be a folder, tables"]),
        ("nowhere", vec!["no such corpus path `nowhere`", "(root `"]),
        ("tars/*.zip", vec!["no such corpus path"]),
        ("tars", vec!["1 tars", "tars/*.tar"]),
    ];
    for (path, parts) in cases {
        let config = format!(
            "max_reject_share = 1.0\n[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"{path}\"\n"
        );
        let message = world.ingest(&config).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{path}\n{message}");
    }
}

#[test]
fn a_store_that_fails_before_the_manifest_leaves_no_snapshot() {
    let world = World::new();
    world.put("c/a.jpg", jpeg(1));
    world.put("c/a.txt", "words");
    let store = world.store("store");
    // A file stands where the folder of manifests should be: shards can be written, a manifest cannot.
    std::fs::create_dir_all(world.path("store/c")).unwrap();
    std::fs::write(world.path("store/c/manifests"), "in the way").unwrap();
    let config = "[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"c\"\n";
    assert!(matches!(world.ingest(config).unwrap_err(), IngestError::Store(_)));
    let left: Vec<String> = store.list("").unwrap().into_iter().map(|listed| listed.key).collect();
    assert!(left.iter().any(|key| key.starts_with("c/shards/")), "{left:?}");
    assert!(left.iter().any(|key| key.starts_with("tokenizers/")), "{left:?}");
    std::fs::remove_file(world.path("store/c/manifests")).unwrap();
    assert!(store.newest_snapshot("c").unwrap().is_none());
    // The next run reuses the orphans and publishes.
    assert!(world.ingest(config).unwrap().corpora[0].published.is_new);
    assert_eq!(store.list("c/shards").unwrap().len(), 1);
}

#[test]
fn the_program_prints_the_chain_of_causes_and_exits_with_one() {
    let world = World::new();
    let config = world.path("run.toml");
    let text = format!(
        "store = \"{}\"\nrun = \"r\"\n[ingest]\nroot = \"{}\"\n",
        world.path("s").display(),
        world.root().display()
    );
    let run = |ingest: &str| {
        std::fs::write(&config, format!("{text}{ingest}")).unwrap();
        let output = assert_cmd::Command::cargo_bin("imp-ingest")
            .unwrap()
            .args(["run", "--progress", "json", "--config", config.to_str().unwrap()])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, _, stderr) = run("[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"nowhere\"\n");
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("error: corpus `c`: no such corpus path `nowhere`"), "{stderr}");
    let (code, _, stderr) = run("[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"x\"\ncolums = {}\n");
    assert!(code == Some(1) && stderr.contains("did you mean `columns`?"), "{stderr}");
    world.put("c/a.jpg", jpeg(1));
    world.put("c/a.txt", "words");
    let (code, stdout, stderr) = run("[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"c\"\n");
    assert_eq!(code, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!(
        (report["event"].as_str(), report["report"]["corpora"][0]["n_records"].as_u64()),
        (Some("report"), Some(1))
    );
}
