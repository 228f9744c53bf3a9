//! What is checked before the first batch: that the corpora can give what the mixture asks for, and that a cursor is of
//! this run.
//!
//! In: a store, a mixture, a cursor. Out: snapshots, splits and recipes. Never: a byte of a medium; for
//! aspect buckets the width and height columns are read, for anything else no shard is.

use std::collections::BTreeMap;

use imp_schemas::cursor::Cursor;
use imp_schemas::modality::{Modality, RecordKind};
use imp_schemas::store::{Snapshot, Store, StoreError};
use imp_schemas::task::{Mixture, Task};

use crate::buckets::{Bucket, TaskRows, by_aspect};
use crate::config::LoaderSettings;
use crate::config::Rank;
use crate::corpora::Split;
use crate::error::LoaderError;
use crate::fetch::reading;
use crate::plan::{Plan, PlanState};
use crate::recipe::{Recipe, Window};

/// A mixture whose corpora are there.
pub struct Opened {
    /// As the settings want it read.
    pub store: Store,
    pub manifests: BTreeMap<String, Snapshot>,
    pub splits: Vec<Split>,
    pub recipes: Vec<Recipe>,
    pub plan: Plan,
}

/// The newest snapshots of a mixture's corpora, by name, without a pipeline that reads from them: what a loader would open.
///
/// # Errors
/// As [`Loader::open`](crate::Loader::open), for what the mixture asks for.
pub fn snapshots(store: &Store, mixture: &Mixture) -> Result<BTreeMap<String, Snapshot>, LoaderError> {
    Ok(open(store, mixture, &LoaderSettings::default(), None)?.manifests)
}

/// The newest snapshots, or those that `start` began with, as long as they are there: what is ingested, appended or withdrawn while
/// a run goes on is for later runs.
///
/// # Errors
/// A corpus, split, modality or class list that is not there; corpora of different tokenizers; a task with fewer rows than
/// its batch.
pub fn open(
    store: &Store,
    mixture: &Mixture,
    settings: &LoaderSettings,
    start: Option<&Cursor>,
) -> Result<Opened, LoaderError> {
    let mut manifests: BTreeMap<String, Snapshot> = BTreeMap::new();
    for task in mixture.tasks() {
        for corpus in task.corpora() {
            if !manifests.contains_key(corpus) {
                let newest = snapshot(store, &of_task(task), corpus)?;
                let begun_with = start.and_then(|cursor| cursor.manifest_digests.get(corpus));
                manifests.insert(corpus.clone(), older(store, newest, begun_with)?);
            }
        }
    }
    let store = reading(store, settings, manifests.values());
    let mut splits: Vec<Split> = Vec::new();
    let mut recipes = Vec::new();
    let mut tasks = Vec::new();
    for (task_idx, task) in mixture.tasks().iter().enumerate() {
        let place = of_task(task);
        let mut splits_of_task = Vec::new();
        for corpus in task.corpora() {
            let snapshot = &manifests[corpus];
            check_modalities(&place, corpus, snapshot.manifest.kind, task.modalities())?;
            if let Some(over_classes) = task.objectives().over_classes()
                && snapshot.manifest.classes.is_empty()
            {
                return Err(LoaderError::Config {
                    place,
                    key: "corpora",
                    found: format!("`{corpus}`, which has no classes"),
                    wanted: format!("a corpus with labels under `{}`", over_classes.name()),
                });
            }
            let known = splits.iter().position(|s| s.corpus == *corpus && s.split == task.split());
            splits_of_task.push(match known {
                Some(i) => i,
                None => {
                    splits.push(Split::new(snapshot, task.split())?);
                    splits.len() - 1
                }
            });
        }
        let rows: Vec<u64> = splits_of_task.iter().map(|&i| splits[i].n_rows()).collect();
        check_rows(&place, task, rows.iter().sum())?;
        tasks.push(if task.aspect_buckets() {
            let buckets = buckets(&store, &place, task, splits_of_task.iter().map(|&i| &splits[i]))?;
            TaskRows { n_rows: rows, buckets }
        } else {
            TaskRows::whole(rows, task.views().len())
        });
        recipes.push(Recipe {
            name: task.name().to_owned(),
            seed: mixture.seed(),
            task_idx,
            splits: splits_of_task,
            modalities: task.modalities().to_vec(),
            views: task.views().to_vec(),
            patching: *mixture.patching(),
            augment: Some(*task.augment()),
            working_side: task.working_side(),
            decode: task.decode(),
            window: Window::MIDDLE,
            needs_label: task.objectives().over_classes().is_some(),
        });
    }
    check_tokenizers(&manifests)?;
    Ok(Opened { store, manifests, splits, recipes, plan: Plan::new(mixture.clone(), tasks) })
}

/// For messages.
fn of_task(task: &Task) -> String {
    format!("task `{}`", task.name())
}

/// # Errors
/// A shard cannot be read, or there are more rows than an index of 4 bytes counts.
fn buckets<'a>(
    store: &Store,
    place: &str,
    task: &Task,
    splits: impl Iterator<Item = &'a Split>,
) -> Result<Vec<Bucket>, LoaderError> {
    let mut sizes = Vec::new();
    for split in splits {
        sizes.extend(split.sizes(store)?);
    }
    if u32::try_from(sizes.len()).is_err() {
        return Err(LoaderError::Config {
            place: place.to_owned(),
            key: "aspect_buckets",
            found: format!("true for {} rows", sizes.len()),
            wanted: format!("false above {} rows; cut the task's corpora into several tasks", u32::MAX),
        });
    }
    Ok(by_aspect(task, sizes.into_iter()))
}

/// The snapshot whose manifest has the digest `wanted`; `newest` if there is none.
fn older(store: &Store, newest: Snapshot, wanted: Option<&String>) -> Result<Snapshot, LoaderError> {
    let Some(wanted) = wanted.filter(|wanted| **wanted != newest.digest.0) else { return Ok(newest) };
    let corpus = &newest.manifest.corpus;
    for version in store.snapshot_versions(corpus)?.into_iter().rev().filter(|&version| version < newest.version) {
        let older = store.snapshot(corpus, version)?;
        if older.digest.0 == *wanted {
            return Ok(older);
        }
    }
    Ok(newest)
}

/// The newest snapshot of a corpus.
///
/// # Errors
/// There is none; the message lists the corpora that are there.
pub fn snapshot(store: &Store, place: &str, corpus: &str) -> Result<Snapshot, LoaderError> {
    match store.manifest(corpus) {
        Err(StoreError::NoManifest { url, .. }) => {
            let have: Vec<String> = store.corpora()?.iter().map(|c| format!("`{c}`")).collect();
            let have = if have.is_empty() { "none; run imp-ingest first".to_owned() } else { have.join(", ") };
            let (place, found) = (place.to_owned(), format!("`{corpus}`"));
            Err(LoaderError::Config {
                place,
                key: "corpora",
                found,
                wanted: format!("among the corpora of `{url}`: {have}"),
            })
        }
        other => Ok(other?),
    }
}

/// # Errors
/// A modality that records of `kind` do not give.
pub fn check_modalities(
    place: &str,
    corpus: &str,
    kind: RecordKind,
    modalities: &[Modality],
) -> Result<(), LoaderError> {
    let Some(wrong) = modalities.iter().find(|&&m| !kind.gives(m)) else { return Ok(()) };
    let all = [Modality::Image, Modality::Video, Modality::Audio, Modality::Text];
    let gives: Vec<&str> = all.iter().filter(|&&m| kind.gives(m)).map(|m| m.name()).collect();
    Err(LoaderError::Config {
        place: place.to_owned(),
        key: "modalities",
        found: wrong.name().to_owned(),
        wanted: format!("among what corpus `{corpus}` ({kind}) gives: {}", gives.join(", ")),
    })
}

/// # Errors
/// No such rank, or a view of which it may get no example.
pub fn check_rank(mixture: &Mixture, rank: Rank) -> Result<(), LoaderError> {
    if rank.rank >= rank.of {
        return Err(LoaderError::Rank { rank: rank.rank, of: rank.of });
    }
    for task in mixture.tasks() {
        if let Some(view) = task.views().iter().find(|view| view.n() < rank.of) {
            return Err(LoaderError::Config {
                place: format!("task `{}`", task.name()),
                key: "batch, token_budget",
                found: format!("{} examples", view.n()),
                wanted: format!("at least one for each of {} ranks", rank.of),
            });
        }
    }
    Ok(())
}

fn check_rows(place: &str, task: &Task, n_rows: u64) -> Result<(), LoaderError> {
    let largest = task.views().iter().map(|v| v.n() as u64).max().unwrap_or(0);
    if largest <= n_rows {
        return Ok(());
    }
    Err(LoaderError::Config {
        place: place.to_owned(),
        key: "batch, token_budget",
        found: format!("{largest} examples"),
        wanted: format!("at most the {n_rows} rows of split `{}`, so that no batch holds a row twice", task.split()),
    })
}

fn check_tokenizers(manifests: &BTreeMap<String, Snapshot>) -> Result<(), LoaderError> {
    let mut all = manifests.iter();
    let Some((first, snapshot)) = all.next() else { return Ok(()) };
    let wanted = &snapshot.manifest.tokenizer.digest;
    match all.find(|(_, s)| s.manifest.tokenizer.digest != *wanted) {
        None => Ok(()),
        Some((second, other)) => Err(LoaderError::Tokenizers {
            first: first.clone(),
            second: second.clone(),
            first_digest: wanted.short().to_owned(),
            second_digest: other.manifest.tokenizer.digest.short().to_owned(),
        }),
    }
}

/// Digests of the manifests, as a cursor holds them.
pub fn digests(manifests: &BTreeMap<String, Snapshot>) -> BTreeMap<String, String> {
    manifests.iter().map(|(corpus, snapshot)| (corpus.clone(), snapshot.digest.0.clone())).collect()
}

/// The place in the plan that `cursor` marks.
///
/// # Errors
/// [`LoaderError::OtherRun`]: seed, mixture, a manifest or a count is not this run's.
pub fn resume(
    plan: &Plan,
    mixture: &Mixture,
    manifests: &BTreeMap<String, Snapshot>,
    cursor: &Cursor,
) -> Result<PlanState, LoaderError> {
    let same = |what: &str, found: &str, wanted: &str, remedy| {
        let (what, found, wanted) = (what.to_owned(), found.to_owned(), wanted.to_owned());
        if found == wanted { Ok(()) } else { Err(LoaderError::OtherRun { what, found, wanted, remedy }) }
    };
    same("seed", &cursor.seed.to_string(), &mixture.seed().to_string(), "set `train.mixture.seed` back")?;
    let digests = digests(manifests);
    let corpora = |d: &BTreeMap<String, String>| d.keys().cloned().collect::<Vec<_>>().join(", ");
    let remedy = "use the run's own config, or start a new run";
    same("list of corpora", &corpora(&cursor.manifest_digests), &corpora(&digests), remedy)?;
    for (corpus, wanted) in &digests {
        let found = cursor.manifest_digests.get(corpus).map_or("", String::as_str);
        let what = format!("manifest digest of corpus `{corpus}`");
        same(&what, found, wanted, "the corpus was ingested again, and its older snapshot is gone; start a new run")?;
    }
    // Changes that come after the cursor's step are the run's to make.
    same("mixture digest", &cursor.mixture_digest, &mixture.digest_before(cursor.step), remedy)?;
    let state = plan.seek(cursor.step);
    let counted = plan.cursor_of(&state, &digests);
    let counts = |c: &Cursor| {
        let each = c.tasks.iter().map(|t| format!("{}: {} steps, {} examples", t.name, t.n_steps, t.n_examples));
        each.collect::<Vec<_>>().join("; ")
    };
    same("count", &counts(cursor), &counts(&counted), "the checkpoint is of another build; start a new run")?;
    Ok(state)
}
