"""The bar that shows how far a run has come."""

from __future__ import annotations

from typing import NoReturn

from tqdm import tqdm


def progress(total: int, what: str) -> tqdm[NoReturn]:
    """A bar on standard error, if that is a terminal."""
    return tqdm(total=total, desc=what, unit=" values", unit_scale=True, leave=False, disable=None)
