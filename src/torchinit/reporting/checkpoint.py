"""Checkpoints of safetensors: which tensors there are, each read when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchinit.errors import ArgumentError

_SUFFIX = ".safetensors"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
# Models of Transformers whose linear layers have weights (inputs, outputs), and those layers.
_CONV1D_MODELS = {"gpt2", "imagegpt", "openai-gpt", "decision_transformer", "gpt2-double-heads"}
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "q_attn.weight")


class Held(NamedTuple):
    """A tensor in a checkpoint: its name, shape, dtype, and what reads it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]


def read_checkpoint(path: Path) -> tuple[list[Held], Callable[[str], bool]]:
    """The tensors of a checkpoint, and whether one of a name is (inputs, outputs), as in GPT-2.

    Args:
        path: a file of safetensors, or a directory of one, or of shards with their index.

    Raises:
        ArgumentError: for what is not there or is no checkpoint, and for a shard that is missing.
        ImportError: without safetensors.
    """
    files = _files(path)
    held = [one for file in files for one in _read(file)]
    doubled = {one.name for one in held} if len({one.name for one in held}) < len(held) else ()
    if doubled:
        raise ArgumentError(f"{path} has tensors of one name in several files")
    by_name = {one.name: one for one in held}
    kind = config_of(path).get("model_type")
    is_conv1d = kind in _CONV1D_MODELS if kind else _looks_like_gpt2(by_name.values())
    return held, lambda name: is_conv1d and name.endswith(_CONV1D)


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


def _files(path: Path) -> Sequence[Path]:
    if path.is_file():
        if path.suffix != _SUFFIX:
            raise ArgumentError(
                f"{path} is no checkpoint: expected a directory or a file {_SUFFIX}"
            )
        return [path]
    if not path.is_dir():
        raise ArgumentError(f"no such checkpoint: {path}")
    indices = sorted(path.glob(f"*{_SUFFIX}.index.json"))
    if len(indices) > 1:
        raise ArgumentError(f"{path} has {len(indices)} indices of shards: name one file")
    if indices:
        return _indexed(indices[0])
    files = sorted(path.glob(f"*{_SUFFIX}"))
    if len(files) != 1:
        what = f"{len(files)} files {_SUFFIX} and no index" if files else f"no file {_SUFFIX}"
        raise ArgumentError(f"{path} is no checkpoint: it has {what}")
    return files


def _indexed(index: Path) -> Sequence[Path]:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArgumentError(f"{index} is no index of shards: {error!r}") from None
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise ArgumentError(f"{index} names shards that are not there: {', '.join(missing)}")
    return [index.parent / name for name in shards]


def _read(file: Path) -> list[Held]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError(
            "reading checkpoints needs safetensors: pip install 'torchinit[report]'"
        ) from None
    held = []
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                part = opened.get_slice(name)
                kind = part.get_dtype()
                if kind not in _DTYPES:
                    raise ArgumentError(f"{file}: {name!r} has dtype {kind}, which is not known")
                shape = tuple(part.get_shape())
                held.append(Held(name, shape, _DTYPES[kind], partial(_load, file, name)))
    except SafetensorError as error:
        raise ArgumentError(f"{file} cannot be read: {error}") from None
    return held


def _load(file: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name)  # type: ignore[no-any-return]
