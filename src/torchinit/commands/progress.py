"""The bars that show how far a run has come, on standard error, if that is a terminal."""

from __future__ import annotations

from typing import NoReturn

from tqdm import tqdm


def progress(total: int, what: str) -> tqdm[NoReturn]:
    """A bar of values."""
    return tqdm(total=total, desc=what, unit=" values", unit_scale=True, leave=False, disable=None)


def steps(total: int) -> tqdm[NoReturn]:
    """A bar of steps that take seconds; what each is, is told by ``set_description``."""
    return tqdm(total=total, unit=" steps", leave=False, disable=None)
