"""The check after every fill of a model: nothing is left out, and all that was filled is in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.jit import ScriptModule

from torchinit.check.uninitialized import NOT_FILLED, ON_META, UNWRITTEN, Uninitialized
from torchinit.errors import ArgumentError, counted
from torchinit.untrusted import first_names

# What an error or a warning says of each.
_SAID = {
    ON_META: "on the meta device",
    NOT_FILLED: "not filled",
    UNWRITTEN: "in memory that nothing has written to, as after to_empty",
}


def left_out(model: nn.Module, done: Iterable[Tensor]) -> list[Uninitialized]:
    """The parameters and buffers that a model has and that are not among those that are done.

    Args:
        model: after a fill.
        done: what was filled, kept or not asked for, as the model should have it now.
    """
    there: list[int] = []
    todo: list[nn.Module | None] = [model]
    seen: set[int] = set()
    while todo:  # without names: building them takes most of the time
        module = todo.pop()
        if module is None or id(module) in seen or isinstance(module, ScriptModule):
            continue
        seen.add(id(module))
        own = module.__dict__
        there += map(id, own["_parameters"].values())
        if own["_buffers"]:
            there += map(id, own["_buffers"].values())
        if own["_modules"]:
            todo += own["_modules"].values()
    others = set(there).difference(map(id, done), (id(None),))
    if not others:
        return []
    groups = ("parameter", model.named_parameters()), ("buffer", model.named_buffers())
    return [
        Uninitialized.all_of(name, kind, ON_META if tensor.is_meta else NOT_FILLED, tensor)
        for kind, tensors in groups
        for name, tensor in tensors
        if id(tensor) in others
    ]


def tell(rows: Sequence[Uninitialized], stacklevel: int) -> None:
    """Raises ArgumentError for what must have values; warns of buffers in memory.

    Args:
        rows: what was left out.
        stacklevel: of the warning, as for the caller.
    """
    buffers = [row.name for row in rows if row.kind == "buffer" and row.what == UNWRITTEN]
    others = [
        f"{row.kind} {row.name!r} is {_SAID[row.what]}" for row in rows if row.what != UNWRITTEN
    ]
    if others:
        raise ArgumentError(
            counted(len(others), "tensor of the model was", "tensors of the model were")
            + f" left out: {first_names(others)}. Modules replace tensors, or hide them from their "
            "parents: fill the module that holds what was left out"
        )
    if buffers:
        warnings.warn(
            f"{counted(len(buffers), 'buffer is', 'buffers are')} {_SAID[UNWRITTEN]}: "
            f"{first_names(buffers)}. Give buffers values by rules of their own (a tensor, a "
            "function of the shape, or 'keep'), or build the model with torchinit.build_model",
            stacklevel=stacklevel + 1,
        )
