"""Finds what an operator returns, without values, by running it on the meta device; cached.

Many meta operators are composed in Python and take a millisecond, and a model calls the same
operators for many layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

_aten = torch.ops.aten
# Below single precision, the dtype of their statistics on the CPU depends on the arguments.
_NORMS = {
    _aten.native_batch_norm.default, _aten.native_layer_norm.default,
    _aten.native_group_norm.default,
}  # fmt: skip
_QUANTISED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
_MOST = 1 << 14


class NewTensor(NamedTuple):
    """A new tensor that an operator returns."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class Given(NamedTuple):
    """An argument that an operator returns, by its index among the leaves."""

    place: int


class Returned(NamedTuple):
    """What an operator returns.

    Attributes:
        leaves: NewTensors, Givens, numbers and None.
        spec: their structure, as ``tree_unflatten`` takes it.
    """

    leaves: Sequence[Any]
    spec: Any


_known: dict[Any, Returned | None] = {}


def results_of(function: Any, flat: Sequence[Any], spec: Any) -> Returned | None:
    """What an operator returns for arguments on the CPU; None if that depends on values.

    Args:
        function: the overload.
        flat, spec: its arguments, from ``tree_flatten``.
    """
    key: Any = None
    try:
        leaves = [_key(one, flat) for one in flat]
        key = (function, torch.get_default_dtype(), spec, *leaves)
        if key in _known:
            return _known[key]
    except TypeError:  # an unhashable argument
        key = None
    found = _ask(function, flat, spec)
    if key is not None and len(_known) < _MOST:
        _known[key] = found
    return found


def _key(one: Any, flat: Sequence[Any]) -> Any:
    if isinstance(one, Tensor):
        first = next(place for place, other in enumerate(flat) if other is one)
        return first, tuple(one.shape), one.stride(), one.dtype
    hash(one)
    return None if isinstance(one, Generator) else (type(one), one)


def _ask(function: Any, flat: Sequence[Any], spec: Any) -> Returned | None:
    metas: dict[int, Tensor] = {}
    if function in _NORMS and any(
        isinstance(one, Tensor) and one.dtype not in (torch.float32, torch.float64) for one in flat
    ):
        return None

    def meta(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return None if isinstance(one, Generator) else one
        if id(one) not in metas:
            metas[id(one)] = torch.empty_strided(
                one.shape, one.stride(), dtype=one.dtype, device="meta"
            )
        return metas[id(one)]

    with _disable_current_modes():
        args, kwargs = tree_unflatten([meta(one) for one in flat], spec)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type != "cpu":
            return None
        takes_device = any(one.name == "device" for one in function._schema.arguments)
        if takes_device and (device is not None or not metas):
            kwargs = {**kwargs, "device": torch.device("meta")}
        try:
            made, made_spec = tree_flatten(function(*args, **kwargs))
        except Exception:  # the operator does not support meta tensors
            return None
    places = {id(metas[id(one)]): i for i, one in enumerate(flat) if isinstance(one, Tensor)}
    leaves: list[Any] = []
    for one in made:
        if id(one) in places:
            leaves.append(Given(places[id(one)]))
        elif isinstance(one, Tensor):
            if one.layout is not torch.strided or one.dtype in _QUANTISED:
                return None
            leaves.append(NewTensor(one.shape, one.stride(), one.dtype))
        elif one is None or isinstance(one, int | float | bool):
            leaves.append(one)
        else:
            return None
    if function is _aten.native_batch_norm.default and not args[5]:
        # In evaluation, the CPU returns empty statistics.
        leaves[1:] = [one._replace(size=torch.Size([0]), stride=(1,)) for one in leaves[1:]]
    return Returned(leaves, made_spec)
