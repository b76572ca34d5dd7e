"""The table of schemes: for each name, what ``init_`` gives a weight and a bias.

``SCHEMES`` is the only list of them, read by ``init_``, ``which`` and the tables of the docs. To
add a scheme, add a row here, its name in ``InitializationType`` for type checkers, and, if it needs
one, a function in ``functional.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

from torchinit.errors import UnknownSchemeError
from torchinit.schemes.distributions import (
    Draw,
    constant_draw,
    law_of,
    normal_draw,
    truncated_draw,
    uniform_draw,
)
from torchinit.schemes.fans import (
    fan_in_uniform,
    kaiming_normal,
    kaiming_uniform,
    xavier_normal,
    xavier_uniform,
)
from torchinit.schemes.law import Law, law_of_orthogonal

# SCHEMES decides; a test compares the two.
InitializationType = Literal[
    "orthogonal",
    "normal",
    "biased_normal",
    "uniform",
    "kaiming_uniform",
    "kaiming_normal",
    "xavier_uniform",
    "xavier_normal",
    "trunc_normal",
    "dirac",
    "constant",
    "zeros",
    "ones",
]
"""The names of the schemes that ``init_`` takes, for type checkers.

>>> from typing import get_args
>>> import torchinit
>>> "kaiming_uniform" in get_args(torchinit.InitializationType)
True
"""


class Arguments(NamedTuple):
    """The keyword arguments of ``init_`` that schemes read."""

    mean: float = 0.0
    std: float = 0.01
    scale: float = 0.02
    groups: int = 1
    trunc_clip: tuple[float, float] = (-2.0, 2.0)
    gain: float | None = None


def _zeros(_shape: Sequence[int], _arguments: Arguments) -> Draw:
    return _ZEROS


class SchemeRow(NamedTuple):
    """A row of the table.

    Attributes:
        weight, bias: their values, in words, for the docs.
        draw: the weight's, from its shape; None if it is not filled elementwise.
        bias_draw: the bias's, from the weight's shape.
        dimensions: the least and largest number that the weight may have.
        function: its function in ``functional.py``; None if it has none.
        why_torch: why ``torch.nn.init`` always fills it; empty for native schemes.
        in_init: whether ``init_`` takes it; the others are only functions.
    """

    weight: str
    bias: str = "0"
    draw: Callable[[Sequence[int], Arguments], Draw] | None = None
    bias_draw: Callable[[Sequence[int], Arguments], Draw] = _zeros
    dimensions: tuple[float, float] = (0, math.inf)
    function: str | None = None
    why_torch: str = ""
    in_init: bool = True


_ZEROS, _ONES = constant_draw(0.0), constant_draw(1.0)
_FAN_BIAS = "U(-r, r), r = 1/sqrt(fan_in) of the weight; 0 where fan_in is 0"


def _fan_scheme(name: str, weight: str, draw: Callable[[Sequence[int]], Draw]) -> SchemeRow:
    return SchemeRow(
        weight,
        _FAN_BIAS,
        draw=lambda shape, _: draw(shape),
        bias_draw=lambda shape, _: fan_in_uniform(shape),
        dimensions=(2, math.inf),
        function=f"{name}_",
    )


def _normal(_shape: Sequence[int], arguments: Arguments) -> Draw:
    return normal_draw(arguments.mean, arguments.std)


SCHEMES: dict[str, SchemeRow] = {
    "orthogonal": SchemeRow(
        "(semi-)orthogonal over (shape[0], rest), times `gain`; the default gain is 1, but "
        "**0.01 for float16 and bfloat16**",
        dimensions=(2, math.inf),
        function="orthogonal_",
    ),
    "normal": SchemeRow("N(mean, std^2)", draw=_normal, function="normal_"),
    "biased_normal": SchemeRow("N(mean, std^2)", "N(mean, std^2)", draw=_normal, bias_draw=_normal),
    "uniform": SchemeRow(
        "U[0, scale)",
        draw=lambda _, arguments: uniform_draw(0.0, arguments.scale),
        function="uniform_",
    ),
    "kaiming_uniform": _fan_scheme("kaiming_uniform", "fan_in, gain sqrt(2)", kaiming_uniform),
    "kaiming_normal": _fan_scheme("kaiming_normal", "fan_in, gain sqrt(2)", kaiming_normal),
    "xavier_uniform": _fan_scheme("xavier_uniform", "gain 1", xavier_uniform),
    "xavier_normal": _fan_scheme("xavier_normal", "gain 1", xavier_normal),
    "trunc_normal": SchemeRow(
        "N(mean, std^2) truncated to `trunc_clip`, values and not multiples of std",
        draw=lambda _, x: truncated_draw(x.mean, x.std, *x.trunc_clip),
        function="trunc_normal_",
    ),
    "dirac": SchemeRow(
        "Dirac delta, with `groups`",
        dimensions=(3, 5),
        function="dirac_",
        why_torch="dirac is deterministic: torch.nn.init fills it",
    ),
    "constant": SchemeRow(
        "`scale`", draw=lambda _, x: constant_draw(x.scale), function="constant_"
    ),
    "zeros": SchemeRow("0", draw=_zeros, function="zeros_"),
    "ones": SchemeRow("1", draw=lambda _shape, _: _ONES, function="ones_"),
    "eye": SchemeRow(
        "identity",
        function="eye_",
        why_torch="eye is deterministic: torch.nn.init fills it",
        in_init=False,
    ),
    "sparse": SchemeRow(
        "N(0, std^2), a fraction of each column zero",
        function="sparse_",
        why_torch="the zeros of sparse are chosen by torch.nn.init, which fills it",
        in_init=False,
    ),
}

INIT_SCHEMES: tuple[str, ...] = tuple(name for name, row in SCHEMES.items() if row.in_init)


def law(name: str, shape: Sequence[int], arguments: Arguments | None = None) -> Law:
    """The law of a weight's elements with a scheme.

    Raises:
        UnknownSchemeError: for a name that is not in the table.
        ValueError: for a scheme without a law (``dirac``, ``eye``, ``sparse``).
    """
    scheme = find_scheme(name)
    arguments = arguments or Arguments()
    if scheme.draw is not None:
        return law_of(scheme.draw(shape, arguments))
    if name == "orthogonal":
        gain = 1.0 if arguments.gain is None else arguments.gain
        return law_of_orthogonal(shape[0], math.prod(shape[1:]), gain)
    raise ValueError(f"the elements of {name!r} do not share one distribution")


def find_scheme(name: Any) -> SchemeRow:
    """The row of a scheme, by its name or that of its function (``"normal_"``).

    Raises:
        UnknownSchemeError: if there is none.
    """
    scheme = SCHEMES.get(name.rstrip("_")) if isinstance(name, str) else None
    if scheme is None:
        raise UnknownSchemeError(f"scheme {name!r} is unknown, choose one of {', '.join(SCHEMES)}")
    return scheme


def cast_init_type(s: str) -> InitializationType:
    """Returns a string as an ``InitializationType``.

    Raises:
        UnknownSchemeError: if it is not the name of a scheme of ``init_``.

    >>> import torchinit
    >>> torchinit.cast_init_type("kaiming_uniform")
    'kaiming_uniform'
    """
    if s not in INIT_SCHEMES:
        raise UnknownSchemeError(
            f"initialization type {s!r} is unknown, choose one of {', '.join(INIT_SCHEMES)}"
        )
    return cast(InitializationType, s)


def markdown_table() -> str:
    """The table in docs/drop_in.md; a test compares the two."""
    rows = ["| init | weight | bias, if given |", "|---|---|---|"]
    rows += [
        f"| `{name}` | {row.weight} | {row.bias} |" for name, row in SCHEMES.items() if row.in_init
    ]
    return "\n".join(rows)
