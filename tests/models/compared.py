"""Models compared: with plain ones by law, and with others bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from torchinit import ArgumentError, build_model, init_model_


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A model without memory, as plain code makes it."""
    with torch.device("meta"):
        return build()


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model on the meta device, initialised as its constructor does."""
    return init_model_(on_meta(build), seed=seed, device="cpu")


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers, ties under each of their names."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def are_same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether values are equal, NaN to NaN."""
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Both have the same names, and the same bits."""
    left, right = values(model), values(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert torch.equal(value, right[name]), name


def assert_alike(build: Callable[[], nn.Module]) -> None:
    """``init_model_`` gives a model on the meta device what the constructor gives a plain one.

    What depends on no seed is equal, the rest is of one mean and one std: six standard errors are
    passed by chance once in 5e8. And it is to the bit what ``build_model`` gives.
    """
    torch.manual_seed(0)
    plain, again, ours = build(), build(), made(build)
    before, after, twice = values(plain), values(ours), values(again)
    assert before.keys() == after.keys()
    for name, x in before.items():
        y = after[name]
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        assert bool(y.isfinite().all()), name
        if torch.equal(x, twice[name]):
            assert torch.equal(x, y), name
            continue
        error = 6 / math.sqrt(x.numel())
        assert float(y.double().std() / x.double().std()) == pytest.approx(1, abs=error), name
        shift = float((y.double().mean() - x.double().mean()).abs())
        assert shift <= error * 1.5 * float(x.double().std()), name
        assert not torch.equal(x, y), name
    assert_same(ours, build_model(build, seed=0))


def refusal(model: nn.Module, **options: Any) -> str:
    """What ``init_model_`` says that refuses a model, having changed nothing."""
    state = {name: value for name, value in values(model).items() if not value.is_meta}
    objects = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with pytest.raises(ArgumentError) as caught:
        init_model_(model, seed=0, device="cpu", **options)
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert now.keys() == objects.keys()
    assert all(value is objects[name] for name, value in now.items())
    assert all(are_same(value, state[name]) for name, value in now.items() if name in state)
    return str(caught.value)
