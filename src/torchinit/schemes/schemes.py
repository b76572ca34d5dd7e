"""The schemes: each a function from the logical shape of a weight and arguments to a draw.

``SCHEMES`` is the one list of them. What ``init_`` accepts, what ``which`` knows, the tables of the
docs, the demo and the benchmarks are read from it; to add a scheme is to add a row, a function of
its name in ``functional.py`` and, for type checkers, its name in ``InitializationType``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

from torchinit.errors import ArgumentError, UnknownSchemeError
from torchinit.schemes.distributions import (
    Draw,
    as_float,
    check_finite,
    constant_draw,
    law_of,
    normal_draw,
    truncated_draw,
    uniform_draw,
)
from torchinit.schemes.fans import calculate_fans, kaiming_std, xavier_std
from torchinit.schemes.law import Law, law_of_orthogonal

Shape = Sequence[int]

# SCHEMES decides, and a test holds the two together.
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

_SQRT3 = math.sqrt(3.0)


def xavier_uniform(shape: Shape, gain: float = 1.0) -> Draw:
    """U(-r, r), r = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    _check_gain(gain)
    bound = _SQRT3 * xavier_std(shape, gain)
    return uniform_draw(-bound, bound)


def xavier_normal(shape: Shape, gain: float = 1.0) -> Draw:
    """N(0, s^2), s = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    _check_gain(gain)
    return normal_draw(0.0, xavier_std(shape, gain))


def kaiming_uniform(
    shape: Shape,
    a: float | None = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
) -> Draw:
    """U(-r, r), r = gain sqrt(3 / fan) (He et al. 2015)."""
    bound = _SQRT3 * kaiming_std(shape, a, mode, nonlinearity)
    return uniform_draw(-bound, bound)


def kaiming_normal(
    shape: Shape,
    a: float | None = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
) -> Draw:
    """N(0, s^2), s = gain / sqrt(fan) (He et al. 2015)."""
    return normal_draw(0.0, kaiming_std(shape, a, mode, nonlinearity))


def fan_in_uniform(shape: Shape) -> Draw:
    """U(-r, r), r = 1 / sqrt(fan_in): a bias's, of the weight's shape; 0 where fan_in is 0."""
    fan_in, _ = calculate_fans(shape)
    if fan_in == 0:
        return _ZEROS
    bound = 1 / math.sqrt(fan_in)
    return uniform_draw(-bound, bound)


def _check_gain(gain: float) -> None:
    if type(gain) is not float:
        gain = as_float("gain", gain)
    check_finite(gain=gain)
    if gain < 0:
        raise ArgumentError(f"gain={gain} must not be negative")


class Arguments(NamedTuple):
    """The keyword arguments of ``init_`` that schemes read."""

    mean: float = 0.0
    std: float = 0.01
    scale: float = 0.02
    groups: int = 1
    trunc_clip: tuple[float, float] = (-2.0, 2.0)
    gain: float | None = None


def _zeros(_shape: Shape, _arguments: Arguments) -> Draw:
    return _ZEROS


class Scheme(NamedTuple):
    """A row of the table.

    Attributes:
        weight, bias: what they get, in words, for the docs.
        draw: the weight's, of its shape; None where elements are not drawn one by one.
        bias_draw: the bias's, of the weight's shape.
        dimensions: how many the weight may have, at least and at most.
        function: the function of ``functional.py`` that fills so; None if it has no name there.
        why_torch: why ``torch.nn.init`` serves it everywhere; empty for the native ones.
        in_init: whether ``init_`` has it; the others are functions alone.
    """

    weight: str
    bias: str = "0"
    draw: Callable[[Shape, Arguments], Draw] | None = None
    bias_draw: Callable[[Shape, Arguments], Draw] = _zeros
    dimensions: tuple[float, float] = (0, math.inf)
    function: str | None = None
    why_torch: str = ""
    in_init: bool = True


_ZEROS, _ONES = constant_draw(0.0), constant_draw(1.0)
_FAN_BIAS = "U(-r, r), r = 1/sqrt(fan_in) of the weight; 0 where fan_in is 0"
_NO_DRAW = "{} has no random fill worth a kernel: torch.nn.init serves it"


def _fan_scheme(name: str, weight: str, draw: Callable[[Shape], Draw]) -> Scheme:
    return Scheme(
        weight,
        _FAN_BIAS,
        draw=lambda shape, _: draw(shape),
        bias_draw=lambda shape, _: fan_in_uniform(shape),
        dimensions=(2, math.inf),
        function=f"{name}_",
    )


def _normal(_shape: Shape, arguments: Arguments) -> Draw:
    return normal_draw(arguments.mean, arguments.std)


SCHEMES: dict[str, Scheme] = {
    "orthogonal": Scheme(
        "(semi-)orthogonal over (shape[0], rest), times `gain`; the default gain is 1, but "
        "**0.01 for float16 and bfloat16**",
        dimensions=(2, math.inf),
        function="orthogonal_",
    ),
    "normal": Scheme("N(mean, std^2)", draw=_normal, function="normal_"),
    "biased_normal": Scheme("N(mean, std^2)", "N(mean, std^2)", draw=_normal, bias_draw=_normal),
    "uniform": Scheme(
        "U[0, scale)",
        draw=lambda _, arguments: uniform_draw(0.0, arguments.scale),
        function="uniform_",
    ),
    "kaiming_uniform": _fan_scheme("kaiming_uniform", "fan_in, gain sqrt(2)", kaiming_uniform),
    "kaiming_normal": _fan_scheme("kaiming_normal", "fan_in, gain sqrt(2)", kaiming_normal),
    "xavier_uniform": _fan_scheme("xavier_uniform", "gain 1", xavier_uniform),
    "xavier_normal": _fan_scheme("xavier_normal", "gain 1", xavier_normal),
    "trunc_normal": Scheme(
        "N(mean, std^2) truncated to `trunc_clip`, values and not multiples of std",
        draw=lambda _, x: truncated_draw(x.mean, x.std, *x.trunc_clip),
        function="trunc_normal_",
    ),
    "dirac": Scheme(
        "Dirac delta, with `groups`",
        dimensions=(3, 5),
        function="dirac_",
        why_torch=_NO_DRAW.format("dirac"),
    ),
    "constant": Scheme("`scale`", draw=lambda _, x: constant_draw(x.scale), function="constant_"),
    "zeros": Scheme("0", draw=_zeros, function="zeros_"),
    "ones": Scheme("1", draw=lambda _shape, _: _ONES, function="ones_"),
    "eye": Scheme("identity", function="eye_", why_torch=_NO_DRAW.format("eye"), in_init=False),
    "sparse": Scheme(
        "N(0, std^2), a fraction of each column zero",
        function="sparse_",
        why_torch=_NO_DRAW.format("sparse"),
        in_init=False,
    ),
}

INIT_SCHEMES: tuple[str, ...] = tuple(name for name, row in SCHEMES.items() if row.in_init)


def law(name: str, shape: Shape, arguments: Arguments | None = None) -> Law:
    """The law of a weight's elements under a scheme.

    Raises:
        UnknownSchemeError: for a name that is not in the table.
        ValueError: for a scheme that no law describes (``dirac``, ``eye``, ``sparse``).
    """
    scheme = find_scheme(name)
    arguments = arguments or Arguments()
    if scheme.draw is not None:
        return law_of(scheme.draw(shape, arguments))
    if name == "orthogonal":
        gain = 1.0 if arguments.gain is None else arguments.gain
        return law_of_orthogonal(shape[0], math.prod(shape[1:]), gain)
    raise ValueError(f"the elements of {name!r} are not drawn from one law")


def find_scheme(name: Any) -> Scheme:
    """The row of a name; the name of its function (``"normal_"``) will do.

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
    """The table of docs/drop_in.md, which a test holds against this one."""
    rows = ["| init | weight | bias, if given |", "|---|---|---|"]
    rows += [
        f"| `{name}` | {row.weight} | {row.bias} |" for name, row in SCHEMES.items() if row.in_init
    ]
    return "\n".join(rows)
