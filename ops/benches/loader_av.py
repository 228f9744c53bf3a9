"""Clips and sounds beside their peers: imp-loader and those of shared/bench/video_audio_peers.py on the same files, in turn, in one run.

    python3 ops/benches/loader_av.py --shared ../shared --data CORPUS --work target/bench-loader-av \
        --video-python VIDEO_ENV/bin/python --audio-python AUDIO_ENV/bin/python

In: the folder `shared` (its bench/README.md says how the two environments of peers are made) and a corpus of its make_corpus.py. Out: a
JSON line for every job, medians at the end, a Markdown table on stderr. Only the standard library is used here.

The workload is that of the peers. Clips: the stored MP4, 16 frames of 224 x 224 of the whole frame, u8, batches of 4; `stride2` takes
frames two apart from a random start, `uniform` spreads them over the clip (ours: 16 apart from a random start, which reads as many).
Sounds: the stored file, mean of the channels, 16 kHz, a random window of 131072 samples, log-mel of 128 x 128. Ours also gives
the ids of a caption, and nothing decoded is kept. `imp-scaled` resizes a clip's planes before they become RGB (`decode = "scaled"`). Programs
that were built with `--features ffmpeg` decode clips by libav, as the peers do. Every round runs every contestant once, so that a busy spell meets all of them.

`per_cpu_s` is clips by CPU seconds: of ours the difference between a job of `--steps` batches and one that takes about `--seconds`
longer, and at least twice as many batches (wait4), so that what a start costs is in neither, as it is not in the peers' windows.
"""
import json
import math
import pathlib
import statistics
import subprocess
import sys

import loader_job

BATCH = 4
# Width over height of the frames: a crop of this shape and of all of the area is the whole frame.
VIDEO = {"320x240": 320 / 240, "1280x720": 1280 / 720}
AUDIO = ["wav16", "flac16", "wav48", "flac48"]
STRIDE = {"stride2": 2, "uniform": 16}
OURS = {"imp-loader": "full", "imp-scaled": "scaled"}
PEERS = {"video": ["torchcodec", "torchcodec-tuned", "pyav", "decord", "spdl-video"],
         "audio": ["soundfile+torchaudio", "torchcodec+torchaudio", "librosa", "spdl+torchaudio"]}


def kind_of(name):
    return "video" if name in VIDEO else "audio"


def ours(args, contestant, name, sampling):
    kind = kind_of(name)
    if kind == "video":
        view = f"frames = 16, stride = {STRIDE[sampling]}, height = 224, width = 224"
        keys = f"augment = {{ crop_area = [1.0, 1.0], crop_aspect = [{VIDEO[name]!r}, {VIDEO[name]!r}] }}\ndecode = \"{OURS[contestant]}\"\n"
    else:
        view, keys = "spectrogram_frames = 128", ""
    config = loader_job.run_file(args.work / f"{contestant}-{name}-{sampling}.toml", [corpus(name)], [loader_job.task(name, name, kind, BATCH, view, keys=keys)],
                                 decode_threads=args.threads)
    few = loader_job.job(args, config, args.work / "store", args.steps)
    steps = args.steps + max(args.steps, math.ceil(args.seconds * few["report"]["examples_per_second"] / BATCH))
    many = loader_job.job(args, config, args.work / "store", steps)
    n = many["report"]["n_examples"] - few["report"]["n_examples"]
    return {"n": n, "per_cpu_s": n / (many["cpu_s"] - few["cpu_s"]), "value": many["report"]["examples_per_second"],
            "other_cpu": many["other_cpu"], "bound": many["report"]["bound"]}


def corpus(name):
    return loader_job.corpus(name, f"{kind_of(name)}-text", f"{kind_of(name)}/{name}.csv")


def peer(args, peer_name, name, sampling):
    python = args.video_python if kind_of(name) == "video" else args.audio_python
    out = subprocess.run([python, args.shared / "bench/video_audio_peers.py", "--data", args.data, "--sets", name, "--sampling", sampling,
                          "--threads", str(args.threads), "--seconds", str(args.seconds), "--repeats", "1", "--peers", peer_name],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{") and '"per_cpu_s"' in line]
    if not lines:
        print(f"peer {peer_name} gave no figure on {name}: {out.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    return {key: lines[0][key] for key in ("n", "per_cpu_s", "value", "other_cpu", "version")}


def main():
    parser = loader_job.arguments(__doc__)
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a corpus of shared/bench/make_corpus.py")
    parser.add_argument("--video-python", help="python of the peers' environment (requirements.txt)")
    parser.add_argument("--audio-python", help="python of the peers' environment for sound (requirements-audio.txt)")
    parser.add_argument("--sets", nargs="+", choices=[*VIDEO, *AUDIO], default=["320x240", "1280x720", *AUDIO])
    parser.add_argument("--sampling", nargs="+", choices=STRIDE, default=["stride2"])
    parser.add_argument("--peers", nargs="*", choices=PEERS["video"] + PEERS["audio"], default=PEERS["video"] + PEERS["audio"])
    parser.add_argument("--steps", type=int, default=40, help="of the shorter of our two jobs: more than are under way at a time")
    parser.add_argument("--seconds", type=float, default=4, help="of a window")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    config = args.work / "ingest.toml"
    loader_job.run_file(config, map(corpus, args.sets), [loader_job.task("t", args.sets[0], "audio", 2, "spectrogram_frames = 128")])
    loader_job.ingest(args, config, args.work / "store", args.data)
    cells = [(name, sampling) for name in args.sets for sampling in (args.sampling if name in VIDEO else ["stride2"])]
    runs = {}
    for round_ in range(args.rounds):
        jobs = [(name, sampling, contestant) for name, sampling in cells
                for contestant in [*(OURS if name in VIDEO else ["imp-loader"]), *(p for p in args.peers if p in PEERS[kind_of(name)])]]
        for name, sampling, contestant in jobs if round_ % 2 == 0 else reversed(jobs):
            figures = ours(args, contestant, name, sampling) if contestant in OURS else peer(args, contestant, name, sampling)
            if figures:
                runs.setdefault((name, sampling), {}).setdefault(contestant, []).append(figures)
                loader_job.say(bench="loader av", peer=contestant, set=name, sampling=sampling, round=round_, threads=args.threads, **figures)
    print("| set | loader | per CPU second (rounds) | by the best peer |\n| --- | --- | --- | --- |", file=sys.stderr)
    for (name, sampling), found in runs.items():
        medians = {contestant: statistics.median(f["per_cpu_s"] for f in figures) for contestant, figures in found.items()}
        best = max(((median, contestant) for contestant, median in medians.items() if contestant not in OURS), default=(math.nan, None))
        loader_job.say(bench="loader av", set=name, sampling=sampling, best_peer=best[1], ratio=max(medians[name] for name in OURS if name in medians) / best[0],
                       medians=loader_job.rounded(medians))
        for contestant, median in sorted(medians.items(), key=lambda item: -item[1]):
            each = ", ".join(f"{f['per_cpu_s']:.1f}" for f in found[contestant])
            print(f"| {name} {sampling if name in VIDEO else ''} | {contestant} | {median:.1f} ({each}) | {median / best[0]:.2f} |", file=sys.stderr)


if __name__ == "__main__":
    main()
