#!/usr/bin/env bash
# Fuzzes one target: tests/fuzz/run.sh TARGET [SECONDS] [cargo arguments, e.g. --features ffmpeg]
#
# What `cargo fuzz run --sanitizer none` does, with the stable compiler and nothing to install but a C++ compiler, which builds
# libFuzzer. Findings go to artifacts/TARGET; exit 0 if there are none.
set -euo pipefail
cd "$(dirname "$0")"
target="${1:?one of image audio video shard}"
seconds="${2:-600}"
shift "$(($# < 2 ? $# : 2))"

host="$(rustc -vV | sed -n 's/^host: //p')"
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
for part in inline-8bit-counters pc-table trace-compares; do
  coverage+=" -Cllvm-args=-sanitizer-coverage-$part"
done
# With `--target` the flags leave build scripts alone; overflows count as faults.
RUSTFLAGS="$coverage --cfg fuzzing -Cdebug-assertions" cargo build --release --target "$host" --bin "$target" "$@"

mkdir -p "corpus/$target" "artifacts/$target"
# Seconds of the wall: on a machine that does other things too, a short limit finds the other things.
exec nice "target/$host/release/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" \
  -max_total_time="$seconds" -timeout=120 -rss_limit_mb=2048 -max_len=200000 -print_final_stats=1
