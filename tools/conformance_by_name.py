"""torchinit's fills whose key is the parameter's name, as tools/conformance.py calls them.

python tools/conformance.py tools/conformance_by_name.py:normal_
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from torchinit import Normal, Orthogonal, init_model_, init_shard_
from torchinit.rules.scheme import Scheme


def normal_(
    tensor: Tensor,
    *,
    seed: int,
    name: str,
    global_shape: Sequence[int] | None = None,
    offset: Sequence[int] | None = None,
) -> None:
    """A tensor, a shard of one, or a DTensor."""
    _fill(tensor, Normal(1.0), seed, name, global_shape, offset)


def orthogonal_(
    tensor: Tensor,
    *,
    seed: int,
    name: str,
    global_shape: Sequence[int] | None = None,
    offset: Sequence[int] | None = None,
) -> None:
    """A tensor, a shard of one, or a DTensor."""
    _fill(tensor, Orthogonal(), seed, name, global_shape, offset)


def _fill(
    tensor: Tensor,
    scheme: Scheme,
    seed: int,
    name: str,
    global_shape: Sequence[int] | None,
    offset: Sequence[int] | None,
) -> None:
    if isinstance(tensor, DTensor):
        *parents, leaf = name.split(".")
        model = module = nn.Module()
        for parent in parents:
            module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.register_parameter(leaf, nn.Parameter(tensor))
        init_model_(model, {"**": scheme}, seed=seed)
        return
    shape = tensor.shape if global_shape is None else global_shape
    at = [0] * len(shape) if offset is None else offset
    init_shard_(tensor, scheme, global_shape=shape, offset=at, seed=seed, name=name)
