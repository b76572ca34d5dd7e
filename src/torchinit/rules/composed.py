"""Composed schemes: from a function, for the matrices of a stack, for the parts of a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torchinit.errors import ArgumentError, shown
from torchinit.rules.rules import as_scheme
from torchinit.rules.scheme import Scheme, Target
from torchinit.values.kinds import name_of_callable
from torchinit.values.region import Part, Region, part_name

SchemeLike: TypeAlias = "Scheme | str | Callable[..., Any]"


@dataclass(frozen=True)
class By(Scheme):
    """The scheme that a function of the parameter returns. See ``by``."""

    function: Callable[[Target], Any]

    def parts(self, region: Region, target: Target) -> list[Part]:
        return self.scheme(region, target).parts(region, target)

    def scheme(self, region: Region, target: Target) -> Scheme:
        """Calls the function for a region and returns its scheme."""
        return as_scheme(
            self.function(target._replace(name=region.name, shape=region.matrix_shape))
        )

    def __repr__(self) -> str:
        return f"by({name_of_callable(self.function)})"


def by(function: Callable[[Target], SchemeLike]) -> Scheme:
    """A scheme that depends on the parameter.

    Args:
        function: takes the parameter, described by ``name``, ``shape``, ``dtype``, ``module`` and
            ``depth`` (the first number in the name); returns anything a rule accepts as a scheme.

    >>> import torch, torchinit
    >>> scheme = torchinit.by(lambda p: torchinit.Normal(0.02 / (2 * (p.depth + 1)) ** 0.5))
    >>> layers = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(8))
    >>> [round(row.law.std, 4) for row in torchinit.plan_model(layers, {"**": scheme})][::7]
    [0.0141, 0.005]
    """
    if not callable(function):
        raise TypeError(
            f"by takes a function of a parameter, not {function!r} ({type(function).__name__})"
        )
    return By(function)


@dataclass(frozen=True, repr=False)
class Stack(Scheme):
    """A stack of matrices, such as experts of shape (E, out, in): fans are those of one matrix.

    Values drawn independently fill the full tensor with the parameter's key. Orthogonal matrices
    and callables have one key for each matrix, derived from (name, index).

    Args:
        scheme: the scheme of each matrix.

    >>> import torch, torchinit
    >>> experts = torchinit.Stack(torchinit.VarianceScaling())(torch.empty(8, 32, 64))
    >>> round(experts.std().item() * 64**0.5, 1)  # fan_in is 64, however many experts there are
    1.0
    """

    scheme: SchemeLike

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", as_scheme(self.scheme))

    def parts(self, region: Region, target: Target) -> list[Part]:
        if len(region.matrix_shape) < 2:
            raise ArgumentError(f"shape {region.shape} is not a stack: it needs one more dimension")
        return as_scheme(self.scheme).parts(region._replace(stacked=region.stacked + 1), target)

    def __repr__(self) -> str:
        return f"Stack({self.scheme!r})"


class Blocks(Scheme):
    """Concatenated parts of one parameter, such as q, k and v, each filled like a separate one.

    A part has the fans and key of a separate parameter, whose name has the part's name in place of
    the component before ``weight`` or ``bias`` (or of the last component). So fused and unfused
    models are equal under one seed.

    Args:
        sizes: the size of each part along dim, by name, in order.
        scheme: the scheme of all parts, or a mapping from part names to schemes.
        dim: the dimension along which the parts are concatenated.
        groups: how often the parts repeat, each time with a share of every part: 1 is all of q,
            then k, then v; the number of (key-value) heads is q, k and v for each head.

    Raises:
        ArgumentError: for a size that is not positive or not divisible by groups, an unknown part
            in scheme, or a part without a scheme.

    >>> import torchinit
    >>> torchinit.Blocks({"wq": 64, "wk": 16, "wv": 16}, torchinit.Normal(0.02), groups=4)
    Blocks({'wq': 64, 'wk': 16, 'wv': 16}, Normal(std=0.02, mean=0.0), dim=0, groups=4)
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        scheme: SchemeLike | Mapping[str, SchemeLike],
        *,
        dim: int = 0,
        groups: int = 1,
    ) -> None:
        if not isinstance(sizes, Mapping) or not sizes:
            raise ArgumentError(f"sizes={sizes!r} must map the names of parts to their sizes")
        for name, value in (("dim", dim), ("groups", groups)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentError(f"{name}={value!r} must be an integer")
        if groups < 1:
            raise ArgumentError(f"groups={shown(groups)} must be positive")
        for name, size in sizes.items():
            if not isinstance(name, str) or not name or "." in name:
                raise ArgumentError(
                    f"the part name {name!r} must be one name component: a string without dots"
                )
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ArgumentError(
                    f"the size {shown(size)} of part {name!r} must be a positive integer"
                )
            if size % groups:
                raise ArgumentError(
                    f"groups={shown(groups)} must divide the size {shown(size)} of part {name!r}"
                )
        if isinstance(scheme, Mapping):
            if set(scheme) != set(sizes):
                raise ArgumentError(
                    f"scheme has the parts {sorted(scheme)} and sizes has {sorted(sizes)}: they "
                    "must be the same"
                )
            self.schemes = {name: as_scheme(scheme[name]) for name in sizes}
        else:
            self.schemes = dict.fromkeys(sizes, as_scheme(scheme))
        self.sizes, self.dim, self.groups = dict(sizes), dim, groups

    def parts(self, region: Region, target: Target) -> list[Part]:
        if region.offset is not None:
            raise ArgumentError(
                "Blocks cannot be used in Blocks with groups, which give it only a share"
            )
        shape = region.matrix_shape
        if not -len(shape) <= self.dim < len(shape):
            raise ArgumentError(f"dim={shown(self.dim)} is out of range for shape {shape}")
        dim = self.dim % len(shape) + region.stacked
        total = sum(self.sizes.values())
        if region.shape[dim] != total:
            raise ArgumentError(
                f"the parts {shown(self.sizes)} have total size {shown(total)}, but dimension "
                f"{dim - region.stacked} of shape {shape} has size {region.shape[dim]}"
            )
        parts, start = [], 0
        for group in range(self.groups):
            for name, size in self.sizes.items():
                share = size // self.groups
                logical = (*region.shape[:dim], size, *region.shape[dim + 1 :])
                offset = tuple(group * share if d == dim else 0 for d in range(len(logical)))
                block = region._replace(
                    name=part_name(region.name, name),
                    shape=logical,
                    cuts=(*region.cuts, (dim, start, share)),
                    offset=None if self.groups == 1 else offset,
                )
                parts += self.schemes[name].parts(block, target)
                start += share
        return parts

    def _key(self) -> tuple[Any, ...]:
        return tuple(self.sizes.items()), tuple(self.schemes.items()), self.dim, self.groups

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocks) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        schemes = list(self.schemes.values())
        same = all(scheme == schemes[0] for scheme in schemes)
        scheme = schemes[0] if same else self.schemes
        return f"Blocks({self.sizes}, {scheme!r}, dim={self.dim}, groups={self.groups})"
