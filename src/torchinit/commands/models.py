"""Transformers as data: every parameter's name, shape and published initialisation.

A parameter names a function that ``torchinit`` and ``torch.nn.init`` both have, with keyword
arguments, so that the same call can be made of either. Nothing here needs torch: ``--help`` lists
the models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Parameter:
    """A parameter of a model.

    Attributes:
        name: as in the published checkpoint.
        shape: likewise.
        scheme: name of the function that fills it, without the underscore.
        arguments: keyword arguments of that function.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    arguments: Mapping[str, float] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    def fill(self, library: ModuleType, tensor: Tensor) -> None:
        """Fills a tensor by this parameter's scheme.

        Args:
            library: ``torchinit`` or ``torch.nn.init``.
            tensor: usually of this parameter's shape; a slice of it will do.
        """
        getattr(library, f"{self.scheme}_")(tensor, **self.arguments)


@dataclass(frozen=True)
class Model:
    """A model: its title and its parameters in the order of the checkpoint."""

    title: str
    parameters: tuple[Parameter, ...]

    @cached_property
    def numel(self) -> int:
        """The number of values of all parameters."""
        return sum(parameter.numel for parameter in self.parameters)


def llama_3_2_1b() -> Model:
    """Llama 3.2 1B: 1,235,814,400 parameters, the output head tied to the embedding."""
    return Model(
        "Llama 3.2 1B",
        tuple(
            _llama(
                vocabulary=128256,
                width=2048,
                layers=16,
                key_value_width=8 * 64,
                intermediate=8192,
            )
        ),
    )


def gpt2_medium() -> Model:
    """GPT-2 medium: 354,823,168 parameters, the output head tied to the embedding."""
    return Model("GPT-2 medium", tuple(_gpt2(50257, positions=1024, width=1024, layers=24)))


def vit_large() -> Model:
    """ViT-L/16 for images of 224 x 224 in 1000 classes: 304,326,632 parameters."""
    return Model("ViT-L/16", tuple(_vit(width=1024, layers=24, classes=1000)))


def tiny() -> Model:
    """A Llama of 106,816 parameters, for tests and smoke runs."""
    return Model(
        "tiny Llama",
        tuple(_llama(vocabulary=512, width=64, layers=2, key_value_width=32, intermediate=128)),
    )


# By falling size: where one does not fit into memory the next is tried.
MODELS: dict[str, Callable[[], Model]] = {
    "llama-3.2-1b": llama_3_2_1b,
    "gpt2-medium": gpt2_medium,
    "vit-large": vit_large,
    "tiny": tiny,
}

_STD = 0.02


def _llama(
    vocabulary: int, width: int, layers: int, key_value_width: int, intermediate: int
) -> Iterator[Parameter]:
    """Parameters of a Llama by the names of its checkpoints.

    Meta has not published an initialisation. The embedding follows ``initializer_range`` of
    transformers' LlamaConfig, N(0, 0.02^2). The matrices follow OLMo's ``full_megatron``: normals
    of std 0.02, cut at 3 std, where those that write to the residual stream are divided by
    sqrt(2 layers) (as first in GPT-2; torchtitan's Llama 3 has the same stds).
    """
    inner = _truncated_at_3(_STD)
    residual = _truncated_at_3(_STD / math.sqrt(2 * layers))

    yield Parameter("model.embed_tokens.weight", (vocabulary, width), "normal", {"std": _STD})
    for i in range(layers):
        layer = f"model.layers.{i}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        for name, shape, arguments in (
            (f"{attention}.q_proj", (width, width), inner),
            (f"{attention}.k_proj", (key_value_width, width), inner),
            (f"{attention}.v_proj", (key_value_width, width), inner),
            (f"{attention}.o_proj", (width, width), residual),
            (f"{mlp}.gate_proj", (intermediate, width), inner),
            (f"{mlp}.up_proj", (intermediate, width), inner),
            (f"{mlp}.down_proj", (width, intermediate), residual),
        ):
            yield Parameter(f"{name}.weight", shape, "trunc_normal", arguments)
        yield Parameter(f"{layer}.input_layernorm.weight", (width,), "ones")
        yield Parameter(f"{layer}.post_attention_layernorm.weight", (width,), "ones")
    yield Parameter("model.norm.weight", (width,), "ones")


def _gpt2(vocabulary: int, positions: int, width: int, layers: int) -> Iterator[Parameter]:
    """Parameters of a GPT-2 by the names of transformers, whose Conv1D weights are (in, out).

    Radford et al. 2019, section 2.3, and ``_init_weights`` of transformers' GPT-2: N(0, 0.02^2)
    for matrices and embeddings, divided by sqrt(2 layers) where they write to the residual stream.
    """
    inner = {"std": _STD}
    residual = {"std": _STD / math.sqrt(2 * layers)}

    yield Parameter("transformer.wte.weight", (vocabulary, width), "normal", inner)
    yield Parameter("transformer.wpe.weight", (positions, width), "normal", inner)
    for i in range(layers):
        layer = f"transformer.h.{i}"
        yield from _layer_norm(f"{layer}.ln_1", width)
        for name, shape, arguments in (
            (f"{layer}.attn.c_attn", (width, 3 * width), inner),
            (f"{layer}.attn.c_proj", (width, width), residual),
        ):
            yield Parameter(f"{name}.weight", shape, "normal", arguments)
            yield Parameter(f"{name}.bias", shape[1:], "zeros")
        yield from _layer_norm(f"{layer}.ln_2", width)
        for name, shape, arguments in (
            (f"{layer}.mlp.c_fc", (width, 4 * width), inner),
            (f"{layer}.mlp.c_proj", (4 * width, width), residual),
        ):
            yield Parameter(f"{name}.weight", shape, "normal", arguments)
            yield Parameter(f"{name}.bias", shape[1:], "zeros")
    yield from _layer_norm("transformer.ln_f", width)


def _vit(
    width: int, layers: int, classes: int, image: int = 224, patch: int = 16
) -> Iterator[Parameter]:
    """Parameters of a vision transformer by the names of timm.

    timm's default (``init_weights`` of its VisionTransformer, mode ``""``): N(0, 0.02^2) with
    ``trunc_normal_``'s own bounds of -2 and 2 for matrices and positions, N(0, 10^-12) for the
    class token, zero biases; the convolution keeps the default of ``torch.nn.Conv2d``.
    """
    linear = {"std": _STD}
    patch_shape = (width, 3, patch, patch)
    patch_bound = 1 / math.sqrt(math.prod(patch_shape[1:]))

    yield Parameter("cls_token", (1, 1, width), "normal", {"std": 1e-6})
    tokens = (image // patch) ** 2 + 1
    yield Parameter("pos_embed", (1, tokens, width), "trunc_normal", linear)
    convolution = {"a": math.sqrt(5)}
    yield Parameter("patch_embed.proj.weight", patch_shape, "kaiming_uniform", convolution)
    bounds = {"a": -patch_bound, "b": patch_bound}
    yield Parameter("patch_embed.proj.bias", (width,), "uniform", bounds)
    for i in range(layers):
        block = f"blocks.{i}"
        yield from _layer_norm(f"{block}.norm1", width)
        yield from _linear(f"{block}.attn.qkv", width, 3 * width, linear)
        yield from _linear(f"{block}.attn.proj", width, width, linear)
        yield from _layer_norm(f"{block}.norm2", width)
        yield from _linear(f"{block}.mlp.fc1", width, 4 * width, linear)
        yield from _linear(f"{block}.mlp.fc2", 4 * width, width, linear)
    yield from _layer_norm("norm", width)
    yield from _linear("head", width, classes, linear)


def _layer_norm(name: str, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (width,), "ones")
    yield Parameter(f"{name}.bias", (width,), "zeros")


def _linear(
    name: str, inputs: int, outputs: int, arguments: Mapping[str, float]
) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (outputs, inputs), "trunc_normal", arguments)
    yield Parameter(f"{name}.bias", (outputs,), "zeros")


def _truncated_at_3(std: float) -> dict[str, float]:
    return {"std": std, "a": -3 * std, "b": 3 * std}
