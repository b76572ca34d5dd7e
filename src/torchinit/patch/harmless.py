"""The operations that neither read nor write a tensor's memory: they may meet what is pending."""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

_PROPERTIES = """
    shape dtype device layout requires_grad is_leaf grad grad_fn data ndim names itemsize nbytes
    is_cpu is_cuda is_meta is_sparse is_sparse_csr is_quantized is_nested is_mkldnn is_mps is_xpu
    is_xla is_vulkan is_ort is_maia is_ipu is_mtia output_nr retains_grad volatile name
    T H mT mH _version _base _backward_hooks _cdata
"""
_SETTERS = "requires_grad grad data _backward_hooks"
# They make tensors; but numbers, and memory to write to, may be given to them as tensors.
_MAKERS = """
    empty zeros ones full empty_like zeros_like ones_like full_like new_empty new_zeros new_ones
    new_full new_empty_strided
"""
_METHODS = """
    size dim ndimension numel nelement stride storage_offset element_size is_contiguous
    is_floating_point is_complex is_signed is_inference is_neg is_conj is_shared is_same_size
    is_set_to get_device detach detach_ view view_as t transpose permute unsqueeze
    squeeze narrow select movedim swapaxes swapdims unbind expand expand_as diagonal unfold
    requires_grad_ retain_grad register_hook __len__
"""
_FUNCTIONS = """
    is_floating_point is_complex numel t transpose permute
    unsqueeze squeeze narrow select movedim swapaxes swapdims unbind detach
    _has_compatible_shallow_copy_type
"""


def _found(owner: Any, names: str) -> list[Any]:
    return [getattr(owner, name) for name in names.split() if hasattr(owner, name)]


HARMLESS: frozenset[Any] = frozenset(
    [
        *(one.__get__ for one in _found(Tensor, _PROPERTIES)),
        *(one.__set__ for one in _found(Tensor, _SETTERS)),
        *_found(Tensor, _METHODS),
        *_found(torch, _FUNCTIONS),
    ]
)

MAKERS: frozenset[Any] = frozenset([*_found(torch, _MAKERS), *_found(Tensor, _MAKERS)])

_GET_ITEM: Any = Tensor.__getitem__
_VIEWS = (int, slice, EllipsisType, type(None))


def is_harmless(function: Any, args: tuple[Any, ...], kwargs: Any = None) -> bool:
    """Whether an operation leaves the memory of its arguments alone."""
    if function in HARMLESS:
        return True
    if function in MAKERS:
        others = (*args[1:], *(kwargs or {}).values())
        return not any(isinstance(one, Tensor) for one in others)
    if function is _GET_ITEM or function == _GET_ITEM:
        index = args[1] if len(args) > 1 else None
        parts = index if type(index) is tuple else (index,)
        return all(isinstance(part, _VIEWS) and not isinstance(part, bool) for part in parts)
    return False
