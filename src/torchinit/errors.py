"""The errors of bad calls; those about an argument are ``ValueError`` and name it and its value."""

from __future__ import annotations


class ArgumentError(ValueError, RuntimeError):
    """An argument out of range.

    Also a ``RuntimeError``, which is what torch raises in the same places (``normal_`` with
    ``std < 0``, ``uniform_`` with ``a > b``), so code that catches torch's error still does.

    >>> import torch, torchinit
    >>> torchinit.normal_(torch.empty(3), std=-1)
    Traceback (most recent call last):
    torchinit.errors.ArgumentError: std=-1.0 must not be negative
    """


class RankError(RuntimeError):
    """Ranks whose generators are in different states (``assert_same_generator``)."""


class UnknownSchemeError(NotImplementedError, ValueError, AssertionError):
    """The name of an initialisation scheme that does not exist, wherever it is given.

    One class for ``init_``, ``which`` and ``cast_init_type``, which is all that each has raised.

    >>> import torchinit
    >>> torchinit.cast_init_type("kaiming")
    Traceback (most recent call last):
    torchinit.errors.UnknownSchemeError: initialization type 'kaiming' is unknown, choose one of ...
    """
