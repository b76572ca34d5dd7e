"""The data of the models, and what it builds."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

import torchinit
from torchinit.commands import models
from torchinit.commands.build import builder
from torchinit.commands.decoder import Decoder
from torchinit.commands.models import MODELS
from torchinit.commands.ways import on_meta


@pytest.mark.parametrize("name", MODELS)
def test_models_are_of_their_size(name):
    model = MODELS[name]
    if not model.is_usable:
        pytest.skip("Transformers 5 is not installed")
    built = on_meta(builder(model, torch.bfloat16))
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
    assert models.has_transformers() is usable
    assert MODELS["gpt2-medium"].is_usable is usable
    assert MODELS["decoder"].is_usable
    assert models.default_model() == ("llama-3.2-1b" if usable else "decoder")


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
