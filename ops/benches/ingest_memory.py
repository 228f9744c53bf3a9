"""Peak memory of imp-ingest: it must not grow with the corpus, nor leave its budget with large media.

    python3 ops/benches/ingest_memory.py --work target/bench-memory [--program target/release/imp-ingest] [--cases small ...]

In: nothing; all media are made here. Out: a JSON line a run: peak resident MiB (wait4, of the whole process), seconds, records per
CPU second, what `imp-ingest plan` had said of the peak; and a line a case that says whether it holds. Exit 1 if one does not.
Only the standard library is used.

small      1,000 to 100,000 pictures of 60 KB, one config with budgets so small that the smallest corpus fills them: ten units of
           two shards. Each size is run until the largest one's number of records went through: which threads hold what at the
           same moment is chance, and of more moments the highest is higher
default    8 KB pictures, the default config: one and a half, three and six full shards
pictures   40 JPEGs of 3840 x 2160, eight threads, the least `memory_mib` there is, and the default
sounds     3 WAVs of an hour at 16 kHz, the default `memory_mib`

The many small pictures are one picture with comments that differ, so that records and not pixels are counted.
"""
import argparse
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import wave

# A grey ramp of 32 x 24 pixels, baseline, as Pillow writes it at quality 60; a comment goes in after its first marker.
JPEG = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000d090a0b0a080d0b0a0b0e0e0d0f13201513121213271c1e17202e2931"
    "302e292d2c333a4a3e333646372c2d405741464c4e525352323e5a615a50604a51524fffc0000b080018002001011100ffc400150001"
    "0100000000000000000000000000000506ffc4001810000203000000000000000000000000000003042131ffda0008010100003f0081"
    "8aaca198aaca198aaca188aaca2122ab28662ab28622ab28662ab28848aaca198aaca188aaca198aaca3ffd9")

CONFIG = """store = "store"
run = "run"
[ingest]
{keys}
[[ingest.corpus]]
name = "c"
kind = "{kind}"
path = "{path}"
{rules}
"""
# Largest by smallest peak of a series.
SPREAD = 1.1


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def commented(jpeg, text):
    """The JPEG with a comment behind its first marker."""
    return jpeg[:2] + segment(0xFE, text) + jpeg[2:]


def huffman(counts, symbols):
    """Codes by symbol, as (bits, length): canonical, by the number of codes of each length."""
    codes, code, at = {}, 0, 0
    for length, count in enumerate(counts, 1):
        for symbol in symbols[at:at + count]:
            codes[symbol] = (code, length)
            code += 1
        at, code = at + count, code << 1
    return codes


def large_jpeg(width, height, seed):
    """A baseline JPEG of noise, 4:2:0: one row of blocks is coded, and stands again behind each restart marker."""
    draw = random.Random(seed)
    # Categories 0 to 3 of differences; an end of block and coefficients of category 3 without a run.
    dc_counts, dc_symbols = [0, 3, 1] + [0] * 13, [0, 1, 2, 3]
    ac_counts, ac_symbols = [0, 2] + [0] * 14, [0x00, 0x03]
    dc, ac = huffman(dc_counts, dc_symbols), huffman(ac_counts, ac_symbols)
    value = length = 0

    def put(bits, n):
        nonlocal value, length
        value, length = value << n | bits, length + n

    for _ in range(width // 16 * 6):
        put(*dc[0])
        for _ in range(24):
            put(*ac[0x03])
            put(draw.randrange(8), 3)
        put(*ac[0x00])
    pad = -length % 8
    row = (value << pad | (1 << pad) - 1).to_bytes((length + pad) // 8, "big").replace(b"\xff", b"\xff\x00")
    out = [b"\xff\xd8", segment(0xDB, b"\x00" + bytes([16] * 64)),
           segment(0xC0, b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes.fromhex("03012200021100031100")),
           segment(0xC4, b"\x00" + bytes(dc_counts) + bytes(dc_symbols)),
           segment(0xC4, b"\x10" + bytes(ac_counts) + bytes(ac_symbols)),
           segment(0xDD, (width // 16).to_bytes(2, "big")), segment(0xDA, bytes.fromhex("03010002000300003f00"))]
    for index in range(height // 16):
        out += [row, bytes([0xFF, 0xD0 + index % 8])]
    return b"".join(out[:-1]) + b"\xff\xd9"


def write_tars(folder, n, n_bytes, per_tar):
    filler = os.urandom(n_bytes)
    folder.mkdir()
    for first in range(0, n, per_tar):
        with tarfile.open(folder / f"{first // per_tar:05d}.tar", "w") as tar:
            for index in range(first, min(first + per_tar, n)):
                caption = f"a picture of shape {index % 97} beside shape {index % 89}".encode()
                for ending, body in (("jpg", commented(JPEG, index.to_bytes(8, "big") + filler)), ("txt", caption)):
                    member = tarfile.TarInfo(f"{index:09d}.{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))


def write_pictures(folder, n):
    folder.mkdir()
    for index in range(n):
        (folder / f"{index}.jpg").write_bytes(large_jpeg(3840, 2160, index))
        (folder / f"{index}.txt").write_text(f"picture {index}")


def write_sounds(folder, n):
    folder.mkdir()
    second = os.urandom(2 * 16_000)
    for index in range(n):
        (folder / f"{index}.txt").write_text(f"sound {index}")
        with wave.open(str(folder / f"{index}.wav"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(16_000)
            for _ in range(3600):
                sound.writeframesraw(second)


def run(program, scratch, case, n, **config):
    """One run of the corpus in `scratch`, into a new store; gives its peak in MiB."""
    subprocess.run(["rm", "-rf", scratch / "store", scratch / "run"], check=True)
    (scratch / "run.toml").write_text(CONFIG.format(**{"rules": "", **config}))
    where = ["--config", scratch / "run.toml", "--store", scratch / "store", "--root", scratch, "--progress", "json"]
    planned = subprocess.run([program, "plan", *where], check=True, capture_output=True, text=True)
    plan_mib = json.loads(planned.stdout.splitlines()[-1])["plan"]["memory_bytes"] / 2**20
    start = time.perf_counter()
    process = subprocess.Popen([program, "run", *where], stdout=subprocess.PIPE, text=True)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{program} ended with {process.returncode} on {n} records of {case}")
    report = json.loads(out.splitlines()[-1])["report"]["corpora"][0]
    if report["n_records"] != n:
        sys.exit(f"{report['n_records']} of {n} records were kept: {report}")
    peak = usage.ru_maxrss / 1024
    print(json.dumps({
        "bench": "ingest memory", "case": case, "n": n, "keys": config["keys"].replace("\n", ", "), "peak_mib": round(peak, 1),
        "plan_mib": round(plan_mib, 1), "plan_by_peak": round(plan_mib / peak, 2),
        "n_shards": report["n_shards"], "mib": round(report["media_bytes"] / 2**20), "seconds": round(time.perf_counter() - start, 2),
        "per_cpu_s": round(n / (usage.ru_utime + usage.ru_stime), 1)}), flush=True)
    return peak


def series(args, case, sizes, n_bytes, per_tar, **config):
    peaks = []
    for n in sizes:
        with tempfile.TemporaryDirectory(dir=args.work) as scratch:
            scratch = pathlib.Path(scratch)
            write_tars(scratch / "tars", n, n_bytes, per_tar)
            peaks.append(max(
                run(args.program, scratch, case, n, kind="image-text", path="tars/*.tar", rules="tar_in_key = true", **config)
                for _ in range(max(sizes) // n)))
    spread = max(peaks) / min(peaks)
    print(json.dumps({"bench": "ingest memory", "case": case, "n": sizes, "peak_mib": [round(peak, 1) for peak in peaks],
                      "largest_by_smallest": round(spread, 3), "holds": spread <= SPREAD}))
    return spread <= SPREAD


def within(args, case, n, kind, write, budgets):
    holds = True
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        scratch = pathlib.Path(scratch)
        write(scratch / "files", n)
        for memory_mib, workers in budgets:
            peak = run(args.program, scratch, case, n, kind=kind, path="files", keys=f"workers = {workers}\nmemory_mib = {memory_mib}")
            print(json.dumps({"bench": "ingest memory", "case": case, "memory_mib": memory_mib, "holds": peak <= memory_mib}))
            holds &= peak <= memory_mib
    return holds


CASES = {
    "small": lambda args: series(args, "small", args.records, 60_000, 100, keys="workers = 2\nmemory_mib = 256\nshard_mib = 4"),
    "default": lambda args: series(args, "default", [50_000, 100_000, 200_000], 8_000, 8_000, keys="workers = 2"),
    "pictures": lambda args: within(args, "pictures", 40, "image-text", write_pictures, [(256, 8), (1024, 8)]),
    "sounds": lambda args: within(args, "sounds", 3, "audio-text", write_sounds, [(1024, 2)]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for corpora and outputs, emptied after each")
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("target/release/imp-ingest"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="of the case `small`")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.program = args.program.resolve()
    sys.exit(0 if all([CASES[case](args) for case in args.cases]) else 1)


if __name__ == "__main__":
    main()
