"""``torchinit check-init``: what plain code, or loading a checkpoint, leaves without values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from torchinit.check.check_init import checked, find_uninitialized
from torchinit.check.marked_memory import marked_memory
from torchinit.check.tensors_of import count_of, tensors_of
from torchinit.check.uninitialized import (
    CANNOT_TELL,
    Uninitialized,
    said_of,
    table_of,
)
from torchinit.checkpoint.safetensors import has_files
from torchinit.cli import shell
from torchinit.cli.demo_models import MODELS, builder
from torchinit.errors import ArgumentError
from torchinit.frameworks.loading import initialise, load_checkpoint
from torchinit.frameworks.transformers import model_of_config
from torchinit.untrusted import first_names

LEFT, NOT_JUDGED = 1, 2  # exit codes


def run(target: str) -> tuple[str, int]:
    """Checks what a config or a checkpoint leaves.

    Args:
        target: a ``config.json``, a folder that has one, with or without safetensors files, or the
            name of a model of ``torchinit demo``.

    Returns:
        What to print, and the exit code: 1 if anything is left; 2 after an error, or if of
        something it cannot be told.
    """
    try:
        return _run(target)
    except (Exception, SystemExit) as error:
        is_known = isinstance(error, ArgumentError | TypeError | ImportError | OSError)
        why = shell.out_of_memory(error)
        said = why or (str(error) if is_known else f"{type(error).__name__}: {error}")
        if not why and isinstance(error, OSError) and error.strerror:
            said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        shell.say(f"{target}: {said}" if target not in said else said)
        return "", NOT_JUDGED


def _run(target: str) -> tuple[str, int]:
    path = Path(target)
    if not target:  # an empty path would be the current directory
        raise ArgumentError("the target is empty: give a config.json, or a folder that has one")
    if path.is_dir() and has_files(path):
        return _of_checkpoint(path)
    if path.is_dir() and (pickled := sorted(path.glob("*.bin"))):
        raise ArgumentError(
            f"{pickled[0]} may run code when it is loaded: convert it to safetensors"
        )
    if not path.exists() and target in MODELS:
        make = partial(_on_meta, builder(MODELS[target], torch.float32))
    else:
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise ArgumentError(
                f"{target} is neither a config.json, nor a folder that has one, nor one of "
                f"{', '.join(MODELS)}"
            )
        make = partial(model_of_config, file)
    return _of_model(make)


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def _of_model(make: Callable[[], nn.Module]) -> tuple[str, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what cannot be told: it is in the rows
        model, look = checked(make, initialise)
    begin = f"{type(model).__name__}, to_empty() and its own initialisation: "
    status = _status(look.rows)
    if status == LEFT:
        rows = [row for row in look.rows if row.what != CANNOT_TELL]
        lines = [f"{begin}{said_of(rows, look.total)}", *table_of(rows)]
    elif status == NOT_JUDGED:
        lines = [f"{begin}{len(look.rows)} of {look.total} cannot be judged", *table_of(look.rows)]
    else:
        lines = [begin + _all_have_values(look.total)]
    return "\n".join(lines), status


def _of_checkpoint(folder: Path) -> tuple[str, int]:
    with marked_memory():
        model, missing = load_checkpoint(folder)
    rows = find_uninitialized(model)
    tensors = tensors_of(model)
    begin = f"{type(model).__name__}, from_pretrained: "
    total = count_of(tensors)
    lines = [begin + _all_have_values(total)]
    if rows:
        lines = [f"{begin}{said_of(rows, total)}", *table_of(rows)]
    if missing:
        lines.append(f"in no file, and initialised anew: {first_names(missing)}")
    unsaved = [held.names[0] for held in tensors if held.kind == "buffer, not saved"]
    if unsaved:
        lines.append(
            "never in a file: a loader that starts from to_empty() has to fill them: "
            f"{first_names(unsaved)}"
        )
    return "\n".join(lines), _status(rows)


def _all_have_values(total: int) -> str:
    return "its only tensor has values" if total == 1 else f"all {total} tensors have values"


def _status(rows: Sequence[Uninitialized]) -> int:
    if any(row.what != CANNOT_TELL for row in rows):
        return LEFT
    return NOT_JUDGED if rows else 0
