"""The models of the demo: configs of Transformers, and a decoder in plain ``torch.nn``.

``--help`` lists them, so that torch is imported only where a model is built.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torchinit.cli.shell import importing

if TYPE_CHECKING:
    import torch
    from torch import nn

Build: TypeAlias = "Callable[[], nn.Module]"

# The first major version whose models ``builder`` can build.
_TRANSFORMERS = 5
# Memory that a run takes, as a multiple of the parameters: some models build a head before they tie
# it to the embedding.
_HEADROOM = 1.5


class DemoModel(NamedTuple):
    """A model that the demo can build.

    Attributes:
        title: in words.
        numel: number of values in all parameters; tied ones count once.
        shape: keyword arguments of its config, or of ``Decoder``.
        config: the config class in Transformers; empty for the decoder.
        auto: the class in Transformers that builds the model from its config.
    """

    title: str
    numel: int
    shape: Mapping[str, Any]
    config: str = ""
    auto: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether the library that builds it is installed."""
        return not self.config or has_transformers()


_DECODER = {"vocabulary": 50257, "positions": 1024}
_LANGUAGE = "AutoModelForCausalLM"
# From the largest to the smallest: one that does not fit in memory is replaced by the next.
MODELS: dict[str, DemoModel] = {
    "llama-3.2-1b": DemoModel(
        "Llama 3.2 1B of Transformers",
        1_235_814_400,
        {
            "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
        "LlamaConfig",
        _LANGUAGE,
    ),
    "decoder": DemoModel(
        "a decoder in plain torch.nn, as large as GPT-2 large",
        774_030_080,
        {**_DECODER, "width": 1280, "layers": 36, "heads": 20},
    ),
    "gpt2-medium": DemoModel(
        "GPT-2 medium of Transformers",
        354_823_168,
        {"n_embd": 1024, "n_layer": 24, "n_head": 16},
        "GPT2Config",
        _LANGUAGE,
    ),
    "vit-large": DemoModel(
        "ViT-L/16 of Transformers",
        304_326_632,
        {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "intermediate_size": 4096, "num_labels": 1000,
        },
        "ViTConfig",
        "AutoModelForImageClassification",
    ),
    "t5-base": DemoModel(
        "T5-base of Transformers",
        222_903_552,
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        "T5Config",
        "AutoModelForSeq2SeqLM",
    ),
    "decoder-small": DemoModel(
        "a decoder in plain torch.nn, as large as GPT-2",
        124_439_808,
        {**_DECODER, "width": 768, "layers": 12, "heads": 12},
    ),
    "tiny": DemoModel(
        "a tiny decoder in plain torch.nn",
        136_960,
        {"vocabulary": 512, "positions": 64, "width": 64, "layers": 2, "heads": 4},
    ),
}  # fmt: skip


def has_transformers() -> bool:
    """Whether Transformers is installed and recent enough."""
    import importlib.metadata  # as slow as all the rest of --help

    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return False
    return int(version.partition(".")[0]) >= _TRANSFORMERS


def default_model() -> str:
    """The name of the largest model that can be built."""
    return next(name for name, model in MODELS.items() if model.is_usable)


def largest_that_fits(name: str, dtype: torch.dtype, available: float) -> DemoModel:
    """Returns the model of that name, or the largest of the smaller ones that fits in memory.

    Args:
        name: a key of ``MODELS``.
        dtype: of the parameters.
        available: bytes of memory. The smallest model always fits.
    """
    names = list(MODELS)
    usable = [MODELS[each] for each in names[names.index(name) :] if MODELS[each].is_usable]
    fitting = (model for model in usable if needed_memory(model, dtype) <= available)
    return next(fitting, usable[-1])


def needed_memory(model: DemoModel, dtype: torch.dtype) -> float:
    """Bytes that a run with a model takes."""
    return model.numel * dtype.itemsize * _HEADROOM


def builder(model: DemoModel, dtype: torch.dtype) -> Build:
    """Imports what a model needs, and returns the function that builds it.

    The model is built on the current default device (``with torch.device(...)``).
    """
    if not model.config:
        from torchinit.cli.decoder import Decoder

        def build() -> nn.Module:
            with _default_dtype(dtype):
                return Decoder(**model.shape)

        return build

    with importing():
        import transformers

        config = getattr(transformers, model.config)(**model.shape)
        from_config = getattr(transformers, model.auto).from_config

    def build_from_config() -> nn.Module:
        return from_config(config, dtype=dtype)  # type: ignore[no-any-return]

    return build_from_config


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
