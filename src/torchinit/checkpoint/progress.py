"""The bar that shows how far a large checkpoint has come, where somebody looks on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LEAST = 1 << 30  # bytes that are worth a bar


@contextmanager
def in_view(total: int) -> Iterator[Callable[[int], object]]:
    """Gives a function to be told of every number of bytes written, from any thread."""
    if total < _LEAST or not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm  # only where it is shown

    lock = threading.Lock()
    with tqdm(total=total, desc="checkpoint", unit="B", unit_scale=True, leave=False) as bar:

        def tell(written: int) -> None:
            with lock:
                bar.update(written)

        yield tell
