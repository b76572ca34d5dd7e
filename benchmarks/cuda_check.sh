#!/usr/bin/env bash
# Builds, tests, runs a short pass under compute-sanitizer, and measures, on a machine with a GPU,
# nvcc and a CUDA torch, without a network. Prints the table last and writes it to
# benchmarks/results/<gpu>.md, or to the given folder. Ends within eight minutes.
#
#     bash benchmarks/cuda_check.sh [folder]
#
# PYTHON is the interpreter that has torch (python3).
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
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c \
    'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
  export TORCH_CUDA_ARCH_LIST
fi
gpu=$("$PYTHON" -c 'import re, torch
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))') || exit 1

TORCHINIT_BUILD=cuda stage build 180 "$PYTHON" setup.py --quiet build_ext --inplace || exit 1
"$PYTHON" -m torchinit info
stage tests 120 "$PYTHON" -m pytest -q --maxfail=20 -p no:cacheprovider tests/cuda
if command -v compute-sanitizer >/dev/null; then
  stage sanitizer 60 compute-sanitizer --error-exitcode 1 "$PYTHON" benchmarks/cuda_probe.py
else
  echo "== sanitizer: compute-sanitizer is not installed"
fi
stage benchmarks 110 "$PYTHON" benchmarks/gpu.py --markdown "$results/$gpu.md"
echo "failed stages: $failures"
exit "$((failures > 0))"
