#!/usr/bin/env bash
# On a machine with a GPU, nvcc and a CUDA torch, without a network: builds; tests, among them first
# launches inside a graph capture in processes of their own; runs a short pass under
# compute-sanitizer; tries divisions and roots with all arguments; times chunks and grids of other
# sizes; and measures fills beside their predicted speed (predicted_cuda.csv). Prints the table last
# and writes it to benchmarks/results/<gpu>.md, or to the given folder. Ends within ten minutes.
#
#     bash benchmarks/cuda_check.sh [folder]
#
# PYTHON is the interpreter that has torch (python3), NVCC the compiler (nvcc).
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
results=${1:-benchmarks/results}
mkdir -p "$results"
failures=0

# stage NAME SECONDS COMMAND...: continues after a failure, but records it.
stage() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  echo "== $name"
  timeout --kill-after=5 "$limit" "$@"
  local status=$?
  echo "== $name: status $status, $((SECONDS - begin)) s"
  if [ "$status" -ne 0 ]; then failures=$((failures + 1)); fi
  return "$status"
}

export PYTHONUNBUFFERED=1 PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}
capability=$("$PYTHON" -c \
  'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}
gpu=$("$PYTHON" -c 'import re, torch
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))') || exit 1

# Programs without torch, compiled while the module is.
programs=build/cuda_check
mkdir -p "$programs"
read -ra flags <<<"$(sed -n 's/^nvcc //p' csrc/flags.txt | tr '\n' ' ')"
flags+=(-O3 "-arch=sm_${capability/./}")
"${NVCC:-nvcc}" "${flags[@]}" tests/native/device_arithmetic.cu -o "$programs/arithmetic" &
"${NVCC:-nvcc}" "${flags[@]}" benchmarks/cuda_launches.cu csrc/job/plan.cpp -o "$programs/launches" &

TORCHINIT_BUILD=cuda stage build 180 "$PYTHON" setup.py --quiet build_ext --inplace || exit 1
"$PYTHON" -m torchinit info
wait
stage tests 120 "$PYTHON" -m pytest -q --maxfail=20 -p no:cacheprovider tests/cuda
if command -v compute-sanitizer >/dev/null; then
  stage sanitizer 50 compute-sanitizer --error-exitcode 1 "$PYTHON" benchmarks/cuda_probe.py
else
  echo "== sanitizer: compute-sanitizer is not installed"
fi
kept='"$0" | tee "$1"'
stage arithmetic 30 bash -o pipefail -c "$kept" "$programs/arithmetic" "$results/$gpu-arithmetic.txt"
stage launches 60 bash -o pipefail -c "$kept" "$programs/launches" "$results/$gpu-launches.md"
stage benchmarks 110 "$PYTHON" benchmarks/gpu.py --markdown "$results/$gpu.md"
echo "failed stages: $failures"
exit "$((failures > 0))"
