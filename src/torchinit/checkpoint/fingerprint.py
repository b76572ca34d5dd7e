"""What decides a checkpoint's bytes, in a few lines: a run goes on only from files of its own kind.

It lies beside the weights as ``torchinit.json``, and says how they were made.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchinit.checkpoint.layout import Layout
from torchinit.errors import ArgumentError
from torchinit.models.prepare import Prepared
from torchinit.native import load
from torchinit.rules.part import Computed, Function, Part
from torchinit.streams.named_keys import check_seed
from torchinit.version import STREAM_VERSION, __version__

RECORD = "torchinit.json"

# What each line is called in an error.
_WORDS = {
    "torchinit": "torchinit's version",
    "streams": "the version of the streams",
    "numbers": "whose numbers are used",
    "seed": "the seed",
    "dtype": "the dtype",
    "shard_size": "the shard size",
    "config": "the config",
    "tensors": "the names, shapes or dtypes of the tensors",
    "rules": "the rules, or what the model's own initialisation does",
}


def fingerprint_of(
    prepared: Prepared,
    layout: Layout,
    *,
    seed: int,
    dtype: torch.dtype | None,
    shard_size: int,
    config: bytes | None,
    rules_source: bytes | None,
) -> dict[str, object]:
    """What decides the bytes of a checkpoint.

    Args:
        prepared: what the tensors get.
        layout: of the files.
        seed, dtype, shard_size: as they were asked for.
        config: of the model, as it is stored; None if it has none.
        rules_source: the text of the rules; without it, callables are told apart by their own.
    """
    tensors = (f"{shard.filename} {shard.size}".encode() + shard.header for shard in layout.shards)
    return {
        "torchinit": __version__,
        "streams": STREAM_VERSION,
        "numbers": "torchinit" if load.module is not None else f"torch {torch.__version__}",
        "seed": check_seed(seed),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "shard_size": shard_size,
        "config": None if config is None else _digest([_without_version(config)]),
        "tensors": _digest(tensors),
        "rules": _digest(_laws(prepared, rules_source)),
    }


def write_record(fingerprint: Mapping[str, object]) -> bytes:
    """The file's text."""
    return (json.dumps(fingerprint, indent=2) + "\n").encode()


def check_same(path: Path, fingerprint: Mapping[str, object]) -> None:
    """Raises ArgumentError if a file is of another checkpoint, naming what differs."""
    try:
        there = json.loads(path.read_bytes())
    except ValueError:
        there = None
    if not isinstance(there, dict):
        raise ArgumentError(f"{path} cannot be read: remove its folder, and write it anew")
    differs = [key for key in fingerprint if there.get(key) != fingerprint[key]]
    if differs:
        said = "; ".join(_difference(key, there.get(key), fingerprint[key]) for key in differs)
        raise ArgumentError(
            f"resume: {path.parent} was begun otherwise: {said}. Give what it was begun with, or "
            "another path"
        )


def _difference(key: str, there: object, asked: object) -> str:
    if key in ("config", "tensors", "rules"):
        return f"{_WORDS[key]} differ" if key != "config" else "the config differs"
    return f"{_WORDS[key]} ({there} there, {asked} asked for)"


def _without_version(config: bytes) -> bytes:
    """A config as bytes, but for the version of Transformers that wrote it."""
    said = json.loads(config)
    said.pop("transformers_version", None)
    return json.dumps(said, sort_keys=True).encode()


def _digest(data: Iterator[bytes] | Sequence[bytes]) -> str:
    state = blake2b(digest_size=16)
    for each in data:
        state.update(len(each).to_bytes(8, "little"))
        state.update(each)
    return state.hexdigest()


def _laws(prepared: Prepared, rules_source: bytes | None) -> Iterator[bytes]:
    for one in prepared.assignments:
        yield repr((one.named.name, one.draw, list(one.pads))).encode()
        for part in one.parts:
            yield _law(part, rules_source)
    for named, value in prepared.filled:
        yield named.name.encode()
        yield _bytes_of(value)


def _law(part: Part, rules_source: bytes | None) -> bytes:
    values: Any = part.values
    said: object = values
    if isinstance(values, Function):
        said = rules_source if rules_source is not None else _source_of(values.function)
    elif isinstance(values, Computed):
        said = _digest(list(values.describe()))
    elif isinstance(values, Tensor):
        said = _digest([_bytes_of(values)])
    return repr((part.region, type(values).__name__, said)).encode()


def _source_of(function: Callable[..., Any]) -> str:
    """Name and text of a function; not what it closes over."""
    if isinstance(function, functools.partial):
        return f"{_source_of(function.func)} {function.args!r} {function.keywords!r}"
    text = ""
    with suppress(OSError, TypeError):
        text = inspect.getsource(function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name} {text}"


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
