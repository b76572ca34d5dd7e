"""``write_checkpoint``: an initialised checkpoint of any size, in little memory.

A plan comes first: the model on the meta device, its tensors under their stored names, what fills
each, and the files. Whatever is wrong is found before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from torchinit.checkpoint.folder import write_folder
from torchinit.checkpoint.layouts import stored_weights
from torchinit.checkpoint.safetensors import Layout, checked_size, lay_out
from torchinit.checkpoint.tensors import file_tensors
from torchinit.checkpoint.writer import PIECE
from torchinit.errors import ArgumentError, check_flag
from torchinit.frameworks.transformers import (
    is_transformers_model,
    model_of_config,
    saved_configs,
)
from torchinit.models.build_model import build_model
from torchinit.models.init_model import Prepared, prepare
from torchinit.models.plan import Plan
from torchinit.native import kernels, load
from torchinit.quantised.formats import BlockFormat
from torchinit.streams.named_keys import check_seed
from torchinit.values.kinds import digest
from torchinit.values.region import Part
from torchinit.version import STREAM_VERSION, __version__

Config: TypeAlias = "str | PathLike[str] | Callable[[], nn.Module]"
RulesOrFunction: TypeAlias = "Mapping[Any, Any] | Callable[[Any], Mapping[Any, Any]] | None"


def write_checkpoint(
    config: Config,
    path: str | PathLike[str],
    rules: RulesOrFunction = None,
    *,
    seed: int,
    dtype: torch.dtype | None = None,
    shard_size: int | str = "5GB",
    resume: bool = False,
    formats: Mapping[Any, BlockFormat] | None = None,
    layout: str | None = None,
) -> Path:
    """Writes an initialised checkpoint that ``from_pretrained`` loads, without building the model.

    The values are those of ``init_model_(model, rules, seed=seed, dtype=dtype)``, bit for bit.
    Threads fill them in pieces of 64 MiB, straight into the files. Memory holds no more than these
    pieces, and one tensor where values can only be made all at once (orthogonal matrices,
    ``sparse_``, callables).

    Args:
        config: the path of a Transformers ``config.json``, or of a directory with one, whose
            ``architectures[0]`` names the class; or a function that returns a module: with rules,
            on the meta device; without, as ``build_model`` takes it.
        path: of the directory to write, which must be empty or not exist.
        rules: as ``init_model_`` takes them, or a function of the model's config that returns them.
            None is the model's own initialisation.
        seed: as ``init_model_``.
        dtype: of floating-point parameters; None is the config's.
        shard_size: bytes of values in a file, or a string such as ``"5GB"``.
        resume: whether to keep the complete shards of an interrupted run with the same arguments.
            Callables among the rules are compared by name and source text; closures are not
            compared. A directory that is empty or missing is begun.
        formats: a mapping from patterns, as in rules, to the formats (``MXFP8``, ``FP8Blocks``,
            ``NVFP4``) of the low-precision weights, whose quantised values are stored.
        layout: of these: ``"fp8"`` for ``FP8Blocks``; ``"mxfp8"`` for ``MXFP8``;
            ``"compressed-tensors"`` for ``MXFP8`` and ``NVFP4(rows=1)``.

    Returns:
        The directory.

    Raises:
        ArgumentError: as ``init_model_``; for a config that gives no model, a directory that is not
            empty or was begun with other arguments, a disk without room, formats that the layout
            does not hold. Nothing has been written then.
        TypeError: as ``init_model_``; if resume is neither True nor False.
        OSError: for what cannot be read or written. What an interrupted run leaves does not load.
        ImportError: without the extra ``torchinit[checkpoint]``.

    >>> import tempfile, torch, torchinit
    >>> def linear():
    ...     return torch.nn.Linear(8, 4, device="meta")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = torchinit.write_checkpoint(linear, f"{folder}/new", seed=0)
    ...     sorted(file.name for file in path.iterdir())
    ['model.safetensors', 'torchinit.json']
    """
    check_flag("resume", resume)
    plan = plan_checkpoint(
        config, rules, seed=seed, dtype=dtype, shard_size=shard_size, formats=formats, layout=layout
    )
    carry_out_plan(plan, Path(path), resume=resume)
    return Path(path)


class CheckpointPlan(NamedTuple):
    """A checkpoint that is still to be written.

    Attributes:
        parameters: how many values all parameters have, tied ones once.
        layout: of the weights.
        small: names and contents of the files beside them.
        record: what decides the bytes.
        table: what each parameter gets.
    """

    parameters: int
    layout: Layout
    small: Mapping[str, bytes]
    record: Mapping[str, object]
    table: Plan


def plan_checkpoint(
    config: Config,
    rules: RulesOrFunction,
    *,
    seed: int,
    dtype: torch.dtype | None,
    shard_size: int | str,
    rules_source: bytes | None = None,
    formats: Mapping[Any, BlockFormat] | None = None,
    layout: str | None = None,
) -> CheckpointPlan:
    """Finds out what a checkpoint will be, and that nothing is wrong with it.

    Args:
        config, rules, seed, dtype, shard_size, formats, layout: as ``write_checkpoint``.
        rules_source: the text of the rules, by which callables among them are compared.

    Raises:
        ArgumentError, TypeError, OSError, ImportError: as ``write_checkpoint``.
        RuntimeError: for formats without the native module.
    """
    checked_seed, size = check_seed(seed), checked_size(shard_size)
    model = _model_on_meta(config, seed, has_rules=rules is not None)
    found = prepare(model, _rules_for(rules, model), seed, device="cpu", dtype=dtype)
    parameters = sum(one.named.tensor.numel() for one in found.assignments)
    weights = stored_weights(found.assignments, formats, layout)
    if weights is not None:
        kernels.cpu_module()
    files = lay_out(list(file_tensors(model, found, seed, weights)), size, parameters)
    small = saved_configs(model, dtype) if is_transformers_model(model) else {}
    stored = small.get("config.json")
    headers = (f"{shard.filename} {shard.size}".encode() + shard.header for shard in files.shards)
    record = {
        "torchinit": __version__,
        "streams": STREAM_VERSION,
        "numbers": "torchinit" if load.module is not None else f"torch {torch.__version__}",
        "seed": checked_seed,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "shard_size": size,
        "config": None if stored is None else digest([_without_version(stored)]),
        "tensors": digest(headers),
        "rules": digest(_contents(found, rules_source)),
        "layout": layout,
        "formats": None if weights is None else weights.record,
    }
    named: dict[str, str] = {}
    if weights is not None:
        named = {
            one.named.name: str(weights.formats[id(one.named.tensor)])
            for one in found.assignments if id(one.named.tensor) in weights.formats
        }  # fmt: skip
        if stored is not None:
            small = {**small, "config.json": _with_entry(stored, weights.config)}
    table = Plan([*found.assignments, *found.ruled], named)
    return CheckpointPlan(parameters, files, small, record, table)


def carry_out_plan(
    plan: CheckpointPlan, path: Path, *, resume: bool = False, piece_size: int = PIECE
) -> bool:
    """Writes a planned checkpoint; returns whether anything was left to write.

    Args:
        plan: of it.
        path, resume: as ``write_checkpoint``.
        piece_size: bytes that are filled and written together.

    Raises:
        ArgumentError, OSError: as ``write_checkpoint``.
    """
    return write_folder(
        path, plan.layout, plan.small, plan.record, resume=resume, piece_size=piece_size
    )


def _model_on_meta(config: Config, seed: int, *, has_rules: bool) -> nn.Module:
    if isinstance(config, nn.Module):
        raise TypeError(
            "config is a module: give a function that returns it, as in "
            "write_checkpoint(lambda: model, ...)"
        )
    if isinstance(config, str | PathLike):
        path = Path(config)
        model = model_of_config(path / "config.json" if path.is_dir() else path)
    elif callable(config):
        model = config() if has_rules else build_model(config, seed=seed, device="meta")
    else:
        raise TypeError(
            f"config={config!r} must be the path of a config.json, or a function that returns a "
            f"module on the meta device, not {type(config).__name__}"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"config() must return a torch.nn.Module, not {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or not parameter.is_meta:
            where = parameter.device if type(parameter) is nn.Parameter else type(parameter)
            raise ArgumentError(
                f"parameter {name!r} is on {where}: build the model on the meta device, as in "
                'with torch.device("meta"): ..., so that it takes no memory'
            )
    return model


def _rules_for(rules: RulesOrFunction, model: nn.Module) -> Mapping[Any, Any] | None:
    """The rules, or what a function returns as such for the model's config."""
    if rules is None or isinstance(rules, Mapping):
        return rules
    if not callable(rules):
        raise TypeError(
            f"rules must be a mapping, or a function of the config, not {type(rules).__name__}"
        )
    config = getattr(model, "config", None)
    if config is None:
        raise ArgumentError("rules is a function of the config, and the model has no config")
    found = rules(config)
    if not isinstance(found, Mapping):
        raise TypeError(f"rules(config) must return a mapping, not {type(found).__name__}")
    return found


def _with_entry(config: bytes, entry: Mapping[str, Any]) -> bytes:
    """A config with what it says of quantised weights, as Transformers writes it."""
    said = json.loads(config) | {"quantization_config": entry}
    return (json.dumps(said, indent=2, sort_keys=True) + "\n").encode()


# What is recorded.


def _without_version(config: bytes) -> bytes:
    """A config without the version of Transformers that wrote it."""
    said = json.loads(config)
    said.pop("transformers_version", None)
    return json.dumps(said, sort_keys=True).encode()


def _contents(prepared: Prepared, rules_source: bytes | None) -> Iterator[bytes]:
    """What decides the values of each tensor."""
    for one in prepared.assignments:
        yield repr((one.named.name, one.draw, list(one.pads))).encode()
        yield from _contents_of_parts(one.parts, rules_source)
    for one in prepared.filled:
        yield one.named.name.encode()
        yield from _contents_of_parts(one.parts, rules_source)


def _contents_of_parts(parts: Iterable[Part], rules_source: bytes | None) -> Iterator[bytes]:
    for region, values in parts:
        is_by_source = values.function is not None and rules_source is not None
        said = rules_source if is_by_source else values.fingerprint()
        yield repr((region, type(values).__name__, said)).encode()
