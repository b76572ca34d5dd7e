"""Where a model comes from: a Transformers config, or a function that gives a module on meta.

Transformers is imported only here and in ``names.py``, and only where a model of its own is asked
for. Nothing is looked for on the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from torchinit.errors import ArgumentError
from torchinit.frameworks.transformers import model_of_config
from torchinit.models.build_model import build_model

Config: TypeAlias = "str | PathLike[str] | Callable[[], nn.Module]"
Rules: TypeAlias = "Mapping[Any, Any] | Callable[[Any], Mapping[Any, Any]] | None"


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
        path = Path(config)
        model = model_of_config(path / "config.json" if path.is_dir() else path)
        _check_on_meta(model)
        return Source(model, getattr(model, "config", None))
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
