"""Progress bars on standard error, shown only on a terminal and only for long work."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from torchinit.untrusted import is_terminal

_LEAST = 1 << 30  # bytes of work that are worth a bar
_STEP = 1 << 28  # bytes between two updates


@contextmanager
def progress(
    title: str, total: int, unit: str = "B", *, least: int | None = None
) -> Iterator[Callable[..., object]]:
    """Shows a bar around a block, and yields the function that moves it on.

    That function takes how much more is done and, optionally, a new title; any thread may call it.

    Args:
        title: what is being done.
        total: how much there is to do.
        unit: of the total.
        least: fewer bytes get no bar; None for a gibibyte.
    """
    if not _is_shown(total, unit, least):
        yield lambda _done, _title="": None
        return
    from tqdm import tqdm  # imported only where a bar is shown

    lock = threading.Lock()
    scale = unit == "B"
    with tqdm(total=total, desc=title, unit=unit, unit_scale=scale, leave=False) as bar:

        def advance(done: int, title: str = "") -> None:
            with lock:
                bar.update(done)
                if title:
                    bar.set_description(title)

        yield advance


def batches(title: str, tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yields which tensors to fill together: all of them, or a few at a time under a bar."""
    total = sum(tensor.nbytes for tensor in tensors)
    if not _is_shown(total, "B"):
        yield slice(0, len(tensors))
        return
    with progress(title, total) as advance:
        begin, size = 0, 0
        for end, tensor in enumerate(tensors, 1):
            size += tensor.nbytes
            if size >= _STEP or end == len(tensors):
                yield slice(begin, end)
                advance(size)
                begin, size = end, 0


def _is_shown(total: int, unit: str, least: int | None = None) -> bool:
    is_long = unit != "B" or total >= (_LEAST if least is None else least)
    return is_long and is_terminal(sys.stderr)
