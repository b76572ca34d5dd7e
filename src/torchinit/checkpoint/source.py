"""Where a model comes from: a Transformers config, or a function that gives a module on meta.

Transformers is imported only here and in ``names.py``, and only where a model of its own is asked
for. Nothing is looked for on the network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from torchinit.errors import ArgumentError
from torchinit.models.build_model import build_model

Config: TypeAlias = "str | PathLike[str] | Callable[[], nn.Module]"
Rules: TypeAlias = "Mapping[Any, Any] | Callable[[Any], Mapping[Any, Any]] | None"

_INSTALL = "pip install 'torchinit[checkpoint]'"


class Source(NamedTuple):
    """A model, and what a checkpoint says of it.

    Attributes:
        model: its parameters are on the meta device.
        config: its config; None if it has none.
    """

    model: nn.Module
    config: Any


def read_source(config: Config, seed: int, *, has_rules: bool) -> Source:
    """Builds the model on the meta device.

    Args:
        config: the path of a Transformers ``config.json``, or of a directory that has one; or a
            function that gives a module: one whose parameters are on the meta device, or, without
            rules, one that its constructor initialises, as ``build_model`` takes it.
        seed: of the values.
        has_rules: whether there are rules.

    Raises:
        ArgumentError: for a file that is no config, one without ``architectures``, a class that
            Transformers has not, a config that it cannot build; for a module in memory.
        TypeError: for what is neither path nor function, or a function that gives no module.
        OSError: for a file that cannot be read.
        ImportError: where Transformers is needed, and not installed.
    """
    if isinstance(config, str | PathLike):
        return _read_config(Path(config))
    if isinstance(config, nn.Module):
        raise TypeError(
            "config is a module: give a function that returns it, as in "
            "write_checkpoint(lambda: model, ...)"
        )
    if not callable(config):
        raise TypeError(
            f"config={config!r} must be the path of a config.json, or a function that gives a "
            f"module on the meta device, not {type(config).__name__}"
        )
    model = config() if has_rules else build_model(config, seed=seed, device="meta")
    if not isinstance(model, nn.Module):
        raise TypeError(f"config() gave a {type(model).__name__}, and no torch.nn.Module")
    _check_on_meta(model)
    return Source(model, getattr(model, "config", None))


def _check_on_meta(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or not parameter.is_meta:
            where = parameter.device if type(parameter) is nn.Parameter else type(parameter)
            raise ArgumentError(
                f"parameter {name!r} is on {where}: build the model on the meta device, as in "
                'with torch.device("meta"): ..., so that it takes no memory'
            )


def _read_config(path: Path) -> Source:
    file = path / "config.json" if path.is_dir() else path
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ArgumentError(f"{file} is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise ArgumentError(f"{file} must hold an object of JSON, not a {type(said).__name__}")
    architectures = said.get("architectures")
    if (
        not isinstance(architectures, list)
        or not architectures
        or not isinstance(architectures[0], str)
    ):
        raise ArgumentError(
            f"{file} has architectures={architectures!r}: its first name must be the class of the "
            'model, as in "architectures": ["LlamaForCausalLM"]'
        )
    if said.get("quantization_config"):
        raise ArgumentError(
            f"{file} has a quantization_config: quantised weights have no initialisation. Take it "
            "out, and quantise what was trained"
        )
    kind = _class_of(architectures[0], file)
    try:
        config = kind.config_class.from_pretrained(file, local_files_only=True)
        with torch.device("meta"):
            model: nn.Module = kind._from_config(config)
        _forget_memory(model)
    except Exception as error:
        raise ArgumentError(
            f"{file}: {architectures[0]} cannot be built of it: {type(error).__name__}: {error}"
        ) from error
    _check_on_meta(model)
    return Source(model, model.config)


def _forget_memory(model: nn.Module) -> None:
    """Puts on the meta device what ``torch.Tensor(n)`` makes elsewhere, as in Wav2Vec2."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                without = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), without)


def _class_of(name: str, file: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"a config needs Transformers: {_INSTALL} ({error})") from None
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ArgumentError(
            f"{file} says architectures[0]={name!r}, which Transformers {transformers.__version__} "
            "has no model of: give a function that builds it on the meta device"
        )
    return kind


def rules_for(rules: Rules, source: Source) -> Mapping[Any, Any] | None:
    """The rules, or what a function gives as such for the model's config."""
    if rules is None or isinstance(rules, Mapping):
        return rules
    if not callable(rules):
        raise TypeError(
            f"rules must be a mapping, or a function of the config, not {type(rules).__name__}"
        )
    if source.config is None:
        raise ArgumentError("rules is a function of the config, and the model has no config")
    found = rules(source.config)
    if not isinstance(found, Mapping):
        raise TypeError(f"rules(config) must give a mapping, not a {type(found).__name__}")
    return found


def is_transformers_model(model: nn.Module) -> bool:
    """Whether a model is one of Transformers', which says how it is saved."""
    return hasattr(model, "save_pretrained") and hasattr(model, "_tied_weights_keys")


def small_files(source: Source, dtype: torch.dtype | None) -> dict[str, bytes]:
    """What lies beside the weights: the config, and that of generation, as Transformers has them.

    Args:
        source: of the checkpoint.
        dtype: of its floating-point parameters; None is their own.
    """
    model: Any = source.model
    if not is_transformers_model(model):
        return {}
    own = model.config.dtype, model.config.architectures
    model.config.dtype = str(dtype if dtype is not None else model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    try:
        with TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
    finally:
        model.config.dtype, model.config.architectures = own
