"""Loading from afar beside loading from a folder: the same shards behind an S3 server that is late and fails, in turn, in one run.

    python3 ops/benches/loader_s3.py --data CORPUS --work target/bench-loader-s3

In: a corpus of shared/bench/make_corpus.py. Out: a JSON line for every job, medians at the end; exit 1 if `afar` is below 0.8 of `local`,
or a sample is wrong. Only the standard library is used.

  local   the folder
  near    ops/benches/s3_server.py on loopback, at once and without faults: what HTTP costs
  afar    the same with 30 ms before every answer, 5 % of the requests answered with 503 and 1 % of the bodies cut off

The workload is that of loader.py: stored JPEG and caption, random part of the picture, 224 x 224, batches of 64, in shards of
`--shard-mib`. The server is a process of its own: its CPU seconds are `server_cpu_s` and not in `per_cpu_s`. It needs some of the machine,
so `--threads` is one core fewer than there are. Figures are differences between a job of `--steps` and one of four times as many.

Wrong samples: `imp-train data --digests` writes what every sample of a step is and the digest of what it holds; a sample that differs from
the local one is wrong. GETs by 1,000 samples stand beside what `imp-train simulate` says.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import urllib.request

import loader_job

BATCH = 64
KEYS = 'augment = { crop_area = [0.5, 1.0], crop_aspect = [0.5, 2.0] }\ndecode = "scaled"\n'
VARIABLES = {"AWS_ALLOW_HTTP": "true", "AWS_SKIP_SIGNATURE": "true", "AWS_REGION": "us-east-1"}
CASES = {"local": None, "near": (0, 0.0, 0.0), "afar": (30, 0.05, 0.01)}
LEAST = 0.8


class Served:
    """The store behind the server; `seen` gives what it was asked and the CPU seconds that it took."""

    def __init__(self, store, latency_ms, refused, cut, seed):
        self.command = [sys.executable, pathlib.Path(__file__).with_name("s3_server.py"), "--folder", store, "--latency-ms", latency_ms,
                        "--refused", refused, "--cut", cut, "--seed", seed]

    def __enter__(self):
        self.process = subprocess.Popen(list(map(str, self.command)), stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def seen(self):
        with urllib.request.urlopen(f"{self.url}/_counts") as answer:
            counts = json.load(answer)
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return {**counts, "server_cpu_s": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")}


def job(args, case, steps, seed, *more):
    if CASES[case] is None:
        return loader_job.job(args, args.config, args.store, steps, *more), {}
    with Served(args.store, *CASES[case], seed) as server:
        done = loader_job.job(args, args.config, "s3://bench", steps, *more, env={**VARIABLES, "AWS_ENDPOINT": server.url})
        return done, server.seen()


def busy(stage):
    """Share of its threads' time that a stage was not waiting for another."""
    return stage["works"] / max(stage["waits_for_input"] + stage["works"] + stage["waits_for_output"], 1e-9)


def measure(args, case, seed):
    (few, few_seen), (many, many_seen) = (job(args, case, steps, seed) for steps in (args.steps, 4 * args.steps))
    n = many["report"]["n_examples"] - few["report"]["n_examples"]
    seconds = many["report"]["seconds"] - few["report"]["seconds"]
    seen = {key: (many_seen[key] - few_seen[key]) / (1 if key == "server_cpu_s" else n / 1000) for key in many_seen}
    return {"n": n, "value": n / seconds, "per_cpu_s": n / (many["cpu_s"] - few["cpu_s"]), "bound": many["report"]["bound"],
            "fetch_busy": busy(many["report"]["stages"]["fetch"]),
            "first_batch_s": many["report"]["first_batch_seconds"], "substituted": len(many["report"]["stats"]["substituted"]),
            "other_cpu": many["other_cpu"], "per_1000_samples": loader_job.rounded(seen)}


def n_wrong(args):
    """Samples of two runs that differ in what they are or what they hold, of the same steps."""
    lines = {}
    for case in ("local", "afar"):
        path = args.work / f"digests-{case}.jsonl"
        _, seen = job(args, case, 2 * args.steps, 7, "--digests", path)
        lines[case] = [json.loads(line) for line in path.read_text().splitlines()]
    samples = {case: [example for line in each for example in line["examples"]] for case, each in lines.items()}
    wrong = sum(a != b for a, b in zip(samples["local"], samples["afar"], strict=True))
    loader_job.say(bench="loader s3", job="digests", samples=len(samples["afar"]), wrong_samples=wrong, refused=seen["refused"], cut=seen["cut"])
    return wrong


def simulated(args):
    """What `imp-train simulate` says of as many steps as the longer job takes."""
    command = [args.programs / "imp-train", "simulate", "--config", args.config, "--store", args.store, "--steps", str(4 * args.steps + 1), "--json"]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    n = BATCH * said["n_steps"] / 1000
    return {"gets": said["n_requests"] / n, "bytes": said["n_bytes"] / n}


def main():
    parser = loader_job.arguments(__doc__)
    parser.set_defaults(threads=max(1, os.cpu_count() - 1))
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a corpus of shared/bench/make_corpus.py")
    parser.add_argument("--steps", type=int, default=40, help="of the shorter of the two jobs")
    parser.add_argument("--shard-mib", type=int, default=32, help="four shards of 2,000 pictures")
    parser.add_argument("--radius", type=int, default=0, help="rows that are shuffled together; 0 is all")
    parser.add_argument("--buffered-mib", type=int, default=512)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.store = (args.work / f"store-{args.shard_mib}").resolve()
    args.config = loader_job.run_file(
        args.work / "run.toml", [loader_job.corpus("images", "image-text", "image/web-wds/*.tar")],
        [loader_job.task("images", "images", "image", BATCH, "height = 224, width = 224", keys=KEYS)],
        mixture=f"shuffle_radius = {args.radius}\n" if args.radius else "", ingest_keys=f"shard_mib = {args.shard_mib}\n",
        decode_threads=args.threads, max_buffered_mib=args.buffered_mib)
    loader_job.ingest(args, args.config, args.store, args.data)
    runs = {case: [] for case in args.cases}
    for round_ in range(args.rounds):
        for case in args.cases if round_ % 2 == 0 else reversed(args.cases):
            figures = measure(args, case, round_)
            runs[case].append(figures)
            loader_job.say(bench="loader s3", job=case, round=round_, threads=args.threads, radius=args.radius, **figures)
    wrong = n_wrong(args)
    loader_job.say(bench="loader s3", job="simulate", per_1000_samples=loader_job.rounded(simulated(args)))
    medians = {case: {key: statistics.median(f[key] for f in figures) for key in ("value", "per_cpu_s")} for case, figures in runs.items()}
    ratio = medians["afar"]["value"] / medians["local"]["value"] if {"afar", "local"} <= medians.keys() else None
    holds = wrong == 0 and (ratio or 0.0) >= LEAST
    loader_job.say(bench="loader s3", threads=args.threads, radius=args.radius, afar_by_local=ratio, wrong_samples=wrong, holds=holds,
                   medians={case: loader_job.rounded(each) for case, each in medians.items()})
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
