"""What a checkpoint's config and names say of the model that it is of."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchinit.checkpoint.safetensors import Held
from torchinit.errors import ArgumentError

# Models of Transformers whose linear layers have weights (inputs, outputs), and those layers.
_CONV1D_MODELS = {"gpt2", "imagegpt", "openai-gpt", "decision_transformer", "gpt2-double-heads"}
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "q_attn.weight")


def stores_conv1d(path: Path, held: Sequence[Held]) -> Callable[[str], bool]:
    """Whether a tensor of a name is stored as (inputs, outputs), as in GPT-2."""
    kind = config_of(path).get("model_type")
    is_conv1d = kind in _CONV1D_MODELS if kind else _looks_like_gpt2(held)
    return lambda name: is_conv1d and name.endswith(_CONV1D)


def config_of(path: Path) -> dict[str, Any]:
    """What ``config.json`` of a checkpoint says; nothing where there is none."""
    file = path / "config.json" if path.is_dir() else path.parent / "config.json"
    if not file.exists():
        return {}
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ArgumentError(f"{file} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ArgumentError(f"{file} holds no JSON object")
    return config


def _looks_like_gpt2(held: Any) -> bool:
    """Whether fused queries, keys and values are wider than high."""
    shapes = [one.shape for one in held if one.name.endswith("c_attn.weight")]
    return bool(shapes) and all(len(s) == 2 and s[1] > s[0] for s in shapes)
