"""``build_model``: runs a constructor and fills the model it returns, keyed by name."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from torchinit.errors import ArgumentError, counted
from torchinit.fill.batch import without_batch
from torchinit.fill.door import fill, fill_fresh
from torchinit.fill.route import is_native
from torchinit.models.carry_out import attach, is_buffer
from torchinit.models.inspect_model import check_dtype
from torchinit.models.left_out import left_out, tell
from torchinit.native.torch_private import storage_users
from torchinit.placement.overlap import overlapping
from torchinit.schemes.distributions import CONSTANT, Draw, constant_draw
from torchinit.streams.canonical import Named, Rename
from torchinit.streams.named_keys import keys_of_names
from torchinit.tape.play import alone, do_fill, write_into
from torchinit.tape.program import Program, remember
from torchinit.tape.run import Recorded, record
from torchinit.tape.tape import Cell, Fill, is_plain_memory

Model = TypeVar("Model", bound=nn.Module)

_SHOWN = 5
_MUCH = 1 << 26  # bytes


def build_model(
    build: Callable[[], Model],
    *,
    seed: int,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    rename: Rename = None,
) -> Model:
    """Builds the model that ``build()`` returns, its random values set by the seed and names.

    The constructor runs unchanged, but its draws, and operations on drawn values, are recorded
    instead of executed. When it returns, each parameter is filled with the key of its name
    (docs/streams.md, section 7). Distributions, constants, ties, buffers, hooks and flags are those
    of ``build()``. Adding, removing or reordering layers changes no other parameter. Code that
    reads values it has drawn (``weight.norm().item()``) is run again, mostly once.

    Args:
        build: a function without arguments, such as ``lambda: Net(config)``.
        seed: as for ``torch.manual_seed``. It also seeds the default generators of torch, NumPy and
            Python while ``build`` runs; they are restored afterwards. Draws from the code's own
            generator, or after it calls ``torch.manual_seed``, are torch's: a warning names them.
        device: the model's device; None is torch's default device. On ``"meta"`` nothing is
            filled: the model stores how to do it, and ``init_model_`` fills it, sharded or not.
        dtype: for floating-point parameters; None keeps theirs. Buffers keep their dtype.
        rename: for canonical names, as in ``init_model_``.

    Returns:
        What ``build()`` returned.

    Raises:
        TypeError: if build is not a function, or does not return a module.
        ArgumentError: for draws that cannot be named, and for pending memory that was read or
            written without torch's dispatcher.

    >>> import torch, torchinit
    >>> model = torchinit.build_model(lambda: torch.nn.Linear(3, 4), seed=0)
    >>> again = torchinit.build_model(lambda: torch.nn.Linear(3, 4), seed=0)
    >>> torch.equal(model.weight, again.weight)
    True
    """
    check_dtype(dtype)
    keys_of_names(seed)
    where = torch.get_default_device() if device is None else torch.device(device)
    if where.type == "cpu" and device is None:
        where = None  # type: ignore[assignment]
    with without_batch():
        recorded = record(build, seed, rename)
        with alone():
            programs = recorded.programs()
            _finish(recorded, programs, where, dtype)
    if where is None or where.type != "meta":
        tensors = (named.tensor for named in (*recorded.parameters, *recorded.buffers))
        tell(left_out(recorded.model, [one for one in tensors if not one.is_meta]), stacklevel=2)
    names = [name for name, program in programs.items() if program.is_torchs]
    if names:
        shown = ", ".join(map(repr, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
        warnings.warn(
            f"torch drew {counted(len(names), 'tensor')} from a generator or seed that the code "
            f"set itself: seed={seed} has no effect on {shown}",
            stacklevel=2,
        )
    return recorded.model  # type: ignore[return-value]


def _finish(
    recorded: Recorded,
    programs: dict[str, Program],
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> None:
    """Fills a model's tensors on their final device, or moves them to the meta device."""
    finish = _Finish(recorded, programs, device)
    if finish.is_meta:
        finish.check_apart(recorded)
    for named in recorded.parameters:
        final = named.tensor.dtype
        if dtype is not None and final.is_floating_point:
            final = dtype
        finish.take(named, final)
    for named in recorded.buffers:
        finish.take(named, named.tensor.dtype)
    finish.end()


class _Fills(NamedTuple):
    """Fills executed together; none overlaps another."""

    draws: list[Draw]
    tensors: list[Tensor]
    keys: list[int]

    def do(self) -> None:
        tensors = self.tensors
        alike = {(one.device, one.is_contiguous(), is_native(one)) for one in tensors}
        together = len(alike) == 1 and alike.pop()[1:] == (True, True)
        if together and fill_fresh(self.draws, tensors, self.keys):
            return
        for draw, tensor, key in zip(self.draws, tensors, self.keys, strict=True):
            with _writable(tensor):
                fill(draw, tensor, key)


class _Finish:
    def __init__(
        self,
        recorded: Recorded,
        programs: dict[str, Program],
        device: torch.device | None,
    ) -> None:
        self._tape = recorded.recorder.tape
        self._programs = programs
        self._names = [name.text if name else "" for name in recorded.naming.names]
        self._key_of_name = keys_of_names(recorded.seed)
        self._device = device
        self.is_meta = device is not None and device.type == "meta"
        self._homes: dict[Cell, int] = {}
        for named in (*recorded.parameters, *recorded.buffers):
            if is_plain_memory(named.tensor) and (cell := self._tape.find(named.tensor)):
                self._homes[cell] = self._homes.get(cell, 0) + 1
        self._used: list[tuple[Program, Tensor]] = []
        self._metas: dict[Any, Tensor] = {}
        # Tensors whose values are computed or already in memory, by cell, with final device, dtype.
        self._computed: dict[Cell | None, list[tuple[Tensor, torch.device, torch.dtype]]] = {}
        # Fills executed together, then further ones that overwrite parts of them.
        self._rounds: list[_Fills] = []

    def _key(self, number: int) -> int:
        return self._key_of_name(self._names[number])

    def check_apart(self, recorded: Recorded) -> None:
        """Rejects overlapping parameters, which the meta device would separate; buffers warn."""
        shared: dict[Cell, list[Named]] = {}
        places = set()
        for named in (*recorded.parameters, *recorded.buffers):
            cell = self._tape.find(named.tensor) if named.name in self._programs else None
            if cell is None or self._homes[cell] < 2:
                continue
            place = self._tape.ref(named.tensor, cell), is_buffer(named)
            if place not in places:
                places.add(place)
                shared.setdefault(cell, []).append(named)
        for some in shared.values():
            pair = overlapping([named.tensor for named in some])
            if pair is None:
                continue
            one, other = (some[number].name for number in pair)
            what = f"{one!r} and {other!r} share memory, which they would not on the meta device"
            if pair[1] < sum(not is_buffer(named) for named in some):
                raise ArgumentError(f"parameters {what}: build the model on another device")
            warnings.warn(f"{what}: they become separate tensors of equal values", stacklevel=4)

    def take(self, named: Named, dtype: torch.dtype) -> None:
        """Finishes one tensor of the model, or adds it to what ``end`` fills."""
        tensor: Tensor = named.tensor
        program = self._programs.get(named.name)
        if program is None:  # of a subclass, or on the meta device already
            if self.is_meta and not tensor.is_meta:
                raise ArgumentError(
                    f"{named.name!r} is a {type(tensor).__name__}, whose values cannot be "
                    "remembered: build the model on another device than meta"
                )
            return
        for slot in named.slots:
            remember(slot.module, slot.attribute, program)
        cell = self._tape.find(tensor)
        if self.is_meta:
            if cell is not None:
                cell.is_pending = False
            place = id(cell), named.tensor.shape, tensor.stride(), tensor.storage_offset(), dtype
            meta = self._metas.get(place) if cell is not None else None
            if meta is None:
                meta = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=dtype, device="meta"
                )
                self._metas[place] = meta
            attach(named, meta)
            return
        device = tensor.device if self._device is None else self._device
        if cell is None or not self._draw(tensor, program, cell, device, dtype):
            self._computed.setdefault(cell, []).append((tensor, device, dtype))
        self._used.append((program, tensor))

    def _draw(
        self, tensor: Tensor, program: Program, cell: Cell, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Draws a tensor on its final device and in its final dtype; returns whether it could."""
        stays = (tensor.device, tensor.dtype) == (device, dtype)
        if self._homes[cell] > 1 or (stays and not cell.is_pending):
            return False
        draw = program.draw()
        fills = program.fills() if draw is None else ()
        if fills is None:
            return False
        home = tensor
        # A tensor with its own mapping moves to torch's memory, which can be resized.
        if not stays or (cell.watched == "mapped" and storage_users(tensor) <= 1):
            home = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)
        if draw is not None:
            self._add(0, home, *draw)
        else:
            self._fill_parts(home, program, fills)
        if home is not tensor:
            tensor.data = home
        cell.is_pending = False
        return True

    def _add(self, turn: int, tensor: Tensor, draw: Draw, number: int | None) -> None:
        """Adds a fill to a round: round 0 is filled first, later rounds overwrite parts of it."""
        if turn == len(self._rounds):
            self._rounds.append(_Fills([], [], []))
        fills = self._rounds[turn]
        # A tensor as the value of a constant may change before the fill.
        is_constant = draw[0] == CONSTANT
        fills.draws.append(constant_draw(float(draw[1])) if is_constant else draw)
        fills.tensors.append(tensor)
        fills.keys.append(0 if number is None else self._key(number))

    def _fill_parts(self, tensor: Tensor, program: Program, fills: Sequence[Fill]) -> None:
        assert program.ref is not None
        begin = tensor.storage_offset() - program.ref.offset
        refs = [one.writes[0] for one in fills]
        views = [tensor.as_strided(ref.size, ref.stride, begin + ref.offset) for ref in refs]
        together = all(one.law is not None for one in fills)
        together = together and all(ref.is_contiguous for ref in refs)
        for turn, (one, view) in enumerate(zip(fills, views, strict=True)):
            if together and one.law is not None:
                self._add(turn, view, one.law, one.draw)
                continue
            with _writable(tensor):
                do_fill(one, view, self._key)

    def _left(self) -> list[Cell]:
        """The live storages that are still pending."""
        return [cell for cell in self._tape.cells.values() if cell.is_pending and cell.is_alive]

    def end(self) -> None:
        """Executes the collected fills, then fills pending storages that have no name."""
        for fills in self._rounds:
            fills.do()
        pending = [cell for cell in self._computed if cell is not None and cell.is_pending]
        for cells in self._tape.together(pending):
            write_into(self._tape, cells, self._key)
            for cell in cells:
                _move(self._computed.pop(cell))
        for moves in self._computed.values():
            _move(moves)
        if sum(cell.nbytes for cell in self._left()) >= _MUCH:
            gc.collect()  # frees storages that only garbage references
        for cells in self._tape.together(self._left()):
            write_into(self._tape, cells, self._key)
        for program, tensor in self._used:
            program.give_up(tensor)


def _move(moves: Sequence[tuple[Tensor, torch.device, torch.dtype]]) -> None:
    """Moves tensors to their final devices and dtypes."""
    for tensor, device, dtype in moves:
        if (tensor.device, tensor.dtype) != (device, dtype):
            tensor.data = tensor.data.to(device, dtype)


def _writable(tensor: Tensor) -> Any:
    """A context in which torch may write to a tensor: inference mode for inference tensors."""
    return torch.inference_mode() if tensor.is_inference() else contextlib.nullcontext()
