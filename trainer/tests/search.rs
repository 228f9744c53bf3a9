//! Embeddings of a corpus, and what is found among them by a text and by a file.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use imp_ingest::IngestConfig;
use imp_schemas::store::Store;
use imp_trainer::model::Stream;
use imp_trainer::search;
use testkit::world::{self, Scale};

fn imp_train(run_file: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imp-train"));
    command.args(args).arg("--config").arg(run_file).output().unwrap()
}

fn found(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The medium of a key, which is a path without its ending; captions may lie beside it.
fn file_of(corpus: &Path, key: &str) -> PathBuf {
    let at = corpus.join(key);
    let name = at.file_name().unwrap();
    let beside = std::fs::read_dir(at.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let media = ["jpg", "png", "webp", "wav", "flac", "mp3", "ogg"];
    let is_medium = |path: &PathBuf| path.extension().is_some_and(|e| media.iter().any(|m| e == *m));
    beside.filter(is_medium).find(|path| path.file_stem() == Some(name)).unwrap()
}

#[test]
fn a_file_of_the_corpus_finds_itself_and_a_caption_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let corpora = dir.path().join("corpora");
    world::write(&corpora, &Scale::tiny(), 5).unwrap();
    let (store, run) = (dir.path().join("store"), dir.path().join("run"));
    let text = testkit::tiny::run_file(&corpora, store.to_str().unwrap(), run.to_str().unwrap(), 8, 4);
    // Experts that choose among the tokens of one example: what a file becomes does not depend on the batch it came in.
    let sparse = "experts = { n = 2, blocks = 1, eval_groups = \"example\" }\n\n[train.schedule]";
    let run_file = dir.path().join("run.toml");
    std::fs::write(&run_file, text.replace("\n[train.schedule]", sparse)).unwrap();
    let config = IngestConfig::read(&run_file).unwrap();
    imp_ingest::run(&config, &Store::open(store.to_str().unwrap()).unwrap(), &mut imp_ingest::Progress::silent())
        .unwrap();
    assert!(imp_train(&run_file, &["fit", "--steps", "4"]).status.success());

    // The last one takes the mean of two windows.
    for (eval, stream, path) in [
        ("images", Stream::Vision, "world-image"),
        ("sounds", Stream::Spectrogram, "world-audio"),
        ("sounds as waveforms", Stream::Waveform, "world-audio"),
    ] {
        let out = dir.path().join(format!("{eval}.parquet"));
        let out = out.to_str().unwrap();
        let output = imp_train(&run_file, &["embed", "--eval", eval, "--out", out]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let embeddings = search::read(Path::new(out)).unwrap();
        assert_eq!((embeddings.step, embeddings.width, embeddings.corpus.as_str()), (4, 32, path));
        for row in &embeddings.rows {
            let length: f32 = row.vector.iter().map(|v| v * v).sum();
            assert!((length - 1.0).abs() < 1e-4, "{}: {length}", row.key);
            assert!(
                (row.stream, row.space) == (stream, Stream::Text) || (row.stream, row.space) == (Stream::Text, stream)
            );
        }
        let media: Vec<_> = embeddings.rows.iter().filter(|row| row.stream == stream).collect();
        let captions: Vec<_> = embeddings.rows.iter().filter(|row| row.stream == Stream::Text).collect();
        assert!(media.len() > 3 && captions.len() > 3);

        let file = file_of(&corpora.join(path), &media[2].key);
        let by_file = found(&imp_train(
            &run_file,
            &["search", "--among", out, "-n", "2", "--json", "--file", file.to_str().unwrap()],
        ));
        assert_eq!(by_file["media"][0]["key"], media[2].key.as_str(), "{by_file}");
        assert!(by_file["media"][0]["score"].as_f64().unwrap() > 0.9999, "{by_file}");
        assert_eq!((by_file["media"].as_array().unwrap().len(), by_file["captions"].as_array().unwrap().len()), (2, 2));

        let by_text = found(&imp_train(&run_file, &["search", "--among", out, "--json", &captions[1].text]));
        assert_eq!(by_text["captions"][0]["text"], captions[1].text.as_str());
        // The best medium is that with the greatest product with the caption's vector.
        let score =
            |row: &search::EmbeddedRow| -> f32 { row.vector.iter().zip(&captions[1].vector).map(|(a, b)| a * b).sum() };
        let best = media.iter().map(|row| score(row)).fold(f32::NEG_INFINITY, f32::max);
        assert!((by_text["media"][0]["score"].as_f64().unwrap() - f64::from(best)).abs() < 1e-4, "{by_text}");
    }

    // What must be refused.
    let out = dir.path().join("images.parquet");
    let company =
        std::fs::read_to_string(&run_file).unwrap().replace("eval_groups = \"example\"", "eval_groups = \"batch\"");
    let in_company = dir.path().join("company.toml");
    std::fs::write(&in_company, company).unwrap();
    let again = dir.path().join("again.parquet");
    let again = again.to_str().unwrap();
    let stderr = refused(&imp_train(&in_company, &["search", "--among", out.to_str().unwrap(), "a circle"]));
    assert!(stderr.contains("made by another checkpoint or another config"), "{stderr}");
    assert!(imp_train(&in_company, &["embed", "--eval", "images", "--out", again]).status.success());
    let stderr = refused(&imp_train(&in_company, &["search", "--among", again, "a circle"]));
    assert!(stderr.contains("`train.model.experts.eval_groups` is `batch`"), "{stderr}");
    let stderr = refused(&imp_train(&run_file, &["search", "--among", out.to_str().unwrap(), " "]));
    assert!(stderr.contains("the text to search for is empty"), "{stderr}");
    let out = out.to_str().unwrap();
    let stderr = refused(&imp_train(&run_file, &["search", "--among", out, "--file", run_file.to_str().unwrap()]));
    assert!(stderr.contains("is not what evaluation `images` embeds (image)"), "{stderr}");
    let other = |from: &str, to: &str| {
        let path = dir.path().join("other.toml");
        let text = std::fs::read_to_string(&run_file).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        path
    };
    let log = other("text_table = 16", "text_table = 16\ntemperature_form = \"log\"");
    for command in [&["fit"][..], &["eval"]] {
        let stderr = refused(&imp_train(&log, command));
        assert!(
            stderr.contains(
                "`train.model.temperature_form` is \"log\", but the run's checkpoint was trained with \"relu\""
            ),
            "{stderr}"
        );
    }
    let many = other("experts = { n = 2", "experts = { n = 32");
    let stderr = refused(&imp_train(&many, &["embed", "--eval", "images", "--out", again]));
    assert!(
        stderr.contains(
            "`train.model.experts.capacity_factor` is 1, must be larger, or `experts.n` (32) smaller: evaluation"
        ),
        "{stderr}"
    );
    let never = other("[train.loader]", "[train.optimizer]\nema = 1.5\n\n[train.loader]");
    let stderr = refused(&imp_train(&never, &["eval"]));
    assert!(stderr.contains("`train.optimizer.ema` is 1.5, must be at least 0 and below 1"), "{stderr}");
    let stderr = refused(&imp_train(&run_file, &["embed", "--eval", "nothing", "--out", out]));
    assert!(stderr.contains("no `[[train.eval]]` named `nothing`; it has images, clips, sounds"), "{stderr}");
    // A run may begin to keep a mean of its parameters.
    let averaged = other("[train.loader]", "[train.optimizer]\nema = 0.9\n\n[train.loader]");
    let stderr = refused(&imp_train(&averaged, &["eval"]));
    assert!(stderr.contains("lacks the tensor `ema/"), "{stderr}");
    for command in ["fit", "eval"] {
        let output = imp_train(&averaged, &[command]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let stderr = refused(&imp_train(&run_file, &["search", "--among", out, "a circle"]));
    assert!(
        stderr.contains("made by another checkpoint or another config (after 4 steps, the run's newest is after 8)"),
        "{stderr}"
    );
}
