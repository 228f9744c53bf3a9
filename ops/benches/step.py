"""Training steps of imp-train beside PyTorch's (shared/bench/torch_step.py), same sizes, alternating in one run.

Prints every line of both, then a line for each size with the medians over the pairs and the ratio of tokens/s.

python3 ops/benches/step.py --shared ../shared --python ENV/bin/python --program target/debug/imp-train
"""
import argparse
import json
import statistics
import subprocess
from pathlib import Path

SIZES = {
    "a": ["--layers", "6", "--dim", "256", "--heads", "4", "--ffn", "1024"],
    "b": ["--layers", "12", "--dim", "384", "--heads", "6", "--ffn", "1536"],
    "c": ["--layers", "12", "--dim", "384", "--heads", "6", "--ffn", "1536", "--moe-layers", "6", "--experts", "4"],
    "B": ["--layers", "12", "--dim", "768", "--heads", "12", "--ffn", "3072"],
    "B16": ["--layers", "12", "--dim", "768", "--heads", "12", "--ffn", "3072", "--moe-layers", "6", "--experts", "16"],
}


def first_line(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"bench": "train_step"')
                or line.startswith('{"bench":"train_step"'))
    print(line, flush=True)
    return json.loads(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--python", required=True, help="a Python with torch")
    parser.add_argument("--program", required=True, help="imp-train")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["a", "b", "c"])
    parser.add_argument("--visual-tokens", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="also beside torch.compile")
    args = parser.parse_args()
    torch_step = str(args.shared / "bench" / "torch_step.py")
    for size in args.sizes:
        for tokens in args.visual_tokens:
            same = SIZES[size] + ["--visual-tokens", str(tokens), "--batch", str(args.batch), "--steps",
                                  str(args.steps), "--warmup", str(args.warmup), "--threads", str(args.threads)]
            ours = [args.program, "bench", "--device", "cpu" if args.device == "cpu" else "cuda:0", "--precision",
                    args.precision, "--json", *same]
            torch = [args.python, torch_step, "--device", args.device, "--dtype", args.precision, "--no-gemm", *same]
            peers = {"imp": ours, "eager": torch}
            if args.compile:
                peers["compile"] = [*torch, "--compile"]
            speeds = {name: [] for name in peers}
            for pair in range(args.pairs):
                names = list(peers) if pair % 2 == 0 else list(peers)[::-1]
                for name in names:
                    speeds[name].append(first_line(peers[name])["tokens_per_s"])
            medians = {name: statistics.median(values) for name, values in speeds.items()}
            ratios = {f"imp/{name}": round(medians["imp"] / value, 3) for name, value in medians.items() if name != "imp"}
            print(json.dumps({"bench": "step_ratio", "size": size, "visual_tokens": tokens, "pairs": args.pairs,
                              "tokens_per_s": {k: round(v) for k, v in medians.items()}, **ratios}), flush=True)


if __name__ == "__main__":
    main()
