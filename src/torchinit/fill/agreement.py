"""Whether all ranks draw the same keys: asked where ``TORCHINIT_CHECK_KEYS=1`` is set.

Keys of DTensors come from every rank's own generator, and a shard is right only if those agree.
With the variable set, the ranks of a mesh compare them before anything is written, and whatever one
rank raises all of them raise: nobody waits for one that has failed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from torchinit.errors import RankError
from torchinit.placement.distributed import gather_over, ranks_of
from torchinit.streams.keys import Stream

_VARIABLE = "TORCHINIT_CHECK_KEYS"


class Drawn(NamedTuple):
    """What one rank has to say of a fill.

    Attributes:
        what: the DTensor in words.
        key: that it is to be filled by.
    """

    what: str
    key: int


def is_checking(stream: Stream) -> bool:
    """Whether keys drawn from a stream are to be compared; those of names are equal anyway."""
    return not isinstance(stream, int | Tensor) and os.environ.get(_VARIABLE, "0") not in ("", "0")


def agree(drawn: Mapping[Any, list[Drawn]], error: BaseException | None = None) -> None:
    """Compares what the ranks of each mesh have drawn; every one of them has to call this.

    A rank with an error of its own tells those of the meshes that it has come to. Whoever learns of
    an error or a mismatch in one mesh tells the next; it is waited for only by ranks of a mesh that
    a failed one had not come to, and that share no other mesh with it.

    Args:
        drawn: by the mesh of the DTensors, for fills that are to come, in order.
        error: what this rank raises otherwise.

    Raises:
        RankError: if another rank has raised, or drawn another key; not where this one has an error
            of its own, which the caller is to raise.
    """
    meshes = [ranks_of(mesh) for mesh in drawn]
    told: BaseException | None = error
    failed: dict[int, list[tuple[int, ...]]] = {}  # the meshes that they have come to
    for ranks, (mesh, of_mesh) in zip(meshes, drawn.items(), strict=True):
        if any(rank in ranks and ranks not in theirs for rank, theirs in failed.items()):
            continue  # that one is not coming
        said = None if told is None else f"{type(told).__name__}: {told}"
        found = gather_over(mesh, (of_mesh, said, meshes))
        failed.update((rank, theirs) for rank, (_, one, theirs) in found.items() if one is not None)
        if told is None:
            try:
                _compare({rank: (theirs, one) for rank, (theirs, one, _) in found.items()})
            except RankError as mismatch:
                told = mismatch
    if error is None and told is not None:
        raise told


def _compare(found: dict[int, tuple[list[Drawn], str | None]]) -> None:
    """Raises RankError if a rank has failed, or has drawn other keys than the first."""
    if not found:
        return
    failed = {rank: said for rank, (_, said) in found.items() if said is not None}
    if failed:
        rank, said = next(iter(failed.items()))
        raise RankError(
            f"{_ranks(list(failed))} raised, and nothing was written; rank {rank}: {said}"
        )
    first = next(iter(found))
    for rank, (theirs, _) in found.items():
        if len(theirs) != len(found[first][0]):
            raise RankError(
                f"rank {first} fills {len(found[first][0])} DTensors in one batch, and rank {rank} "
                f"{len(theirs)}: every rank has to make the same calls"
            )
    for number, one in enumerate(found[first][0]):
        others = [rank for rank, (theirs, _) in found.items() if theirs[number].key != one.key]
        if others:
            raise RankError(
                f"{_ranks(others)} drew another key than rank {first} for {one.what}: their "
                "generators have parted. Call torch.manual_seed with one seed on every rank "
                "before, or take keys from names: torchinit.init_model_(model, rules, seed=...)"
            )


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
