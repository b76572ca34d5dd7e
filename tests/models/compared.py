"""Models compared: with plain ones by law, and with others bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
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


# A model by its law.


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything that a model holds: parameters and buffers, attributes, and what is in lists."""
    found: dict[str, torch.Tensor] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        found[name] = one
    for name, one in model.named_buffers(remove_duplicate=False):
        found[f"buffer {name}"] = one
    for place, module in model.named_modules():
        for attribute, value in module.__dict__.items():
            if attribute == "_flat_weights" or attribute.startswith("_torchinit"):
                continue
            held = value if isinstance(value, list) else [value]
            for number, one in enumerate(held):
                if isinstance(one, torch.Tensor):
                    found[f"attribute {place}.{attribute}.{number}"] = one
    return found


def _kind(tensor: torch.Tensor) -> tuple[object, ...]:
    return (type(tensor), tensor.shape, tensor.dtype, tensor.stride(), tensor.requires_grad,
            tensor.device, tensor.grad is None)  # fmt: skip


def _modules(model: nn.Module) -> list[tuple[object, ...]]:
    return [
        (name, type(one).__name__, one.training, len(one._forward_hooks))
        for name, one in model.named_modules()
    ]


def _groups(found: dict[str, torch.Tensor], key: Callable[[torch.Tensor], Any]) -> set[Any]:
    """Names of tensors that are alike, if more than one is."""
    groups: dict[Any, list[str]] = {}
    for name, one in found.items():
        if one.numel() > 3:
            groups.setdefault(key(one), []).append(name)
    return {tuple(sorted(names)) for names in groups.values() if len(names) > 1}


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape


def _bytes(tensor: torch.Tensor) -> tuple[object, ...]:
    flat = tensor.detach().resolve_conj().contiguous().reshape(-1)
    return tensor.shape, tensor.dtype, flat.view(torch.uint8).numpy().tobytes()


def differences(plains: list[nn.Module], ours: nn.Module, other: nn.Module) -> list[str]:
    """In what a model is another than plain ones of several seeds.

    Names, classes, ties, strides, flags; what is alike in all plain ones is equal; the rest has
    their mean and variance within six standard errors (twice in 1e9), and their law by
    Kolmogorov-Smirnov at 1e-9; copies are copies. ``other``, of another seed, has other values.
    """
    olds, new, another = [tensors(one) for one in plains], tensors(ours), tensors(other)
    found = []
    if list(olds[0]) != list(new):
        return [f"other names: {sorted(set(olds[0]) ^ set(new))}"]
    if _modules(plains[0]) != _modules(ours):
        found.append("other modules")
    if _groups(olds[0], _place) != _groups(new, _place):
        found.append(f"other ties: {_groups(olds[0], _place) ^ _groups(new, _place)}")
    if _groups(olds[0], _bytes) != _groups(new, _bytes):
        found.append(f"other copies: {_groups(olds[0], _bytes) ^ _groups(new, _bytes)}")
    for name, value in new.items():
        before = [one[name].detach() for one in olds]
        if _kind(value) != _kind(olds[0][name]):
            found.append(f"{name}: {_kind(value)} for {_kind(olds[0][name])}")
        elif value.numel():
            found += _other_values(name, before, value.detach(), another[name].detach())
    return found


def _other_values(
    name: str, before: list[torch.Tensor], value: torch.Tensor, other: torch.Tensor
) -> list[str]:
    if value.is_complex():
        before = [torch.view_as_real(one) for one in before]
        value, other = torch.view_as_real(value), torch.view_as_real(other)
    fixed = torch.ones_like(value, dtype=torch.bool)
    for one in before[1:]:
        fixed &= one == before[0]
    if not fixed.all() and before[0].unique().numel() <= 16:
        fixed[...] = False  # few values, which meet by chance
    elif not fixed.all() and value.dtype.itemsize < 4:
        fixed &= before[0] == 0
    if not torch.equal(value[fixed], before[0][fixed]):
        return [f"{name}: what is alike in all seeds is another"]
    free = ~fixed
    if not free.any():
        return []
    x, y = _numbers(value[free]), np.concatenate([_numbers(one[free]) for one in before])
    if not np.isfinite(x).all():
        return [f"{name}: not finite"]
    found = []
    ours, theirs = (
        float((one == two)[free].double().mean()) for one, two in ((value, other), before[:2])
    )
    if len(x) >= 16 and ours > theirs + max(0.02, 6 * math.sqrt(theirs / len(x))):
        found.append(f"{name}: does not depend on the seed")
    if len(x) >= 64:
        error = math.sqrt(x.var() / len(x) + y.var() / len(y))
        if abs(x.mean() - y.mean()) > 6 * error + 1e-12:
            found.append(f"{name}: mean {x.mean()} for {y.mean()}")
        spread = ((y - y.mean()) ** 4).mean() - y.var() ** 2
        error = math.sqrt(max(spread, 0) * (1 / len(x) + 1 / len(y)))
        if abs(x.var() - y.var()) > 6 * error + 1e-12:
            found.append(f"{name}: variance {x.var()} for {y.var()}")
    if len(x) >= 16 and stats.ks_2samp(x, y).pvalue < 1e-9:
        found.append(f"{name}: another law")
    return found


def _numbers(some: torch.Tensor) -> np.ndarray:
    return some.double().flatten().numpy()
