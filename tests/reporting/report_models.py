"""Small models to report, right and broken."""

from __future__ import annotations

import torch
from torch import nn

import torchinit
from made import model_of


def llama_shapes(layers: int, width: int = 64, vocabulary: int = 256) -> dict[str, tuple[int, ...]]:
    """Nine parameters a layer, and two: a Llama's with tied embeddings."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for name, shape in {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (width // 2, width),
            "self_attn.v_proj": (width // 2, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (2 * width, width),
            "mlp.up_proj": (2 * width, width),
            "mlp.down_proj": (width, 2 * width),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }.items():
            shapes[f"{block}.{name}.weight"] = shape
    return {**shapes, "model.norm.weight": (width,)}


RULES = {"**norm.weight": "ones", "**": torchinit.Normal(0.02)}


def llama(layers: int, seed: int = 0, rules=RULES, dtype=torch.float32, **sizes) -> nn.Module:
    model = model_of(llama_shapes(layers, **sizes), dtype)
    return torchinit.init_model_(model, rules, seed=seed, device="cpu")


def break_four(model: nn.Module) -> list[str]:
    """Doubles the std of one, clips one at 1 std, makes one constant, puts a NaN into one."""
    prefix = "model.layers."
    names = {
        "double": "1.self_attn.q_proj", "clipped": "2.mlp.up_proj",
        "constant": "3.self_attn.o_proj", "nan": "4.mlp.down_proj",
    }  # fmt: skip
    weights = {how: model.get_parameter(f"{prefix}{name}.weight") for how, name in names.items()}
    with torch.no_grad():
        weights["double"].mul_(2)
        weights["clipped"].clamp_(-0.02, 0.02)
        weights["constant"].fill_(0.01)
        weights["nan"][3, 4] = torch.nan
    return [f"{prefix}{name}.weight" for name in names.values()]
