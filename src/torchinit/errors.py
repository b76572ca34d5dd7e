"""The errors of bad calls; those about an argument are ``ValueError`` and name it and its value."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class ArgumentError(ValueError, RuntimeError):
    """An argument out of range.

    Also a ``RuntimeError``, which is what torch raises in the same places (``normal_`` with
    ``std < 0``, ``uniform_`` with ``a > b``), so code that catches torch's error still does.

    The message begins with the public function that was called, however deep the argument was
    refused.

    >>> import torch, torchinit
    >>> torchinit.normal_(torch.empty(3), std=-1)
    Traceback (most recent call last):
    torchinit.errors.ArgumentError: normal_: std=-1.0 must not be negative
    """

    def __str__(self) -> str:
        called = _called(self.__traceback__)
        return f"{called}: {super().__str__()}" if called else super().__str__()

    def __reduce__(self) -> tuple[Any, ...]:
        # Without its traceback, as in another process, its text has to name the function.
        return type(self), (str(self),), dict(self.__dict__)


class RankError(RuntimeError):
    """Ranks whose generators are in different states (``assert_same_generator``).

    >>> import torchinit
    >>> issubclass(torchinit.RankError, RuntimeError)
    True
    """


class UnknownSchemeError(NotImplementedError, ValueError, AssertionError):
    """The name of an initialisation scheme that does not exist, wherever it is given.

    One class for ``init_``, ``which`` and ``cast_init_type``, which is all that each has raised.

    >>> import torchinit
    >>> torchinit.cast_init_type("kaiming")
    Traceback (most recent call last):
    torchinit.errors.UnknownSchemeError: initialization type 'kaiming' is unknown, choose one of ...
    """


def shown(value: object) -> str:
    """A value for an error; Python has no text for integers of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        size = f" of {value.bit_length():,} bits" if isinstance(value, int) else ""
        return f"<{type(value).__name__}{size}>"


def counted(number: int, one: str, more: str = "") -> str:
    """A number of things in words; more is what one is called in the plural, if not by an s.

    >>> counted(1, "index", "indices"), counted(2000, "tensor")
    ('1 index', '2,000 tensors')
    """
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def check_flag(name: str, value: object) -> None:
    """Raises TypeError unless a value is True or False: "no" and "false" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={shown(value)} must be True or False, not {type(value).__name__}")


def _called(trace: TracebackType | None) -> str:
    """The public function or class whose call by code outside torchinit leads to an error."""
    while trace is not None and not _is_ours(trace.tb_frame):
        trace = trace.tb_next
    if trace is None or _is_ours(trace.tb_frame.f_back):
        return ""
    frame, public = trace.tb_frame, sys.modules["torchinit"].__all__
    names = frame.f_code.co_name, type(frame.f_locals.get("self")).__name__
    return next((name for name in names if name in public), "")


_FOLDER = str(Path(__file__).parent) + os.sep


def _is_ours(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    file = frame.f_code.co_filename
    if file == "<string>":  # of a dataclass
        return str(frame.f_globals.get("__name__")).startswith(f"{__package__}.")
    return file.startswith(_FOLDER)
