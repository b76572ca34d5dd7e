"""Torch's own samples of its operators: what schemas hide, and what the tape makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from conftest import long
from torchinit import build_model
from torchinit.tape import facts

# Their values are what is in memory that nobody filled, or are drawn.
_NO_VALUES = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided",
              "empty_permuted", "svd_lowrank", "pca_lowrank"}  # fmt: skip
_PARTS = 4  # of the operators, so that tests end together
_each_part = pytest.mark.parametrize("part", range(_PARTS))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On busy cores small tensors take forty times as long by threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _samples(
    part: int, count: int, dtype: torch.dtype, *, grad: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Operators and arguments for them; those that torch refuses are left out by the caller."""
    pytest.importorskip("expecttest")  # torch's own tests want it
    found = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    for operator in found.op_db[part::_PARTS]:
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
@_each_part
def test_writes_that_schemas_hide(part: int) -> None:
    modes = _Writes()
    for operator, sample in _samples(part, 12, torch.float32):
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
    known = {(name, place) for name, places in facts.HIDDEN_WRITES.items() for place in places}
    assert len(modes.seen) > 150
    assert modes.hidden <= known
    assert {one for one in known if one[0] == "aten::native_batch_norm"} <= modes.hidden


def _pending(tensor: Any) -> Any:
    """A tensor of the same values, which waits if it is made on a tape."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or not tensor.numel():
        return tensor
    if tensor.is_conj() or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    made = torch.empty_like(values.detach()).uniform_(0, 0).add_(values.detach())
    made = torch.view_as_complex(made) if tensor.is_complex() else made
    return made.requires_grad_(tensor.requires_grad)


def _use(function: Callable[..., Any], sample: Any, how: str) -> list[Any]:
    """Everything that an operator gives, and its arguments after it."""
    given = tree_map(_pending, (sample.input, sample.args, sample.kwargs))
    result: Any = function(given[0], *given[1], **given[2])
    made = [one for one in tree_leaves(result) if type(one) is Tensor]
    if how == "changed":
        for one in made:
            if one.is_floating_point() and one.layout is torch.strided and one.numel():
                one.add_(1)
    if how == "derived":
        outputs = [one for one in made if one.requires_grad]
        leaves = [one for one in tree_leaves(given) if isinstance(one, Tensor)]
        inputs = [one for one in leaves if one.requires_grad]
        if outputs and inputs:
            total = sum((one.abs() ** 2).sum() for one in outputs)
            result = result, torch.autograd.grad(total, inputs, allow_unused=True)
    left = tree_leaves((result, given))
    return [one.detach() if isinstance(one, Tensor) else one for one in left]


def _difference(one: Any, other: Any, *, strides: bool = True) -> str:
    if not isinstance(one, Tensor) or one.layout is not torch.strided or one.is_quantized:
        return "" if isinstance(one, Tensor) or one == other or one != one else "number"
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return f"{tuple(one.shape)} {one.dtype} for {tuple(other.shape)} {other.dtype}"
    if strides and one.numel() > 1 and one.stride() != other.stride():
        return f"strides {one.stride()} for {other.stride()}"
    same = (one == other) | (one.isnan() & other.isnan())
    if one.is_floating_point() or one.is_complex():
        scale = max(1, float(other.abs().nan_to_num(0).max())) if other.numel() else 1
        same |= (one - other).abs() <= 1e-5 * scale
    return "" if bool(same.all()) else "values"


class _Everything(nn.Module):
    """Keeps what an operator gives as attributes, so that it has names."""

    def __init__(self, make: Callable[[], list[Any]]) -> None:
        super().__init__()
        self.made = make()
        for number, one in enumerate(self.made):
            if type(one) is Tensor:
                setattr(self, f"a{number}", one)


@long
@_each_part
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "dtype", "samples", "without"),
    [
        ("used", torch.bfloat16, 2, set()),
        ("used", torch.complex64, 2, {"linalg.pinv", "pinverse", "linalg.lstsq"}),
        ("changed", torch.float32, 5, set()),
        ("derived", torch.float32, 3, {"sparse.mm"}),
    ],
    ids=["bfloat16", "complex64", "changed", "derived"],
)
def test_operators_on_what_waits_are_as_on_values(
    how: str, dtype: torch.dtype, samples: int, without: set[str], part: int
) -> None:
    """Every operator that torch has samples for, with arguments that follow from draws.

    The draws are uniform between 0 and 0, so that plain values are known.
    """
    wrong: dict[str, str] = {}
    count = 0
    for operator, sample in _samples(part, samples, dtype, grad=how == "derived"):
        if operator.name in _NO_VALUES | without:
            continue
        for function in filter(None, (operator.op, operator.inplace_variant)):
            with torch.set_grad_enabled(how == "derived"), torch.random.fork_rng():
                try:
                    plain = [torch.manual_seed(seed) and _use(function, sample, how)
                             for seed in (0, 1, 2)]  # fmt: skip
                except Exception:  # what torch refuses
                    continue
                if any(_difference(*pair) for other in plain[1:]
                       for pair in zip(plain[0], other, strict=True)):  # fmt: skip
                    continue  # it draws
                count += 1
                try:
                    made = build_model(
                        lambda f=function, s=sample: _Everything(lambda: _use(f, s, how)), seed=0
                    ).made
                except Exception as error:
                    wrong.setdefault(operator.name, f"{type(error).__name__}: {error}")
                    continue
            for pair in zip(made, plain[0], strict=True):
                # The strides of a gradient are nobody's business.
                if found := _difference(*pair, strides=how != "derived"):
                    wrong.setdefault(operator.name, found)
    assert count > 200 * samples / _PARTS
    assert wrong == {}
