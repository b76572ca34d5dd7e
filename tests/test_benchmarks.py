"""The benchmarks run, and their report says what was measured. Nothing is timed here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_quick_run_and_report(tmp_path):
    path = tmp_path / "results.json"
    run = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--quick", "--only", "float32", "--json", path],
        capture_output=True,
        text=True,
        check=True,
    )
    again = subprocess.run(
        [sys.executable, BENCHMARKS / "report.py", path], capture_output=True, text=True, check=True
    )
    assert again.stdout.strip() == run.stdout.strip()
    results = json.loads(path.read_text())
    most = max(results["threads"])
    for samples in results["fills"]:
        assert f"| {samples['case']} |" in run.stdout
        if samples["threads"] != most:
            continue
        row = next(x for x in run.stdout.splitlines() if x.startswith(f"| {samples['case']} |"))
        quoted = float(re.split(r"[|(]", row)[3])
        zero, ours = samples["seconds"]["zero"], samples["seconds"]["ours"]
        assert abs(quoted - median(z / o for z, o in zip(zero, ours, strict=True))) <= 0.0051


def test_gpu_benchmark_runs_without_a_gpu(tmp_path):
    path = tmp_path / "table.md"
    run = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--quick", "--markdown", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == path.read_text().strip()
    rows = [line for line in run.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 26
    assert all(float(row.split("|")[2]) > 0 for row in rows)
