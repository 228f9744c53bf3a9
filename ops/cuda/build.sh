#!/usr/bin/env bash
# Builds imp-train with CUDA on a machine that has neither a GPU nor a toolkit. See README.md beside this file.
set -euo pipefail
cd "$(dirname "$0")/../.."

# `--check` compiles the kernels and type-checks what calls them, and links nothing.
check=
if [ "${1:-}" = --check ]; then check=1; shift; fi
capability="${1:-9.0}"
case "$capability" in
  [0-7].*) echo "error: compute capability $capability; dfdx's kernels need 8.0 or newer with CUDA 13" >&2; exit 1 ;;
esac

kit="$PWD/target/cuda-toolkit"
cuda="$kit/nvidia/cu13"
mkdir -p "$kit/bin" "$kit/stub"

# The compiler and its headers, then the libraries, as wheels: one folder, no virtual environment, no root.
wheels() { python3 -m pip install --quiet --no-deps --upgrade --target "$1" "${@:2}"; }
if [ ! -x "$cuda/bin/nvcc" ]; then
  wheels "$kit" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85
fi
test -x "$cuda/bin/nvcc" || { echo "error: the wheels put no nvcc at $cuda/bin" >&2; exit 1; }

# dfdx's build script asks nvidia-smi for the compute capability, whatever CUDA_COMPUTE_CAP says.
printf '#!/bin/sh\necho compute_cap\necho %s\n' "$capability" > "$kit/bin/nvidia-smi"
chmod +x "$kit/bin/nvidia-smi"

export CUDA_PATH="$cuda" CUDA_ROOT="$cuda" CUDA_COMPUTE_CAP="${capability/./}"
export PATH="$kit/bin:$cuda/bin:$PATH"

if [ -n "$check" ]; then
  # The whole workspace, so that nothing is built by other features than its own check has.
  cargo check --workspace --features imp-trainer/cuda
  exit
fi

if [ -z "$(find "$cuda/lib" -name 'libcublas.so.*' -print -quit)" ]; then
  # Beside the compiler, whose folder of the same name pip would put aside.
  wheels "$kit/libraries" nvidia-cuda-nvrtc==13.0.88 'nvidia-cublas==13.0.*'
  cp -r "$kit/libraries/nvidia/cu13/." "$cuda/"
  rm -r "$kit/libraries"
fi

# The wheels hold versioned libraries only; the linker wants the plain names.
for name in cublas cublasLt nvrtc cudart; do
  library="$(find "$cuda/lib" -name "lib$name.so.*" | sort | head -n 1)"
  test -n "$library" || { echo "error: the wheels hold no lib$name" >&2; exit 1; }
  ln -sf "$library" "$kit/stub/lib$name.so"
done

export LIBRARY_PATH="$kit/stub:$cuda/lib${LIBRARY_PATH:+:$LIBRARY_PATH}"
export RUSTFLAGS="${RUSTFLAGS:-} -L native=$kit/stub -L native=$cuda/lib"

# The driver's library is on no machine without a driver: a stub with the symbols that the linker asks for.
# A link that fails names them.
make_stub() {
  { sort -u "$kit/stub/symbols" | sed 's/.*/void &(void) {}/'; } > "$kit/stub/cuda.c"
  cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$kit/stub/libcuda.so" "$kit/stub/cuda.c"
}
touch "$kit/stub/symbols"
make_stub
build() { cargo build --release --target-dir target/cuda -p imp-trainer --features cuda --bin imp-train; }
# A linker names twenty at a time.
for attempt in 1 2 3 4 5; do
  if build 2> >(tee "$kit/build.log" >&2); then break; fi
  sleep 1 # until the log is whole
  grep -o 'undefined \(reference to\|symbol:\) [`'"'"']\?cu[A-Z][A-Za-z0-9_]*' "$kit/build.log" |
    grep -o 'cu[A-Z][A-Za-z0-9_]*$' >> "$kit/stub/symbols" || { echo "error: the build failed for another reason than the driver's stub" >&2; exit 1; }
  test "$attempt" -lt 5 || { echo "error: the driver's stub still lacks symbols" >&2; exit 1; }
  make_stub
done
echo "built target/cuda/release/imp-train; libraries for the machine that runs it: $cuda/lib"
