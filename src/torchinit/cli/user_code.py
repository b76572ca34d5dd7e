"""What the command line names: a function, a Python file that defines rules, formats."""

from __future__ import annotations

import importlib
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from torchinit.errors import ArgumentError
from torchinit.quantised.formats import MXFP8, NVFP4, BlockFormat, FP8Blocks

# Formats of weights by their names on the command line.
FORMATS: dict[str, BlockFormat] = {
    "mxfp8": MXFP8(), "fp8": FP8Blocks(), "fp8-ue8m0": FP8Blocks(scale="ue8m0"), "nvfp4": NVFP4()
}  # fmt: skip


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
    except (Exception, SystemExit) as error:
        raise ArgumentError(f"{where!r}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ArgumentError(f"{where!r} must be a function, not {type(found).__name__}")
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
    except (Exception, SystemExit) as error:
        raise _raised(path, error) from error
    if defined.get("rules") is None:
        raise ArgumentError(
            f"{path} defines no rules: write rules = {{pattern: scheme, ...}}, or def rules(config)"
        )
    return defined["rules"]


def read_rules(path: str | Path, read_config: Callable[[], Any]) -> Mapping[Any, Any]:
    """Runs a rules file, and calls what it defines if that is a function of the config.

    Args:
        path: of a Python file whose ``rules`` are a mapping as ``init_model_`` takes it, or a
            function of the config that returns one.
        read_config: returns the config of the model, or None; called only for such a function.

    Raises:
        ArgumentError: as ``run_rules_file``; for a function that raises or has no config to be
            called with; and for anything but a mapping.
    """
    rules = run_rules_file(path)
    if callable(rules) and not isinstance(rules, Mapping):
        if (config := read_config()) is None:
            raise ArgumentError(f"rules in {path} is a function of the config, and there is none")
        try:
            rules = rules(config)
        except (Exception, SystemExit) as error:
            raise _raised(path, error) from error
    if not isinstance(rules, Mapping):
        raise ArgumentError(
            f"rules in {path} must be a mapping from patterns to schemes, or a function of the "
            f"config that returns one, not {type(rules).__name__}"
        )
    return rules


def users_line(error: BaseException, rules: Path | None, build: str | None) -> str | None:
    """The line of a rules file, or of a module that builds the model, that an error came through.

    Args:
        error: that was raised.
        rules: the path of the file.
        build: as ``import_function`` takes it.
    """
    module = None if build is None else sys.modules.get(build.partition(":")[0])
    files = {str(rules), getattr(module, "__file__", None)}
    lines = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename in files
    ]
    return lines[-1] if lines else None


def _raised(path: str | Path, error: BaseException) -> ArgumentError:
    if isinstance(error, SystemExit):
        return ArgumentError(f"{path} exited with {error.code!r}")
    return ArgumentError(f"{path} raised {type(error).__name__}: {error}")


def formats_of(named: Sequence[tuple[str, str]] | None) -> dict[str, BlockFormat] | None:
    """Formats by patterns; None if none are given."""
    return None if named is None else {pattern: FORMATS[name] for pattern, name in named}
