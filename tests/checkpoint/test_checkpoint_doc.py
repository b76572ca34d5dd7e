"""The page on checkpoints says what is so, and its blocks run; so does the benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from written import LLAMA, assert_equal, read

import torchinit
from conftest import native_only
from doc_blocks import blocks_of

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "checkpoint.md"


@native_only  # low-precision weights
def test_the_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = LLAMA | {"architectures": ["LlamaForCausalLM"]}
    Path("config.json").write_text(json.dumps(said))
    names = {}
    for _, line, code in blocks_of(PAGE):
        exec(compile("\n" * line + code, str(PAGE), "exec"), names)
    assert (tmp_path / "seed" / "model.safetensors").exists()
    model = torchinit.init_model_(names["build"](), names["rules"], seed=0, device="cpu")
    assert_equal(read(tmp_path / "encoder"), model.state_dict())
    assert len(list((tmp_path / "encoder").glob("*.safetensors"))) > 1


def test_the_options():
    from torchinit.cli.main import _parser

    text = PAGE.read_text()
    (parsers,) = [one for one in _parser()._actions if one.dest == "command"]
    for action in parsers.choices["checkpoint"]._actions:
        for option in action.option_strings:
            assert option in ("-h", "--help") or f"`{option}" in text


def test_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "checkpoint", raising=False)
    import checkpoint

    monkeypatch.setattr(checkpoint, "SMALL", LLAMA | {"tie_word_embeddings": True})
    monkeypatch.setattr(checkpoint, "SHARD", 500 * 30_000)
    samples = {}
    for way in checkpoint.WAYS:
        (tmp_path / way).mkdir()
        samples[way] = [checkpoint.run_one(way, tmp_path / way, True)]
    theirs = {}
    for file in (tmp_path / "save_file").iterdir():
        theirs |= load_file(file)
    assert_equal(read(tmp_path / "ours"), theirs)
    assert samples["direct"][0]["bytes"] == sum(2 * one.numel() for one in theirs.values())
    rows = [line for line in checkpoint.table(samples).splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(checkpoint.WAYS)
    assert all(one.dtype == torch.bfloat16 for one in theirs.values())
