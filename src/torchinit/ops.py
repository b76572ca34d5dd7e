"""The operators ``torchinit::...``: schema, checks, and the CPU, CUDA and Fake implementations.

Every operator fills its first argument in place and returns nothing. It is a pure function of its
arguments: the key is a tensor of one int64 on the CPU (see keys.py), everything else a number.

``shape`` and ``start``, given together, make the tensor a box of a larger logical tensor: it
receives the values that a fill of the whole of that shape has at ``start`` and on. Without them the
tensor is the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchinit import kernels, keys
from torchinit.checks import (
    check_constant,
    check_interval,
    check_memory,
    check_normal,
    check_uniform,
    check_writable,
)
from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError

LIBRARY = torch.library.Library("torchinit", "DEF")

_FLOATS = frozenset(ALL_DTYPES)
_INTEGERS = frozenset({torch.int32, torch.int64})


def _check(
    tensor: Tensor,
    key: Tensor | None,
    dtypes: frozenset[torch.dtype],
    shape: Sequence[int] | None,
    start: Sequence[int] | None,
) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(
            f"self has dtype {tensor.dtype}, expected one of {sorted(map(str, dtypes))}"
        )
    if key is not None and (key.dtype != torch.int64 or key.dim() or not key.is_cpu):
        raise TypeError(
            "key must be a 0-dimensional int64 tensor on the CPU, "
            f"got {key.dtype} of shape {tuple(key.shape)} on {key.device}"
        )
    check_writable(tensor)
    if (shape is None) != (start is None):
        raise ArgumentError(f"shape={shape} and start={start} must be given together")
    if shape is None or start is None:
        return
    if not len(shape) == len(start) == tensor.dim() or any(
        first < 0 or first + size > whole
        for first, size, whole in zip(start, tensor.shape, shape, strict=True)
    ):
        raise ArgumentError(
            f"a box of shape {tuple(tensor.shape)} at start={list(start)} does not lie within "
            f"shape={list(shape)}"
        )


_Fill = Callable[
    [Tensor, Tensor | None, int, kernels.Parameters, Sequence[int] | None, Sequence[int] | None],
    None,
]


def _fill_fake(*_arguments: object) -> None:
    """Nothing: a tensor without memory takes no values."""


def _register(name: str, schema: str, implement: Callable[[_Fill], Callable[..., None]]) -> None:
    """Defines an operator and its implementations, which differ in the fill they end in."""
    LIBRARY.define(f"{name}({schema}) -> ()")

    def on_memory(fill: Callable[..., None]) -> _Fill:
        def run(tensor: Tensor, key: Tensor | None, *rest: object) -> None:
            if tensor.numel() > 0:
                check_memory(tensor)
                fill(tensor, 0 if key is None else int(key.item()), *rest)
            kernels.count_write(tensor)

        return run

    # Not differentiable: nothing is recorded, and a leaf that requires grad may be filled.
    LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    LIBRARY.impl(name, implement(on_memory(kernels.fill_cpu)), "CPU")
    LIBRARY.impl(name, implement(on_memory(kernels.fill_cuda)), "CUDA")
    torch.library.register_fake(f"torchinit::{name}", implement(_fill_fake), lib=LIBRARY)


def _uniform(fill: _Fill) -> Callable[..., None]:
    def uniform_(
        self: Tensor,
        key: Tensor,
        a: float,
        b: float,
        shape: Sequence[int] | None = None,
        start: Sequence[int] | None = None,
    ) -> None:
        _check(self, key, _FLOATS, shape, start)
        check_uniform(self.dtype, a, b)
        fill(self, key, kernels.UNIFORM, (a, b, 0.0, 0.0), shape, start)

    return uniform_


def _normal(fill: _Fill) -> Callable[..., None]:
    def normal_(
        self: Tensor,
        key: Tensor,
        mean: float,
        std: float,
        shape: Sequence[int] | None = None,
        start: Sequence[int] | None = None,
    ) -> None:
        _check(self, key, _FLOATS, shape, start)
        check_normal(mean, std)
        fill(self, key, kernels.NORMAL, (mean, std, 0.0, 0.0), shape, start)

    return normal_


def _trunc_normal(fill: _Fill) -> Callable[..., None]:
    def trunc_normal_(
        self: Tensor,
        key: Tensor,
        mean: float,
        std: float,
        a: float,
        b: float,
        shape: Sequence[int] | None = None,
        start: Sequence[int] | None = None,
    ) -> None:
        _check(self, key, _FLOATS, shape, start)
        check_normal(mean, std)
        check_interval(a, b)
        fill(self, key, kernels.TRUNCATED_NORMAL, (mean, std, a, b), shape, start)

    return trunc_normal_


def _constant(fill: _Fill) -> Callable[..., None]:
    def constant_(self: Tensor, val: float) -> None:
        _check(self, None, _FLOATS, None, None)
        check_constant(self.dtype, val)
        fill(self, None, kernels.CONSTANT, (val, 0.0, 0.0, 0.0), None, None)

    return constant_


def _random_words(fill: _Fill) -> Callable[..., None]:
    def random_words_(
        self: Tensor,
        key: Tensor,
        shape: Sequence[int] | None = None,
        start: Sequence[int] | None = None,
    ) -> None:
        _check(self, key, _INTEGERS, shape, start)
        fill(self, key, kernels.WORDS, (0.0, 0.0, 0.0, 0.0), shape, start)

    return random_words_


# The tag keeps compilers from merging two draws into one.
LIBRARY.define("draw_key() -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
LIBRARY.impl("draw_key", keys.draw_key, "CompositeExplicitAutograd")
torch.library.register_fake(
    "torchinit::draw_key", lambda: torch.empty((), dtype=torch.int64, device="cpu"), lib=LIBRARY
)

_BOX = "SymInt[]? shape=None, SymInt[]? start=None"
_register("uniform_", f"Tensor(a!) self, Tensor key, float a, float b, {_BOX}", _uniform)
_register("normal_", f"Tensor(a!) self, Tensor key, float mean, float std, {_BOX}", _normal)
_register(
    "trunc_normal_",
    f"Tensor(a!) self, Tensor key, float mean, float std, float a, float b, {_BOX}",
    _trunc_normal,
)
_register("constant_", "Tensor(a!) self, float val", _constant)
_register("random_words_", f"Tensor(a!) self, Tensor key, {_BOX}", _random_words)

# The overloads themselves: calling them skips a look-up by name.
uniform_ = torch.ops.torchinit.uniform_.default
normal_ = torch.ops.torchinit.normal_.default
trunc_normal_ = torch.ops.torchinit.trunc_normal_.default
constant_ = torch.ops.torchinit.constant_.default
random_words_ = torch.ops.torchinit.random_words_.default

_OPERATORS = {
    kernels.UNIFORM: (uniform_, 2),
    kernels.NORMAL: (normal_, 2),
    kernels.TRUNCATED_NORMAL: (trunc_normal_, 4),
}


def fill(tensor: Tensor, key: Tensor, distribution: int, parameters: kernels.Parameters) -> None:
    """Calls the operator of a distribution with as many of the parameters as it has."""
    operator, count = _OPERATORS[distribution]
    operator(tensor, key, *parameters[:count])
