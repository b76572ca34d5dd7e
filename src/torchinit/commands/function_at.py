"""A function that the command line names, as package.module:function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import reduce
from typing import Any

from torchinit.errors import ArgumentError


def function_at(where: str) -> Callable[..., Any]:
    """Imports a function; modules in the current directory are found too.

    Args:
        where: the module, a colon, and the function's name in it, which may have dots.

    Raises:
        ArgumentError: for what has no colon, a module that cannot be imported, or no function.
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
        raise ArgumentError(f"{where!r} is a {type(found).__name__}, and no function")
    return found
