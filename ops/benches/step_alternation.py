"""A new task and shape at every step costs nothing: training steps of a mixture in turn, beside the same steps task by task and view by view.

    imp-ingest run --config ops/configs/small-real.toml --root ../shared/data --store STORE
    python3 ops/benches/step_alternation.py --config ops/configs/small-real.toml --store STORE --work target/bench-step-alternation

In: a run file without phases, its shards. Out: a JSON line for every run and a last one with the ratio; exit 1 if it is above 1.02. Only
the standard library is used.

Both runs do the same number of steps of every task and view, as near as shares of steps allow; in the grouped one phases give all steps to one view of one task
after the other. A step's time is its wall time without the wait for its batch, from the run's metrics; the median of a task's view, times its
steps in the alternating run, summed, is a run's time. `ratio` is the alternating run's by the grouped one's, median over the rounds.
"""
import argparse
import collections
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tomllib

MOST = 1.02
# Steps before the first phase, in neither run's time: memory is new.
FIRST = 30


def grouped(mixture, steps):
    """Phases that give the steps after the first to one view of one task after the other."""
    tasks = mixture["tasks"]
    total = sum(task.get("weight", 1.0) for task in tasks)
    at, lines = FIRST, []
    for task in tasks:
        of_views = [view.get("weight", 1.0) for view in task["views"]]
        for i, weight in enumerate(of_views):
            n = round(steps * task.get("weight", 1.0) / total * weight / sum(of_views))
            if n == 0:
                continue
            lines.append(f"[[train.mixture.phases]]\nfrom_step = {at}\n")
            for other in tasks:
                share = 1.0 if other is task else 0.0
                lines.append(f'[train.mixture.phases.tasks."{other["name"]}"]\nweight = {share}\n')
                if other is task:
                    lines.append(f"view_weights = {[1.0 if j == i else 0.0 for j in range(len(of_views))]}\n")
            at += n
    return "".join(lines), at


def run(args, name, config, steps):
    """Times of steps without their waits, by task and view."""
    place = args.work / name
    shutil.rmtree(place, ignore_errors=True)
    command = [args.program, "fit", "--config", config, "--store", args.store, "--run", place, "--steps", str(steps)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    times = collections.defaultdict(list)
    for part in sorted(place.glob("metrics/*.jsonl")):
        for line in part.read_text().splitlines():
            step = json.loads(line)
            if step["step"] >= FIRST:
                times[step["task"], step["view"]].append(step["seconds"] - step["wait_seconds"])
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/debug/imp-train")
    parser.add_argument("--config", type=pathlib.Path, required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    text = args.config.read_text()
    mixture = tomllib.loads(text)["train"]["mixture"]
    if mixture.get("alternation") == "intervals" or "phases" in mixture:
        raise SystemExit(f"{args.config}: must go by weights and have no phases; the bench adds its own")
    phases, steps = grouped(mixture, args.steps)
    configs = {"in turn": args.config, "grouped": args.work / "grouped.toml"}
    configs["grouped"].write_text(f"{text}\n{phases}")
    ratios = []
    for round_ in range(args.rounds):
        names = list(configs) if round_ % 2 == 0 else list(configs)[::-1]
        times = {name: run(args, name.replace(" ", "-"), configs[name], steps) for name in names}
        both = times["in turn"].keys() & times["grouped"].keys()
        if left_out := (times["in turn"].keys() | times["grouped"].keys()) - both:
            print(f"not in both runs, left out: {sorted(left_out)}; raise --steps", file=sys.stderr)
        if not both:
            raise SystemExit("the runs have no task and view in common; raise --steps")
        seconds = {name: sum(len(times["in turn"][key]) * statistics.median(times[name][key]) for key in both) for name in names}
        ratios.append(seconds["in turn"] / seconds["grouped"])
        print(json.dumps({"bench": "step alternation", "round": round_, "steps": steps - FIRST, "shapes": len(both),
                          "seconds": {name: round(value, 3) for name, value in seconds.items()}, "ratio": round(ratios[-1], 4)}), flush=True)
    ratio = statistics.median(ratios)
    print(json.dumps({"bench": "step alternation", "ratio": round(ratio, 4), "rounds": [round(r, 4) for r in ratios],
                      "holds": ratio <= MOST}))
    sys.exit(0 if ratio <= MOST else 1)


if __name__ == "__main__":
    main()
