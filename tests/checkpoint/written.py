"""Checkpoints for tests: written in small pieces, read by safetensors, and what they must hold."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import torchinit
from made import model_of
from torchinit.checkpoint.write import carry_out_plan, plan_checkpoint
from torchinit.native import load as native

PIECE = 4096
LLAMA = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SHAPES = {f"layers.{number}.weight": (40, 70) for number in range(6)} | {"norm.weight": (70,)}
RULES = {"norm.weight": "ones", "**": torchinit.Normal(0.02)}


def small() -> nn.Module:
    """A model of seven parameters."""
    return model_of(SHAPES)


def on_meta(kind, config):
    """A function that gives a model of Transformers on the meta device."""

    def build():
        with torch.device("meta"):
            return kind(config)

    return build


def write(
    build,
    path,
    rules=None,
    *,
    seed=0,
    dtype=None,
    shard_size=30_000,
    resume=False,
    piece_size=PIECE,
    formats=None,
    layout=None,
):
    """Writes a checkpoint in small pieces."""
    plan = plan_checkpoint(
        build, rules, seed=seed, dtype=dtype, shard_size=shard_size, formats=formats, layout=layout
    )
    carry_out_plan(plan, Path(path), resume=resume, piece_size=piece_size)
    return Path(path)


def read(path):
    """All tensors of a checkpoint by name; those of one index, if there is one."""
    files = sorted(path.glob("*.safetensors"))
    tensors = {}
    for file in files:
        tensors |= load_file(file)
    index = path / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1)
    if index.exists():
        named = json.loads(index.read_text())
        assert set(named["weight_map"]) == set(tensors)
        assert set(named["weight_map"].values()) == {file.name for file in files}
        assert named["metadata"]["total_size"] == sum(one.nbytes for one in tensors.values())
    return tensors


def contents(path):
    """All files of a folder by name."""
    return {file.name: file.read_bytes() for file in path.iterdir()}


def assert_equal(found, wanted):
    """Compares tensors by name, bit for bit.

    Without the native module it is torch that factorises, and not in the same bits each time.
    """
    assert found.keys() == wanted.keys()
    for name, one in found.items():
        other = wanted[name]
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        if native.module is None and one.is_floating_point():
            torch.testing.assert_close(one.float(), other.float(), atol=1e-5, rtol=1e-2)
        else:
            assert bits(one) == bits(other), name


def bits(tensor):
    """The bytes of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@contextmanager
def tmpfs(disk, option):
    """A disk of its own, mounted with an option."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", option, "none", disk]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=False)
