"""The models of the demo, as data: configs of Transformers, and a decoder in plain ``torch.nn``.

Nothing here needs torch: ``--help`` lists the models.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The first version that builds models as ``build`` asks.
_TRANSFORMERS = 5


@dataclass(frozen=True)
class Model:
    """A model that can be built.

    Attributes:
        title: what it is.
        numel: number of values of all parameters, those that are tied counted once.
        shape: keyword arguments of its config, or of ``decoder.Decoder``.
        config: name of the class of the config in Transformers; empty for the decoder.
        auto: name of the class of Transformers that builds it.
    """

    title: str
    numel: int
    shape: Mapping[str, Any]
    config: str = ""
    auto: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether what builds it is installed."""
        return not self.config or has_transformers()


# By falling size: where one does not fit into memory the next is tried.
MODELS: dict[str, Model] = {
    "llama-3.2-1b": Model(
        "Llama 3.2 1B of Transformers",
        1_235_814_400,
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
        "LlamaConfig",
        "AutoModelForCausalLM",
    ),
    "decoder": Model(
        "a decoder in plain torch.nn, as large as GPT-2 large",
        774_030_080,
        {"vocabulary": 50257, "positions": 1024, "width": 1280, "layers": 36, "heads": 20},
    ),
    "gpt2-medium": Model(
        "GPT-2 medium of Transformers",
        354_823_168,
        {"n_embd": 1024, "n_layer": 24, "n_head": 16},
        "GPT2Config",
        "AutoModelForCausalLM",
    ),
    "vit-large": Model(
        "ViT-L/16 of Transformers",
        304_326_632,
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "num_labels": 1000,
        },
        "ViTConfig",
        "AutoModelForImageClassification",
    ),
    "t5-base": Model(
        "T5-base of Transformers",
        222_903_552,
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        "T5Config",
        "AutoModelForSeq2SeqLM",
    ),
    "decoder-small": Model(
        "a decoder in plain torch.nn, as large as GPT-2",
        124_439_808,
        {"vocabulary": 50257, "positions": 1024, "width": 768, "layers": 12, "heads": 12},
    ),
    "tiny": Model(
        "a tiny decoder in plain torch.nn",
        136_960,
        {"vocabulary": 512, "positions": 64, "width": 64, "layers": 2, "heads": 4},
    ),
}


def has_transformers() -> bool:
    """Whether Transformers is installed, and not too old."""
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return False
    return int(version.partition(".")[0]) >= _TRANSFORMERS


def default_model() -> str:
    """The name of the largest model that can be built."""
    return next(name for name, model in MODELS.items() if model.is_usable)
