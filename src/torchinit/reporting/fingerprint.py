"""``fingerprint``: one short string for all values of a model, however it is sharded.

The sums of boxes of a tensor add up to that of the whole (``weighted_sum.py``), so that ranks need
nothing of each other but sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from torchinit.check.tensors_of import PlainPart, parts_of, plainly
from torchinit.errors import ArgumentError
from torchinit.frameworks.transformers import declared_ties
from torchinit.placement.distributed import (
    check_placement,
    default_group,
    is_dtensor,
    rank_and_size,
    sum_over_ranks,
)
from torchinit.reporting.stored import read_checkpoint
from torchinit.reporting.weighted_sum import PRIME, sum_of
from torchinit.streams.canonical import gather, is_saved
from torchinit.untrusted import first_names, printable

_LACKS = {
    "on meta": "it is on the meta device",
    "no memory": "it has no memory",
    "cannot tell": "its memory cannot be read",
}


class _Sum(NamedTuple):
    """What the ranks have of a tensor.

    Attributes:
        key: of its name, dtype and shape.
        source: the key of what it is tied to, if the model declares that; else 0.
        numel: how many values it has.
        held: how many of them are here; those that several ranks have count for each.
        total: the weighted sum of these.
    """

    key: int
    source: int
    numel: int
    held: int
    total: int


def fingerprint(model: nn.Module | str | Path, *, group: Any = None) -> str:
    """A short string for all values of a model: models that differ in any bit have different ones.

    It depends on names, dtypes, shapes and values of the parameters and of the buffers that
    checkpoints have, and on nothing else: not on the device, on strides, or on how the model is
    sharded. Empty tensors do not count. Names are canonical (docs/streams.md, section 7). A tied
    tensor counts under each of its names, but for those that Transformers leaves out of
    checkpoints. The string is not made to withstand forgery.

    Ranks that hold a model together must all call it, and all get the string of the whole. They
    communicate two sums of a few numbers a tensor. What several ranks have counts once; if they
    differ in it, the string is another. A tensor that is not a DTensor is taken for a whole one.

    Args:
        model: with values; or the path of a safetensors checkpoint, whose names are those in its
            files: that of ``save_pretrained`` has the fingerprint of the model, as long as it
            stores the model's tensors under their own names.
        group: the process group of these ranks, such as ``torch.distributed.group.WORLD``, for
            stages of a pipeline or for replicas to compare. None is all ranks if the model has
            DTensors, and else this process alone.

    Returns:
        16 hexadecimal digits.

    Raises:
        ArgumentError: for tensors without values (on the meta device, lazy, partitioned by ZeRO),
            partial or flat shards, values that cannot be read as bits; for none at all, as in what
            ``torch.jit.freeze`` returns; for a path without a checkpoint or with a damaged one; on
            every rank if one of them raises.
        TypeError: for any other argument.
        OSError: for files that cannot be read.

    >>> import torch, torchinit
    >>> a, b = (torchinit.build_model(lambda: torch.nn.Linear(64, 32), seed=0) for _ in "ab")
    >>> torchinit.fingerprint(a), torchinit.fingerprint(a) == torchinit.fingerprint(b)
    ('255fa3513ae534a6', True)
    """
    if isinstance(model, str | Path):
        return _string(_of_checkpoint(Path(model)))
    failed, sums = None, {}
    try:
        if not isinstance(model, nn.Module):
            raise TypeError(
                "model must be a torch.nn.Module or the path of a checkpoint, not "
                f"{type(model).__name__}"
            )
        if group is None and any(map(is_dtensor, (*model.parameters(), *model.buffers()))):
            group = default_group()
        sums = _of_model(model)
    except Exception as error:
        if group is None:
            raise
        failed = error  # the other ranks wait for this one
    return _string(sums if group is None else _of_all_ranks(sums, failed, group))


def _of_model(model: nn.Module) -> dict[str, _Sum]:
    """The sums of this process, by the names of tensors."""
    found = gather(model)
    sums: dict[str, _Sum] = {}
    ties = dict(declared_ties(model, may_be_inside=True))
    with _threads() as threads:
        for named in (*found.parameters, *filter(is_saved, found.buffers)):
            tensor = named.tensor
            check_placement(tensor)
            if tensor.is_nested:
                raise ArgumentError(f"{named.name!r} is a nested tensor, whose lengths count too")
            if tensor.is_conj() or tensor.is_neg():  # only said to be
                tensor = tensor.resolve_conj().resolve_neg()
            for part in parts_of(tensor):
                if part.memory is None:
                    name = named.name + part.suffix
                    raise ArgumentError(f"{name!r} has no values to read: {_LACKS[part.lacks]}")
                total, held = sum_of(part, part.memory, threads)
                names = {slot.name + part.suffix: slot.name for slot in named.slots}
                if twice := names.keys() & sums.keys():
                    raise ArgumentError(f"a parameter and a buffer are named {min(twice)!r}")
                for full, name in names.items():
                    key = _key_of(name, part)
                    source = _key_of(ties[name], part) if name in ties else 0
                    numel = math.prod(part.shape)
                    sums[full] = _Sum(key, source, numel, held, total)
    return sums


def _key_of(name: str, part: PlainPart) -> int:
    return _key(f"{name}{part.suffix}\0{part.dtype}\0{part.shape}")


def _of_checkpoint(path: Path) -> dict[str, _Sum]:
    stored, unmeasured = read_checkpoint(path)
    if unmeasured:
        raise ArgumentError(f"{printable(path)} cannot be read whole: {printable(unmeasured[0])}")
    sums = {}
    with torch.device("cpu"), _threads() as threads:
        for one in stored:
            for part in parts_of(one.load()):
                assert part.memory is not None
                total, held = sum_of(part, part.memory, threads)
                sums[one.name] = _Sum(_key_of(one.name, part), 0, held, held, total)
    return sums


@contextmanager
def _threads() -> Iterator[Executor]:
    """As many threads as torch uses, and a block in which torch works on memory as it is."""
    with plainly(), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        yield threads


def _string(sums: dict[str, _Sum]) -> str:
    """Checks that nothing is missing, and hashes what is there."""
    if not sums:
        raise ArgumentError("there are no values: no parameter, and no buffer of checkpoints")
    lacking = [name for name, one in sums.items() if not one.held or one.held % one.numel]
    if lacking:
        one = sums[lacking[0]]
        raise ArgumentError(
            f"the ranks have {one.held:,} of the {one.numel:,} values of {first_names(lacking)}: "
            "every rank that has shards must call it"
        )
    totals = {
        one.key: one.total * pow(one.held // one.numel, -1, PRIME) % PRIME for one in sums.values()
    }
    for one in sums.values():  # files do not have them
        if one.source != one.key and totals.get(one.source) == totals[one.key]:
            del totals[one.key]
    return blake2b(repr(sorted(totals.items())).encode(), digest_size=8).hexdigest()


# Ranks.


def _of_all_ranks(mine: dict[str, _Sum], failed: Exception | None, group: Any) -> dict[str, _Sum]:
    """The sums of all ranks. Ranks with the same tensors add up what they have place by place."""
    rank, size = rank_and_size(group)
    same = [(one.key, one.source, one.numel) for one in mine.values()]
    about = _key(repr(same)), len(same), int(failed is not None)
    lower, higher = [0] * (3 * rank), [0] * (3 * (size - rank - 1))
    everywhere = sum_over_ranks([*lower, *about, *higher], group)
    if failed is not None:
        raise failed
    if any(everywhere[2::3]):
        raise ArgumentError(f"rank {everywhere[2::3].index(1)} has an error, which it has raised")
    places: dict[tuple[int, int], tuple[int, int]] = {}  # of each list: its first rank, its place
    end = 0
    for other, told in enumerate(zip(everywhere[::3], everywhere[1::3], strict=True)):
        if told not in places:
            places[told] = other, end
            end += told[1]
    first, place = places[about[:2]]
    rows = [(0,) * 6] * end
    for at, one in enumerate(mine.values(), place):
        once = same[at - place] if rank == first else (0, 0, 0)
        rows[at] = *once, one.held, one.total & (2**31 - 1), one.total >> 31
    numbers = iter(sum_over_ranks(list(chain.from_iterable(rows)), group))
    found: dict[int, _Sum] = {}
    for key, source, numel, held, low, high in zip(*[numbers] * 6, strict=True):
        *_, before, total = found.get(key, (0, 0))
        found[key] = _Sum(key, source, numel, before + held, total + low + (high << 31))
    names = {one.key: name for name, one in mine.items()}
    return {names.get(key, f"tensor {key:x} of another rank"): one for key, one in found.items()}


def _key(text: str) -> int:
    """63 bits for a text, which an int64 holds."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
