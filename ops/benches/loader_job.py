"""What the benches of the loader share: a run file, its shards, a run of `imp-train data` and what that run cost.

In: corpora and tasks as TOML. Out: the report of `imp-train data --json` beside the CPU seconds of the process (wait4). Never: a figure
of its own. Only the standard library is used.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

HEAD = """store = "store"
run = "run"
[ingest]
tokenizer = { train = { vocab_size = 1024 } }
"""
TRAIN = """[train]
steps = 1
checkpoint_every = 1
model = { width = 64, depth = 1, heads = 4 }
schedule = { init_lr = 1e-5, peak_lr = 1e-3, end_lr = 1e-5, warmup_steps = 1, decay_steps = 2 }
"""


def arguments(description, rounds=3):
    parser = argparse.ArgumentParser(description=description.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for shards and run files")
    parser.add_argument("--programs", type=pathlib.Path, default=pathlib.Path("target/release"), help="folder of imp-ingest, imp-train")
    parser.add_argument("--threads", type=int, default=2, help="that decode")
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def corpus(name, kind, path, rules=""):
    return f'[[ingest.corpus]]\nname = "{name}"\nkind = "{kind}"\npath = "{path}"\n{rules}'


def task(name, corpus_name, modality, batch, view, weight=1.0, keys=""):
    """A task over one corpus: the medium and its caption."""
    return (f'[[train.mixture.tasks]]\nname = "{name}"\ncorpora = ["{corpus_name}"]\nmodalities = ["{modality}", "text"]\n'
            f'objective = "nce"\nweight = {weight!r}\nbatch = {batch}\n{keys}views = [{{ {view}, text_tokens = 16 }}]\n')


def run_file(path, corpora, tasks, mixture="", ingest_keys="", **loader):
    """Writes a run file; `loader` are keys of `[train.loader]`. Nothing decoded is kept unless they say so."""
    loader = {"decoded_cache_mib": 0, **loader}
    settings = "[train.loader]\n" + "".join(f"{key} = {value}\n" for key, value in loader.items())
    path.write_text(HEAD + ingest_keys + "".join(corpora) + TRAIN + settings + "[train.mixture]\nseed = 17\n" + mixture + "".join(tasks))
    return path


def ingest(args, config, store, root):
    """Shards of the run file's corpora; a store that has them stays as it is."""
    subprocess.run([args.programs / "imp-ingest", "run", "--config", config, "--store", store, "--root", root, "--progress", "json"],
                   check=True, stdout=subprocess.DEVNULL)


def machine_busy_s():
    fields = list(map(int, pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def command(args, config, store, steps, *more):
    return [str(part) for part in (args.programs / "imp-train", "data", "--config", config, "--store", store, "--steps", steps, "--json", *more)]


def job(args, config, store, steps, *more, env=None):
    """One run of the loader to its end: report, CPU seconds and peak MiB of the process, and cores that others kept busy."""
    start, busy = time.perf_counter(), machine_busy_s()
    line = command(args, config, store, steps, *more)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"`{' '.join(line)}` ended with {process.returncode}")
    wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return {"report": json.loads(out), "cpu_s": cpu, "wall_s": wall, "peak_mib": usage.ru_maxrss / 1024,
            "other_cpu": max(0.0, machine_busy_s() - busy - cpu) / wall}


def rounded(figures):
    return {key: round(value, 4 if abs(value) < 10 else 1) if isinstance(value, float) else value for key, value in figures.items()}


def say(**figures):
    print(json.dumps(rounded(figures)), flush=True)
