//! `cargo demo`: makes up three small corpora and runs the whole path on them.
//!
//! In: nothing but the repository. Out: corpora, shards, a trained encoder, scores, a report. Never: touches a folder that
//! it did not make itself.

use std::path::Path;
use std::time::Instant;

use testkit::world::{self, WorldReport};

use crate::DemoArgs;
use crate::error::OpsError;
use crate::place::{self, Place};
use crate::run::{self, Options};

/// Of the made-up world.
pub const SEED: u64 = 7;
/// Where everything goes, seen from the repository; ops/configs/demo.toml says the same.
pub const DEFAULT_OUT: &str = "runs/demo";
const CONFIG: &str = "ops/configs/demo.toml";

/// Runs the demo.
///
/// # Errors
/// The world cannot be written, or a step failed.
pub fn demo(args: &DemoArgs) -> Result<(), OpsError> {
    let root = place::repository()?;
    let is_default = args.out == Path::new(DEFAULT_OUT);
    let out = if is_default { args.out.clone() } else { place::seen_from(&root, &args.out) };
    let json = args.json.as_ref().map(|path| place::seen_from(&root, path));
    // From here on every path is seen from the repository, as the printed commands are.
    std::env::set_current_dir(&root).map_err(|source| OpsError::File { what: "enter", path: root.clone(), source })?;

    let started = Instant::now();
    let corpora = out.join("corpora");
    make_world(args, &corpora)?;
    let run_folder = out.join("run");
    if run_folder.exists() && !args.resume {
        println!("removing the last demo's run, {} (--resume keeps it and goes on from there)", run_folder.display());
        std::fs::remove_dir_all(&run_folder).map_err(|source| OpsError::File {
            what: "remove",
            path: run_folder.clone(),
            source,
        })?;
    }
    let preparing = started.elapsed().as_secs_f64();

    let in_out = |name: &str| out.join(name).to_string_lossy().into_owned();
    let place = Place {
        config: CONFIG.into(),
        store: args.store.clone().or_else(|| (!is_default).then(|| in_out("store"))),
        run: (!is_default).then(|| in_out("run")),
        root: (!is_default).then(|| corpora.clone()),
    };
    let options = Options { threads: None, steps: args.steps, report: Some(out.join("report.html")) };
    let mut outcome = run::run(&place, &options)?;
    outcome.seconds += preparing;
    run::summarise(&outcome);
    println!(
        "\nNow on your own files: copy {CONFIG}, point `ingest.root` and `[[ingest.corpus]]` to a table, tars or a folder \
         of yours, then\n  cargo ops run my.toml\nREADME.md says which forms are read and how to read the scores."
    );
    json.map_or(Ok(()), |path| run::write_json(&outcome, &path))
}

fn make_world(args: &DemoArgs, corpora: &Path) -> Result<(), OpsError> {
    let scale = args.scale.scale();
    println!("$ {}", synth_command(args, corpora));
    let standing = world::standing(corpora).filter(|report| report.seed == SEED && report.scale == scale);
    if let Some(report) = standing {
        println!("  (stands already, with this seed and scale)");
        describe(&report, corpora);
        return Ok(());
    }
    let started = Instant::now();
    let report = world::write(corpora, &scale, SEED).map_err(|source| OpsError::World { source })?;
    describe(&report, corpora);
    println!("  ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

fn synth_command(args: &DemoArgs, corpora: &Path) -> String {
    let scale = match args.scale {
        crate::Size::Tiny => "tiny",
        crate::Size::Demo => "demo",
    };
    format!("cargo ops synth {} --scale {scale} --seed {SEED}", corpora.display())
}

/// Says what was made up, a corpus a line.
pub fn describe(report: &WorldReport, dir: &Path) {
    for scene in &report.scenes {
        println!(
            "  {}: {} records of {} combinations to train on, {} records of {} combinations that are never trained on, {:.1} MiB",
            dir.join(&scene.name).display(),
            scene.n_train,
            scene.train_classes.len(),
            scene.n_test,
            scene.test_classes.len(),
            scene.n_bytes as f64 / f64::from(1 << 20),
        );
    }
}
