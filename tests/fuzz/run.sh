#!/usr/bin/env bash
# Fuzzes a target, or all of them one after the other: tests/fuzz/run.sh TARGET|all [SECONDS] [cargo arguments, e.g. --features ffmpeg]
#
# What `cargo fuzz run --sanitizer none` does, with the stable compiler and nothing to install but a C++ compiler, which builds
# libFuzzer. Findings go to artifacts/TARGET, what libFuzzer says to artifacts/TARGET.log. The last line of each target says how
# often it ran and what it found; exit 0 if no target found anything.
set -euo pipefail
cd "$(dirname "$0")"
all=(table tar image audio video shard)
targets=("${1:?all, or one of ${all[*]}}")
[ "$1" != all ] || targets=("${all[@]}")
seconds="${2:-600}"
shift "$(($# < 2 ? $# : 2))"

host="$(rustc -vV | sed -n 's/^host: //p')"
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
for part in inline-8bit-counters pc-table trace-compares; do
  coverage+=" -Cllvm-args=-sanitizer-coverage-$part"
done
# With `--target` the flags leave build scripts alone; overflows count as faults.
RUSTFLAGS="$coverage --cfg fuzzing -Cdebug-assertions -Coverflow-checks" cargo build --release --target "$host" "${targets[@]/#/--bin=}" "$@"

# `table` and `tar` write every input to a file: memory is the fastest disk.
TMPDIR="$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")"
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

any=0
for target in "${targets[@]}"; do
  mkdir -p "corpus/$target" "artifacts/$target"
  log="artifacts/$target.log"
  status=0
  # Seconds of the wall: on a machine that does other things too, a short limit finds the other things.
  nice "target/$host/release/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" \
    -max_total_time="$seconds" -timeout=120 -rss_limit_mb=2048 -max_len=200000 -print_final_stats=1 2>&1 |
    tee "$log" >&2 || status=$?
  executions="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)"
  found=nothing
  [ "$status" -eq 0 ] || found="$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)" any=1
  echo "$target: ${executions:-0} executions in at most $seconds s, found ${found:-something, see $log}"
done
exit "$any"
