"""torchinit's fills whose key is the parameter's name, as tools/conformance.py calls them.

python tools/conformance.py tools/conformance_by_name.py:normal_
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from torchinit import Normal, Orthogonal, init_model_, init_shard_
from torchinit.rules.scheme import Scheme


def _fill(
    scheme: Scheme,
    tensor: Tensor,
    *,
    seed: int,
    name: str,
    global_shape: Sequence[int] | None = None,
    offset: Sequence[int] | None = None,
) -> None:
    """Fills a tensor, a shard of one, or a DTensor."""
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


normal_, orthogonal_ = partial(_fill, Normal(1.0)), partial(_fill, Orthogonal())
