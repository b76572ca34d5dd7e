"""Initialises parameters scheme by scheme, and times it against ``torch.nn.init`` and ``zero_``.

The order matters. Everything is filled with NaN first, which makes the memory resident; then
``zero_`` and ``torch.nn.init`` are timed; then NaN again, to show up whatever is left unfilled, and
the initialisation itself, timed once.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch.nn import init as torch_init

import torchinit
from torchinit.commands.memory import Filled, count_values
from torchinit.commands.progress import progress

# Values of each scheme that torch.nn.init is timed on: on a CPU about a tenth of a second.
_SLICE = {"cpu": 2**22, "cuda": 2**28}
_SLICE_REPEATS = 5
_ZERO_REPEATS = 3
# Of what is filled before any time is taken: enough values to give every thread work.
_WARM_SHAPE = (1024, 1024)


@dataclass(frozen=True)
class Timing:
    """Times of all parameters of one scheme.

    Attributes:
        scheme: name of the scheme.
        route: who fills, as ``torchinit.which`` says.
        values: number of values.
        nbytes: their size.
        seconds: of torchinit.
        torch_seconds: of ``torch.nn.init``, extrapolated from a slice.
        torch_slice: number of values in that slice.
        zero_seconds: of ``zero_``.
    """

    scheme: str
    route: str
    values: int
    nbytes: int
    seconds: float
    torch_seconds: float
    torch_slice: int
    zero_seconds: float

    def rate(self, seconds: float) -> float:
        """GB/s that a time comes to."""
        return self.nbytes / seconds / 1e9


def initialise(filled: Sequence[Filled], seed: int) -> list[Timing]:
    """Initialises all parameters, scheme by scheme, and returns the times.

    Args:
        filled: all on one device.
        seed: of torch's default generators, set when everything but the initialisation is done.
    """
    device = filled[0][1].device
    groups = _by_scheme(filled)
    _poison(filled)
    zero_seconds: dict[str, float] = {}
    torch_seconds: dict[str, float] = {}
    torch_slices: dict[str, int] = {}
    for scheme, group in groups.items():
        _warm_up(_zero, group)
        zero_seconds[scheme] = _median(partial(_zero, group), device, _ZERO_REPEATS)
        part = list(_slice(group, _SLICE[device.type]))
        fill = partial(_fill, torch_init)
        _warm_up(fill, group)
        slice_seconds = _median(partial(fill, part), device, _SLICE_REPEATS)
        torch_slices[scheme] = count_values(part)
        torch_seconds[scheme] = slice_seconds * count_values(group) / count_values(part)

    _poison(filled)
    torch.manual_seed(seed)
    timings = []
    with progress(count_values(filled), "initialising") as bar:
        for scheme, group in groups.items():
            _warm_up(partial(_fill, torchinit), group)
            # The bar costs well under a microsecond a parameter: it redraws ten times a second.
            seconds = _seconds(partial(_fill, torchinit, group, bar.update), device)
            timings.append(
                Timing(
                    scheme=scheme,
                    route=torchinit.which(group[0][1], scheme).kind,
                    values=count_values(group),
                    nbytes=sum(tensor.nbytes for _, tensor in group),
                    seconds=seconds,
                    torch_seconds=torch_seconds[scheme],
                    torch_slice=torch_slices[scheme],
                    zero_seconds=zero_seconds[scheme],
                )
            )
    return timings


def _by_scheme(filled: Iterable[Filled]) -> dict[str, list[Filled]]:
    groups: dict[str, list[Filled]] = {}
    for parameter, tensor in filled:
        groups.setdefault(parameter.scheme, []).append((parameter, tensor))
    return groups


def _poison(filled: Iterable[Filled]) -> None:
    for _, tensor in filled:
        tensor.fill_(math.nan)


def _zero(filled: Iterable[Filled]) -> None:
    for _, tensor in filled:
        tensor.zero_()


def _fill(
    library: ModuleType, filled: Iterable[Filled], done: Callable[[int], object] = lambda _: None
) -> None:
    for parameter, tensor in filled:
        parameter.fill(library, tensor)
        done(tensor.numel())


def _warm_up(work: Callable[[list[Filled]], None], group: Sequence[Filled]) -> None:
    """Does a group's work once, on a tensor of its own, and draws nothing.

    So no time includes the loading of a kernel or the start of the threads, and these are awake:
    they go to sleep milliseconds after their last work.
    """
    parameter, tensor = group[0]
    devices = [tensor.device] if tensor.is_cuda else []
    with torch.random.fork_rng(devices):
        work([(parameter, tensor.new_empty(_WARM_SHAPE))])


def _slice(filled: Iterable[Filled], values: int) -> Iterator[Filled]:
    """Yields the first parameters up to a number of values; of the last one only some rows."""
    for parameter, tensor in filled:
        rows = min(len(tensor), max(values * len(tensor) // tensor.numel(), 1))
        part = tensor[:rows]
        yield parameter, part
        values -= part.numel()
        if values <= 0 or rows < len(tensor):
            return


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def _median(work: Callable[[], None], device: torch.device, repeats: int) -> float:
    return statistics.median(_seconds(work, device) for _ in range(repeats))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
