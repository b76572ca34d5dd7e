"""Schemes that are made of others: by a function, for every matrix of a stack, for fused parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torchinit.errors import ArgumentError
from torchinit.rules.read import as_scheme
from torchinit.rules.scheme import Scheme, Target
from torchinit.values.region import Part, Region, check_whole, part_name

SchemeLike: TypeAlias = "Scheme | str | Callable[..., Any]"


@dataclass(frozen=True)
class By(Scheme):
    """What a function of the parameter says. See ``by``."""

    function: Callable[[Target], Any]

    def parts(self, region: Region, target: Target) -> list[Part]:
        """Those of the scheme that the function gives."""
        return self.scheme(region, target).parts(region, target)

    def scheme(self, region: Region, target: Target) -> Scheme:
        """The scheme that the function gives for a region."""
        return as_scheme(
            self.function(target._replace(name=region.name, shape=region.matrix_shape))
        )

    def __repr__(self) -> str:
        return f"by({getattr(self.function, '__qualname__', self.function)})"


def by(function: Callable[[Target], SchemeLike]) -> Scheme:
    """A scheme that depends on the parameter.

    Args:
        function: called with what is known of it (``name``, ``shape``, ``dtype``, ``module``, and
            ``depth``, the first number in the name); returns a scheme, or what stands for one.

    >>> import torch, torchinit
    >>> scheme = torchinit.by(lambda p: torchinit.Normal(0.02 / (2 * (p.depth + 1)) ** 0.5))
    >>> layers = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(8))
    >>> [round(row.law.std, 4) for row in torchinit.plan_model(layers, {"**": scheme})][::7]
    [0.0141, 0.005]
    """
    if not callable(function):
        raise TypeError(f"by takes a function of a parameter, not {type(function).__name__}")
    return By(function)


class Stack(Scheme):
    """Matrices one after the other, such as the experts' (E, out, in): fans are of one matrix.

    Values drawn one by one are one fill of the whole, by the parameter's key. Of matrices and
    callables each has a key of its own, that of (name, number).

    Args:
        scheme: of one matrix.

    >>> import torch, torchinit
    >>> experts = torchinit.Stack(torchinit.VarianceScaling())(torch.empty(8, 32, 64))
    >>> round(experts.std().item() * 64**0.5, 1)  # fan_in is 64, however many experts there are
    1.0
    """

    def __init__(self, scheme: SchemeLike) -> None:
        self.scheme = as_scheme(scheme)

    def parts(self, region: Region, target: Target) -> list[Part]:
        """Those of the scheme, the first dimension counting matrices."""
        if len(region.matrix_shape) < 2:
            raise ArgumentError(f"shape {region.shape} is no stack: it needs a dimension more")
        return self.scheme.parts(region._replace(stacked=region.stacked + 1), target)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stack) and self.scheme == other.scheme

    def __hash__(self) -> int:
        return hash((Stack, self.scheme))

    def __repr__(self) -> str:
        return f"Stack({self.scheme!r})"


class Blocks(Scheme):
    """Parts side by side in one parameter, such as q, k and v: each as if it stood alone.

    A part has the fans, and the key, that it has where it is not fused: its name stands in place of
    the atom before ``weight`` or ``bias`` (or of the last atom). So a fused and an unfused model of
    one seed are equal.

    Args:
        sizes: of each part along dim, by name, in order.
        scheme: of every part, or a mapping from its name to its scheme.
        dim: the dimension that the parts lie along.
        groups: how often the parts repeat, each time a share of every one: 1 is all of q, then k,
            then v; the number of heads (of key-value heads) is q, k and v head by head.

    Raises:
        ArgumentError: a size that is not positive, or that groups does not divide; a scheme for a
            part that there is not, or a part without.

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
            raise ArgumentError(f"groups={groups} must be positive")
        for name, size in sizes.items():
            if not isinstance(name, str) or not name or "." in name:
                raise ArgumentError(f"the part {name!r} must be named by one atom")
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ArgumentError(f"the size of part {name!r}, {size!r}, must be positive")
            if size % groups:
                raise ArgumentError(f"groups={groups} does not divide part {name!r}, {size}")
        if isinstance(scheme, Mapping):
            if set(scheme) != set(sizes):
                raise ArgumentError(
                    f"the schemes are of {sorted(scheme)}, the parts are {sorted(sizes)}"
                )
            self.schemes = {name: as_scheme(scheme[name]) for name in sizes}
        else:
            self.schemes = dict.fromkeys(sizes, as_scheme(scheme))
        self.sizes, self.dim, self.groups = dict(sizes), dim, groups

    def parts(self, region: Region, target: Target) -> list[Part]:
        """Those of every part, group by group."""
        check_whole(region, "Blocks")
        shape = region.matrix_shape
        if not -len(shape) <= self.dim < len(shape):
            raise ArgumentError(f"dim={self.dim} is none of shape {shape}")
        dim = self.dim % len(shape) + region.stacked
        total = sum(self.sizes.values())
        if region.shape[dim] != total:
            raise ArgumentError(
                f"the parts {self.sizes} are {total} together, and dimension "
                f"{dim - region.stacked} of shape {shape} has {region.shape[dim]}"
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
