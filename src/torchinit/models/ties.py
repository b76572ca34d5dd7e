"""Broken ties: parameters that a model declares as tied, but that are separate tensors.

Tensor parallelism, ``fully_shard`` of only one of the modules, and ``to_empty`` break ties
silently, and the copies would get different values. ``rename`` gives them one name and so equal
values.
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
    """Warns of parameters that are declared as tied, are not, and get different values.

    Args:
        model: the model.
        rename: parameters to which it gives one name are joined.
        are_alike: whether two parameters get the same values anyway.
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
            "parameters that the model declares as tied are not tied, and get different values: "
            f"{said}. Tie them again, or give both the same values with rename={broken!r}",
            stacklevel=4,
        )


def check_joined(assignments: Sequence[Assignment]) -> None:
    """Raises ArgumentError if parameters that rename gives one name get different values."""
    if len({one[0][0] for one in assignments}) == len(assignments):
        return
    first: dict[str, Assignment] = {}
    for one in assignments:
        other = first.setdefault(one.named.name, one)
        if (one.draw, one.parts) != (other.draw, other.parts):
            raise ArgumentError(
                f"rename gives the name {one.named.name!r} to two parameters that get different "
                f"values, from {other.rule} and from {one.rule}: put a rule first that matches both"
            )


def share_pads(assignments: Sequence[Assignment]) -> list[Assignment]:
    """Assignments in which parameters of one name share all their padding rows."""
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
