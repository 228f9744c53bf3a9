//! What `imp-train` prints.

use std::fmt::Write;

use comfy_table::{Table, presets};
use imp_loader::{ExplainedStep, Simulated, StageSeconds};
use imp_trainer::bench::BenchLine;
use imp_trainer::data::DataReport;
use imp_trainer::eval::{Classified, Measure, Score};
use imp_trainer::plan::{Ceiling, Plan};
use imp_trainer::search::{Found, Hit};
use imp_trainer::selftest::Check;
use imp_trainer::shares::TaskShare;
use imp_trainer::steps::StepsReport;

/// One score as a sentence.
pub fn one_line(score: &Score) -> String {
    let of = |what: &str, c: &Classified| {
        let (top1, chance) = (100.0 * c.top1, 100.0 * c.chance);
        format!("{what} top-1 {top1:.1} % of {} classes (chance {chance:.1} %)", c.n_classes)
    };
    let what = match &score.measure {
        Measure::ZeroShot(classified) => of("zero-shot", classified),
        Measure::LinearProbe { classified, .. } => of("linear probe", classified),
        Measure::Retrieval { r_at_10, chance_r_at_10, n_texts, .. } => {
            format!("R@10 {:.1} % of {n_texts} sentences (chance {:.1} %)", 100.0 * r_at_10, 100.0 * chance_r_at_10)
        }
    };
    format!("{}: {what}, {} examples", score.name, score.n)
}

/// All scores.
pub fn of_scores(scores: &[Score]) -> Table {
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let mut table = empty();
    table.set_header(["evaluation", "modality", "corpus", "n", "measure", "%", "chance %", "× chance", "more"]);
    for score in scores {
        let (measure, value, chance, more) = match &score.measure {
            Measure::ZeroShot(c) => {
                (format!("top-1 of {}", c.n_classes), c.top1, c.chance, format!("top-5 {}", percent(c.top5)))
            }
            Measure::LinearProbe { n_train, classified: c } => {
                let more = format!("top-5 {}, trained on {n_train}", percent(c.top5));
                (format!("linear top-1 of {}", c.n_classes), c.top1, c.chance, more)
            }
            Measure::Retrieval {
                r_at_1, r_at_5, r_at_10, median_rank, chance_r_at_10, n_texts, text_r_at_10, ..
            } => {
                let more = format!(
                    "R@1 {}, R@5 {}, median rank {median_rank}, text→media R@10 {}",
                    percent(*r_at_1),
                    percent(*r_at_5),
                    percent(*text_r_at_10)
                );
                (format!("R@10 of {n_texts}"), *r_at_10, *chance_r_at_10, more)
            }
        };
        table.add_row([
            score.name.clone(),
            score.modality.clone(),
            format!("{}/{}", score.corpus, score.split),
            score.n.to_string(),
            measure,
            percent(value),
            percent(chance),
            format!("{:.1}", value / chance.max(1e-12)),
            more,
        ]);
    }
    table
}

/// Times by task and view, and what alternation costs.
pub fn of_steps(report: &StepsReport) -> String {
    let mut views = empty();
    views.set_header(["task", "view", "examples", "ms, same again", "ms, in turn", "ratio"]);
    for view in &report.views {
        let (grouped, in_turn) = (view.grouped_seconds, view.in_turn_seconds);
        views.add_row([
            view.task.clone(),
            view.view.to_string(),
            view.n.to_string(),
            format!("{:.1}", 1e3 * grouped),
            format!("{:.1}", 1e3 * in_turn),
            format!("{:.3}", in_turn / grouped),
        ]);
    }
    let mut out = format!("{views}\n");
    for (task, view) in &report.left_out {
        let _ = writeln!(out, "task `{task}`, view {view}: too rare to have met a batch, not timed");
    }
    let _ = writeln!(
        out,
        "another shape at every step takes {:.3} of the time of the same again and again (median of {} rounds)",
        report.alternation,
        report.rounds.len()
    );
    out
}

/// Rates by task, the time of every stage, and what to change.
pub fn of_data(report: &DataReport) -> String {
    let mut tasks = empty();
    tasks.set_header(["task", "steps", "examples", "MiB of arrays"]);
    for (name, task) in &report.tasks {
        let mib = task.n_bytes as f64 / f64::from(1 << 20);
        tasks.add_row([name.clone(), task.n_steps.to_string(), task.n_examples.to_string(), format!("{mib:.1}")]);
    }
    let mut stages = empty();
    stages.set_header(["stage", "threads", "waits for input s", "works s", "waits for output s", "busy %"]);
    let all = [
        ("fetch", &report.stages.fetch),
        ("decode", &report.stages.decode),
        ("assemble", &report.stages.assemble),
        ("trainer", &report.stages.trainer),
    ];
    for (name, stage) in all {
        let StageSeconds { n_threads, waits_for_input, works, waits_for_output } = stage;
        stages.add_row([
            name.to_owned(),
            n_threads.to_string(),
            format!("{waits_for_input:.2}"),
            format!("{works:.2}"),
            format!("{waits_for_output:.2}"),
            format!("{:.0}", 100.0 * stage.busy()),
        ]);
    }
    let mut out = format!("{tasks}\n{stages}\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{} examples in {:.2} s: {:.0} a second; the first batch came after {:.2} s",
        report.n_examples, report.seconds, report.examples_per_second, report.first_batch_seconds
    );
    let reading = &report.stats.reading;
    if reading.n_requests > 0 || reading.disk.is_some() {
        let (n, hedges, won) = (reading.n_requests, reading.n_hedges, reading.n_hedges_won);
        let _ = writeln!(out, "requests for shards: {n}, {hedges} of them second tries, {won} of which came first");
    }
    if let Some(disk) = &reading.disk {
        let gib = |n_bytes: u64| n_bytes as f64 / f64::from(1 << 30);
        let _ = writeln!(
            out,
            "disk cache: {} of {} reads found, {:.2} GiB of them, {:.2} GiB added, {:.2} GiB held",
            disk.n_hits,
            disk.n_hits + disk.n_misses,
            gib(disk.hit_bytes),
            gib(disk.stored_bytes),
            gib(disk.used_bytes)
        );
    }
    let _ = writeln!(out, "batches wait for: {}", format!("{:?}", report.bound).to_lowercase());
    for sentence in &report.advice {
        let _ = writeln!(out, "{sentence}");
    }
    out
}

/// What steps will read, the shapes of batches, and the quality of the shuffle.
pub fn of_simulated(simulated: &Simulated) -> String {
    let mib = |n_bytes: f64| format!("{:.1}", n_bytes / f64::from(1 << 20));
    let mut tasks = empty();
    tasks.set_header([
        "task",
        "steps",
        "examples",
        "requests",
        "MiB read",
        "cached",
        "pairs in a window",
        "at random",
        "correlation",
    ]);
    for (name, quality) in &simulated.shuffle {
        let task = simulated.tasks.get(name).copied().unwrap_or_default();
        tasks.add_row([
            name.clone(),
            task.n_steps.to_string(),
            task.n_examples.to_string(),
            task.n_requests.to_string(),
            mib(task.n_bytes as f64),
            task.n_cached.to_string(),
            format!("{:.2}", quality.same_window_pairs),
            format!("{:.2}", quality.same_window_pairs_if_random),
            format!("{:+.4}", quality.position_correlation),
        ]);
    }
    let mut shapes = empty();
    shapes.set_header(["task", "view", "sizes", "batch", "tokens each", "MiB of arrays"]);
    for shape in &simulated.shapes {
        let sizes: Vec<String> = shape.sizes.iter().map(|(name, size)| format!("{name} {size}")).collect();
        shapes.add_row([
            shape.task.clone(),
            shape.view.to_string(),
            sizes.join(", "),
            shape.n.to_string(),
            shape.tokens.to_string(),
            mib(shape.n_bytes as f64),
        ]);
    }
    let mut out = format!("{shapes}\n{tasks}\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{} requests and {} MiB in {} steps of {} ranks: {:.0} requests for 1,000 examples, {} MiB a step and rank, {:.1} % from the cache",
        simulated.n_requests,
        mib(simulated.n_bytes as f64),
        simulated.n_steps,
        simulated.ranks,
        simulated.requests_per_1000_examples,
        mib(simulated.bytes_per_step),
        100.0 * simulated.cache_hits,
    );
    let _ = writeln!(
        out,
        "besides, {} requests and {} MiB to open shards",
        simulated.n_opening_requests,
        mib(simulated.n_opening_bytes as f64)
    );
    let _ = writeln!(
        out,
        "reading takes {:.1} ms a step, held up by {}",
        1000.0 * simulated.read_seconds_per_step,
        simulated.bound_by
    );
    out
}

/// What is nearest to a query.
pub fn of_found(found: &Found) -> String {
    let table = |title: &str, hits: &[Hit]| {
        let mut table = empty();
        table.set_header([title, "cosine", "key", "caption"]);
        for (i, hit) in hits.iter().enumerate() {
            table.add_row([(i + 1).to_string(), format!("{:.3}", hit.score), hit.key.clone(), hit.text.clone()]);
        }
        table
    };
    format!("{}\n{}\n", table("media", &found.media), table("captions", &found.captions))
}

/// What each task got of a run.
pub fn of_shares(shares: &[TaskShare]) -> Table {
    let total = |of: fn(&TaskShare) -> f64| shares.iter().map(of).sum::<f64>().max(1e-12);
    let (steps, examples, tokens) =
        (total(|s| s.n_steps as f64), total(|s| s.n_examples as f64), total(|s| s.n_tokens as f64));
    let seconds = total(|s| s.seconds);
    let mut table = empty();
    table.set_header(["task", "steps", "%", "examples", "%", "tokens", "%", "time %", "loss"]);
    for share in shares {
        let percent = |part: f64, of: f64| format!("{:.1}", 100.0 * part / of);
        table.add_row([
            share.name.clone(),
            if share.n_steps == share.planned.0 {
                share.n_steps.to_string()
            } else {
                format!("{} of {} planned", share.n_steps, share.planned.0)
            },
            percent(share.n_steps as f64, steps),
            share.n_examples.to_string(),
            percent(share.n_examples as f64, examples),
            share.n_tokens.to_string(),
            percent(share.n_tokens as f64, tokens),
            percent(share.seconds, seconds),
            format!("{:.3}", share.loss),
        ]);
    }
    table
}

/// The examples of a step.
pub fn of_step(explained: &ExplainedStep) -> String {
    let ExplainedStep { step, task, view, sizes, first, examples } = explained;
    let sizes: Vec<String> = sizes.iter().map(|(name, size)| format!("{name} {size}")).collect();
    let mut table = empty();
    table.set_header([
        "#",
        "key",
        "shard",
        "row",
        "epoch",
        "caption",
        "crop",
        "flip",
        "frames",
        "replaced for want of",
    ]);
    for (k, example) in (*first..).zip(examples) {
        let crop = example.crop.map_or_else(String::new, |crop| {
            let (width, height) = crop.of;
            format!("{}x{}+{}+{} of {width}x{height}", crop.width, crop.height, crop.left, crop.top)
        });
        let frames = match (example.frames.iter().min(), example.frames.iter().max()) {
            (Some(first), Some(last)) => format!("{first} to {last}"),
            _ => String::new(),
        };
        let flag = |flipped| if flipped { "yes" } else { "no" };
        table.add_row([
            k.to_string(),
            example.key.clone(),
            example.shard.clone(),
            example.row.to_string(),
            example.epoch.to_string(),
            example.caption.map_or_else(String::new, |caption| caption.to_string()),
            crop,
            example.flipped.map_or("", flag).to_owned(),
            frames,
            example.lacks.unwrap_or_default().to_owned(),
        ]);
    }
    format!("step {step}: task `{task}`, view {view} ({})\n{table}\n", sizes.join(", "))
}

fn empty() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table
}

/// What a run asks of its device.
pub fn of_plan(plan: &Plan) -> String {
    let mut table = empty();
    table.set_header([
        "task",
        "% of steps",
        "view",
        "% of the task's",
        "examples",
        "tokens of one",
        "GFLOP a step",
        "kept, MiB",
    ]);
    for task in &plan.tasks {
        for (i, view) in task.views.iter().enumerate() {
            let tokens: Vec<String> = view.tokens.iter().map(|(stream, n)| format!("{stream} {n}")).collect();
            table.add_row([
                task.name.clone(),
                format!("{:.1}", 100.0 * task.share),
                i.to_string(),
                format!("{:.1}", 100.0 * view.share),
                view.n.to_string(),
                tokens.join(", "),
                format!("{:.2}", view.flops / 1e9),
                format!("{:.1}", view.kept_mib),
            ]);
        }
    }
    let most = plan.tasks.iter().flat_map(|t| &t.views).map(|v| v.kept_mib).fold(0.0, f64::max);
    format!(
        "{} parameters, {} of them in the encoder; {:.0} MiB with gradients and moments, {:.0} MiB with what the largest step keeps\n\
         {table}\nmean of a step: {:.2} GFLOP, {:.0} tokens; the run: {:.1} TFLOP\n",
        plan.n_parameters,
        plan.n_encoder_parameters,
        plan.state_mib,
        plan.state_mib + most,
        plan.flops_per_step / 1e9,
        plan.tokens_per_step,
        plan.flops / 1e12,
    )
}

/// One comparison of a device with the CPU.
pub fn of_check(check: &Check) -> String {
    let mark = if check.holds() { "ok  " } else { "FAIL" };
    format!("{mark} {:<46} {:<52} {:.1e} of {:.0e}", check.case, check.what, check.error, check.limit)
}

/// How long a mean step takes at least.
pub fn of_floor(plan: &Plan, ceiling: &Ceiling) -> String {
    let memory = ceiling.gb_per_s.map_or_else(String::new, |rate| format!(", memory at {rate:.0} GB/s"));
    let floor = 1e3 * plan.floor_seconds(ceiling);
    format!("a mean step takes {floor:.1} ms at least: products at {:.0} GFLOP/s{memory}", ceiling.gflops)
}

/// What a benchmark measured, and the ceiling it stands under.
pub fn of_bench(line: &BenchLine, ceiling: f64) -> String {
    let share = 100.0 * line.gflops / ceiling;
    let of_ceiling = format!(", {share:.0} % of the {ceiling:.0} that large products reach");
    let kernels = line.kernels.iter().map(|(name, n, s)| format!("{:>9.2} ms {n:>5} {name}\n", s * 1e3));
    let kernels: String = kernels.collect();
    format!(
        "{}, {}: {:.1} ms a step (median of {}, {:.1} to {:.1}), {:.0} tokens/s, {:.1} GFLOP/s{of_ceiling}; {} parameters, at most {} MiB\n{kernels}",
        line.peer,
        line.shape,
        line.value * 1e3,
        line.n,
        line.min * 1e3,
        line.max * 1e3,
        line.tokens_per_s,
        line.gflops,
        line.parameters,
        line.peak_mib,
    )
}
