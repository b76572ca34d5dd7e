"""Loads a checkpoint as Transformers does, and initialises a model by its own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from torchinit.errors import ArgumentError
from torchinit.frameworks.conventions import attribute
from torchinit.frameworks.transformers import class_of_config, is_transformers_model
from torchinit.untrusted import check_inside, printable


class Loaded(NamedTuple):
    """A model that was loaded.

    Attributes:
        model: in memory, on the CPU.
        missing: names of tensors that are in no file, which Transformers initialises.
    """

    model: nn.Module
    missing: list[str]


def load_checkpoint(folder: Path) -> Loaded:
    """What ``from_pretrained`` makes of a folder of safetensors files and a ``config.json``.

    Raises:
        ArgumentError: if the config names no model of Transformers, or it cannot be loaded.
        OSError: if a file cannot be read.
        ImportError: without Transformers.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ArgumentError(
            f"{printable(folder)} has no config.json, which must name the class of the model"
        )
    check_inside(file, folder)
    kind = class_of_config(file)
    try:
        model, found = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except OSError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"{printable(folder)} cannot be loaded as {kind.__name__}: {type(error).__name__}: "
            f"{printable(' '.join(str(error).split()))}"
        ) from error
    return Loaded(model, sorted(map(str, found["missing_keys"])))


def initialise(model: Any) -> None:
    """Has a model initialise itself: by ``init_weights``, or its layers' ``reset_parameters``."""
    if is_transformers_model(model):
        model.init_weights()
        return
    for module in model.modules():
        reset = attribute(module, "reset_parameters")
        if callable(reset):
            reset()
