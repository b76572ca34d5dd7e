"""Small models with parameters of any name and shape, and what a scheme makes of one."""

from __future__ import annotations

import torch
from torch import nn

import torchinit
from torchinit.schemes.law import Law


def model_of(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model on the meta device with these parameters."""
    root = nn.Module()
    for name, shape in shapes.items():
        module = root
        *path, last = name.split(".")
        for atom in path:
            if atom not in module._modules:
                module.add_module(atom, nn.Module())
            module = module._modules[atom]
        module.register_parameter(
            last, nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
        )
    return root


def fill(shapes, rules, seed: int = 0, dtype: torch.dtype = torch.float32):
    """The parameters of such a model by rules, or by one scheme for all."""
    rules = rules if isinstance(rules, dict) else {"**": rules}
    model = torchinit.init_model_(model_of(shapes, dtype), rules, seed=seed, device="cpu")
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def rows_of(scheme, shape, name: str = "layers.0.w.weight"):
    """The rows of the plan for one parameter."""
    return list(torchinit.plan_model(model_of({name: shape}), {"**": scheme}))


def law(scheme, shape) -> Law:
    """The law of a scheme on a shape."""
    (row,) = rows_of(scheme, shape)
    assert row.law is not None
    return row.law
