"""Ingest beside its peers: imp-ingest, img2dataset and Hugging Face datasets on the same files, in turn, in one run.

    python3 ops/benches/ingest.py --shared ../shared --work target/bench-ingest \
        --img2dataset IMG2DATASET_ENV/bin/python --datasets DATASETS_ENV/bin/python

In: the folder `shared` (its bench/README.md says how the peers' environments are made). Out: a JSON line for every job in
the form of shared/bench, medians at the end, a Markdown table on stderr. Only the standard library is used here.

Every round runs every contestant once on every set, so that a busy spell meets all of them. A job is a whole process from
its start; its CPU seconds are those of its process tree (wait4), the server's are not in it. The list is repeated
fourfold, as for the peers; ours asks for every copy under an address or in a tar of its own, since a key may come only once.
`per_cpu_s` is records by CPU seconds of the fourfold job; `value` is the marginal rate between it and a job of one list.

Ours, all with BLAKE3 of the bytes, near-duplicate hashes of picture and caption (counted, not dropped), token ids, typed
Parquet with statistics, a manifest:
  imp-resize   decode every bit, at a half, a quarter or an eighth if that is still twice what is wanted; shorter side 256, JPEG 95
  imp-verify   decode in full, the stored bytes kept
`-url` fetches from the loopback server that the peers use too, `-tar` reads WebDataset tars.
"""
import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

COPIES = 4
OURS = [f"imp-{work}-{source}" for work in ("resize", "verify") for source in ("url", "tar")]
PEERS = {"img2dataset": ["img2dataset-webdataset", "img2dataset-parquet", "img2dataset-copy"],
         "datasets": ["hf-datasets-parquet", "hf-datasets-copy"]}


def machine_busy_s():
    fields = list(map(int, pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def run(command, env=None):
    """Runs to the end. Gives stdout, wall seconds, CPU seconds of the tree, peak resident MiB of its root."""
    start, busy = time.perf_counter(), machine_busy_s()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=env)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return out, wall, cpu, usage.ru_maxrss / 1024, max(0.0, machine_busy_s() - busy - cpu)


class Served:
    """The loopback server of shared/bench/ingest_peers.py over `folder`."""

    def __init__(self, python, shared, folder):
        self.command = [python, shared / "bench" / "ingest_peers.py", "--serve", folder]

    def __enter__(self):
        self.process = subprocess.Popen(list(map(str, self.command)), stdout=subprocess.PIPE, text=True)
        return f"http://127.0.0.1:{self.process.stdout.readline().strip()}"

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


# Ours ----------------------------------------------------------------------------------------------------------------

def config_of(contestant, name, path, threads):
    resize = "reencode = { shorter_side = 256, quality = 95 }\n" if "resize" in contestant else ""
    return (f'store = "store"\nrun = "run"\n[ingest]\nroot = "."\nworkers = {threads}\n'
            f'[ingest.fetch]\nn_per_host = 32\n'
            f'[[ingest.corpus]]\nname = "{name}"\nkind = "image-text"\npath = "{path}"\ntar_in_key = true\n{resize}'
            f'clean = {{ dry = true, duplicates = "drop", near = {{ picture_bits = 4, caption_jaccard = 0.9 }} }}\n')


def our_job(args, contestant, name, copies):
    """One whole job over `copies` of the set, in a fresh folder."""
    images = args.work / "corpus" / "image"
    with open(images / f"{name}.csv", newline="") as file:
        rows = [(row["path"], row["caption"]) for row in csv.DictReader(file)]
    with tempfile.TemporaryDirectory(dir=args.work) as scratch, Served(args.datasets, args.shared, images) as url:
        scratch = pathlib.Path(scratch)
        if contestant.endswith("url"):
            path = "list.csv"
            with open(scratch / path, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("url", "caption"))
                for copy in range(copies):
                    writer.writerows((f"{url}/{medium}?copy={copy}", text) for medium, text in rows)
        else:
            path = "tars/*.tar"
            (scratch / "tars").mkdir()
            for tar in sorted((images / f"{name}-wds").glob("*.tar")):
                for copy in range(copies):
                    (scratch / "tars" / f"{copy}-{tar.name}").symlink_to(tar)
        (scratch / "run.toml").write_text(config_of(contestant, name, path, args.threads))
        command = [args.program, "run", "--config", scratch / "run.toml", "--store", scratch / "store",
                   "--root", scratch, "--progress", "json"]
        out, wall, cpu, peak, foreign = run(command)
        report = json.loads(out.splitlines()[-1])["report"]["corpora"][0]
        if report["n_records"] != len(rows) * copies:
            raise RuntimeError(f"{contestant} kept {report['n_records']} of {len(rows) * copies}: {report}")
        written = sum(path.stat().st_size for path in (scratch / "store").rglob("*") if path.is_file())
    read = sum((images / path).stat().st_size for path, _ in rows) * copies
    return {"n": len(rows) * copies, "wall": wall, "cpu": cpu, "peak": peak, "foreign": foreign,
            "mb_in": read / 1e6, "mb_out": written / 1e6}


def measure_ours(args, contestant, name):
    short, long = (our_job(args, contestant, name, copies) for copies in (1, COPIES))
    value = (long["n"] - short["n"]) / max(long["wall"] - short["wall"], 1e-9)
    return {"bench": "ingest", "peer": contestant, "version": args.version, "unit": f"{name} samples/s",
            "value": round(value, 2), "n": long["n"], "threads": args.threads,
            "mb_in_per_s": round(value * long["mb_in"] / long["n"], 2), "end_to_end": round(long["n"] / long["wall"], 2),
            "short_job_s": round(short["wall"], 2), "n_short": short["n"], "seconds": round(long["wall"], 2),
            "cpu_s": round(long["cpu"], 2), "per_cpu_s": round(long["n"] / long["cpu"], 2),
            "other_cpu": round(long["foreign"] / long["wall"], 2), "peak_mib": round(long["peak"]),
            "mb_out": round(long["mb_out"], 2), "set": name}


# Peers ---------------------------------------------------------------------------------------------------------------

def measure_peer(args, python, contestant, name):
    command = [python, args.shared / "bench" / "ingest_peers.py", "--data", args.work / "corpus", "--sets", name,
               "--threads", args.threads, "--repeats", 1, "--seconds", args.seconds, "--peers", contestant,
               "--scratch", args.work]
    lines = run(command)[0].splitlines()
    if not lines:
        raise RuntimeError(f"{contestant} printed no result")
    return json.loads(lines[-1])


# All of them ---------------------------------------------------------------------------------------------------------

def table(results):
    """Medians over the rounds, the best of each set first."""
    lines = ["| set | contestant | records per CPU second (rounds) | records/s | MB read/s | machine busy with others |",
             "| --- | --- | --- | --- | --- | --- |"]
    rows = []
    for (name, contestant), runs in results.items():
        median = {key: statistics.median(run[key] for run in runs)
                  for key in ("per_cpu_s", "value", "mb_in_per_s", "other_cpu")}
        rounds = ", ".join(f"{run['per_cpu_s']:.0f}" for run in runs)
        rows.append((name, -median["per_cpu_s"],
                     f"| {name} | {contestant} | {median['per_cpu_s']:.0f} ({rounds}) | {median['value']:.0f} | "
                     f"{median['mb_in_per_s']:.0f} | {median['other_cpu']:.2f} cores |"))
    return "\n".join(lines + [line for _, _, line in sorted(rows)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shared", type=pathlib.Path, required=True, help="folder with bench/ and data/")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the corpus and outputs")
    parser.add_argument("--datasets", required=True, help="python of an environment with requirements.txt")
    parser.add_argument("--img2dataset", help="python of an environment with requirements-img2dataset.txt")
    parser.add_argument("--program", type=pathlib.Path, help="imp-ingest; built with --release if absent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="shortest long job of a peer")
    parser.add_argument("--sets", nargs="+", default=["web", "large"])
    parser.add_argument("--only", nargs="+", help="contestants to run")
    args = parser.parse_args()
    args.shared, args.work = args.shared.resolve(), args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.program is None:
        subprocess.run(["cargo", "build", "--release", "--workspace", "--bin", "imp-ingest"], check=True)
        args.program = pathlib.Path("target/release/imp-ingest")
    args.program = args.program.resolve()
    args.version = run([args.program, "--version"])[0].strip()
    if not (args.work / "corpus" / "corpus.json").exists():
        subprocess.run([args.datasets, args.shared / "bench" / "make_corpus.py", "--out", args.work / "corpus",
                        "--images", "2000", "--large-images", "200", "--audio-clips", "1", "--video-clips", "1",
                        "--hd-clips", "1"], check=True, stdout=sys.stderr)
    contestants = [(name, None) for name in OURS]
    contestants += [(name, getattr(args, family)) for family, names in PEERS.items() for name in names
                    if getattr(args, family)]
    contestants = [(name, python) for name, python in contestants if not args.only or name in args.only]
    results = {}
    for _ in range(args.rounds):
        for name in args.sets:
            for contestant, python in contestants:
                try:
                    line = measure_peer(args, python, contestant, name) if python else \
                        measure_ours(args, contestant, name)
                except RuntimeError as error:
                    print(json.dumps({"peer": contestant, "set": name, "error": str(error)}), file=sys.stderr)
                    continue
                print(json.dumps(line), flush=True)
                results.setdefault((name, contestant), []).append(line)
    for (name, contestant), runs in results.items():
        median = statistics.median(run["per_cpu_s"] for run in runs)
        print(json.dumps({"bench": "ingest median", "peer": contestant, "set": name, "per_cpu_s": median,
                          "rounds": [run["per_cpu_s"] for run in runs]}), flush=True)
    print(table(results), file=sys.stderr)


if __name__ == "__main__":
    main()
