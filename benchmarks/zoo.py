"""The models that are timed, with their builders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchinit.cli.demo_models import MODELS, Build, DemoModel, builder


@dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
        title: a description.
        prepare: imports, makes the config, and returns what builds the model.
        dtype: of its parameters.
    """

    title: str
    prepare: Callable[[torch.dtype], Build]
    dtype: torch.dtype = torch.float32


def _by_config(title: str, config: str, auto: str, shape: Mapping[str, Any]) -> Case:
    model = DemoModel(title, 0, shape, config, auto)
    return Case(title, lambda dtype: builder(model, dtype))


def _of_demo(name: str, dtype: torch.dtype = torch.float32) -> Case:
    model = MODELS[name]
    title = model.title.removesuffix(" of Transformers").replace("Llama 3.2 1B", "Llama 1.2B")
    return Case(title, lambda dtype: builder(model, dtype), dtype)


def _x_transformers(_dtype: torch.dtype) -> Build:
    from x_transformers import Decoder, TransformerWrapper

    def build() -> nn.Module:
        layers = Decoder(dim=1024, depth=24, heads=16)
        return TransformerWrapper(  # type: ignore[no-any-return]
            num_tokens=50257, max_seq_len=1024, attn_layers=layers
        )

    return build


def _encoder(_dtype: torch.dtype) -> Build:
    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(1024, 16, 4096, batch_first=True)
        return nn.TransformerEncoder(layer, 12)

    return build


def _with(case: Case, **changes: Any) -> Case:
    return Case(**{**vars(case), **changes})


CASES: dict[str, Case] = {
    "llama-bfloat16": _of_demo("llama-3.2-1b", torch.bfloat16),
    "llama-float32": _of_demo("llama-3.2-1b"),
    "gpt2-medium": _of_demo("gpt2-medium"),
    "vit-large": _of_demo("vit-large"),
    "t5-base": _of_demo("t5-base"),
    "mixtral": _with(
        _by_config(
            "Mixtral, 0.49B",
            "MixtralConfig",
            "AutoModelForCausalLM",
            {
                "vocab_size": 32000,
                "hidden_size": 512,
                "intermediate_size": 1792,
                "num_hidden_layers": 20,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "num_local_experts": 8,
            },
        ),
        dtype=torch.bfloat16,
    ),
    "whisper-small": _by_config(
        "Whisper-small",
        "WhisperConfig",
        "AutoModelForSpeechSeq2Seq",
        {
            "d_model": 768,
            "encoder_layers": 12,
            "decoder_layers": 12,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
        },
    ),
    "clip": _with(
        _by_config("CLIP B/32", "CLIPConfig", "AutoModel", {}),
    ),
    "x-transformers": Case(
        "x-transformers, 24 layers of 1024",
        _x_transformers,
    ),
    "encoder": Case("`torch.nn.TransformerEncoder`, 12 layers of 1024", _encoder),
    "lstm": Case("`torch.nn.LSTM`, 4 layers of 1024", lambda _: lambda: nn.LSTM(1024, 1024, 4)),
}

# Not for figures: only to see that it runs.
SMOKE = {"tiny": _of_demo("tiny"), "tiny-bfloat16": _of_demo("tiny", torch.bfloat16)}
