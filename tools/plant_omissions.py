"""Leaves one tensor of a model out of its loading, and looks whether ``check_init`` names it.

Twenty models of timm, diffusers and Transformers, with three omissions each: a parameter, half the
rows of a parameter, and a buffer (or, in a model without buffers, another parameter). A second
model of the same class has the values; all others are copied from it. Every omission must be
found, with the right rows, and nothing else named. The other ways of tools/check_zoo.py are asked
too.

    python tools/plant_omissions.py

Run by hand, where timm, torchvision and diffusers are installed.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from check_zoo import PEERS, rows_of
from torchinit import Uninitialized, check_init
from transformers_configs import smallest

_TIMM = (
    "vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224",
    "efficientnet_b0", "regnety_002", "mixer_s16_224",
)  # fmt: skip
_DIFFUSERS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {"sample_size": 16, "block_out_channels": (32, 64),
                    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                    "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    "UNet2DConditionModel": {"sample_size": 16, "block_out_channels": (32, 64),
                             "cross_attention_dim": 32,
                             "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                             "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
    "AutoencoderKL": {"block_out_channels": (32,), "norm_num_groups": 8},
    "DiTTransformer2DModel": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
                              "sample_size": 8},
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2,
                               "attention_head_dim": 16, "joint_attention_dim": 32,
                               "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8)},
    "SD3Transformer2DModel": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
                              "sample_size": 8, "joint_attention_dim": 32,
                              "caption_projection_dim": 16, "pooled_projection_dim": 32},
}  # fmt: skip
_TRANSFORMERS = ("llama", "gpt2", "bert", "t5", "vit", "mixtral", "whisper")


def models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """(title, what builds it)."""
    import diffusers
    import timm
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    for name in _TIMM:
        yield f"timm {name}", partial(timm.create_model, name, pretrained=False)
    for name, sizes in _DIFFUSERS.items():
        yield f"diffusers {name}", partial(getattr(diffusers, name), **sizes)
    for key in _TRANSFORMERS:
        kind: Any = CONFIG_MAPPING[key]
        model: Any = MODEL_MAPPING[kind]
        yield f"transformers {key}", partial(model, smallest(kind, model)[0])


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, tied ones under each name."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def loader(values: dict[str, Tensor], but: str, rows: int) -> Callable[[nn.Module], None]:
    """Copies all values but those of one tensor, from a row on."""

    @torch.no_grad()
    def load(model: nn.Module) -> None:
        mine = tensors(model)
        left = mine[but].data_ptr()
        for name, tensor in mine.items():
            if tensor.data_ptr() != left:
                tensor.copy_(values[name])
            elif rows:
                tensor[:rows].copy_(values[name][:rows])

    return load


def is_right(row: Uninitialized, name: str, values: Tensor, rows: int) -> bool:
    """Whether a row names an omission and where it begins."""
    count = values[rows:].numel() if rows else values.numel()
    where = f"[{rows}:{values.shape[0]}" if rows else ""
    return (
        name in row.names
        and row.what == "unwritten"
        and row.count == count
        and row.where.startswith(where)
        and bool(row.where) == bool(where)
    )


def main() -> None:
    """Plants the omissions and prints a line for each."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    peers = {peer: [0, 0] for peer in PEERS}
    planted = found = others = 0
    for title, build in models():
        pick = random.Random(title)
        values = tensors(build())
        parameters = [name for name, _ in build().named_parameters()]
        buffers = [name for name, one in build().named_buffers() if one.numel()]
        halves = [name for name in parameters if values[name].dim() > 1 and len(values[name]) > 1]
        half = pick.choice(halves)
        whole, other = pick.sample([name for name in parameters if name != half], 2)
        omissions = [(whole, 0), (half, len(values[half]) // 2)]
        omissions.append((pick.choice(buffers) if buffers else other, 0))
        before = [
            row.name
            for row in rows_of(
                partial(check_init, build, loader(values, whole, len(values[whole])))
            )
        ]
        for name, rows in omissions:
            load = loader(values, name, rows)
            said = rows_of(partial(check_init, build, load))
            right = [row for row in said if is_right(row, name, values[name], rows)]
            planted += 1
            found += bool(right)
            others += len(said) - len(right)
            verdict = "found" if right else "NOT FOUND"
            print(f"{title:32} {name:60} {verdict} {[row.where for row in said]}", before or "")
            for peer, way in PEERS.items():
                names = way(build, load)
                peers[peer][0] += name in names
                peers[peer][1] += len(names - {name})
    print(f"planted {planted}, found {found}, others named {others}")
    for peer, counts in peers.items():
        print(f"{peer}: found {counts[0]}, others named {counts[1]}")


if __name__ == "__main__":
    main()
