"""Memory of the loader: within the budget of the config with large media, and not growing over many batches.

    python3 ops/benches/loader_memory.py --work target/bench-loader-memory [--cases large growth]

In: nothing; all media are made here (clips by ffmpeg, which must be on the PATH). Out: a JSON line for every run, and one a case that says
whether it holds; exit 1 if one does not. Only the standard library is used.

large    pictures of 3840 x 2160, clips of a minute of 640 x 360, and sounds of a minute at 48 kHz in stereo, as tasks in turn.
         Peak resident memory of the whole process (wait4) beside `max_buffered_mib` + `decoded_cache_mib`
growth   `--steps` small batches of pictures, clips and sounds. Resident memory from /proc every `--every` seconds: the mean of the last
         tenth of the samples must not be more than a twentieth above that of the third tenth, by when every buffer has been used
"""
import argparse
import pathlib
import subprocess
import sys
import time
import wave

import ingest_memory
import loader_job

SPREAD = 1.05
CROP = "augment = { crop_area = [0.5, 1.0], crop_aspect = [0.5, 2.0] }\n"


def encode(path, seconds, width, height, seed):
    """A clip of moving noise and a tone: H.264 with a keyframe every two seconds, and AAC."""
    pattern = f"testsrc2=size={width}x{height}:rate=25:duration={seconds},noise=alls=12:allf=t:all_seed={seed}"
    tone = f"sine=frequency={220 + 20 * seed}:sample_rate=44100:duration={seconds}"
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-nostdin", "-f", "lavfi", "-i", pattern, "-f", "lavfi", "-i", tone, "-c:v", "libx264",
                    "-preset", "veryfast", "-crf", "26", "-g", "50", "-pix_fmt", "yuv420p", "-c:a", "aac", "-shortest", str(path)], check=True)


def folder(path, n, ending, write):
    """A folder of media with a caption beside each; one that is there stays."""
    path.mkdir(parents=True, exist_ok=True)
    for index in range(n):
        medium = path / f"{index}.{ending}"
        if not medium.exists():
            part = path / f"part.{ending}"
            write(part, index)
            part.rename(medium)
            medium.with_suffix(".txt").write_text(f"medium {index} of {path.name}")


def sound(path, seconds, rate, channels, seed):
    second = bytes((seed + 31 * i * i) % 251 for i in range(2 * channels * rate))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        for _ in range(seconds):
            file.writeframesraw(second)


def small_picture(path, seed):
    path.write_bytes(ingest_memory.large_jpeg(320, 240, seed))


def make_large(root):
    folder(root / "pictures", 24, "jpg", lambda path, i: path.write_bytes(ingest_memory.large_jpeg(3840, 2160, i)))
    folder(root / "clips", 4, "mp4", lambda path, i: encode(path, 60, 640, 360, i))
    folder(root / "sounds", 8, "wav", lambda path, i: sound(path, 60, 48_000, 2, i))
    corpora = [loader_job.corpus("pictures", "image-text", "pictures"), loader_job.corpus("clips", "video-text", "clips"),
               loader_job.corpus("sounds", "audio-text", "sounds")]
    return corpora, {
        "pictures": lambda decode: loader_job.task("pictures", "pictures", "image", 8, "height = 224, width = 224", 1.0,
                                                   CROP + f'decode = "{decode}"\n'),
        "clips": lambda _: loader_job.task("clips", "clips", "video", 4, "frames = 16, stride = 2, height = 224, width = 224"),
        "sounds": lambda _: loader_job.task("sounds", "sounds", "audio", 8, "spectrogram_frames = 128")}


def large(args):
    root = args.work / "large"
    corpora, tasks = make_large(root)
    every = [task("full") for task in tasks.values()]
    loader_job.ingest(args, loader_job.run_file(root / "ingest.toml", corpora, every), root / "store", root)
    holds = True
    seen, small = ("pictures", "clips"), {"max_buffered_mib": 256}
    for names, decode, keys in [
            (tasks, "full", {}), (seen, "full", {}), (seen, "full", small), (seen, "scaled", small), (tasks, "full", small),
            (tasks, "full", {**small, "decoded_cache_mib": 256}), *(([task], "full", small) for task in tasks)]:
        name, chosen = " ".join(names), [tasks[each](decode) for each in names]
        config = loader_job.run_file(root / "run.toml", corpora, chosen, decode_threads=args.threads, **keys)
        done = loader_job.job(args, config, root / "store", args.large_steps)
        budget = keys.get("max_buffered_mib", 512) + keys.get("decoded_cache_mib", 0)
        holds &= done["peak_mib"] <= budget
        loader_job.say(bench="loader memory", case="large", tasks=name, decode=decode, threads=args.threads, keys=keys, steps=args.large_steps,
                       peak_mib=done["peak_mib"], budget_mib=budget, cpu_s=done["cpu_s"], wall_s=done["wall_s"],
                       examples_per_s=done["report"]["examples_per_second"], holds=done["peak_mib"] <= budget)
    return holds


def resident_mib(pid):
    fields = pathlib.Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) / 256


def growth(args):
    root = args.work / "growth"
    folder(root / "pictures", 2000, "jpg", small_picture)
    folder(root / "clips", 20, "mp4", lambda path, i: encode(path, 2, 160, 120, i))
    folder(root / "sounds", 100, "wav", lambda path, i: sound(path, 2, 16_000, 1, i))
    corpora = [loader_job.corpus("pictures", "image-text", "pictures"), loader_job.corpus("clips", "video-text", "clips"),
               loader_job.corpus("sounds", "audio-text", "sounds")]
    tasks = [loader_job.task("pictures", "pictures", "image", 4, "height = 64, width = 64", 6.0, CROP + 'decode = "scaled"\n'),
             loader_job.task("pictures-large", "pictures", "image", 4, "height = 128, width = 128", 6.0, CROP),
             loader_job.task("clips", "clips", "video", 2, "frames = 4, stride = 2, height = 64, width = 64", 1.0),
             loader_job.task("sounds", "sounds", "audio", 4, "spectrogram_frames = 16", 3.0)]
    config = loader_job.run_file(root / "run.toml", corpora, tasks, decode_threads=args.threads)
    loader_job.ingest(args, config, root / "store", root)
    start = time.perf_counter()
    process = subprocess.Popen(loader_job.command(args, config, root / "store", args.steps), stdout=subprocess.PIPE)
    samples = []
    while process.poll() is None:
        try:
            samples.append(resident_mib(process.pid))
        except (FileNotFoundError, IndexError):
            break
        time.sleep(args.every)
    process.stdout.read()
    if process.wait():
        sys.exit(f"imp-train data ended with {process.returncode}")
    # The last sample may be of a process on its way out.
    samples = [sample for sample in samples[:-1] if sample > 0]
    tenth = max(1, len(samples) // 10)
    means = [sum(part) / len(part) for part in (samples[i * tenth:(i + 1) * tenth] for i in range(10)) if part]
    ratio = means[-1] / means[2]
    loader_job.say(bench="loader memory", case="growth", steps=args.steps, threads=args.threads, wall_s=time.perf_counter() - start,
                   samples=len(samples), tenths_mib=[round(mean, 1) for mean in means], peak_mib=max(samples), last_by_third=ratio,
                   holds=ratio <= SPREAD)
    return ratio <= SPREAD


CASES = {"large": large, "growth": growth}


def main():
    parser = loader_job.arguments(__doc__, rounds=None)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=10_000, help="of the case `growth`")
    parser.add_argument("--large-steps", type=int, default=30, help="of each run of the case `large`")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between two samples of memory")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if all([CASES[case](args) for case in args.cases]) else 1)


if __name__ == "__main__":
    main()
