"""The benchmarks run, and their report says what was measured. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch

import torchinit
import warm
from conftest import long, native_only

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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


def quick_page(folder, script, *options):
    """The page that a benchmark writes when it is to be quick, which it prints too."""
    page = folder / "page.md"
    run = subprocess.run(
        [sys.executable, BENCHMARKS / script, *options, "--quick", "--markdown", page],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert run.stdout.strip() == page.read_text().strip()
    return page.read_text()


@long
def test_gpu_benchmark_runs_without_a_gpu(tmp_path):
    text = quick_page(tmp_path, "gpu.py", "--device", "cpu", "--gpu", "H200")
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 37
    assert re.search(r"^\d+ of 24 predicted rows reach less than 0\.8 of it\.$", text, re.M)
    assert all(float(row.split("|")[2]) > 0 for row in rows)


@long
def test_peers_run(tmp_path):
    text = quick_page(tmp_path, "peers.py")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][2:]
    ours = [row for row in rows if row[3].strip() == "torchinit"]
    assert len(ours) == 12  # of two sizes, two dtypes and three laws
    assert all(row[5].strip() == "1.00 (1.00 to 1.00)" for row in ours)
    assert sum(row[3].strip() == "`torch.nn.init`" for row in rows) == 12
    absent = re.findall(r"^Not measured: (.*?): ", text, re.MULTILINE)
    named = {row[3].strip() for row in rows}.union(absent)
    assert named >= {"NumPy", "timm", "Transformers", "JAX, rbg", "`torch.func._random`"}


@long
def test_models_run_and_report(tmp_path):
    data, page = tmp_path / "models.json", tmp_path / "models.md"
    run = subprocess.run(
        [
            *(sys.executable, BENCHMARKS / "models.py", "--quick"),
            *("--models", "tiny,tiny-bfloat16", "--json", data, "--markdown", page),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == page.read_text().strip()
    results = json.loads(data.read_text())
    assert [model["dtype"] for model in results["models"]] == ["float32", "bfloat16"]
    for model in results["models"]:
        assert list(model["modes"]) == ["plain", "patch", "build_model", "zero"]
        for mode, (sample,) in model["modes"].items():
            assert "error" not in sample, (mode, sample)
            assert sample["values"] == 136_960
            assert sample["others"] >= 0
        assert f"{model['title']}, {model['dtype']}, 0.137 M |" in run.stdout
    assert [samples["parameters"] for samples in results["small"]] == [200, 200]


@pytest.fixture
def models_module(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("models")


def sample(seconds, others):
    return {"seconds": seconds, "others": others}


def test_busy_rounds_are_left_out_or_marked(models_module):
    some_quiet = [sample(1.0, 0.0), sample(0.5, 0.9), sample(2.0, 0.1)]
    assert models_module.counted(some_quiet) == ([1.0, 2.0], True)
    assert models_module.seconds_cell(some_quiet) == "1.000 (1.500, 2.000)"
    none_quiet = [sample(3.0, 0.9), sample(4.0, 0.5)]
    assert models_module.seconds_cell(none_quiet) == "~3.000 (3.500, 4.000)"
    model = {"modes": {"plain": none_quiet, "patch": some_quiet, "zero": [{"error": "no"}]}}
    assert models_module.ratio_cell(model, "plain", "patch", 1) == "~3.0"
    assert models_module.ratio_cell(model, "patch", "zero", 1) == "-"
    assert models_module.seconds_cell([{"error": "no"}]) == "no"


def test_a_measurement_that_fails_is_reported(models_module):
    assert "KeyError" in models_module.measure("no such model", "plain")["error"]


@long
@native_only
def test_shards_run(tmp_path):
    text = quick_page(tmp_path, "shards.py")
    assert text.count("\n## ") == 4
    assert "| 4,096 | HSDP 4 x 128 x TP 8 | 723, 723, 723 | 131, 128, 128 |" in text
    assert re.search(r"^\| 1 of 2 \| 78\.4 M \| 149\.5 \|", text, re.MULTILINE)


def pretended_rank(folder, *case):
    """The shards of a rank of a pretended world, and what the program prints."""
    paths = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
    program, shards = BENCHMARKS.parent / "tests/programs/pretended_rank.py", folder / "shards.pt"
    run = warm.run(program, shards, *case, env=os.environ | {"PYTHONPATH": paths})
    assert run.returncode == 0, run.stderr
    return torch.load(shards), run.stdout.splitlines()


@native_only
def test_two_ranks_of_a_pretended_world_are_the_whole_model(tmp_path):
    scale = importlib.import_module("scale")
    whole = torchinit.init_model_(scale.build("tiny"), seed=0, device="cpu", dtype=torch.bfloat16)
    parts = [pretended_rank(tmp_path, 2, rank, 1, 1, 1)[0] for rank in (0, 1)]
    for name, full in whole.named_parameters():
        assert torch.equal(torch.cat([part[name] for part in parts]), full), name


@native_only
@pytest.mark.parametrize("case", [(16, 11, 2, 2, 4), (64, 40, 1, 1, 2)], ids=str)
def test_the_check_of_a_rank_can_fail(tmp_path, case):
    shards, (compared, *wrong) = pretended_rank(tmp_path, *case)
    assert 1000 < int(compared) <= sum(each.numel() for each in shards.values())
    assert [said.split(": ")[0] for said in wrong] == [
        "model.layers.2.mlp.experts.down_proj",
        "model.layers.0.self_attn.o_proj.weight",
    ]


def test_the_picture_is_of_the_results(tmp_path):
    pytest.importorskip("matplotlib")
    image = importlib.import_module("PIL.Image")
    subprocess.run(
        [sys.executable, BENCHMARKS / "picture.py", "-o", tmp_path / "new.png"], check=True
    )
    picture = BENCHMARKS.parent / "docs" / "pictures" / "models.png"
    with image.open(picture) as kept, image.open(tmp_path / "new.png") as new:
        assert kept.size == new.size
        assert kept.text["Source"] == new.text["Source"]
    assert picture.stat().st_size < 150_000
