"""Ties that are broken: parameters that a model says are one, and that are two.

Tensor parallelism, ``fully_shard`` of one of the modules alone, and ``to_empty`` break them without
a word, and the copies would be drawn apart. A rename joins them: to one name, with equal values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from torchinit.errors import ArgumentError
from torchinit.frameworks.transformers import declared_ties
from torchinit.models.assign import Assignment
from torchinit.placement.distributed import has_dtensors
from torchinit.streams.canonical import Rename, gather, renamer


def warn_of_broken_ties(
    model: nn.Module, rename: Rename, are_alike: Callable[[Tensor, Tensor], bool]
) -> None:
    """Warns of parameters that are declared to be one, are not, and get different values.

    Args:
        model: with all its parameters.
        rename: joins those that it gives one name.
        are_alike: whether two of them get the same values all the same.
    """
    if not hasattr(model, "config") and not has_dtensors(model):
        return
    declared = dict(declared_ties(model))
    if not declared:
        return
    tensors = {slot.name: named.tensor for named in gather(model)[0] for slot in named.slots}
    change = renamer(rename) or str
    broken: dict[str, str] = {}
    for pair in declared.items():
        one, other = sorted(pair)
        known = one in tensors and other in tensors
        if not known or tensors[one] is tensors[other] or change(one) == change(other):
            continue
        if not are_alike(tensors[one], tensors[other]):
            broken[other] = one
    if broken:
        said = "; ".join(f"{one!r} and {other!r}" for other, one in broken.items())
        warnings.warn(
            f"parameters that the model says are tied are not, and get different values: {said}. "
            f"Tie them again, or give the copies the values of one by rename={broken!r}",
            stacklevel=4,
        )


def check_joined(assignments: Sequence[Assignment]) -> None:
    """Raises ArgumentError if parameters of one name, as rename may join them, get other values."""
    if len({one[0][0] for one in assignments}) == len(assignments):
        return
    first: dict[str, Assignment] = {}
    for one in assignments:
        other = first.setdefault(one.named.name, one)
        if (one.draw, one.parts) != (other.draw, other.parts):
            raise ArgumentError(
                f"rename gives the name {one.named.name!r} to two parameters that get different "
                f"values, by {other.rule} and by {one.rule}: put a rule that matches both first"
            )


def share_pads(assignments: Sequence[Assignment]) -> list[Assignment]:
    """Assignments in which parameters of one name have the rows of padding of them all."""
    rows: dict[str, set[int]] = {}
    for one in assignments:
        if one.pads:
            rows.setdefault(one.named.name, set()).update(one.pads)
    if not rows:
        return list(assignments)
    return [
        one._replace(pads=sorted(rows[one.named.name]), is_plain=False)
        if one.named.name in rows
        else one
        for one in assignments
    ]
