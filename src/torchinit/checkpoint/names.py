"""Which tensors a checkpoint has, under which names, and of what of the model's memory each is.

Tied names are left out, buffers that do not persist too; models of Transformers are stored as their
``save_pretrained`` does, in the layout that they are published in (experts one by one, not fused).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit.checkpoint.source import is_transformers_model
from torchinit.errors import ArgumentError
from torchinit.native.torch_private import storage_number


class Stored(NamedTuple):
    """A tensor of a checkpoint: a view of a parameter or buffer.

    Attributes:
        name: in the file.
        of: name in the model of the parameter or buffer.
        view: of it; its values do not matter.
    """

    name: str
    of: str
    view: Tensor


def stored_tensors(model: nn.Module) -> list[Stored]:
    """The tensors of a model's checkpoint; those of one parameter are neighbours.

    Raises:
        ArgumentError: for what is in the model's ``state_dict`` and is none of its tensors.
    """
    state = model.state_dict(keep_vars=True)
    owners: dict[int, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentError(
                f"state_dict()[{name!r}] is a {type(tensor).__name__}: safetensors holds tensors"
            )
        owners.setdefault(storage_number(tensor), name)
    registered = {storage_number(one) for one in (*model.parameters(), *model.buffers())}
    strange = [name for number, name in owners.items() if number not in registered]
    if strange:
        raise ArgumentError(
            f"state_dict()[{strange[0]!r}] is no parameter or buffer of the model: what it is to "
            "hold is unknown"
        )
    views = {name: tensor.detach() for name, tensor in state.items()}
    views = _as_transformers(model, views) if is_transformers_model(model) else _once(views)
    found = [Stored(name, owners[storage_number(view)], view) for name, view in views.items()]
    order = {owner: number for number, owner in enumerate(dict.fromkeys(one.of for one in found))}
    return sorted(found, key=lambda one: order[one.of])


def _once(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the first of their names."""
    first: dict[tuple[Any, ...], str] = {}
    for name, view in views.items():
        place = storage_number(view), view.storage_offset(), tuple(view.shape), view.stride()
        first.setdefault(place, name)
    return {name: views[name] for name in first.values()}


def _as_transformers(model: Any, views: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers import modeling_utils

    for name in model._keys_to_ignore_on_save or ():
        views.pop(name, None)
    views = _once(modeling_utils.remove_tied_weights_from_state_dict(views, model))
    revert = getattr(modeling_utils, "revert_weight_conversion", None)
    if revert is None:
        return views
    if not all(view.is_contiguous() for view in views.values()):
        return views
    known = {storage_number(view): view.numel() for view in views.values()}
    try:
        with _WithoutCopies():
            changed: dict[str, Tensor] = revert(model, dict(views))
    except Exception as error:
        _warn_of_layout(model, f"{type(error).__name__}: {error}")
        return views
    held = dict.fromkeys(known, 0)
    for name, view in changed.items():
        if storage_number(view) not in known:
            _warn_of_layout(model, f"{name!r} is made of more than one parameter, or computed")
            return views
        held[storage_number(view)] += view.numel()
    if held != known:
        _warn_of_layout(model, "it holds more or less than the model")
        return views
    return changed


def _warn_of_layout(model: nn.Module, why: str) -> None:
    warnings.warn(
        f"{type(model).__name__} is stored under the names and shapes that it has in memory, which "
        f"Transformers loads too, and not those that it is published in: {why}",
        stacklevel=2,
    )


class _WithoutCopies(TorchDispatchMode):
    """Leaves out copies into another layout, so that what they would give is a view still."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does an operation, but for copies."""
        if func is torch.ops.aten.clone.default:
            return torch.ops.aten.alias.default(args[0])
        return func(*args, **(kwargs or {}))
