"""Which tensors a checkpoint has, under which names, and of what of the model's memory each is.

Tied names are left out, buffers that do not persist too; models of Transformers are stored as their
``save_pretrained`` does, in the layout that they are published in (experts one by one, not fused).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from torchinit.errors import ArgumentError
from torchinit.frameworks.transformers import (
    as_published,
    is_transformers_model,
    without_unsaved,
)
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
    if is_transformers_model(model):
        views = as_published(model, _once(without_unsaved(model, views)))
    else:
        views = _once(views)
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
