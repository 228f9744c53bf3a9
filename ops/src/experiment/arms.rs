//! An experiment's file, and the run file that it makes of each arm.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::Plan;
use crate::error::OpsError;

/// An experiment, read.
#[derive(Debug)]
pub struct Experiment {
    pub title: String,
    pub claim: String,
    pub steps: u64,
    pub arms: Vec<Arm>,
    path: PathBuf,
    /// The run file under all arms.
    base: Table,
    /// Evaluations of all arms, by name.
    pub evals: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExperiment {
    title: String,
    claim: String,
    /// Seen from the file.
    base: String,
    steps: u64,
    evals: Vec<String>,
    /// Tasks of the run file that all arms train; absent: all.
    tasks: Option<Vec<String>>,
    #[serde(default)]
    eval: Vec<RawEval>,
    arm: Vec<Arm>,
}

/// An evaluation like another one of the run file, but for some settings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEval {
    name: String,
    like: String,
    set: Table,
}

/// What costs the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Equal {
    Flops,
    Steps,
}

/// What an experiment says of every run.
const OWN: [&str; 5] = [
    "train.steps",
    "train.checkpoint_every",
    "train.schedule.decay_steps",
    "train.schedule.warmup_steps",
    "train.mixture.seed",
];

/// One arm.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    pub name: String,
    /// Settings by path: `train.model.width`, `train.mixture.tasks[NAME].views`.
    #[serde(default)]
    set: Table,
    /// Settings of the run file that the arm is without, by path.
    #[serde(default)]
    unset: Vec<String>,
    /// The tasks that are trained; absent: all.
    tasks: Option<Vec<String>>,
    /// Evaluations, instead of the experiment's.
    evals: Option<Vec<String>>,
    equal: Option<Equal>,
}

impl Arm {
    /// A name for files.
    pub fn slug(&self) -> String {
        self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
    }
}

fn malformed(path: &Path, detail: impl ToString) -> OpsError {
    OpsError::Toml { path: path.to_owned(), detail: detail.to_string() }
}

fn read(path: &Path) -> Result<String, OpsError> {
    std::fs::read_to_string(path).map_err(|source| OpsError::File { what: "read", path: path.to_owned(), source })
}

impl Experiment {
    /// # Errors
    /// The file or its run file cannot be read, or a path in them leads nowhere.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self, OpsError> {
        let raw: RawExperiment = toml::from_str(&read(path)?).map_err(|e| malformed(path, e))?;
        let of_base = path.parent().unwrap_or(Path::new("")).join(&raw.base);
        let mut base: Table = toml::from_str(&read(&of_base)?).map_err(|e| malformed(&of_base, e))?;
        let wrong = |detail: String| malformed(path, detail);
        if raw.arm.is_empty() {
            return Err(wrong("`arm` is empty, must have the arm that the others are compared with first".to_owned()));
        }
        for eval in &raw.eval {
            let all = list(&mut base, "eval").ok_or_else(|| wrong("the run file has no `train.eval`".to_owned()))?;
            let like = all.iter().find(|e| name_of(e) == Some(&eval.like));
            let like =
                like.ok_or_else(|| wrong(format!("`eval.like` is `{}`, which the run file has not", eval.like)))?;
            let mut made = like.as_table().cloned().unwrap_or_default();
            made.insert("name".to_owned(), Value::String(eval.name.clone()));
            for (key, value) in &eval.set {
                set(&mut made, key, value.clone()).map_err(wrong)?;
            }
            all.push(Value::Table(made));
        }
        for text in sets {
            let (key, value) = text.split_once('=').ok_or_else(|| wrong(format!("`--set {text}` has no `=`")))?;
            let of_arm = |arm: &Arm| arm.set.contains_key(key) || arm.unset.iter().any(|unset| unset == key);
            if OWN.contains(&key) || raw.arm.iter().any(of_arm) {
                return Err(wrong(format!("`--set {key}`: the experiment sets it itself")));
            }
            let parsed: Table =
                toml::from_str(&format!("v = {value}")).map_err(|e| wrong(format!("`--set {text}`: {e}")))?;
            set(&mut base, key, parsed["v"].clone()).map_err(wrong)?;
        }
        let RawExperiment { title, claim, steps, evals, tasks, arm: arms, .. } = raw;
        base.remove("ingest");
        if let Some(tasks) = &tasks {
            keep(&mut base, "tasks", tasks).map_err(wrong)?;
        }
        let slugs: BTreeSet<String> = arms.iter().map(Arm::slug).collect();
        if slugs.len() < arms.len() {
            return Err(wrong("two arms have names that make the same file name".to_owned()));
        }
        Ok(Self { title, claim, steps, arms, path: path.to_owned(), base, evals })
    }

    /// Steps of an update of an arm: a run has whole ones.
    pub fn group(&self, arm: &Arm) -> u64 {
        let of_base = self.base.get("train").and_then(|train| train.get("accumulate"));
        arm.set.get("train.accumulate").or(of_base).and_then(Value::as_integer).unwrap_or(1).max(1) as u64
    }

    /// Steps of an arm that cost what `steps` of the first one cost.
    ///
    /// # Errors
    /// None of the arm's tasks is one of the first arm's.
    pub fn steps_of(&self, arm: &Arm, steps: u64, first: &Plan, own: &Plan) -> Result<u64, OpsError> {
        let equal = arm.equal.unwrap_or(if arm.tasks.is_some() { Equal::Steps } else { Equal::Flops });
        let n = match equal {
            Equal::Flops => steps as f64 * first.flops_per_step / own.flops_per_step,
            Equal::Steps => {
                let has = |name: &String| own.tasks.iter().any(|task| &task.name == name);
                steps as f64 * first.tasks.iter().filter(|t| has(&t.name)).map(|t| t.share).sum::<f64>()
            }
        };
        if n < 1.0 {
            return Err(self.malformed(format!("arm `{}`: the first arm trains none of its tasks", arm.name)));
        }
        let group = self.group(arm);
        Ok((n.round() as u64 / group * group).max(group))
    }

    fn malformed(&self, detail: String) -> OpsError {
        malformed(&self.path, detail)
    }

    /// The run file of an arm; the schedule is as long as the run.
    ///
    /// # Errors
    /// A path or a name leads nowhere.
    pub fn config(&self, arm: &Arm, steps: u64, seed: u64) -> Result<Table, OpsError> {
        let wrong = |detail: String| self.malformed(format!("arm `{}`: {detail}", arm.name));
        let mut config = self.base.clone();
        for key in &arm.unset {
            set(&mut config, key, None).map_err(wrong)?;
        }
        for (key, value) in &arm.set {
            set(&mut config, key, value.clone()).map_err(wrong)?;
        }
        keep(&mut config, "eval", arm.evals.as_ref().unwrap_or(&self.evals)).map_err(wrong)?;
        if let Some(tasks) = &arm.tasks {
            keep(&mut config, "tasks", tasks).map_err(wrong)?;
        }
        let warmup = (steps / 20).max(1);
        for (key, n) in OWN.into_iter().zip([steps, steps, steps.max(warmup + 1), warmup, seed]) {
            set(&mut config, key, Value::Integer(n as i64)).map_err(wrong)?;
        }
        Ok(config)
    }
}

/// The same run, on the CPU.
pub fn on_cpu(config: &Table) -> Table {
    let mut config = config.clone();
    if let Some(train) = config.get_mut("train").and_then(Value::as_table_mut) {
        train.insert("device".to_owned(), Value::String("cpu".to_owned()));
        train.remove("precision");
    }
    config
}

/// Leaves of a list those with the names.
fn keep(config: &mut Table, key: &str, names: &[String]) -> Result<(), String> {
    let all = list(config, key).ok_or_else(|| format!("the run file has no `train.{key}`"))?;
    let missing = names.iter().find(|&name| !all.iter().any(|one| name_of(one) == Some(name)));
    all.retain(|one| name_of(one).is_some_and(|name| names.iter().any(|n| n == name)));
    missing.map_or(Ok(()), |name| Err(format!("`train.{key}` has no `{name}`")))
}

/// `train.eval`, or the tasks of `train.mixture`.
fn list<'a>(config: &'a mut Table, key: &str) -> Option<&'a mut Vec<Value>> {
    let train = config.get_mut("train")?.as_table_mut()?;
    let holder = if key == "tasks" { train.get_mut("mixture")?.as_table_mut()? } else { train };
    holder.get_mut(key)?.as_array_mut()
}

fn name_of(value: &Value) -> Option<&String> {
    match value.get("name") {
        Some(Value::String(name)) => Some(name),
        Some(_) | None => None,
    }
}

/// Sets what a path leads to, or takes it away; tables on the way are made, lists are entered by the name in brackets.
fn set(table: &mut Table, path: &str, value: impl Into<Option<Value>>) -> Result<(), String> {
    let (head, rest) = match split(path) {
        (head, None) => {
            return match value.into() {
                Some(value) => {
                    table.insert(head.to_owned(), value);
                    Ok(())
                }
                None => table.remove(head).map(drop).ok_or_else(|| format!("`{path}` is not there to be taken away")),
            };
        }
        (head, Some(rest)) => (head, rest),
    };
    let (key, name) = match head.split_once('[') {
        Some((key, name)) => (key, Some(name.trim_end_matches(']'))),
        None => (head, None),
    };
    let entry = table.entry(key.to_owned()).or_insert_with(|| Value::Table(Table::new()));
    let inner = match (entry, name) {
        (Value::Array(all), Some(name)) => {
            all.iter_mut().find(|one| name_of(one).is_some_and(|n| n == name)).and_then(Value::as_table_mut)
        }
        (Value::Table(inner), None) => Some(inner),
        _ => None,
    };
    let inner = inner.ok_or_else(|| format!("`{path}`: nothing is at `{head}`"))?;
    set(inner, rest, value)
}

/// Before and behind the first dot outside brackets.
fn split(path: &str) -> (&str, Option<&str>) {
    let mut in_brackets = false;
    for (i, c) in path.char_indices() {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            '.' if !in_brackets => return (&path[..i], Some(&path[i + 1..])),
            _ => {}
        }
    }
    (path, None)
}

#[cfg(test)]
mod tests {
    use imp_schemas::task::{Mixture, RawMixture};

    use super::*;

    #[test]
    fn a_path_leads_through_tables_and_by_names_through_lists() {
        let mut table: Table = toml::from_str("[a]\nb = [{ name = \"x.y\", v = 1 }, { name = \"z\", v = 2 }]").unwrap();
        set(&mut table, "a.b[x.y].v", Value::Integer(7)).unwrap();
        set(&mut table, "a.new.c", Value::Boolean(true)).unwrap();
        assert_eq!(table["a"]["b"][0]["v"].as_integer(), Some(7));
        assert_eq!(table["a"]["b"][1]["v"].as_integer(), Some(2));
        assert_eq!(table["a"]["new"]["c"].as_bool(), Some(true));
        assert!(set(&mut table, "a.b[nobody].v", Value::Integer(0)).unwrap_err().contains("b[nobody]"));
        set(&mut table, "a.b[z].v", None).unwrap();
        assert!(set(&mut table, "a.b[z].v", None).unwrap_err().contains("not there"));
    }

    #[test]
    fn every_experiment_of_the_tree_makes_a_config_of_every_arm() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
        let mut asked = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|e| e == "toml") {
                let experiment = Experiment::read(&file, &["train.threads=1".to_owned()]).unwrap();
                for arm in &experiment.arms {
                    let config = experiment.config(arm, 60, 3).unwrap();
                    assert_eq!(config["train"]["steps"].as_integer(), Some(60));
                    assert_eq!(config["train"]["threads"].as_integer(), Some(1));
                    let mixture = RawMixture::deserialize(config["train"]["mixture"].clone()).unwrap();
                    Mixture::try_from(mixture).unwrap_or_else(|e| panic!("{}, {}: {e}", file.display(), arm.name));
                }
                let name = file.file_stem().unwrap().to_string_lossy().into_owned();
                asked.insert(name.split('-').next().unwrap().trim_start_matches('h').parse::<u32>().unwrap());
            }
        }
        assert!(asked.into_iter().eq(1..=15), "a file for each of the hypotheses H1 to H15");
    }

    #[test]
    fn arms_cost_the_same_flops_and_tasks_alone_have_their_share_of_the_steps() {
        let plan = |flops_per_step: f64, tasks: &[(&str, f64)]| Plan {
            n_parameters: 1,
            flops_per_step,
            tasks: tasks
                .iter()
                .map(|&(name, share)| super::super::TaskShare { name: name.to_owned(), share })
                .collect(),
        };
        let experiment = Experiment {
            title: String::new(),
            claim: String::new(),
            steps: 100,
            arms: Vec::new(),
            path: PathBuf::from("x.toml"),
            base: Table::new(),
            evals: Vec::new(),
        };
        let first = plan(4.0, &[("a", 0.25), ("b", 0.75)]);
        let steps =
            |text: &str, own: Plan| experiment.steps_of(&toml::from_str::<Arm>(text).unwrap(), 100, &first, &own);
        assert_eq!(steps("name = \"x\"", plan(8.0, &[("a", 1.0)])).unwrap(), 50);
        assert_eq!(steps("name = \"x\"\ntasks = [\"a\"]", plan(8.0, &[("a", 1.0)])).unwrap(), 25);
        let group = "name = \"x\"\nset = { \"train.accumulate\" = 7 }";
        assert_eq!(steps(group, plan(4.0, &[("a", 1.0)])).unwrap(), 98);
        assert!(steps("name = \"x\"\ntasks = [\"c\"]", plan(8.0, &[("c", 1.0)])).is_err());
    }
}
