#!/usr/bin/env bash
# Packs what a GPU machine needs: the program, CUDA's libraries, and the headers that dfdx compiles some kernels with when it runs.
# To be unpacked in a folder of the same absolute path as this one: the program looks for the headers where they were built.
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${1:-target/imp-cuda.tar.gz}"
cuda=target/cuda-toolkit/nvidia/cu13
headers=(target/cuda/release/build/dfdx-*/out/*.cuh)
for wanted in target/cuda/release/imp-train "$cuda/include" "${headers[0]}"; do
  test -e "$wanted" || { echo "error: $wanted is not there; ops/cuda/build.sh makes it" >&2; exit 1; }
done
mkdir -p target/cuda-pack
strip -o target/cuda-pack/imp-train target/cuda/release/imp-train
tar czf "$out" target/cuda-pack/imp-train "${headers[@]}" "$cuda/include" \
  $(find "$cuda/lib" -name 'libcublas*.so*' -o -name 'libnvrtc*.so*')
echo "$out: unpack it in $PWD there, then"
echo "  LD_LIBRARY_PATH=$PWD/$cuda/lib $PWD/target/cuda-pack/imp-train selftest --device cuda:0"
