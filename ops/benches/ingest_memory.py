"""Peak memory of imp-ingest by the number of records: it must not grow with the corpus.

    python3 ops/benches/ingest_memory.py --work target/bench-memory [--program target/release/imp-ingest]

In: nothing; the JPEGs are one small picture with comments that differ, so that records and not pixels are counted. Out: a
JSON line for every number of records: peak resident MiB (wait4, of the whole process), seconds, records per CPU second. The
config is the same for all of them, with budgets so small that the smallest corpus fills them: what is above that must not
grow. Only the standard library is used.
"""
import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time

# A grey ramp of 32 x 24 pixels, baseline, as Pillow writes it at quality 60; a comment goes in after its first marker.
JPEG = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000d090a0b0a080d0b0a0b0e0e0d0f13201513121213271c1e17202e2931"
    "302e292d2c333a4a3e333646372c2d405741464c4e525352323e5a615a50604a51524fffc0000b080018002001011100ffc400150001"
    "0100000000000000000000000000000506ffc4001810000203000000000000000000000000000003042131ffda0008010100003f0081"
    "8aaca198aaca198aaca188aaca2122ab28662ab28622ab28662ab28848aaca198aaca188aaca198aaca3ffd9")

CONFIG = """store = "store"
run = "run"
[ingest]
workers = 2
memory_mib = 256
shard_mib = 16
[[ingest.corpus]]
name = "small"
kind = "image-text"
path = "tars/*.tar"
tar_in_key = true
"""


def picture(index, filler):
    """A JPEG whose comment holds `index` and `filler` bytes that do not compress."""
    text = index.to_bytes(8, "big") + filler
    return JPEG[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + JPEG[2:]


def write_tars(folder, n, per_tar, filler):
    for first in range(0, n, per_tar):
        with tarfile.open(folder / f"{first // per_tar:05d}.tar", "w") as tar:
            for index in range(first, min(first + per_tar, n)):
                for ending, body in (("jpg", picture(index, filler)), ("txt", f"a picture of shape {index % 97} beside shape {index % 89}".encode())):
                    member = tarfile.TarInfo(f"{index:09d}.{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for corpora and outputs, emptied after each")
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("target/release/imp-ingest"))
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--bytes", type=int, default=60_000, help="of a medium, about")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    filler, program = os.urandom(args.bytes), args.program.resolve()
    peaks = []
    for n in args.records:
        with tempfile.TemporaryDirectory(dir=args.work) as scratch:
            scratch = pathlib.Path(scratch)
            (scratch / "tars").mkdir()
            write_tars(scratch / "tars", n, 1_000, filler)
            (scratch / "run.toml").write_text(CONFIG)
            start = time.perf_counter()
            process = subprocess.Popen(list(map(str, [
                program, "run", "--config", scratch / "run.toml", "--store", scratch / "store", "--root", scratch,
                "--progress", "json"])), stdout=subprocess.PIPE, text=True)
            out = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"{program} ended with {process.returncode} on {n} records")
            report = json.loads(out.splitlines()[-1])["report"]["corpora"][0]
            if report["n_records"] != n:
                sys.exit(f"{report['n_records']} of {n} records were kept: {report}")
            peaks.append(usage.ru_maxrss / 1024)
            print(json.dumps({
                "bench": "ingest memory", "n": n, "peak_mib": round(peaks[-1], 1),
                "seconds": round(time.perf_counter() - start, 2),
                "per_cpu_s": round(n / (usage.ru_utime + usage.ru_stime), 1),
                "medium_bytes": len(picture(0, filler))}), flush=True)
    print(json.dumps({"bench": "ingest memory", "largest_by_smallest": round(max(peaks) / min(peaks), 3)}))


if __name__ == "__main__":
    main()
