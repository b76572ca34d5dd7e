r"""Builds models of other libraries by ``build_model``, and compares them with plain builds.

    python tools/built_models.py --resume build/built_models.jsonl --minutes 60 \
        --markdown benchmarks/results/built-models.md

Each model is built plainly with three seeds, and by ``build_model``: twice with one seed, with
another seed, via the meta device and in bfloat16. Tensors that are alike in the three plain builds
must be equal in the built one; the others must have the same distribution. ``init_model_`` without
rules, on a plain model in memory and on one on the meta device, must give the bits of
``build_model``, or raise.

Each model has its own process, so that no crash or lack of memory stops the run. Each result is a
line in the file of ``--resume``, and models in that file are not built again. Libraries that are
not installed are skipped. Not part of any test: it takes hours.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

import torchinit
from built_models_cases import LARGEST, LIBRARIES, Build, Case, count_on_meta, parameters

_SAMPLE = 10_000  # elements of a tensor used to compare distributions
_ERRORS = 6.0  # standard errors between means, and between variances
_CHANCE = 1e-9  # probability of a false alarm by Kolmogorov-Smirnov, or by counting, for one tensor
_FEWEST_MEAN, _FEWEST_VARIANCE = 16, 256  # elements used to compare moments
_FEW = 2_000  # elements used to find repeated values
_HEAD = 32  # elements used to recognise copies


# The contents of a model.


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers, and tensors that are plain attributes of modules or in lists of them."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not nn.parameter.is_lazy(parameter):
            found[name] = parameter
    found |= _buffers(model)
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers"):
                continue
            for place, one in _within(value):
                if isinstance(one, Tensor):
                    found[f"attribute {name}.{attribute}{place}"] = one
    return found


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"buffer {name}": buffer
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if not nn.parameter.is_lazy(buffer)
    }


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Only parameters and buffers."""
    parameters = model.named_parameters(remove_duplicate=False)
    found = {name: one for name, one in parameters if not nn.parameter.is_lazy(one)}
    return found | _buffers(model)


def _within(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, list | tuple):
        yield from ((f".{number}", one) for number, one in enumerate(value))
    elif type(value) is dict:
        yield from ((f".{key}", one) for key, one in value.items())
    else:
        yield "", value


def _kind(tensor: Tensor) -> dict[str, object]:
    """Everything about a tensor except its values."""
    return {
        "class": type(tensor).__name__,
        "shape": tuple(tensor.shape),
        "dtype": tensor.dtype,
        "device": tensor.device,
        "layout": tensor.layout,
        "strides": tensor.stride() if tensor.layout is torch.strided else None,
        "requires_grad": tensor.requires_grad,
        "is_leaf": tensor.is_leaf,
        "gradient": tensor.is_leaf and tensor.grad is not None,
        "hooks": bool(tensor._backward_hooks),
        "attributes": sorted(vars(tensor)),
    }


def _ties(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of tensors that share memory, and their layout in it."""
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.layout is torch.strided and tensor.numel():
            place = f"{name} {tensor.storage_offset()} {tuple(tensor.shape)}"
            groups.setdefault(tensor.untyped_storage()._cdata, []).append(place)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def _numbers(tensor: Tensor) -> Tensor:
    """The values as a flat, dense and real tensor."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.resolve_neg().reshape(-1)


def _same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | ((one != one) & (other != other))


def _same_bits(one: Tensor, other: Tensor, but: Tensor | None = None) -> bool:
    """Whether two tensors have equal bits, apart from excluded elements."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    one, other = _numbers(one), _numbers(other)
    if but is not None:
        one, other = one[~but], other[~but]
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _settings(module: nn.Module) -> dict[str, object]:
    """The plain attributes of a module that are numbers, strings and the like."""
    found = {"class": type(module).__qualname__, "training": module.training}
    for attribute, value in vars(module).items():
        if not attribute.startswith("_torchinit"):
            simple = all(_is_simple(one) for _, one in _within(value))
            found[attribute] = repr(value) if simple else type(value).__qualname__
    found["_parameters"] = list(module._parameters)
    found["_buffers"] = list(module._buffers)
    found["_modules"] = list(module._modules)
    return found


def _is_simple(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | complex | str | torch.dtype)


# The comparison of a built model with plain ones.


class Comparison:
    """The result of comparing a built model with plain ones.

    Attributes:
        faults: descriptions of what is wrong.
        tests: the number of tests that can fail by chance.
        expected: how many of these are expected to fail by chance.
        unfilled: the elements of tensors that a plain build never writes.
    """

    def __init__(self, plain: Sequence[nn.Module], built: nn.Module, other: nn.Module) -> None:
        self.faults: list[str] = []
        self.tests = 0
        self.expected = 0.0
        self.unfilled: dict[str, Tensor] = {}
        self._heads: dict[str, list[Tensor]] = {}
        self._compare_modules(plain, built)
        theirs = [_tensors(model) for model in plain]
        ours, others = _tensors(built), _tensors(other)
        if list(theirs[0]) != list(ours):
            self._add(f"other names: {sorted(theirs[0].keys() ^ ours.keys())[:4]}")
        if _ties(theirs[0]) != _ties(ours):
            unlike = [one for one in (*_ties(theirs[0]), *_ties(ours))
                      if (one in _ties(theirs[0])) != (one in _ties(ours))]  # fmt: skip
            self._add(f"other ties: {unlike[:2]}")
        for name, tensor in ours.items():
            if all(name in one for one in (*theirs, others)):
                self._compare(name, [one[name] for one in theirs], tensor, others[name])
        self._compare_copies()

    def _add(self, fault: str) -> None:
        self.faults.append(fault)

    def _compare_modules(self, plain: Sequence[nn.Module], built: nn.Module) -> None:
        theirs = [dict(model.named_modules(remove_duplicate=False)) for model in plain]
        ours = dict(built.named_modules(remove_duplicate=False))
        if list(theirs[0]) != list(ours):
            self._add(f"other modules: {sorted(theirs[0].keys() ^ ours.keys())[:4]}")
            return
        for name, module in ours.items():
            before = [_settings(one[name]) for one in theirs]
            after = _settings(module)
            for setting in before[0].keys() | after.keys():
                values = [one.get(setting) for one in before]
                if values.count(values[0]) == len(values) and after.get(setting) != values[0]:
                    self._add(f"{name}.{setting} is {after.get(setting)!r} for {values[0]!r}"[:300])

    def _compare(self, name: str, plain: Sequence[Tensor], built: Tensor, other: Tensor) -> None:
        unlike = {
            what: (now, before)
            for (what, now), before in zip(
                _kind(built).items(), _kind(plain[0]).values(), strict=True
            )
            if now != before
        }
        if unlike:
            self._add(f"{name}: {', '.join(f'{k} {a} for {b}' for k, (a, b) in unlike.items())}")
        if built.is_meta or built.shape != plain[0].shape or not built.numel():
            return
        before = torch.stack([_numbers(one) for one in plain])
        after, again = _numbers(built), _numbers(other)
        empty = _unfilled(before[-1])
        if bool(empty.any()):
            self.unfilled[name] = empty
            before, after, again = before[:, ~empty], after[~empty], again[~empty]
        if before.shape[1]:
            self._compare_values(name, before, after, again)

    def _compare_values(self, name: str, before: Tensor, after: Tensor, again: Tensor) -> None:
        pairs = torch.stack([_same(before[i - 1], before[i]) for i in range(3)])
        fixed = pairs.all(0)
        by_chance = int((pairs.any(0) & ~fixed).sum())
        odd = fixed & ~_same(after, before[0])
        if bool(odd.any()) and self._is_too_odd(before, after, fixed, odd, by_chance):
            was, now = before[0][odd][:3].tolist(), after[odd][:3].tolist()
            self._add(f"{name}: {int(odd.sum())} of {int(fixed.sum())} fixed values differ: "
                      f"{now} for {was}")  # fmt: skip
            return
        free = torch.ones_like(fixed) if by_chance else ~fixed
        if bool(fixed.all()) or not bool(free.any()):
            return
        before, after, again = before[:, free], after[free], again[free]
        count = after.numel()
        equal = float(_same(after, again).double().mean())
        usual = max(float(_same(before[i - 1], before[i]).double().mean()) for i in range(3))
        if equal > (0.01 + 3 * usual if count > 64 else max(usual, 0.5)) and equal > usual:
            self._add(f"{name}: {equal:.0%} of the values do not depend on the seed")
        if not torch.isfinite(after.double()).all() and torch.isfinite(before.double()).all():
            self._add(f"{name}: {int((~torch.isfinite(after.double())).sum())} values not finite")
            return
        if count >= _HEAD:
            self._heads[name] = [one[:_HEAD].double() for one in (*before[:2], after)]
        self._compare_laws(name, before, after, by_chance)

    def _is_too_odd(
        self, before: Tensor, after: Tensor, fixed: Tensor, odd: Tensor, by_chance: int
    ) -> bool:
        """Whether the built model differs where the plain ones agree, beyond chance.

        Tensors with few distinct values may agree by chance. If all four builds are equivalent,
        each is equally often the one that differs from three others that agree.
        """
        if not by_chance:
            return True
        zeros = (before == 0) & ~fixed
        no_zeros_by_chance = after.dtype.is_floating_point and not bool(zeros.any())
        if no_zeros_by_chance and bool((odd & (before[0] == 0)).any()):
            return True
        count = int(odd.sum())
        plain = 0
        for i in range(3):
            one, two, three = before[i], before[i - 1], before[i - 2]
            plain += int((_same(two, three) & _same(two, after) & ~_same(one, two)).sum())
        self.tests += 1
        self.expected += _CHANCE
        return bool(stats.binom.sf(count - 1, count + plain, 0.25) < _CHANCE)

    def _compare_laws(self, name: str, before: Tensor, after: Tensor, by_chance: int) -> None:
        step = -(-after.numel() // 200_000)
        ours = after[::step].double()
        theirs = before[:, ::step].double().reshape(-1)
        if not by_chance and _repeats(ours):
            ours, theirs = ours.unique(), theirs.unique()
        ours, theirs = ours[torch.isfinite(ours)], theirs[torch.isfinite(theirs)]
        count = ours.numel()
        if count < _FEWEST_MEAN:
            self._compare_few(name, theirs, ours)
            return
        both = 1 / count + 1 / theirs.numel()
        mean, variance = float(theirs.mean()), float(theirs.var())
        error = math.sqrt(variance * both)
        self.tests += 2
        self.expected += 2 * stats.t.sf(_ERRORS, theirs.numel() - 1) + _CHANCE
        if abs(float(ours.mean()) - mean) > _ERRORS * error:
            self._add(f"{name}: mean {float(ours.mean()):.6g} for {mean:.6g}, error {error:.2g}")
        if count >= _FEWEST_VARIANCE:
            fourth = float(((theirs - mean) ** 4).mean())
            error = math.sqrt(max(fourth - variance**2, 0) * both)
            self.tests += 1
            self.expected += 2 * stats.norm.sf(_ERRORS)
            if abs(float(ours.var()) - variance) > _ERRORS * error:
                self._add(f"{name}: variance {float(ours.var()):.6g} for {variance:.6g}, "
                          f"error {error:.2g}")  # fmt: skip
        order = torch.Generator().manual_seed(0)
        ours = ours[torch.randperm(count, generator=order)[:_SAMPLE]]
        theirs = theirs[torch.randperm(theirs.numel(), generator=order)[: 3 * _SAMPLE]]
        chance = stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue
        if chance < _CHANCE:
            self._add(f"{name}: another distribution: {_summary(ours)} for {_summary(theirs)}")

    def _compare_few(self, name: str, theirs: Tensor, ours: Tensor) -> None:
        if not ours.numel() or not theirs.numel():
            return
        width = max(float(theirs.max() - theirs.min()), 0.1 * float(theirs.abs().max()))
        middle = float(theirs.median())
        if float((ours - middle).abs().max()) > 100 * width:
            self._add(f"{name}: {ours[:3].tolist()} for {theirs[:3].tolist()}")

    def _compare_copies(self) -> None:
        """Finds tensors that are copies of each other only in built or only in plain models."""
        names = list(self._heads)
        if len(names) < 2:
            return
        alike = []
        for i in range(3):
            heads = torch.stack([self._heads[name][i] for name in names])
            heads = heads - heads.mean(1, keepdim=True)
            heads = heads / heads.norm(dim=1, keepdim=True).clamp_min(1e-30)
            alike.append((heads @ heads.T).abs().triu(1))
        more = (alike[2] > 0.98) & (torch.maximum(alike[0], alike[1]) < 0.8)
        less = (alike[2] < 0.8) & (torch.minimum(alike[0], alike[1]) > 0.98)
        less &= torch.ones_like(less).triu(1)
        for what, found in (("equal, and plain ones not", more), ("not equal as plain", less)):
            for one, other in found.nonzero()[:3].tolist():
                self._add(f"{names[one]} and {names[other]}: {what}")


def _repeats(values: Tensor) -> bool:
    """Whether values occur more than once, as when a draw is written to several places."""
    order = torch.Generator().manual_seed(1)
    some = values[torch.randperm(len(values), generator=order)[:_FEW]]
    return len(some) - len(some.unique()) > 3


def _unfilled(values: Tensor) -> Tensor:
    """The value that torch's deterministic mode writes to uninitialised memory."""
    if values.dtype.is_floating_point:
        return values != values
    if values.dtype is torch.bool:
        return torch.zeros_like(values)
    return values == torch.iinfo(values.dtype).max


def _summary(values: Tensor) -> str:
    mean, std = float(values.mean()), float(values.std(correction=0))
    return f"mean {mean:.4g}, std {std:.4g}, {float(values.min()):.4g} to {float(values.max()):.4g}"


# One model, in its own process.


def examine(case: Case) -> dict[str, Any]:
    """Everything recorded about one model."""
    result: dict[str, Any] = {"library": case.library, "case": case.name}
    try:
        result["model"], build = case.prepare()
        count = _count_if_possible(build)
        if count is not None and count > LARGEST:
            return result | {"skipped": f"more than {LARGEST:,} parameters"}
        plain, result["plain_seconds"] = _plain_builds(build)
        result["parameters"] = sum(one.numel() for one in parameters(plain[0]))
    except Exception as error:
        return result | {"skipped": f"no plain build: {_said(error)}"}
    result["build"] = _outcome(lambda: _examine_build(build, plain, result), result)
    return result


def _examine_build(build: Build, plain: list[nn.Module], result: dict[str, Any]) -> list[str]:
    torch.manual_seed(20)
    before = _generators()
    with warnings.catch_warnings(record=True) as warned:
        warnings.filterwarnings("always", "torch drew")
        built = _built(build, seed=0)
    result["warned"] = [str(one.message) for one in warned]
    faults = []
    if _generators() != before:
        faults.append("a generator is not as it was")
    other = _built(build, seed=1)
    comparison = Comparison(plain, built, other)
    faults += comparison.faults
    result["tests"], result["expected"] = comparison.tests, comparison.expected
    del plain[:2]
    unfilled = comparison.unfilled
    result["unfilled"] = sorted(unfilled)
    torch.manual_seed(21)
    started = time.perf_counter()
    again = _built(build, seed=0)
    result["build_seconds"] = time.perf_counter() - started
    faults += _unequal("the same again", _tensors(built), _tensors(again), unfilled)
    del again
    model = plain.pop()
    for mode, check in (
        ("meta", lambda: _by_meta(build, built, other, unfilled, result)),
        ("bfloat16", lambda: _in_bfloat16(build, built, unfilled)),
        ("own", lambda: _by_init_model(model, built, unfilled)),
        ("own_meta", lambda: _by_init_model(_on_meta(build), built, unfilled)),
    ):
        result[mode] = _outcome(check, result)
    return faults


def _built(build: Build, **named: Any) -> nn.Module:
    made = torchinit.build_model(build, **named)
    assert isinstance(made, nn.Module)
    return made


def _by_meta(
    build: Build, built: nn.Module, other: nn.Module, unfilled: Mapping[str, Tensor], result: Any
) -> list[str]:
    model = _built(build, seed=0, device="meta")
    faults = [f"{name} is not on meta" for name, one in _stored(model).items() if not one.is_meta]
    model.to_empty(device="cpu")
    _spoil(model)
    torchinit.init_model_(model, seed=0)
    faults += _unequal("by way of meta", _stored(built), _stored(model), unfilled)

    def again() -> list[str]:
        _spoil(model)
        torchinit.init_model_(model, seed=1)
        return _unequal("by way of meta again", _stored(other), _stored(model), unfilled)

    result["meta_again"] = _outcome(again, result)
    return faults


def _in_bfloat16(build: Build, built: nn.Module, unfilled: Mapping[str, Tensor]) -> list[str]:
    narrow = _built(build, seed=0, dtype=torch.bfloat16)
    faults = _unequal("in bfloat16", _buffers(built), _buffers(narrow), unfilled)
    made = dict(narrow.named_parameters(remove_duplicate=False))
    for name, wide in built.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(wide):
            continue
        if not wide.dtype.is_floating_point:
            if not _same_bits(wide, made[name], unfilled.get(name)):
                faults.append(f"in bfloat16: {name} differs")
        elif made[name].dtype != torch.bfloat16:
            faults.append(f"in bfloat16: {name} has {made[name].dtype}")
        else:
            faults += _not_rounded(name, wide, made[name], unfilled.get(name))
    return faults


def _not_rounded(name: str, wide: Tensor, narrow: Tensor, but: Tensor | None) -> list[str]:
    """Elements that are neither rounded values nor, at the ends of the range, one step inside."""
    exact, given = _numbers(wide), _numbers(narrow)
    if but is not None:
        exact, given = exact[~but], given[~but]
    if not exact.numel():
        return []
    rounded = exact.bfloat16()
    step = (rounded.view(torch.int16).int() - given.view(torch.int16).int()).abs()
    at_end = (rounded == rounded.max()) & (given < rounded)
    at_end |= (rounded == rounded.min()) & (given > rounded)
    wrong = ~_same(rounded, given) & ~(at_end & (step == 1))
    if not bool(wrong.any()):
        return []
    return [
        f"in bfloat16: {name}: {int(wrong.sum())} of {wrong.numel()} are not rounded: "
        f"{given[wrong][:3].tolist()} for {exact[wrong][:3].tolist()}"
    ]


def _by_init_model(model: nn.Module, built: nn.Module, unfilled: Mapping[str, Tensor]) -> list[str]:
    """Initialises a plain model without rules; a refused model must not change."""
    versions = {
        name: one._version for name, one in _stored(model).items() if not one.is_inference()
    }
    on_meta = any(one.is_meta for one in parameters(model))
    try:
        torchinit.init_model_(model, seed=0, device="cpu" if on_meta else None)
    except torchinit.ArgumentError:
        now = _stored(model)
        if written := [name for name in versions if now[name]._version != versions[name]]:
            return [f"refused, but written to: {written[:3]}"]
        raise
    return _unequal("init_model_", _stored(built), _stored(model), unfilled)


def _on_meta(build: Build) -> nn.Module:
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:
        raise _NotTriedError(_said(error)) from error


class _NotTriedError(Exception):
    """The model cannot be built on the meta device."""


def _unequal(
    how: str,
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    unfilled: Mapping[str, Tensor],
) -> list[str]:
    names = expected.keys() ^ given.keys()
    faults = [f"{how}: other names {sorted(names)[:4]}"] if names else []
    unlike = [
        name
        for name in expected.keys() & given.keys()
        if not _same_bits(expected[name], given[name], unfilled.get(name))
    ]
    if unlike:
        one = min(unlike)
        faults.append(
            f"{how}: {len(unlike)} of {len(expected)} tensors differ, such as {one}: "
            f"{_first(given[one])} for {_first(expected[one])}"
        )
    return faults


def _first(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} {_numbers(tensor)[:3].tolist()}"


def _outcome(check: Callable[[], list[str]], result: dict[str, Any]) -> str:
    """The outcome in words: right, wrong and how, refused and why, or not tried."""
    try:
        faults = check()
    except _NotTriedError as error:
        return f"not tried: {error}"
    except torchinit.ArgumentError as error:
        result.setdefault("traceback", traceback.format_exc()[-3000:])
        return f"refused: {_said(error)}"
    except Exception as error:
        result["traceback"] = traceback.format_exc()[-3000:]
        return f"wrong: raised {_said(error)}"
    return f"wrong: {'; '.join(faults[:8])}"[:3000] if faults else "right"


def _plain_builds(build: Build) -> tuple[list[nn.Module], float]:
    """Three plain builds, and the least time of one."""
    models, times = [], []
    for seed in range(3):
        started = time.perf_counter()
        models.append(_plain(build, seed, spoilt=seed == 2))
        times.append(time.perf_counter() - started)
    return models, min(times)


def _plain(build: Build, seed: int, *, spoilt: bool = False) -> nn.Module:
    """A model built without torchinit; if spoilt, unwritten memory is NaN."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    torch.use_deterministic_algorithms(spoilt, warn_only=spoilt)
    try:
        return build()
    finally:
        torch.use_deterministic_algorithms(False)


def _generators() -> tuple[object, ...]:
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()


def _spoil(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in _stored(model).values():
            if tensor.dtype.is_floating_point or tensor.is_complex():
                tensor.fill_(math.nan)
            else:
                tensor.fill_(1)


def _count_if_possible(build: Build) -> int | None:
    with contextlib.suppress(Exception):
        return count_on_meta(build)
    return None


def _said(error: BaseException) -> str:
    said = re.sub(r"/\S*/(?=[\w-]+(\.py)?\b)", "", f"{type(error).__name__}: {error}")
    return " ".join(said.split())[:1000]  # without the folders of this machine


# All models.


def run(
    cases: Sequence[Case], options: argparse.Namespace, done: Callable[[dict[str, Any]], None]
) -> None:
    """Examines models, each in a fork of this process, until the time is up."""
    context = multiprocessing.get_context("fork")
    end = time.monotonic() + 60 * options.minutes
    preloaded = set()
    for case in cases:
        if time.monotonic() > end:
            return
        if case.library not in preloaded:
            preloaded.add(case.library)
            for module in LIBRARIES[case.library].preload:
                with contextlib.suppress(ImportError):
                    importlib.import_module(module)
            gc.collect()
            gc.freeze()
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(case, options, theirs))
        since = time.monotonic()
        process.start()
        theirs.close()
        result: dict[str, Any] = {"library": case.library, "case": case.name}
        try:
            if ours.poll(options.seconds):
                result = ours.recv()
            else:
                result["skipped"] = f"took more than {options.seconds:.0f} s"
        except EOFError:
            result["skipped"] = "the process died"
        process.kill()
        process.join()
        done(result | {"seconds": round(time.monotonic() - since, 1)})


def _child(case: Case, options: argparse.Namespace, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (options.memory << 30, options.memory << 30))
    signal.alarm(int(options.seconds) + 10)  # in case no parent is left to end it
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            pipe.send(examine(case))
        except MemoryError:
            pipe.send({"library": case.library, "case": case.name, "skipped": "out of memory"})


# The table.


def verdict(result: Mapping[str, Any]) -> str:
    """The verdict on a model: right, refused, wrong or skipped."""
    if "skipped" in result:
        return "skipped"
    modes = ("build", "meta", "bfloat16")
    if any(result.get(mode, "").startswith("wrong") for mode in (*modes, "meta_again")):
        return "wrong"
    refused = any(result.get(mode, "").startswith("refused") for mode in modes)
    return "refused" if refused else "right"


def _own_verdict(result: Mapping[str, Any]) -> str:
    outcomes = [result[mode] for mode in ("own", "own_meta") if mode in result]
    for word in ("wrong", "refused", "right"):
        if any(outcome.startswith(word) for outcome in outcomes):
            return word
    return "not tried"


_MODES = {
    "build": "built",
    "meta": "by way of meta",
    "meta_again": "by way of meta, then with another seed",
    "bfloat16": "in bfloat16",
    "own": "`init_model_`, in memory",
    "own_meta": "`init_model_`, on meta",
}


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """The summary, in Markdown."""
    found = list(results)
    lines = [
        "| library | models | right | refused | wrong | skipped | `init_model_` right | refused "
        "| wrong | plain time / build time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        _row(library, [one for one in found if one["library"] == library])
        for library in dict.fromkeys(one["library"] for one in found)
    ]
    lines.append(_row("**all**", found))
    tests = sum(one.get("tests", 0) for one in found)
    expected = sum(one.get("expected", 0.0) for one in found)
    lines += [
        "",
        f"{tests:,} tests by chance; {expected:.2g} of them are expected to fail. Times are "
        f"medians, on one thread, of single builds. {_slower(found)}",
    ]
    for word, title in (("wrong", "Wrong"), ("refused", "Refused"), ("not tried", "Not tried")):
        lines += _reasons(word, title, found)
    skipped = [one for one in found if "skipped" in one]
    if skipped:
        lines += ["", "| skipped, and why | models | such as |", "|---|---|---|"]
        lines += _grouped((_short(one["skipped"]), one) for one in skipped)
    unfilled = [one for one in found if one.get("unfilled")]
    if unfilled:
        lines += ["", "| left unfilled by the plain build | |", "|---|---|"]
        lines += [
            f"| {_called(one)} | {', '.join(f'`{name}`' for name in one['unfilled'][:4])} |"
            for one in unfilled
        ]
    return "\n".join(lines) + "\n"


def _slower(found: Sequence[Mapping[str, Any]]) -> str:
    """In words, how many slow models take longer than plain builds."""
    long = [one for one in found if one.get("build_seconds") and one["plain_seconds"] >= 0.02]
    slow = [one for one in long if one["build_seconds"] > one["plain_seconds"]]
    slow.sort(key=lambda one: one["plain_seconds"] / one["build_seconds"])
    worst = ", ".join(
        f"{_called(one)} {1000 * one['plain_seconds']:.0f} ms plain, "
        f"{1000 * one['build_seconds']:.0f} ms built"
        for one in slow[:5]
    )
    said = f"Of {len(long)} models whose plain build takes 20 ms or more, {len(slow)} are slower"
    return f"{said}: {worst}." if slow else f"{said}."


def _row(library: str, found: Sequence[Mapping[str, Any]]) -> str:
    verdicts = Counter(verdict(one) for one in found)
    own = Counter(_own_verdict(one) for one in found if "skipped" not in one)
    ratios = [
        one["plain_seconds"] / one["build_seconds"] for one in found if "build_seconds" in one
    ]
    numbers = [len(found), *(verdicts[word] for word in ("right", "refused", "wrong", "skipped"))]
    numbers += [own[word] for word in ("right", "refused", "wrong")]
    times = f"{statistics.median(ratios):.1f}" if ratios else ""
    return f"| {library} | {' | '.join(map(str, numbers))} | {times} |"


def _reasons(word: str, title: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    reasons = [
        (f"{title_of_mode}: {_short(one[mode].removeprefix(word + ': '))}", one)
        for mode, title_of_mode in _MODES.items()
        for one in found
        if one.get(mode, "").startswith(word)
    ]
    if not reasons:
        return []
    return [
        "",
        f"| {title.lower()}, and why | models | such as |",
        "|---|---|---|",
        *_grouped(reasons),
    ]


def _grouped(reasons: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    texts: dict[str, str] = {}
    for text, one in reasons:
        kind = re.sub(r"(?<!\w)'[^']*'|[\w.]*\d[\w.]*|\w+\.[\w.]+|\b[A-Z]\w+", "…", text)[:90]
        texts.setdefault(kind, text)
        groups.setdefault(kind, []).append(one)
    ordered = sorted(groups, key=lambda kind: -len(groups[kind]))
    return [
        f"| {texts[kind]} | {len(groups[kind])} | {', '.join(map(_called, groups[kind][:3]))} |"
        for kind in ordered
    ]


def _called(one: Mapping[str, Any]) -> str:
    return f"{one['library']} {one['case']}"


def _short(said: str) -> str:
    return " ".join(said.split()).replace("|", "/")[:240]


def _versions(results: Iterable[Mapping[str, Any]]) -> str:
    packages = ["torchinit", "torch"]
    packages += dict.fromkeys(LIBRARIES[one["library"]].package for one in results)
    said = {"torchinit": torchinit.__version__, "torch": torch.__version__}
    for package in packages[2:]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            said[package] = importlib.metadata.version(package)
    return ", ".join(f"{package} {version}" for package, version in said.items())


_TITLE = """# Models of other libraries, built by `build_model`

Made by `tools/built_models.py`, which says what is compared. {versions}.

Right: what is alike in three plain builds is equal in the built model, and the rest has the same
means and variances (within 6 standard errors) and the same distribution (Kolmogorov and Smirnov,
1e-9); ties, copies, strides, dtypes, classes, flags and settings are alike; the same again gives
the same bits, another seed others; by way of `device="meta"` and `to_empty` the bits are the same,
and in bfloat16 they are those rounded. `init_model_` without rules gives the bits of `build_model`,
or refuses.

"""


def main() -> None:
    """Examines models, and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none after these")
    parser.add_argument("--only", default="*", metavar="GLOB", help='such as "timm:res*"')
    parser.add_argument("--resume", type=Path, metavar="FILE", help="lines of JSON, one a model")
    parser.add_argument("--again", action="store_true", help="those of the file that are not right")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="the table, written at the end"
    )
    parser.add_argument("--seconds", type=float, default=300, help="for one model")
    parser.add_argument("--memory", type=int, default=16, help="GiB of addresses for one model")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    results: dict[tuple[str, str], dict[str, Any]] = {}
    if options.resume and options.resume.exists():
        for line in options.resume.read_text().splitlines():
            one = json.loads(line)
            results[one["library"], one["case"]] = one
    cases = []
    for name, library in LIBRARIES.items():
        if fnmatch.fnmatch(f"{name}:", options.only.split(":")[0] + ":*"):
            try:
                importlib.import_module(library.module.split(".")[0])
            except ImportError:
                print(f"{name}: not installed", file=sys.stderr)
                continue
            cases += [one for one in library.cases() if _is_wanted(one, results, options)]

    def done(result: dict[str, Any]) -> None:
        results[result["library"], result["case"]] = result
        if options.resume:
            with options.resume.open("a") as file:
                file.write(json.dumps(result) + "\n")
        said = [
            f"{how}: {result[mode]}"
            for mode, how in _MODES.items()
            if result.get(mode, "").startswith("wrong")
        ]
        said += [result["skipped"]] if "skipped" in result else []
        heading = f"{verdict(result)}, init_model_ {_own_verdict(result)}, {result['seconds']} s"
        print(
            f"{_called(result)}: {heading}", *(one[:600] for one in said), sep="\n    ", flush=True
        )

    run(cases, options, done)
    if options.markdown:
        versions = _versions(results.values())
        options.markdown.write_text(_TITLE.format(versions=versions) + table(results.values()))
    else:
        print(table(results.values()))


def _is_wanted(
    case: Case, results: Mapping[tuple[str, str], Mapping[str, Any]], options: argparse.Namespace
) -> bool:
    known = results.get((case.library, case.name))
    if known and not (options.again and (verdict(known), _own_verdict(known))[0] != "right"):
        return False
    return fnmatch.fnmatch(f"{case.library}:{case.name}", options.only)


if __name__ == "__main__":
    main()
