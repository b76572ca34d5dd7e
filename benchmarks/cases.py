"""The timed cases, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import init as torch_init

import torchinit

ELEMENTS = 2**26
# torch's trunc_normal_ takes seconds for more elements, at half the speed.
TORCH_TRUNC_ELEMENTS = 2**22


@dataclass(frozen=True)
class Case:
    """A fill by torchinit and the same by torch.nn.init."""

    name: str
    dtype: torch.dtype
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)
    torch_elements: int | None = None  # None: as many as torchinit's

    @property
    def title(self) -> str:
        """The name with the dtype, unique among the cases."""
        return f"{str(self.dtype).removeprefix('torch.')} {self.name}"


_FILLS: list[tuple[str, str, dict[str, Any], int | None]] = [
    ("uniform", "uniform_", {"a": -1.0, "b": 1.0}, None),
    ("kaiming_uniform", "kaiming_uniform_", {}, None),
    ("normal", "normal_", {}, None),
    ("trunc_normal within 2 std", "trunc_normal_", {}, TORCH_TRUNC_ELEMENTS),
    (
        "trunc_normal within 3 std",
        "trunc_normal_",
        {"std": 0.02, "a": -0.06, "b": 0.06},
        TORCH_TRUNC_ELEMENTS,
    ),
    ("trunc_normal, not cut", "trunc_normal_", {"std": 0.01}, TORCH_TRUNC_ELEMENTS),
    ("constant", "constant_", {"val": 0.5}, None),
]

CASES = [
    Case(name, dtype, getattr(torchinit, function), getattr(torch_init, function), arguments, fewer)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for name, function, arguments, fewer in _FILLS
]


def small_calls(size: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Calls on size x size parameters, ours and torch's, for the cost of a call."""
    weight = torch.nn.Parameter(torch.empty(size, size))
    bias = torch.nn.Parameter(torch.empty(size))
    bound = size**-0.5

    def torch_kaiming() -> None:
        torch_init.kaiming_uniform_(weight)

    def torch_kaiming_and_bias() -> None:
        torch_init.kaiming_uniform_(weight)
        torch_init.uniform_(bias, -bound, bound)

    return {
        "normal_": (lambda: torchinit.normal_(weight), lambda: torch_init.normal_(weight)),
        "uniform_": (lambda: torchinit.uniform_(weight), lambda: torch_init.uniform_(weight)),
        "trunc_normal_": (
            lambda: torchinit.trunc_normal_(weight),
            lambda: torch_init.trunc_normal_(weight),
        ),
        "init_ kaiming_uniform": (
            lambda: torchinit.init_(weight, None, "kaiming_uniform"),
            torch_kaiming,
        ),
        "init_ kaiming_uniform with bias": (
            lambda: torchinit.init_(weight, bias, "kaiming_uniform"),
            torch_kaiming_and_bias,
        ),
    }
