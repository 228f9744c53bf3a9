"""Image loading beside its peers: imp-loader and those of shared/bench/loader_peers.py on the same JPEGs, in turn, in one run.

    python3 ops/benches/loader.py --shared ../shared --data CORPUS --work target/bench-loader --peers-python PEERS_ENV/bin/python

In: the folder `shared` (its bench/README.md says how the peers' environment is made) and a corpus of its make_corpus.py. Out: a
JSON line for every job, medians at the end, a Markdown table on stderr. Only the standard library is used here.

The workload is DATA-PLANE.md's I1: stored JPEG and caption, random part of 0.5 to 1 of the area and of aspect 0.5 to 2, antialiased
bilinear to 224 x 224, u8, batches of 64. Every round runs every contestant once, so that a busy spell meets all of them.

  imp-full     every pixel decoded, Pillow's to the bit
  imp-scaled   planes, no more than the crop needs (`decode = "scaled"`)
  imp-mixed-*  128, 224 and 256 in turn, as the peers' `--size mixed`

Ours is `imp-train data`: a loader whose batches nobody waits for. `per_cpu_s` is images by CPU seconds of the whole process between
a job of so many steps and one of four times as many (wait4): what a start costs is in neither, as it is not in the peers' windows.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

CONFIG = """store = "store"
run = "run"
[ingest]
tokenizer = {{ train = {{ vocab_size = 1024 }} }}
[[ingest.corpus]]
name = "images"
kind = "image-text"
path = "image/{images}-wds/*.tar"
[train]
steps = 1
checkpoint_every = 1
model = {{ width = 64, depth = 1, heads = 4 }}
schedule = {{ init_lr = 1e-5, peak_lr = 1e-3, end_lr = 1e-5, warmup_steps = 1, decay_steps = 2 }}
[train.loader]
decode_threads = {threads}
decoded_cache_mib = 0
[train.mixture]
seed = 17
[[train.mixture.tasks]]
name = "images"
corpora = ["images"]
modalities = ["image", "text"]
objective = "nce"
weight = 1.0
batch = 64
decode = "{decode}"
augment = {{ crop_area = [0.5, 1.0], crop_aspect = [0.5, 2.0] }}
views = [{views}]
"""
OURS = {"imp-full": ("full", "224"), "imp-scaled": ("scaled", "224"),
        "imp-mixed-full": ("full", "mixed"), "imp-mixed-scaled": ("scaled", "mixed")}
SIDES = {"224": [224], "mixed": [128, 224, 256]}
BATCH = 64


def job(args, config, steps):
    """CPU seconds, wall seconds and the report of a loader of so many steps."""
    process = subprocess.Popen([args.train, "data", "--config", config, "--store", args.work / f"store-{args.images}",
                                "--steps", str(steps), "--json"], stdout=subprocess.PIPE, text=True)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{args.train} failed on {config}")
    return usage.ru_utime + usage.ru_stime, json.loads(out)


def ours(args, name, size):
    decode, _ = OURS[name]
    views = ", ".join(f"{{ height = {side}, width = {side}, text_tokens = 16 }}" for side in SIDES[size])
    config = args.work / f"{name}.toml"
    config.write_text(CONFIG.format(images=args.images, threads=args.threads, decode=decode, views=views))
    few, many = (job(args, config, steps) for steps in (args.steps, 4 * args.steps))
    n, cpu = 3 * args.steps * BATCH, many[0] - few[0]
    return {"per_cpu_s": n / cpu, "value": many[1]["examples_per_second"], "bound": many[1]["bound"]}


def peer(args, name, size):
    out = subprocess.run([args.peers_python, args.shared / "bench/loader_peers.py", "--data", args.data, "--images", args.images,
                          "--size", size, "--threads", str(args.threads), "--seconds", str(args.seconds), "--repeats", "1",
                          "--peers", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{") and '"per_cpu_s"' in line]
    if not lines:
        sys.exit(f"peer {name} gave no figure; run shared/bench/loader_peers.py --peers {name} by hand")
    return {key: lines[0][key] for key in ("per_cpu_s", "value", "other_cpu", "version")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a corpus of shared/bench/make_corpus.py")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for shards and run files")
    parser.add_argument("--peers-python", required=True, help="python of the peers' environment")
    parser.add_argument("--programs", type=pathlib.Path, default=pathlib.Path("target/release"), help="folder of imp-ingest, imp-train")
    parser.add_argument("--images", choices=["web", "large"], default="web")
    parser.add_argument("--size", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--peers", nargs="+", default=["wds-turbo", "wds-tv-jpeg", "litdata-tv-jpeg", "mds-turbo", "hf-parquet-pil"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="of the shorter of our two jobs")
    parser.add_argument("--seconds", type=float, default=4, help="of a peer's window")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.train = (args.programs / "imp-train").resolve()
    config = args.work / "ingest.toml"
    config.write_text(CONFIG.format(images=args.images, threads=2, decode="full", views="{ height = 224, width = 224, text_tokens = 16 }"))
    subprocess.run([args.programs / "imp-ingest", "run", "--config", config, "--store", args.work / f"store-{args.images}",
                    "--root", args.data, "--progress", "json"], check=True, stdout=subprocess.DEVNULL)
    runs = {}
    for round_ in range(args.rounds):
        contestants = [(name, size, run) for size in args.size
                       for run, names in ((ours, [n for n in OURS if OURS[n][1] == size]), (peer, args.peers)) for name in names]
        for name, size, run in contestants if round_ % 2 == 0 else reversed(contestants):
            figures = run(args, name, size)
            runs.setdefault((size, name), []).append(figures)
            print(json.dumps({"bench": "loader", "peer": name, "images": args.images, "size": size, "round": round_,
                              "threads": args.threads, **{k: round(v, 1) if isinstance(v, float) else v for k, v in figures.items()}}), flush=True)
    print("| size | loader | images per CPU second (rounds) | by the best peer |\n| --- | --- | --- | --- |", file=sys.stderr)
    for size in args.size:
        medians = {name: statistics.median(f["per_cpu_s"] for f in figures) for (s, name), figures in runs.items() if s == size}
        best = max((medians[name], name) for name in args.peers)
        print(json.dumps({"bench": "loader", "size": size, "best_peer": best[1], "medians": {k: round(v, 1) for k, v in medians.items()}}))
        for name, median in sorted(medians.items(), key=lambda item: -item[1]):
            each = ", ".join(f"{f['per_cpu_s']:.0f}" for f in runs[size, name])
            print(f"| {size} | {name} | {median:.0f} ({each}) | {median / best[0]:.2f} |", file=sys.stderr)


if __name__ == "__main__":
    main()
