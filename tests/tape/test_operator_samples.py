"""Torch's own samples of its operators: what their schemas hide."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import long
from torchinit.tape import operators

# Their values are what is in memory that nobody filled, or are drawn.
_NO_VALUES = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided",
              "empty_permuted", "svd_lowrank", "pca_lowrank"}  # fmt: skip


def _samples(count: int, dtype: torch.dtype, *, grad: bool = False) -> Iterator[tuple[Any, Any]]:
    """Operators and arguments for them; those that torch refuses are left out by the caller."""
    pytest.importorskip("expecttest")  # torch's own tests want it
    found = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    for operator in found.op_db:
        if dtype not in operator.supported_dtypes("cpu"):
            continue
        try:
            samples = itertools.islice(
                operator.sample_inputs("cpu", dtype, requires_grad=grad), count
            )
            yield from ((operator, sample) for sample in samples)
        except Exception:  # of libraries that are not here
            continue


class _Writes(TorchDispatchMode):
    """Compares arguments before and after each operator.

    Attributes:
        seen: overloads.
        hidden: schemas' names and places of arguments that were written to, though it is denied.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.hidden: set[tuple[str, int]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [*enumerate(args)]
        given += [(i, kwargs[one.name]) for i, one in enumerate(func._schema.arguments)
                  if one.name in kwargs]  # fmt: skip
        declared, before = set(), []
        for place, value in given:
            for one in tree_leaves(value):
                if type(one) not in (Tensor, Parameter) or one.layout is not torch.strided:
                    continue
                if one.is_meta or one.is_quantized or one.is_conj() or one.is_neg():
                    continue
                alias = func._schema.arguments[place].alias_info
                if alias is not None and alias.is_write:
                    declared.add(one.untyped_storage()._cdata)
                else:
                    before.append((place, one, one.clone()))
        result = func(*args, **kwargs)
        self.seen.add(str(func))
        for place, one, old in before:
            if one.untyped_storage()._cdata in declared or one.shape != old.shape:
                continue
            same = (one == old) | (one.isnan() & old.isnan()) if one.numel() else torch.ones(())
            if not bool(same.all()):
                self.hidden.add((func._schema.name, place))
        return result


@long
def test_writes_that_schemas_hide() -> None:
    modes = _Writes()
    for operator, sample in _samples(12, torch.float32):
        if operator.name in _NO_VALUES:
            continue
        try:
            with torch.no_grad(), modes:
                operator.op(sample.input, *sample.args, **sample.kwargs)
        except Exception:  # what torch refuses
            continue
    layers = [
        (nn.BatchNorm1d(4), torch.randn(5, 4)),
        (nn.InstanceNorm1d(4, track_running_stats=True), torch.randn(2, 4, 7)),
        (nn.LSTM(4, 4), torch.randn(3, 2, 4)),
        (nn.EmbeddingBag(4, 4), torch.tensor([[1, 2]])),
        (torch.ao.quantization.MovingAverageMinMaxObserver(), torch.randn(9)),
        (torch.ao.quantization.FakeQuantize(), torch.randn(9)),
    ]
    for layer, given in layers:
        with torch.no_grad(), modes:
            layer(given)
    known = {(name, place) for name, places in operators.HIDDEN_WRITES.items() for place in places}
    assert len(modes.seen) > 450
    assert modes.hidden <= known
    assert {one for one in known if one[0] == "aten::native_batch_norm"} <= modes.hidden
