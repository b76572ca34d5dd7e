"""Code that the command line names: a function, or a Python file that defines rules."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from torchinit.errors import ArgumentError


def import_function(where: str) -> Callable[..., Any]:
    """Imports a function; modules in the current directory are found too.

    Args:
        where: ``package.module:function``; the function may be an attribute of a class.

    Raises:
        ArgumentError: if there is no colon, the module cannot be imported, or it has no such
            function.
    """
    module, colon, name = where.partition(":")
    if not (module and colon and name):
        raise ArgumentError(f"{where!r} must be package.module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:
        raise ArgumentError(f"{where!r}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ArgumentError(f"{where!r} is a {type(found).__name__}, not a function")
    return found


def run_rules_file(path: str | Path) -> Any:
    """Runs a Python file and returns its variable ``rules``, whatever that is.

    Raises:
        ArgumentError: if there is no such file, it raises, or it defines no ``rules``.
    """
    if not Path(path).is_file():
        raise ArgumentError(f"no such rules file: {path}")
    try:
        defined = runpy.run_path(str(path))
    except Exception as error:
        raise _raised(path, error) from error
    except SystemExit as error:
        raise ArgumentError(f"{path} exited with {error.code!r}") from error
    if "rules" not in defined:
        raise ArgumentError(
            f"{path} defines no rules: write rules = {{pattern: scheme, ...}}, or def rules(config)"
        )
    return defined["rules"]


def read_rules(path: str | Path, config: Any) -> Mapping[Any, Any]:
    """Runs a rules file, and calls what it defines if that is a function of the config.

    Args:
        path: of a Python file whose ``rules`` are a mapping as ``init_model_`` takes it, or a
            function of the config that returns one.
        config: of the model; None if it has none.

    Raises:
        ArgumentError: as ``run_rules_file``; for a function that raises or has no config to be
            called with; and for anything but a mapping.
    """
    rules = run_rules_file(path)
    if callable(rules) and not isinstance(rules, Mapping):
        if config is None:
            raise ArgumentError(f"rules in {path} is a function of the config, and there is none")
        try:
            rules = rules(config)
        except Exception as error:
            raise _raised(path, error) from error
    if not isinstance(rules, Mapping):
        raise ArgumentError(
            f"rules in {path} is a {type(rules).__name__}: expected a mapping from patterns to "
            "schemes, or a function of the config that returns one"
        )
    return rules


def _raised(path: str | Path, error: Exception) -> ArgumentError:
    return ArgumentError(f"{path} raised {type(error).__name__}: {error}")
