"""Rules in a file of Python, as commands take them."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchinit.errors import ArgumentError


def read_rules(path: str | Path, config: Any) -> Mapping[Any, Any]:
    """Runs a file, and returns the ``rules`` that it defines.

    Args:
        path: of a file of Python with a variable ``rules``: a mapping as ``init_model_`` takes it,
            or a function of the config that returns one.
        config: of the model; None where there is none, which is an error for a function.

    Raises:
        ArgumentError: for a file that is not there, raises, or defines no such rules.
    """
    path, rules = Path(path), rules_in(path)
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


def rules_in(path: str | Path) -> Any:
    """Runs a file, and returns what it calls ``rules``.

    Raises:
        ArgumentError: for a file that is not there, raises, or has nothing of this name.
    """
    path = Path(path)
    if not path.is_file():
        raise ArgumentError(f"no such file of rules: {path}")
    try:
        return runpy.run_path(str(path))["rules"]
    except KeyError as error:
        if error.args != ("rules",):
            raise _raised(path, error) from error
        raise ArgumentError(
            f"{path} defines no rules: write rules = {{pattern: scheme, ...}}, or def rules(config)"
        ) from None
    except Exception as error:
        raise _raised(path, error) from error
    except SystemExit as error:
        raise ArgumentError(f"{path} left Python with {error.code!r}") from error


def _raised(path: Path, error: Exception) -> ArgumentError:
    return ArgumentError(f"{path} raised {type(error).__name__}: {error}")
