"""What tape/facts.py says of torch's operators, held against torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from torchinit import build_model, init_model_
from torchinit.streams.named_keys import keys_of_names
from torchinit.tape import facts
from torchinit.tape.facts import facts_of, is_pinned
from torchinit.tape.program import recall

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [(1031, 67), (4099,), (3, 5, 7, 11)]
_MIXED = [(torch.float32, torch.bfloat16), (torch.float64, torch.float32)]


def bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers."""
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
    return tensor.contiguous().view(kinds[tensor.dtype.itemsize])


def boxes(size: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """The whole, single elements, and boxes that begin and end anywhere."""
    yield tuple(slice(0, length) for length in size)
    yield tuple(slice(length - 1, length) for length in size)
    for first, less in ((0, 1), (1, 0), (1, 3), (2, 1), (7, 4)):
        begins = [min(first, length - 1) for length in size]
        ends = [max(length - less, begin + 1) for length, begin in zip(size, begins, strict=True)]
        yield tuple(map(slice, begins, ends))
    yield (slice(size[0] // 2, size[0] // 2 + 1), *(slice(0, length) for length in size[1:]))


# Operators that any part of a result can be made of alone.


aten = torch.ops.aten
# Each operator that is pinned, by overload: its arguments, of a tensor x, another y, and a mask m.
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "abs": (aten.abs, "x"),
    "neg": (aten.neg, "x"),
    "sqrt": (aten.sqrt, "x"),
    "clone": (aten.clone, "x"),
    "copy_": (aten.copy_, "xy"),
    "fill_.Scalar": (aten.fill_, ("x", 1.7)),
    "zero_": (aten.zero_, "x"),
    "where.self": (aten.where, "mxy"),
    "where.ScalarOther": (aten.where, ("m", "x", 0.3)),
    "where.ScalarSelf": (aten.where, ("m", 0.3, "x")),
    "clamp": (aten.clamp, ("x", -0.3, 0.4)),
    "clamp_.Tensor": (aten.clamp_, "xyx"),
    "clamp_min": (aten.clamp_min, ("x", 0.1)),
    "clamp_min_.Tensor": (aten.clamp_min_, "xy"),
    "clamp_max": (aten.clamp_max, ("x", 0.1)),
    "clamp_max.Tensor": (aten.clamp_max, "xy"),
    "add.Tensor": (aten.add, "xy"),
    "add_.Scalar": (aten.add_, ("x", 0.37)),
    "sub_.Tensor": (aten.sub_, "xy"),
    "sub.Scalar": (aten.sub, ("x", 0.37)),
    "rsub.Tensor": (aten.rsub, "xy"),
    "rsub.Scalar": (aten.rsub, ("x", 1.7)),
    "mul.Tensor": (aten.mul, "xy"),
    "mul_.Scalar": (aten.mul_, ("x", 0.37)),
    "div.Tensor": (aten.div, "xy"),
    "div_.Scalar": (aten.div_, ("x", 0.37)),
    **{f"_to_copy {dtype}": (aten._to_copy, ("x", dtype)) for dtype in DTYPES},
}


def call(name: str, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Calls an operator; in place on a copy."""
    function, given = CALLS[name]
    named = {"x": x.clone() if "_." in name or name.endswith("_") else x, "y": y, "m": mask}
    arguments = [named.get(one, one) if isinstance(one, str) else one for one in given]
    if isinstance(arguments[-1], torch.dtype):
        return function(x, dtype=arguments[-1])  # type: ignore[no-any-return]
    return function(*arguments)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CALLS)
def test_any_part_is_what_the_operator_makes_of_that_part(name: str) -> None:
    """To the bit, on any number of threads, in memory of its own or as a view."""
    before = torch.get_num_threads()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    try:
        for (dtype, other), size in itertools.product([*zip(DTYPES, DTYPES, strict=True), *_MIXED],
                                                      SIZES):  # fmt: skip
            x, y = torch.randn(size).to(dtype), torch.randn(size).to(other)
            mask = torch.rand(size) < 0.5
            wholes = []
            for threads in (1, 2, 7):
                torch.set_num_threads(threads)
                wholes.append(call(name, x, y, mask))
            torch.set_num_threads(1)
            assert all(torch.equal(bits(one), bits(wholes[0])) for one in wholes)
            for box in boxes(size):
                views = x[box], y[box], mask[box]
                expected = bits(wholes[0][box])
                assert torch.equal(bits(call(name, *views)), expected), (dtype, size, box)
                copies = (one.clone(memory_format=torch.contiguous_format) for one in views)
                assert torch.equal(bits(call(name, *copies)), expected), (dtype, size, box)
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)


def test_every_operator_that_is_pinned_is_tried() -> None:
    tried = {name.split()[0].partition(".")[0].rstrip("_") for name in CALLS}
    assert tried == {name.rstrip("_") for name in facts._PINNED}


@pytest.mark.parametrize(
    ("function", "numbers", "pinned"),
    [
        (torch.ops.aten.add.Tensor, {"alpha": 1}, True),
        (torch.ops.aten.add_.Scalar, {}, True),
        (torch.ops.aten.add.Tensor, {"alpha": 2}, False),  # may be fused
        (torch.ops.aten.div.Tensor_mode, {"rounding_mode": "floor"}, False),
        (torch.ops.aten._to_copy.default, {"dtype": torch.int32}, False),
        (torch.ops.aten.exp.default, {}, False),
        (torch.ops.aten.pow.Tensor_Scalar, {}, False),
        (torch.ops.aten.sigmoid.default, {}, False),
        (torch.ops.aten.softplus.default, {}, False),
        (torch.ops.aten.addcmul.default, {}, False),
        (torch.ops.aten.lerp.Scalar, {}, False),
        (torch.ops.aten.sum.default, {}, False),
        (torch.ops.aten.mm.default, {}, False),
    ],
    ids=str,
)
def test_what_is_pinned(function: Any, numbers: dict[str, Any], pinned: bool) -> None:
    assert is_pinned(function, numbers) == pinned


# And of whole programs.

EXPRESSIONS: dict[str, Callable[[], Tensor]] = {
    "scaled": lambda: torch.randn(37, 23) * 0.3 + 0.1,
    "centred": lambda: (torch.rand(37, 23) - 0.5) * 2 / 3,
    "of two draws": lambda: torch.randn(37, 23) + torch.rand(37, 23).mul_(0.7),
    "clamped": lambda: torch.randn(37, 23).clamp_(-1, 1.5).abs().sqrt(),
    "chosen": lambda: torch.where(torch.arange(851).view(37, 23) > 99, torch.randn(37, 23), 2.0),
    "with constants": lambda: torch.randn(37, 23) * torch.linspace(0, 1, 851).view(37, 23),
    "half": lambda: torch.randn(37, 23).to(torch.bfloat16) * 3,
    "negative": lambda: -torch.randn(37, 23) / torch.rand(37, 23).add_(1),
}  # fmt: skip
WHOLE: dict[str, Callable[[], Tensor]] = {
    "softplus": lambda: nn.functional.softplus(torch.randn(37, 23)),
    "sigmoid": lambda: torch.randn(37, 23).sigmoid(),
    "pow": lambda: torch.randn(37, 23).abs() ** 0.3,
    "product": lambda: torch.randn(37, 23) @ torch.randn(23, 23),
    "turned": lambda: torch.randn(23, 37).t() * 2,
    "row": lambda: torch.randn(37, 23) * torch.rand(23),
    "sum": lambda: torch.randn(37, 23) - torch.randn(37, 23).sum(),
    "alpha": lambda: torch.randn(37, 23).add(torch.randn(37, 23), alpha=0.3),
    "exponential": lambda: torch.empty(37, 23).exponential_() * 2,
}


class Holder(nn.Module):
    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self.w = Parameter(make())


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_boxes_of_expressions(name: str) -> None:
    model = build_model(lambda: Holder(EXPRESSIONS[name]), seed=0, device="meta")
    program = recall(model, "w")
    assert program is not None
    assert program.can_box()
    whole = init_model_(model, seed=0, device="cpu").w.detach()
    assert torch.equal(whole, build_model(lambda: Holder(EXPRESSIONS[name]), seed=0).w)

    def key_of_draw(number: int) -> int:
        return keys_of_names(0)(program.labels[number][1].text)

    before = torch.get_num_threads()
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(bits(program.make(key_of_draw)), bits(whole))
            for box in boxes((37, 23)):
                into = torch.empty_like(whole[box])
                program.make_box(key_of_draw, [one.start for one in box], into)
                assert torch.equal(bits(into), bits(whole[box]))
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_made_whole(name: str) -> None:
    """On any number of threads, of the same bits."""
    model = build_model(lambda: Holder(WHOLE[name]), seed=0, device="meta")
    program = recall(model, "w")
    assert program is not None
    assert not program.can_box()
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        try:
            found.append(build_model(lambda: Holder(WHOLE[name]), seed=0).w)
        finally:
            torch.set_num_threads(before)
    found.append(init_model_(model, seed=0, device="cpu").w)
    assert all(torch.equal(bits(one), bits(found[0])) for one in found)


def test_facts() -> None:
    """Of some operators that are easily taken for others."""
    aten = torch.ops.aten
    for view in (aten.view.default, aten.t_.default, aten.squeeze_.dim, aten.set_.source_Tensor,
                 aten._unsafe_view.default, aten.split.Tensor, aten.detach.default):  # fmt: skip
        assert facts_of(view).kind == "view", view
    for work in (aten.add_.Tensor, aten.copy_.default, aten.index_put_.default):
        assert facts_of(work).kind == "other"
        assert facts_of(work).written[0][0] == 0
    assert [place for place, _ in facts_of(aten.native_batch_norm.default).written] == [3, 4]
    for number in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default):
        assert facts_of(number).gives_numbers
    for random in (aten.bernoulli_.float, aten.randperm.default, aten.normal_.default):
        assert facts_of(random).is_random
    assert not facts_of(aten.mul.Tensor).is_random
