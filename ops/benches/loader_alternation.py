"""Alternation costs nothing: a mixture of six tasks of different shapes beside each of the tasks alone, in turn, in one run.

    python3 ops/benches/loader_alternation.py --data CORPUS --work target/bench-alternation

In: a corpus of shared/bench/make_corpus.py. Out: a JSON line for every job and a last one with the ratio; exit 1 if it is below 0.95.
Only the standard library is used.

Six tasks share `--steps` steps by their weights: pictures at 128, 224 and 384, clips, sounds of 16 and of 48 kHz, each with batches
and arrays of another size. The trainer takes no time. With nothing lost by alternating, a step of the mixture takes what the tasks' steps
take alone, weighted by their shares of the steps; `ratio` is that time by the mixture's, of the wall and of the CPU. (The mean of
throughputs would be another number: examples per second do not add up over shares of steps, times do.)

Each round runs the six and the mixture; each figure is the difference between a job of all its steps and one of a few, so that
opening and the first filling of the queues are in neither. A task alone takes as many steps as it has in the mixture.
"""
import pathlib
import statistics
import sys

import loader_job

CROP = "augment = { crop_area = [0.5, 1.0], crop_aspect = [0.5, 2.0] }\n"
CORPORA = {"images": ("image-text", "image/web-wds/*.tar"), "clips": ("video-text", "video/320x240.csv"),
           "wav16": ("audio-text", "audio/wav16.csv"), "flac48": ("audio-text", "audio/flac48.csv")}
# Name: corpus, modality, batch, view, weight, keys.
TASKS = {
    "image-128": ("images", "image", 32, "height = 128, width = 128", 3.0, CROP + 'decode = "scaled"\n'),
    "image-224": ("images", "image", 24, "height = 224, width = 224", 2.0, CROP),
    "image-384": ("images", "image", 12, "height = 384, width = 384", 1.0, CROP),
    "clip-112": ("clips", "video", 2, "frames = 16, stride = 2, height = 112, width = 112", 1.0, ""),
    "sound-long": ("wav16", "audio", 16, "spectrogram_frames = 128", 1.0, ""),
    "sound-short": ("flac48", "audio", 4, "spectrogram_frames = 64", 2.0, ""),
}
LEAST = 0.95


def task_of(name):
    corpus, modality, batch, view, weight, keys = TASKS[name]
    return loader_job.task(name, corpus, modality, batch, view, weight, keys)


def measure(args, name, names, steps):
    """Seconds of the wall and of the CPU a step, and how many steps each task had."""
    corpora = [loader_job.corpus(corpus, *CORPORA[corpus]) for corpus in dict.fromkeys(TASKS[task][0] for task in names)]
    config = loader_job.run_file(args.work / f"{name}.toml", corpora, map(task_of, names), decode_threads=args.threads)
    few, many = (loader_job.job(args, config, args.work / "store", n) for n in (args.few, args.few + steps))
    wall = (many["report"]["seconds"] - few["report"]["seconds"]) / steps
    cpu = (many["cpu_s"] - few["cpu_s"]) / steps
    turns = {task: counted["n_steps"] for task, counted in many["report"]["tasks"].items()}
    return {"steps": steps, "wall_ms": 1e3 * wall, "cpu_ms": 1e3 * cpu, "bound": many["report"]["bound"], "peak_mib": many["peak_mib"],
            "other_cpu": many["other_cpu"], "turns": turns}


def main():
    parser = loader_job.arguments(__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a corpus of shared/bench/make_corpus.py")
    parser.add_argument("--steps", type=int, default=1000, help="of the mixture")
    parser.add_argument("--few", type=int, default=20, help="steps of the job that is taken off")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    config = loader_job.run_file(args.work / "ingest.toml", [loader_job.corpus(name, *corpus) for name, corpus in CORPORA.items()],
                                 map(task_of, TASKS))
    loader_job.ingest(args, config, args.work / "store", args.data)
    total = sum(task[4] for task in TASKS.values())
    shares = {name: task[4] / total for name, task in TASKS.items()}
    ratios = {"wall": [], "cpu": []}
    for round_ in range(args.rounds):
        jobs = [*TASKS, "mixture"]
        found = {}
        for name in jobs if round_ % 2 == 0 else reversed(jobs):
            names, steps = ([*TASKS], args.steps) if name == "mixture" else ([name], max(args.few, round(args.steps * shares[name])))
            found[name] = measure(args, name, names, steps)
            loader_job.say(bench="loader alternation", job=name, round=round_, threads=args.threads, **found[name])
        for clock in ratios:
            alone = sum(shares[name] * found[name][f"{clock}_ms"] for name in TASKS)
            ratios[clock].append(alone / found["mixture"][f"{clock}_ms"])
    wall, cpu = (statistics.median(ratios[clock]) for clock in ratios)
    rounds = {clock: [round(ratio, 3) for ratio in each] for clock, each in ratios.items()}
    loader_job.say(bench="loader alternation", steps=args.steps, ratio=wall, ratio_of_cpu=cpu, rounds=rounds, holds=wall >= LEAST)
    sys.exit(0 if wall >= LEAST else 1)


if __name__ == "__main__":
    main()
