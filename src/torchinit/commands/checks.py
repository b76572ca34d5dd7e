"""Checks that the values of a model's parameters are what the plan of it promises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import torchinit
from torchinit.models.plan import Plan
from torchinit.progress import progress
from torchinit.schemes.law import Law

# Values widened at a time: what the cache holds, and what occupies a GPU.
_CHUNK = {"cpu": 2**20, "cuda": 2**24}
# Standard errors that a mean or a std may be off.
_TOLERANCE = 6.0
# How often that happens to a correct fill.
FALSE_ALARM = math.erfc(_TOLERANCE / math.sqrt(2))
# Of what nothing is known.
_ANY = Law(mean=0.0, std=0.0)


@dataclass(frozen=True)
class Failure:
    """A parameter that failed its check, and how."""

    name: str
    problems: list[str]


# What each parameter's values must follow, by its name; None where nothing is known of them.
Laws = Mapping[str, "Law | None"]


def laws_of(plan: Plan) -> Laws:
    """The laws of all parameters, by the names that keys are made of.

    A parameter that is filled in several parts is checked for being filled alone.
    """
    laws: dict[str, Law | None] = {}
    for row in plan:
        laws[row.parameter] = None if row.parameter in laws or row.shares > 1 else row.law
    return laws


@dataclass(frozen=True)
class Moments:
    """What the values of a tensor came to; the moments are about the expected mean."""

    low: float
    high: float
    first: float
    second: float


def check_all(model: nn.Module, laws: Laws) -> list[Failure]:
    """Returns the parameters of a model whose values are not what was promised."""
    failures = []
    parameters = list(_by_name(model))
    with progress("checking", sum(t.numel() for _, t in parameters), " values") as advance:
        for name, tensor in parameters:
            if problems := check(tensor, laws[name]):
                failures.append(Failure(name, problems))
            advance(tensor.numel())
    return failures


def _by_name(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, by the name that its key is made of: the smallest of a tied one's."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for parameter in model.parameters():
        yield min(names[id(parameter)]), parameter.detach()


def check(tensor: Tensor, law: Law | None) -> list[str]:
    """Returns what is wrong with the values of a parameter; nothing if all is well.

    Checked are: every value finite; every value within the bounds; mean and std within six standard
    errors. Each of these two fails for correct values with probability 2e-9, by the normal
    approximation.

    Args:
        tensor: contiguous.
        law: None checks that values are finite, and no more.
    """
    expected = _ANY if law is None else law
    moments = measure(tensor, expected.mean)
    if not (math.isfinite(moments.low) and math.isfinite(moments.high)):
        unfilled, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        return [f"{unfilled} of {tensor.numel()} values NaN, {infinite} infinite"]
    problems = []
    low, high = _bounds(tensor, expected)
    if moments.low < low or moments.high > high:
        problems.append(
            f"values from {moments.low:.9g} to {moments.high:.9g}, "
            f"expected within {low:.9g} and {high:.9g}"
        )
    if expected.std > 0:
        problems += _check_moments(moments, expected, tensor)
    return problems


def measure(tensor: Tensor, centre: float) -> Moments:
    """Returns range and moments, computed on the device in float32 (float64 for float64).

    Args:
        tensor: contiguous. Only a chunk of it is widened at a time.
        centre: what the moments are about.
    """
    low, high = torch.aminmax(tensor)
    flat = tensor.view(-1)
    chunk = min(_CHUNK[tensor.device.type], flat.numel())
    wide = torch.promote_types(tensor.dtype, torch.float32)
    buffer = torch.empty(chunk, dtype=wide, device=tensor.device)
    first, second = torch.zeros(2, dtype=torch.float64, device=tensor.device)
    for start in range(0, flat.numel(), chunk):
        narrow = flat[start : start + chunk]
        values = buffer[: narrow.numel()].copy_(narrow)
        if centre:
            values -= centre
        first += values.sum()
        second += torch.dot(values, values)
    return Moments(
        low=low.item(),
        high=high.item(),
        first=first.item() / flat.numel(),
        second=second.item() / flat.numel(),
    )


def _bounds(tensor: Tensor, expected: Law) -> tuple[float, float]:
    """Bounds of the values: exact for native fills; torch, and constants, round to the dtype."""
    if expected.std > 0 and torchinit.which(tensor, "normal").kind != "torch":
        return expected.low, expected.high
    low, high = torch.tensor([expected.low, expected.high], dtype=tensor.dtype).tolist()
    return low, high


def _check_moments(moments: Moments, expected: Law, tensor: Tensor) -> list[str]:
    n, std = tensor.numel(), expected.std
    # Rounding to the dtype adds to the variance at most about the square of the spacing of values
    # of the size of std, and shifts the mean of symmetric distributions not at all.
    finfo = torch.finfo(tensor.dtype)
    spacing = finfo.eps * max(abs(expected.mean), std, finfo.tiny)
    mean_tolerance = _TOLERANCE * std / math.sqrt(n) + finfo.eps * (
        expected.mean_shift + abs(expected.mean)
    )
    # The second moment about the known mean has the variance (kurtosis - 1) std^4 / n.
    relative_error = math.sqrt((expected.kurtosis - 1) / (4 * n))
    std_tolerance = std * (_TOLERANCE * relative_error + (spacing / std) ** 2)

    problems = []
    if not abs(moments.first) <= mean_tolerance:
        found = expected.mean + moments.first
        problems.append(f"mean {found:.6g}, expected {expected.mean:.6g} +- {mean_tolerance:.2g}")
    found = math.sqrt(moments.second)
    if not abs(found - std) <= std_tolerance:
        problems.append(f"std {found:.6g}, expected {std:.6g} +- {std_tolerance:.2g}")
    return problems
