"""What the integrations share: where a parameter's local tensor lies, and filling it by rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchinit.errors import ArgumentError
from torchinit.models.assign import agree, check_matched, padding_rows
from torchinit.models.init_shard import init_shard_
from torchinit.rules.composed import By
from torchinit.rules.rules import Places, Rules, check_unused
from torchinit.rules.scheme import Target
from torchinit.rules.structured import Keep
from torchinit.streams.canonical import Named
from torchinit.values.region import Region


class LocalShard(NamedTuple):
    """A piece of a parameter in memory here, as for ``init_shard_``."""

    named: Named
    tensor: Tensor
    global_shape: Sequence[int]
    offset: Sequence[int] | int


def whole(named: Named) -> LocalShard:
    """A parameter that every rank holds in full."""
    return LocalShard(named, named.tensor, named.tensor.shape, (0,) * named.tensor.dim())


def cut(named: Named, dim: int, parts: Sequence[tuple[int, int, int]]) -> Iterator[LocalShard]:
    """The shards of a tensor that holds a share of each of several parts, one after the other.

    Args:
        named: the parameter; its tensor is the local one.
        dim: the dimension that is divided.
        parts: of each, its full extent, and the number of this share and of all of them.

    Raises:
        ArgumentError: if the shares do not add up to the tensor.
    """
    tensor, shares = named.tensor.detach(), [full // of for full, _, of in parts]
    shape = list(tensor.shape)
    if sum(shares) != shape[dim] or any(full % of for full, _, of in parts):
        raise ArgumentError(
            f"parameter {named.name!r} of shape {tuple(shape)} does not hold equal shares of "
            f"{list(parts)} (extent, rank, ranks) along dimension {dim}"
        )
    shape[dim], before, zeros = sum(full for full, *_ in parts), 0, [0] * len(shape)
    for view, share, (full, number, _) in zip(
        tensor.split(shares, dim), shares, parts, strict=True
    ):
        offset = [*zeros[:dim], before + number * share, *zeros[dim + 1 :]]
        yield LocalShard(named, view, shape, offset)
        before += full


def fill(
    shards: Sequence[LocalShard], rules: Mapping[Any, Any], seed: int, *, strict: bool
) -> None:
    """Fills shards with the values that ``init_model_`` gives the full parameters.

    Args:
        shards: of all parameters of a model.
        rules, seed, strict: as for ``init_model_``.

    Raises:
        ArgumentError, TypeError: as ``init_model_``. Nothing has then been written.
    """
    chosen, used = Rules(rules), set[int]()
    numbers = [agree(one.named, chosen, used) for one in shards]
    missing = [one.named.name for one, n in zip(shards, numbers, strict=True) if n < 0]
    check_matched([*dict.fromkeys(missing)], len({one.named.name for one in shards}))
    if strict:
        everywhere = Places((s.name, s.owner) for one in shards for s in one.named.slots)
        check_unused(chosen, used | {*numbers}, everywhere, Places(()))
    schemes = []
    for one, number in zip(shards, numbers, strict=True):
        scheme = chosen.rules[number].scheme
        if isinstance(scheme, By):
            name, shape = one.named.name, tuple(one.global_shape)
            target = Target(name, shape, one.tensor.dtype, one.named.owner)
            scheme = scheme.scheme(Region(name, shape), target)
        schemes.append(scheme)
    for is_real in (False, True):  # first on the meta device, which checks
        for one, scheme in zip(shards, schemes, strict=True):
            name, shape = one.named.name, tuple(one.global_shape)
            tensor = one.tensor.detach() if is_real else one.tensor.detach().to("meta")
            init_shard_(tensor, scheme, global_shape=shape, offset=one.offset, seed=seed, name=name)
            for row in () if isinstance(scheme, Keep) else padding_rows(one.named):
                _row(tensor, one, row).zero_()


def _row(tensor: Tensor, shard: LocalShard, row: int) -> Tensor:
    """What a shard holds of a row of the full parameter."""
    first, width = shard.offset, 1
    if isinstance(first, int):
        width = torch.Size(shard.global_shape[1:]).numel()
    else:
        first = first[0]
    start = row * width - first
    return tensor[max(start, 0) : max(start + width, 0)]
