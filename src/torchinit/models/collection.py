"""Keeps Python's collector of cycles from running while thousands of small objects are made.

None of them is garbage, and every pass over all that torch has imported takes milliseconds: as long
as a thousand small parameters.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """A block without automatic collections, if they were on."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
