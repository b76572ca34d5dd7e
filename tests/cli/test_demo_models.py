"""The models of the demo: what they build, and which one is chosen."""

from __future__ import annotations

import importlib.metadata
import json
import math
import sys

import pytest
import torch
from processes import lines_but_of_torch

import torchinit
from torchinit.cli import demo, demo_models
from torchinit.cli.decoder import Decoder
from torchinit.cli.demo_models import MODELS, builder, largest_that_fits
from torchinit.cli.main import main

LLAMA, DECODER, GPT2, VIT, T5, SMALL, SMALLEST = (model.title for model in MODELS.values())


@pytest.mark.parametrize("name", MODELS)
def test_models_are_of_their_size(name):
    model = MODELS[name]
    if not model.is_usable:
        pytest.skip("Transformers 5 is not installed")
    with torch.device("meta"):
        built = builder(model, torch.bfloat16)()
    parameters = list(built.parameters())
    assert sum(parameter.numel() for parameter in parameters) == model.numel
    assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_models_are_ordered_by_falling_size():
    sizes = [model.numel for model in MODELS.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_the_smallest_needs_torch_alone():
    *_, smallest = MODELS.values()
    assert not smallest.config


@pytest.mark.parametrize(
    ("version", "usable"), [(None, False), ("4.57.1", False), ("5.0.0", True), ("5.1.0rc1", True)]
)
def test_which_transformers_will_do(version, usable, monkeypatch):
    def find(name):
        assert name == "transformers"
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(importlib.metadata, "version", find)
    assert demo_models.has_transformers() is usable
    assert MODELS["gpt2-medium"].is_usable is usable
    assert MODELS["decoder"].is_usable
    assert demo_models.default_model() == ("llama-3.2-1b" if usable else "decoder")


def test_the_decoder_is_a_model():
    decoder = Decoder(vocabulary=32, positions=8, width=16, layers=2, heads=2)
    tokens = torch.randint(32, (3, 8))
    logits = decoder(tokens)
    assert logits.shape == (3, 8, 32)
    later = tokens.clone()
    later[:, 5] = (later[:, 5] + 1) % 32
    assert logits[:, :5].allclose(decoder(later)[:, :5], atol=1e-6)  # causal


def test_what_the_decoder_is_filled_with():
    plan = torchinit.plan_model(builder(MODELS["tiny"], torch.float32))
    stds = {row.parameter: row.law.std for row in plan}
    residual = pytest.approx(0.02 / 4**0.5)
    assert stds.pop("blocks.0.down.weight") == residual
    assert stds.pop("blocks.1.attention.out.weight") == residual
    assert stds["blocks.1.up.weight"] == stds["token.weight"] if "token.weight" in stds else True
    assert {std for name, std in stds.items() if "norm" in name or "bias" in name} == {0.0}


def test_small_memory_takes_a_smaller_model(capsys, monkeypatch):
    monkeypatch.setattr(demo_models, "has_transformers", lambda: True)
    monkeypatch.setattr(demo, "available_memory", lambda _device: 2**20)
    assert main(["demo", "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == SMALLEST
    assert lines_but_of_torch(err) == [
        f"torchinit: {LLAMA} needs 3.5 GiB and 0.0 GiB are available: taking {SMALLEST}"
    ]


@pytest.mark.parametrize(
    ("gigabytes", "title"),
    [(math.inf, LLAMA), (4, LLAMA), (3, DECODER), (1, VIT), (0, SMALLEST)],
)
def test_the_largest_model_that_fits(gigabytes, title, monkeypatch):
    monkeypatch.setattr(demo_models, "has_transformers", lambda: True)
    assert largest_that_fits("llama-3.2-1b", torch.bfloat16, gigabytes * 1e9).title == title


@pytest.mark.parametrize(("gigabytes", "title"), [(3, DECODER), (1, SMALL), (0, SMALLEST)])
def test_models_that_need_what_is_not_there_do_not_fit(gigabytes, title, monkeypatch):
    monkeypatch.setattr(demo_models, "has_transformers", lambda: False)
    assert largest_that_fits("decoder", torch.bfloat16, gigabytes * 1e9).title == title


def test_only_smaller_models_are_tried():
    assert largest_that_fits("decoder-small", torch.bfloat16, math.inf).title == SMALL
    assert largest_that_fits("decoder-small", torch.bfloat16, 0).title == SMALLEST


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_memory_that_is_available():
    assert 2**20 < demo.available_memory(torch.device("cpu")) < 2**50
