"""Image loading beside its peers: imp-loader and those of shared/bench/loader_peers.py on the same JPEGs, in turn, in one run.

    python3 ops/benches/loader.py --shared ../shared --data CORPUS --work target/bench-loader --peers-python PEERS_ENV/bin/python

In: the folder `shared` (its bench/README.md says how the peers' environment is made) and a corpus of its make_corpus.py. Out: a
JSON line for every job, medians at the end, a Markdown table on stderr. Only the standard library is used here.

The workload is DATA-PLANE.md's I1: stored JPEG and caption, random part of 0.5 to 1 of the area and of aspect 0.5 to 2, antialiased
bilinear to 224 x 224, u8, batches of 64. Every round runs every contestant once, so that a busy spell meets all of them.

  imp-full     every pixel decoded, Pillow's to the bit
  imp-scaled   planes, no more than the crop needs (`decode = "scaled"`)
  limit        shared/bench/decode_limit.py: simplejpeg decodes in full and does nothing else, in one thread

Sizes: `128`, `224`; `mixed` is 128, 224 and 256 in turn, as the peers have it; `i2` is 128, 224 and 384 as tasks of weights 3, 2 and 1
(DATA-PLANE.md's I2), which the peers are given as six batches in the order in which ours come.

Ours is `imp-train data`: a loader whose batches nobody waits for. `per_cpu_s` is images by CPU seconds of the whole process between
a job of so many steps and one of four times as many (wait4): what a start costs is in neither, as it is not in the peers' windows.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys

import loader_job

BATCH = 64
CROP = "augment = { crop_area = [0.5, 1.0], crop_aspect = [0.5, 2.0] }\n"
OURS = {"imp-full": "full", "imp-scaled": "scaled"}
# Weights of the sides, a task for each; and the sides as they come.
SIZES = {"128": ({128: 1.0}, [128]), "224": ({224: 1.0}, [224]), "mixed": ({128: 1.0, 224: 1.0, 256: 1.0}, [128, 224, 256]),
         "i2": ({128: 3.0, 224: 2.0, 384: 1.0}, [128, 224, 128, 384, 224, 128])}
# One contestant of shared/bench in a process of its own, as its script runs it, with the sizes or the decoder that are asked for here.
PEER = """import sys
sys.path.insert(0, sys.argv.pop(1))
import loader_peers
loader_peers.SIZES["asked"] = {sides}
loader_peers.main()
"""
LIMIT = """import sys
sys.path.insert(0, sys.argv.pop(1))
import decode_limit
every = decode_limit.decoders
decode_limit.decoders = lambda: {name: decoder for name, decoder in every().items() if name == "simplejpeg-full"}
decode_limit.memcpy = lambda *_: None
decode_limit.main()
"""


def ours(args, name, size):
    keys = CROP + f'decode = "{OURS[name]}"\n'
    tasks = [loader_job.task(f"side-{side}", "images", "image", BATCH, f"height = {side}, width = {side}", weight, keys)
             for side, weight in SIZES[size][0].items()]
    config = loader_job.run_file(args.work / f"{name}-{size}.toml", [corpus(args)], tasks, decode_threads=args.threads)
    few, many = (loader_job.job(args, config, args.store, steps) for steps in (args.steps, 4 * args.steps))
    return {"per_cpu_s": 3 * args.steps * BATCH / (many["cpu_s"] - few["cpu_s"]), "value": many["report"]["examples_per_second"],
            "bound": many["report"]["bound"], "other_cpu": many["other_cpu"]}


def corpus(args):
    return loader_job.corpus("images", "image-text", f"image/{args.images}-wds/*.tar")


def peer(args, name, size):
    code = LIMIT if name == "limit" else PEER.format(sides=SIZES[size][1])
    more = [] if name == "limit" else ["--child", "--images", args.images, "--size", "asked", "--peers", name]
    command = [args.peers_python, "-c", code, args.shared / "bench", "--data", args.data, "--seconds", args.seconds, "--repeats", 1,
               "--threads", args.threads, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{") and '"per_cpu_s"' in line]
    lines = [line for line in lines if line["images"] == args.images]
    if not lines:
        sys.exit(f"peer {name} gave no figure; run shared/bench/loader_peers.py --peers {name} by hand")
    return {key: lines[0][key] for key in ("per_cpu_s", "value", "other_cpu", "version")}


def main():
    parser = loader_job.arguments(__doc__)
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a corpus of shared/bench/make_corpus.py")
    parser.add_argument("--peers-python", required=True, help="python of the peers' environment")
    parser.add_argument("--images", choices=["web", "large"], default="web")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["224", "i2", "128"])
    parser.add_argument("--peers", nargs="*", default=["wds-turbo", "wds-tv-jpeg", "litdata-tv-jpeg", "mds-turbo", "hf-parquet-pil"])
    parser.add_argument("--steps", type=int, default=40, help="of the shorter of our two jobs")
    parser.add_argument("--seconds", type=float, default=4, help="of a peer's window")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.store = args.work / f"store-{args.images}"
    any_task = loader_job.task("t", "images", "image", 2, "height = 224, width = 224")
    loader_job.ingest(args, loader_job.run_file(args.work / "ingest.toml", [corpus(args)], [any_task]), args.store, args.data)
    runs = {}
    for round_ in range(args.rounds):
        contestants = [(name, size) for size in args.size for name in [*OURS, *args.peers, "limit"]]
        for name, size in contestants if round_ % 2 == 0 else reversed(contestants):
            figures = ours(args, name, size) if name in OURS else peer(args, name, size)
            runs.setdefault(size, {}).setdefault(name, []).append(figures)
            loader_job.say(bench="loader", peer=name, images=args.images, size=size, round=round_, threads=args.threads, **figures)
    print("| size | loader | images per CPU second (rounds) | by the best peer | by the limit |\n| --- | --- | --- | --- | --- |", file=sys.stderr)
    for size, found in runs.items():
        medians = {name: statistics.median(f["per_cpu_s"] for f in figures) for name, figures in found.items()}
        best = max((medians[name] for name in args.peers), default=medians["limit"])
        loader_job.say(bench="loader", size=size, medians=loader_job.rounded(medians), scaled_by_best_peer=medians["imp-scaled"] / best,
                       scaled_by_limit=medians["imp-scaled"] / medians["limit"])
        for name, median in sorted(medians.items(), key=lambda item: -item[1]):
            each = ", ".join(f"{f['per_cpu_s']:.0f}" for f in found[name])
            print(f"| {size} | {name} | {median:.0f} ({each}) | {median / best:.2f} | {median / medians['limit']:.2f} |", file=sys.stderr)


if __name__ == "__main__":
    main()
