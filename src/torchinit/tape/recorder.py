"""The recorder: records draws on a tape, and the operators whose arguments depend on draws.

It is both the handler of intercepted calls of torch.nn.init and a dispatch mode. Draws stay
pending, and so do operators on pending values whose results are known without them, and numbers
that fill unwritten memory. Everything else is executed; if code reads pending values, the entries
that determine them are executed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_unflatten

from torchinit.errors import ArgumentError
from torchinit.fill.route import FLOAT_NUMBERS, PLAIN_TYPES
from torchinit.native import kernels
from torchinit.native.torch_private import never_compile, unseen
from torchinit.patch.hooks import read_method_call
from torchinit.placement.distributed import is_dtensor
from torchinit.schemes.calls import Call, call_by_position, draw_of
from torchinit.schemes.distributions import CONSTANT, check_draw
from torchinit.streams.keys import is_scratch
from torchinit.streams.named_keys import KeyOfName
from torchinit.tape.facts import (
    Given,
    NewTensor,
    OperatorCall,
    facts_of,
    fills_with,
    number_of,
    results_of,
)
from torchinit.tape.fold import fold
from torchinit.tape.memory import LARGE
from torchinit.tape.pending import PendingEntries
from torchinit.tape.tape import (
    Fill,
    address_of,
    is_plain_memory,
    unseen_by_modes,
)
from torchinit.values.kinds import seeded

_LARGE_CONSTANT = 1 << 20  # bytes from which filling new memory with a number stays pending
_KEEPING = (None, torch.preserve_format)  # memory formats that keep the strides
# The methods through which torch enters a recorder.
_ENTRANCES = ("__torch_dispatch__", "fill", "look", "do_all")
_OF_FLOATS = {"normal_", "uniform_", "exponential_", "cauchy_", "log_normal_"}
# torch's Python functions for these operators, which take half the time of the overloads.
_QUICK: dict[Any, Any] = {
    torch.ops.aten.empty.memory_format: torch._C._VariableFunctions.empty,
    torch.ops.aten.zeros.default: torch._C._VariableFunctions.zeros,
    torch.ops.aten.ones.default: torch._C._VariableFunctions.ones,
}
# Random factories, and the method that fills with the same distribution.
_MAKERS = {"randn": "normal_", "randn_like": "normal_", "rand": "uniform_", "rand_like": "uniform_"}


class Recorder(PendingEntries, TorchDispatchMode):
    """Records what code in this thread calls, while active.

    Attributes:
        sentinel: the seed of torch's default generator unless the code seeds it.
        used_own_seed: whether the code used its own generator, or seeded torch's.
    """

    def __init__(self, key_of_name: KeyOfName, names: Sequence[tuple[Any, str]] | None) -> None:
        """Takes (law, name) of the previous run's draws, in order; None in the first run."""
        PendingEntries.__init__(self, key_of_name, names)
        TorchDispatchMode.__init__(self)
        self.sentinel = key_of_name("") % 2**64
        self.used_own_seed = False
        self._keys: list[Tensor] = []  # placeholders for the keys that torchinit's functions draw

    # The handler of intercepted calls.

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Records a call of a torch.nn.init function; returns False to leave it to torch."""
        if type(tensor) not in PLAIN_TYPES or tensor.layout is not torch.strided:
            if is_dtensor(tensor) and not tensor.is_meta:
                raise ArgumentError(
                    "build fills a DTensor, which build_model cannot do: build the model with "
                    'device="meta", shard it, and call init_model_'
                )
            return False
        if tensor.is_meta or tensor.dtype not in FLOAT_NUMBERS:
            return False
        try:
            law = draw_of(call, tensor.shape)
            if law is not None:
                check_draw(law, tensor.dtype)
        except (TypeError, ValueError):
            return False  # torch raises the error
        is_random = law[0] != CONSTANT if law else call.name in ("orthogonal_", "sparse_")
        if (is_random and self._is_torchs(generator)) or not (law or call.name == "orthogonal_"):
            return False
        with unseen():
            cell = self.tape.find(tensor)
            if not is_random and (cell is None or not (cell.is_fresh or cell.writes)):
                return False  # torch's fill_, which reaches the mode
            if tensor.numel():
                self._record_fill(call, tensor, law, is_random=is_random)
        kernels.count_write(tensor)
        return True

    def look(self, tensor: Tensor, *, at_address: bool) -> None:
        """Executes pending entries before memory is accessed without torch's dispatcher."""
        if not is_plain_memory(tensor):
            return
        with unseen(), _disable_current_modes():
            cell = self.tape.find(tensor)
            if at_address:
                cell = self.tape.cell(tensor)
                cell.is_exposed, cell.constant = True, None
            if cell is not None and cell.is_pending:
                self._bake([cell])
                self.do([cell])

    def do_all(self) -> None:
        """Executes all pending entries, before other threads or unobservable code may read them."""
        with unseen(), _disable_current_modes():
            cells = [cell for cell in self.tape.cells.values() if cell.is_pending and cell.is_alive]
            if cells:
                self._bake(cells)
            self.do(cells)

    def forget_fresh(self) -> None:
        """Marks no storage as fresh, after an inner mode wrote values that were not recorded."""
        for cell in self.tape.cells.values():
            cell.is_fresh = False

    # The mode.

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """True if ``never_compile`` failed, so that torch has to wrap the method below."""
        return not all(map(never_compile, (vars(cls)[name] for name in _ENTRANCES)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Executes an operator or records it as pending."""
        frame = self.frame
        before, frame.busy = frame.busy, True  # type: ignore[union-attr]
        try:
            with unseen():
                return self._dispatch(func, args, kwargs or {})
        finally:
            frame.busy = before  # type: ignore[union-attr]

    def _dispatch(self, function: Any, args: Any, kwargs: Any) -> Any:
        facts = facts_of(function)
        if facts.kind == "view":
            return function(*args, **kwargs)
        if facts.kind == "empty":
            return self._make_fresh(function, args, kwargs)
        if facts.kind == "filled":
            return self._make_filled(function, args, kwargs)
        if facts.fills and self._fill_again(function, args, fills_with(facts, args)):
            return args[0]
        op = OperatorCall(function, facts, args, kwargs)
        if facts.namespace == "torchinit":
            done = self._torchinits(op)
            if done is not NotImplemented:
                return done
        elif "c10d" in facts.namespace and self._names is not None:
            raise RuntimeError(
                f"{function} would run twice in this process but once in the others, which would "
                "hang"
            )
        elif facts.is_random:
            generators = (one for one in (*args, *kwargs.values()) if isinstance(one, Generator))
            if self._is_torchs(next(generators, None)):
                return self._by_torch(op)
            done = self._random(op)
            if done is not NotImplemented:
                return done
        if not self._any_taped(op.tensors):
            if facts.fills and self._fill_fresh(op):
                return args[0]
            for target in op.targets:
                self._before_write(target, overwrites=facts.overwrites)
            result = op.execute()
            if self.used_own_seed:
                self._pass_on(op.tensors, (*op.targets, *tree_leaves(result)))
            if facts.fills:
                self._note_constant(op.targets[0], fills_with(op.facts, op.args))
            return result
        if self._overwrites(op):
            result = op.execute()
            if len(op.tensors) == 1:
                self._note_constant(op.targets[0], fills_with(op.facts, op.args))
            return result
        if facts.name == "index" and not _has_mask(args[1]):
            op.facts = facts._replace(gives_numbers=False, must_be_done=False)
        if facts.copies and (copy := self._draw_copy(op)) is not None:
            return copy
        if not op.facts.must_be_done and _can_wait(op):
            done = self._wait(op)
            if done is not NotImplemented:
                return done
        return self._do_now(op)

    def _make_fresh(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        """Makes uninitialised memory; its own mapping, if it is large."""
        made = self.memory.untouched_for(function, args, kwargs)
        if made is None:
            made = _QUICK.get(function, function)(*args, **kwargs)
        if is_plain_memory(made):
            cell = self.tape.cell(made)
            if not cell.writes:
                self.memory.watch(cell, made)
        return made

    def _make_filled(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        """Makes memory filled with a number; if it is large, the fill stays pending."""
        number = number_of(function, args)
        large = None
        if number is not None:
            large = self.memory.untouched_for(function, args, kwargs, _LARGE_CONSTANT)
        if number is None or large is None or large.dtype not in FLOAT_NUMBERS:
            made: Tensor = _QUICK.get(function, function)(*args, **kwargs)
            self._note_constant(made, number)
            return made
        self.memory.watch(self.tape.cell(large), large)
        self._record_constant(large, number)
        return large

    def _fill_again(self, function: Any, args: Any, number: float | None) -> bool:
        """Fills a tensor that has values but no entries with a number; returns whether it did.

        Layers that reset their statistics do this.
        """
        target: Tensor = args[0]
        cell = self.tape.find(target) if is_plain_memory(target) else None
        if cell is None or cell.writes or cell.is_fresh or cell.held or number is None:
            return False
        function(*args)
        is_all = self.tape.ref(target, cell).is_all
        cell.watched = ""
        cell.has_gaps = cell.has_gaps and not is_all
        is_known = is_all and target.is_floating_point() and not cell.is_exposed
        cell.constant = number if is_known else None
        return True

    def _fill_fresh(self, op: OperatorCall) -> bool:
        """Records a fill of unwritten memory, or a part of it, with a number."""
        number, target = fills_with(op.facts, op.args), op.targets[0]
        if number is None or len(op.tensors) != 1 or not is_plain_memory(target):
            return False
        cell = self.tape.find(target)
        if cell is None or not cell.is_fresh or target.dtype not in FLOAT_NUMBERS:
            return False
        if not target.numel():
            return False
        self._record_constant(target, number)
        return True

    # Random operators that were not intercepted.

    def _is_torchs(self, generator: Generator | None) -> bool:
        """Whether the code uses its own generator or seed, so that torch draws."""
        is_default = generator in (None, torch.default_generator)
        if is_default and torch.initial_seed() == self.sentinel:
            return False
        self.used_own_seed = True
        return True

    def _by_torch(self, op: OperatorCall) -> Any:
        """Executes torch's own draw at once."""
        taped = [self.tape.cell(one) for one in op.tensors if self._is_taped(one)]
        if any(cell.is_pending for cell in taped):
            self._bake()
            self.do(taped)
        for target in op.targets:
            self._before_write(target, overwrites=op.facts.overwrites)
        result = op.execute()
        for one in filter(is_plain_memory, (*op.targets, *tree_leaves(result))):
            if self.tape.cell(one).writes:
                self._bake()
                self.tape.renew(one)  # its values are now constants
            cell = self.tape.cell(one)
            cell.is_torchs, cell.is_fresh, cell.constant = True, False, None
        return result

    def _torchinits(self, op: OperatorCall) -> Any:
        """Records the operators of torchinit's own functions."""
        name, args = op.facts.name.removeprefix("torchinit::"), op.args
        if name == "draw_key" and not self._is_torchs(op.kwargs.get("generator")):
            self._keys.append(torch.zeros((), dtype=torch.int64))
            return self._keys[-1]
        tensor = args[0]
        if not tensor.numel() or tensor.is_meta:
            return NotImplemented
        rest = [one for one in args[1:] if not any(one is key for key in self._keys)]
        is_fill = name.endswith("_") and is_plain_memory(tensor) and not op.kwargs
        has_others = any(isinstance(one, Tensor | list | tuple) for one in rest)
        call = call_by_position(name, rest) if is_fill and not has_others else None
        if call is not None:
            law = draw_of(call, tensor.shape)
            if law is not None:
                check_draw(law, tensor.dtype)
            self._record_fill(call, tensor, law, is_random=law is None or law[0] != CONSTANT)
            kernels.count_write(tensor)
            return None
        if len(rest) < len(args) - 1:  # with a placeholder for its key, the same for all such fills
            raise ArgumentError(
                f"torchinit.{name} cannot be recorded while a model is built with these arguments: "
                "call it after build_model, or give it a key"
            )
        return NotImplemented

    def _random(self, op: OperatorCall) -> Any:
        device = op.kwargs.get("device")
        if not all(map(is_plain_memory, op.tensors)) or (
            device is not None and torch.device(device).type == "meta"
        ):
            return NotImplemented
        if op.targets:
            return self._random_in_place(op)
        results = results_of(op.function, *op.flat())
        new = results.leaves if results is not None else ()
        if len(new) != 1 or not isinstance(new[0], NewTensor):
            return self._draw_now(op)
        real = self._real(new[0])
        call = _call_of_maker(op.facts.name, op.args, real)
        if call is not None:
            self._record_fill(call, real, draw_of(call, real.shape), is_random=True)
            return real
        ref = self.tape.ref(real, self.tape.cell(real))
        number = self._note_draw((op.facts.name, ref.size, ref.dtype), ref, real)
        entry = self._operation(op, number)
        entry.make(ref)
        self._add(entry)
        return real

    def _draw_now(self, op: OperatorCall) -> Any:
        """Lets torch draw at once with the draw's key, if its results are not known in advance."""
        with _disable_current_modes():
            self.do([self.tape.cell(one) for one in op.tensors if self._is_taped(one)])
        number = len(self.tape.draws)
        with seeded(self.key_of_early(number), torch.device(op.kwargs.get("device") or "cpu")):
            result = op.execute()
        entry = self._operation(op, number)
        made = [one for one in tree_leaves(result) if is_plain_memory(one)]
        if not made:
            self.early.discard(number)
            return result
        for one in made:
            entry.make(self.tape.ref(one, self.tape.cell(one)))
        ref = entry.made[0]
        self._note_draw((op.facts.name, ref.size, ref.dtype), ref, made[0])
        self._add_done(entry)
        return result

    def _random_in_place(self, op: OperatorCall) -> Any:
        target, name = op.targets[0], op.facts.name
        if len(op.targets) > 1 or not target.numel():
            return NotImplemented
        if name in _OF_FLOATS and not (target.is_floating_point() or target.is_complex()):
            return NotImplemented  # torch raises the error
        if name in ("normal_", "uniform_") and target.dtype in FLOAT_NUMBERS:
            call = read_method_call(name, op.args[1:], op.kwargs)
            assert call is not None  # torch has checked the arguments
            law = draw_of(call, target.shape)
            assert law is not None
            check_draw(law, target.dtype)
            self._record_fill(call, target, law, is_random=True)
            return target
        if is_scratch(address_of(target)):  # a key that is used at once, such as init_shard_'s
            self.tape.cell(target).is_exposed = True
        ref = self._target(target, overwrites=op.facts.overwrites)
        number = self._note_draw((name, ref.size, ref.dtype), ref, target)
        self._add(self._operation(op, number))
        return target

    # Operators that have an argument on the tape.

    def _overwrites(self, op: OperatorCall) -> bool:
        """Whether an entire storage is overwritten with values that depend on no draw."""
        tensors, targets = op.tensors, op.targets
        if len(targets) != 1 or not op.facts.overwrites:
            return False
        target = targets[0]
        if not is_plain_memory(target) or any(map(self._is_taped, op.sources())):
            return False
        cell = self.tape.cell(target)
        if not self.tape.ref(target, cell).is_all:
            return False
        if cell.nbytes >= LARGE and len(tensors) == 1:
            return False  # a number can stay pending, so that the memory stays untouched
        self.tape.renew(target)
        return True

    def _wait(self, op: OperatorCall) -> Any:
        """Records a pending operator, with untouched memory for its results."""
        target = op.targets[0] if op.targets else None
        in_place = (
            target is not None
            and op.args
            and target is op.args[0]
            and len(op.targets) == len(op.tensors) == len(op.function._schema.returns) == 1
        )
        if in_place and op.facts.fills and target.dtype in FLOAT_NUMBERS:  # type: ignore[union-attr]
            number = fills_with(op.facts, op.args)
            if number is None:
                return NotImplemented  # torch raises the error
            self._record_constant(target, number)  # type: ignore[arg-type]
            return target
        if in_place:  # with numbers only: its result is its argument
            self._add(self._operation(op))
            fold(self.tape)
            return target
        flat, spec = op.flat()
        results = results_of(op.function, flat, spec)
        if results is None:
            return NotImplemented
        if op.facts.indexes:
            some, named = tree_unflatten(list(map(self._standing_in, flat)), spec)
            op.function(*some, **named)
        entry = self._operation(op)
        returned: list[Any] = []
        for one in results.leaves:
            if isinstance(one, Given):
                returned.append(flat[one.place])
            elif isinstance(one, NewTensor):
                real = self._real(one)
                entry.make(self.tape.ref(real, self.tape.cell(real)))
                returned.append(real)
            else:
                returned.append(one)
        self._add(entry)
        return tree_unflatten(returned, results.spec)

    def _standing_in(self, one: Any) -> Any:
        """Zeros in place of a pending tensor, so that invalid indices raise at once."""
        if not isinstance(one, Tensor) or not self._is_taped(one):
            return one
        return torch.zeros((), dtype=one.dtype).expand(one.shape)

    def _draw_copy(self, op: OperatorCall) -> Tensor | None:
        """Records a copy of a tensor filled by one draw as that draw; None if it is not one."""
        into, source = op.args[:2] if op.facts.name == "copy_" else (None, op.args[0])
        if not is_plain_memory(source) or op.kwargs.get("memory_format") not in _KEEPING:
            return None
        cell = self.tape.find(source)
        if cell is None or not (cell.is_pending and cell.is_on_cpu):
            return None
        entries, ref = self.tape.entries_for([cell]), self.tape.ref(source, cell)
        fill = entries[0]
        if len(entries) > 1 or not isinstance(fill, Fill):
            return None
        drawn = fill.writes[0]
        is_whole = drawn.is_same_run(ref) if fill.law else drawn.geometry == ref.geometry
        if not (is_whole and ref.is_all and ref.is_contiguous and drawn.dtype == ref.dtype):
            return None
        if into is None:
            into = self._real(NewTensor(source.shape, ref.stride, ref.dtype))
        elif (
            not is_plain_memory(into)
            or (into.shape, into.dtype) != (source.shape, source.dtype)
            or not self.tape.ref(into, self.tape.cell(into)).is_all
            or not into.is_contiguous()
        ):
            return None
        ref = self._target(into, overwrites=True)
        self._add(Fill.of(ref, fill.call, fill.law, fill.draw))
        return into

    def _do_now(self, op: OperatorCall) -> Any:
        """Executes an operator at once, after the entries that determine its arguments.

        It is recorded too, for later entries that depend on it.
        """
        taped = [self.tape.cell(one) for one in op.tensors if self._is_taped(one)]
        if op.facts.gives_numbers and taped:
            self._bake(taped)
        with unseen_by_modes():
            self.do(taped)
        entry = self._operation(op)
        result = op.execute()
        for one in tree_leaves(result):
            if is_plain_memory(one) and not any(one is x for x in op.tensors):
                entry.make(self.tape.ref(one, self.tape.cell(one)))
        if entry.writes:
            self._add_done(entry)
        return result


def _can_wait(op: OperatorCall) -> bool:
    """Whether an operator can be pending, its memory untouched."""
    if any(0 in target.stride() for target in op.targets):
        return False  # expanded: torch raises the error
    return all(
        is_plain_memory(one) and one.is_cpu and not (one.is_conj() or one.is_neg())
        for one in op.tensors
    )


def _has_mask(indices: Any) -> bool:
    """Whether indices include a mask, so that the result's shape depends on values."""
    return any(
        isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in indices
    )


def _call_of_maker(name: str, args: Any, made: Tensor) -> Call | None:
    """The fill equivalent to a random factory; None if there is none."""
    if made.dtype not in FLOAT_NUMBERS or not made.numel():
        return None
    if name == "normal" and len(args) == 3 and all(isinstance(x, int | float) for x in args[:2]):
        return read_method_call("normal_", args[:2], {})
    method = _MAKERS.get(name)
    return None if method is None else read_method_call(method, (), {})
