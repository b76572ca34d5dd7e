"""The operators ``torchinit::...``: their schemas and checks, and the memory, fake and vmap rules.

``x_`` fills its first argument in place and returns nothing; ``x`` returns such a tensor, filled.
Each is a pure function of its arguments: the key is a 0-dimensional int64 tensor on the CPU
(streams/keys.py), everything else is a number.

``global_shape`` and ``offset``, given together, make the tensor a box of a larger logical tensor:
it gets the values that a fill of the full tensor has from ``offset`` on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError
from torchinit.fill import via_host
from torchinit.fill.checks import check_memory, check_writable, forget_tangent
from torchinit.native.library import operator_library
from torchinit.native.torch_private import below_vmap, is_functionalizing, vmap_level
from torchinit.placement.box import Box, check_box
from torchinit.schemes.distributions import (
    DISTRIBUTIONS,
    WORDS,
    DistributionRow,
    Draw,
    check_draw,
    draw_from,
    parameters_of,
)

_FLOATS = frozenset(ALL_DTYPES)
_INTEGERS = frozenset({torch.int32, torch.int64})


def fill_by_operator(
    draw: Draw, tensor: Tensor, draw_key: Callable[[], Tensor], box: Box | None
) -> None:
    """Fills by the operator of a draw, outside autograd; draws a key only if that takes one."""
    row, operator = DISTRIBUTIONS[draw[0]], _OPERATORS[draw[0]]
    parameters = [float(parameter) for parameter in parameters_of(draw)]
    if row.is_random:
        call_operator(operator, tensor, draw_key(), *parameters, *(box or ()))
    else:
        call_operator(operator, tensor, *parameters)


def call_operator(operator: Operator, tensor: Tensor, *arguments: Any) -> None:
    """Fills a tensor by whichever form of an operator suits what observes it.

    Compilers and functionalize get the form that returns a tensor, and a copy. Inductor loses
    values read between two writes by a custom operator (``y = x.clone()`` between two fills of x;
    torch 2.13, 2.14), and functionalize does not support custom operators that write.
    """
    with torch.no_grad():
        if is_compiling() or is_functionalizing(tensor):
            tensor.copy_(operator.returns(tensor, *arguments))
        else:
            operator.writes(tensor, *arguments)
            if not tensor.is_meta:
                forget_tangent(tensor)


def _arguments(distribution: int, arguments: Sequence[Any]) -> tuple[Tensor | None, Draw, Any, Any]:
    """Key, draw, global_shape and offset, from the arguments of an operator."""
    row = DISTRIBUTIONS[distribution]
    key = arguments[0] if row.is_random else None
    rest = list(arguments[1:] if row.is_random else arguments)
    count = len(row.parameters)
    draw = draw_from(distribution, rest[:count])
    global_shape, offset = (*rest[count:], None, None)[:2]
    return key, draw, global_shape, offset


def _check(
    distribution: int,
    tensor: Tensor,
    key: Tensor | None,
    draw: Draw,
    global_shape: Any,
    offset: Any,
) -> Box | None:
    dtypes = _INTEGERS if distribution == WORDS else _FLOATS
    if tensor.dtype not in dtypes:
        raise TypeError(
            f"self has dtype {tensor.dtype}, expected one of {sorted(map(str, dtypes))}"
        )
    if key is not None:
        check_key(key)
    check_writable(tensor)
    if (global_shape is None) != (offset is None):
        raise ArgumentError(f"{global_shape=} and {offset=} must be given together")
    check_draw(draw, tensor.dtype)
    if global_shape is None:
        return None
    box = Box(global_shape, offset)
    check_box(tensor.shape, box)
    return box


def check_key(key: Tensor) -> None:
    """Raises TypeError unless a tensor holds one key: 0-dimensional int64 on the CPU."""
    if key.dtype != torch.int64 or key.dim() or not key.is_cpu:
        raise TypeError(
            "key must be a 0-dimensional int64 tensor on the CPU, "
            f"got {key.dtype} of shape {tuple(key.shape)} on {key.device}"
        )


class _OnMemory:
    """The implementation for tensors in memory, on any device."""

    def __init__(self, distribution: int) -> None:
        self.distribution = distribution

    def __call__(self, tensor: Tensor, *arguments: Any) -> None:
        key, draw, *bounds = _arguments(self.distribution, arguments)
        box = _check(self.distribution, tensor, key, draw, *bounds)
        number = 0
        if tensor.numel() > 0:
            check_memory(tensor)
            number = 0 if key is None else int(key.item())
        via_host.write(draw, tensor, number, box)


class _OnFake:
    """The implementation for tensors without memory, which only checks."""

    def __init__(self, distribution: int) -> None:
        self.distribution = distribution

    def __call__(self, tensor: Tensor, *arguments: Any) -> None:
        key, draw, *bounds = _arguments(self.distribution, arguments)
        _check(self.distribution, tensor, key, draw, *bounds)


class _OnBatched:
    """The vmap rule: with randomness "different" the batch is filled as one tensor, batch first.

    With "same", or for boxes, one example is filled and copied to the others.
    """

    def __init__(self, distribution: int) -> None:
        self.distribution = distribution

    def __call__(self, info: Any, examples: Tensor, *arguments: Any) -> None:
        writes, row = _OPERATORS[self.distribution].writes, DISTRIBUTIONS[self.distribution]
        _, _, global_shape, _ = _arguments(self.distribution, arguments)
        same = row.is_random and (info.randomness == "same" or global_shape is not None)
        fill_batched(info, examples, lambda some: writes(some, *arguments), same=same)


def check_randomness(tensor: Tensor, name: str) -> None:
    """Raises RuntimeError under vmap with randomness "error", as torch's random operators do.

    Also with "different", for a tensor that is not batched and so the same for all examples.
    """
    randomness, is_batched = vmap_level(tensor)
    if randomness == "error":
        raise RuntimeError(
            f"vmap: called random operation torchinit::{name} while in randomness error mode. "
            "Please either use the 'same' or 'different' randomness flags on vmap or perform the "
            "randomness operation out of vmap"
        )
    if randomness == "different" and not is_batched:
        raise RuntimeError(
            f"vmap: torchinit::{name} cannot give different values to the examples of a tensor "
            "that is not batched. Make it from a batched one (torch.empty_like, new_empty), or use "
            "randomness='same'"
        )


def fill_batched(
    info: Any, examples: Tensor, fill: Callable[[Tensor], None], *, same: bool
) -> None:
    """Fills a batch of examples at once; if same, fills the first and copies it to the others."""
    if not same:
        fill(examples)
    elif info.batch_size:
        fill(examples[0])
        examples[1:].copy_(examples[:1].expand_as(examples[1:]))


_BOX = "SymInt[]? global_shape=None, SymInt[]? offset=None"

LIBRARY = operator_library("fill.operators")


class Operator(NamedTuple):
    """The overloads of an operator's two forms, which are quicker to call than by name."""

    writes: Any
    returns: Any


def define(
    name: str,
    schema: str,
    on_memory: Callable[..., None],
    on_fake: Callable[..., None],
    on_batched: Callable[..., None],
) -> Operator:
    """Defines both forms of an operator.

    Args:
        name: of the form that writes, with the underscore.
        schema: of the arguments after the tensor.
        on_memory: fills the tensor in memory, its first argument.
        on_fake: checks the arguments for a tensor without memory.
        on_batched: called with vmap's info, and the tensor with the batch dimension first.
    """
    random = "Tensor key" in schema

    def batched(info: Any, in_dims: Any, tensor: Tensor, arguments: Any) -> Tensor:
        if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
            raise NotImplementedError(f"torchinit::{name} under vmap takes one key for all")
        examples = tensor.movedim(in_dims[0], 0)
        on_batched(info, examples, *arguments)
        return examples

    def write_batched(info: Any, in_dims: Any, tensor: Tensor, *arguments: Any) -> Any:
        batched(info, in_dims, tensor, arguments)
        return None, None

    def return_batched(info: Any, in_dims: Any, tensor: Tensor, *arguments: Any) -> Any:
        return batched(info, in_dims, torch.empty_like(tensor), arguments), 0

    def return_on_memory(tensor: Tensor, *arguments: Any) -> Tensor:
        filled = tensor.new_empty(tensor.shape)
        on_memory(filled, *arguments)
        return filled

    def return_on_fake(tensor: Tensor, *arguments: Any) -> Tensor:
        filled = tensor.new_empty(tensor.shape)
        on_fake(filled, *arguments)
        return filled

    writes = _register(
        name, f"(Tensor(a!) self, {schema}) -> ()", on_memory, on_fake, write_batched, random
    )
    returns = _register(
        name.rstrip("_"), f"(Tensor self, {schema}) -> Tensor",
        return_on_memory, return_on_fake, return_batched, random,
    )  # fmt: skip
    return Operator(writes, returns)


def _register(
    name: str,
    schema: str,
    on_memory: Callable[..., Any],
    on_fake: Callable[..., Any],
    on_batched: Callable[..., Any],
    random: bool,
) -> Any:
    qualified = f"torchinit::{name}"
    LIBRARY.define(name + schema.replace("self, )", "self)"))
    # Not differentiable: nothing is recorded, and a leaf that requires grad may be filled.
    LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    LIBRARY.impl(name, on_memory, "CompositeExplicitAutograd")  # on every device
    torch.library.register_fake(qualified, on_fake, lib=LIBRARY)
    torch.library.register_vmap(qualified, on_batched, lib=LIBRARY)
    overload = getattr(torch.ops.torchinit, name).default
    if random:

        def on_vmap(tensor: Tensor, *arguments: Any) -> Any:
            check_randomness(tensor, name)
            with below_vmap():
                return overload(tensor, *arguments)

        # Also called if nothing is batched; torch then does not call the vmap rule.
        LIBRARY.impl(name, on_vmap, "FuncTorchVmapMode")
    return overload


def _define(distribution: int, row: DistributionRow) -> Operator:
    parts = ["Tensor key"] if row.is_random else []
    parts += [f"float {name}" for name in row.parameters]
    parts += [_BOX] if row.is_random else []
    return define(
        f"{row.name}_",
        ", ".join(parts),
        _OnMemory(distribution),
        _OnFake(distribution),
        _OnBatched(distribution),
    )


_OPERATORS = {
    distribution: _define(distribution, row) for distribution, row in DISTRIBUTIONS.items()
}
random_words_ = _OPERATORS[WORDS].writes
