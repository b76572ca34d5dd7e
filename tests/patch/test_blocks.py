"""Blocks: who is inside, what is left behind, and the interface that handlers see."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import init as torch_init

import torchinit
import warm
from conftest import native_only
from torchinit.patch import swap
from torchinit.patch.frames import FactoryCall
from torchinit.patch.functions import _NAMES as FUNCTIONS
from torchinit.patch.swap import intercept

SHAPE = (200, 60)


def snapshot():
    return (
        dict(vars(torch.Tensor)),
        dict(vars(torch)),
        dict(vars(torch_init)),
        {name: getattr(torch_init, name).__code__ for name in FUNCTIONS},
        {name: getattr(torch_init, name).__defaults__ for name in FUNCTIONS},
        torch._C._len_torch_function_stack(),
    )


def assert_as_before(before):
    now = snapshot()
    for old, new in zip(before, now, strict=True):
        assert old == new
    for name, code in before[3].items():
        assert now[3][name] is code


def is_ours():
    """Whether fills are served by torchinit here."""
    torch.manual_seed(1)
    found = torch_init.normal_(torch.empty(SHAPE))
    torch.manual_seed(1)
    return torch.equal(found, torchinit.normal_(torch.empty(SHAPE)))


@native_only
def test_torch_is_as_it_was():
    before = snapshot()
    with torchinit.patch_nn_init():
        assert is_ours()
        assert snapshot() != before
    assert_as_before(before)
    assert not is_ours()


@native_only
def test_torch_is_as_it_was_after_errors():
    before = snapshot()
    tensor = torch.zeros(SHAPE)
    torch.manual_seed(3)

    @torchinit.patch_nn_init()
    def fill_and_raise():
        torch_init.normal_(tensor)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill_and_raise()
    assert_as_before(before)
    torch.manual_seed(3)
    assert torch.equal(tensor, torchinit.normal_(torch.empty(SHAPE)))


@native_only
def test_nesting_and_using_again():
    before = snapshot()
    patch = torchinit.patch_nn_init()
    for _ in range(2):
        with patch:
            with patch, torchinit.patch_nn_init():
                assert is_ours()
            assert is_ours()
        assert_as_before(before)


@native_only
def test_decorator():
    before = snapshot()

    @torchinit.patch_nn_init()
    def depth(n):
        """Says so."""
        assert is_ours()
        return n if n == 0 else 1 + depth(n - 1)

    assert depth(3) == 3
    assert depth.__doc__ == "Says so."
    assert_as_before(before)
    assert torchinit.patch_nn_init()(functools.partial(is_ours))()


def test_what_cannot_be_decorated():
    patch = torchinit.patch_nn_init()
    with pytest.raises(TypeError, match="is a generator"):

        @patch
        def generator():
            yield

    with pytest.raises(TypeError, match="not a function"):
        patch(nn.Linear)


def test_arguments():
    model = nn.Linear(3, 4)
    with pytest.raises(ValueError, match="must be given together"):
        torchinit.patch_nn_init(seed=1)
    with pytest.raises(ValueError, match="must be given together"):
        torchinit.patch_nn_init(names_from=model)
    with pytest.raises(ValueError, match="must be given together"):
        torchinit.patch_nn_init(is_ours)
    with pytest.raises(TypeError, match="defer"):
        torchinit.patch_nn_init(defer=True)
    with pytest.raises(TypeError, match="positional"):
        torchinit.patch_nn_init(1, model, True)
    with pytest.raises(TypeError, match="integer"):
        torchinit.patch_nn_init(seed=1.5, names_from=model)
    with pytest.raises(ValueError, match="within"):
        torchinit.patch_nn_init(seed=2**64, names_from=model)
    with pytest.raises(TypeError, match="Module"):
        torchinit.patch_nn_init(seed=1, names_from=dict(model.named_parameters()))


@native_only
def test_twenty_threads_inside_and_outside():
    """Half of them inside, entering and leaving all the time; each with a generator of its own."""
    before = snapshot()
    expected = {
        True: torchinit.normal_(torch.empty(SHAPE), generator=torch.Generator().manual_seed(5)),
        False: torch.empty(SHAPE).normal_(generator=torch.Generator().manual_seed(5)),
    }
    assert not torch.equal(expected[True], expected[False])
    wrong = []
    start = threading.Barrier(20)

    def work(number):
        inside = number % 2 == 0
        patch = torchinit.patch_nn_init(generators=True)
        start.wait()
        for _ in range(40):
            generator = torch.Generator().manual_seed(5)
            if inside:
                with patch:
                    tensor = torch_init.normal_(torch.empty(SHAPE), generator=generator)
            else:
                tensor = torch_init.normal_(torch.empty(SHAPE), generator=generator)
            if not torch.equal(tensor, expected[inside]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert_as_before(before)


@native_only
def test_one_object_in_two_threads_at_once():
    patch = torchinit.patch_nn_init()
    inside, may_leave = threading.Event(), threading.Event()
    tensor = torch.zeros(SHAPE)

    def other():
        with patch:
            torch_init.normal_(tensor)
            inside.set()
            may_leave.wait()

    before = snapshot()
    thread = threading.Thread(target=other)
    with patch:
        thread.start()
        inside.wait()
    may_leave.set()
    thread.join()
    assert_as_before(before)
    assert 0.5 < tensor.std() < 1.5


@native_only
def test_contexts_copied_to_another_thread_see_nothing():
    results = []
    with torchinit.patch_nn_init():
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: results.append(context.run(is_ours)))
        thread.start()
        thread.join()
    assert results == [False]


def test_whoever_comes_second_waits_for_the_hooks(monkeypatch):
    """While a thread puts them in place, another that opens a block neither does nor goes on."""
    begun, go_on, second_is_in = (threading.Event() for _ in range(3))
    put, count = swap._Hooks._put_in_place, []

    def slowly(hooks):
        count.append(1)
        begun.set()
        go_on.wait(10)
        put(hooks)

    def first():
        with torchinit.patch_nn_init():
            second_is_in.wait(10)

    def second():
        with torchinit.patch_nn_init():
            second_is_in.set()

    monkeypatch.setattr(swap._Hooks, "_put_in_place", slowly)
    before = snapshot()
    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    threads[1].join(0.2)  # long enough to come in, were there nothing to wait for
    assert not second_is_in.is_set()
    go_on.set()
    for thread in threads:
        thread.join()
    assert count == [1]
    assert_as_before(before)


@native_only
def test_other_tasks_see_nothing():
    before = snapshot()

    async def inside(entered, others_done):
        with torchinit.patch_nn_init():
            child = asyncio.create_task(outside())
            entered.set()
            await others_done.wait()
            return is_ours(), await child

    async def outside():
        return is_ours()

    @torchinit.patch_nn_init()
    async def decorated():
        await asyncio.sleep(0)
        return is_ours()

    async def main():
        entered, others_done = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(inside(entered, others_done))
        await entered.wait()
        second = asyncio.create_task(inside(asyncio.Event(), others_done))
        await asyncio.sleep(0)
        seen = is_ours()
        others_done.set()
        return await first, await second, seen, await decorated()

    assert asyncio.run(main()) == ((True, False), (True, False), False, True)
    assert_as_before(before)


@native_only
def test_a_generator_that_is_closed_elsewhere():
    before = snapshot()
    tensor = torch.zeros(SHAPE)

    def fills():
        with torchinit.patch_nn_init():
            torch_init.normal_(tensor)
            yield

    generator = fills()
    next(generator)
    thread = threading.Thread(target=generator.close)
    thread.start()
    thread.join()
    assert not is_ours()
    assert 0.5 < tensor.std() < 1.5
    assert_as_before(before)


class Notes:
    """A handler that notes what it is asked, and takes what it is told to."""

    def __init__(self, takes):
        self.takes = takes
        self.calls = []

    def fill(self, call, tensor, generator):  # noqa: ARG002
        self.calls.append(
            (call.name, call.arguments, tuple(tensor.shape), type(call) is FactoryCall)
        )
        torch_init.normal_(torch.empty(3))  # asks nobody
        if self.takes:
            tensor.fill_(5)
        return self.takes


def test_handlers_are_asked_for_everything():
    notes = Notes(takes=True)
    with intercept(notes):
        results = [
            torch_init.zeros_(torch.empty(2)),
            torch_init.constant_(torch.empty(2), 3),
            torch_init.trunc_normal_(torch.empty(2), std=0.5),
            torch_init.eye_(torch.empty(2, 2)),
            torch_init.sparse_(torch.empty(2, 2), sparsity=0.5),
            torch.randn(2),
            torch.empty(2).uniform_(3, 4),
            torch_init.normal_(torch.empty(2, dtype=torch.int32)),
        ]
        assert torch_init.xavier_normal_(torch.empty(2, 2, device="meta")).is_meta
    assert all((one == 5).all() for one in results)
    assert notes.calls == [
        ("zeros_", {}, (2,), False),
        ("constant_", {"val": 3}, (2,), False),
        ("trunc_normal_", {"mean": 0.0, "std": 0.5, "a": -2.0, "b": 2.0}, (2,), False),
        ("eye_", {}, (2, 2), False),
        ("sparse_", {"sparsity": 0.5, "std": 0.01}, (2, 2), False),
        ("normal_", {"mean": 0.0, "std": 1.0}, (2,), True),
        ("uniform_", {"a": 3, "b": 4}, (2,), False),
        ("normal_", {"mean": 0.0, "std": 1.0}, (2,), False),
        ("xavier_normal_", {"gain": 1.0}, (2, 2), False),
    ]


def test_the_original_runs_for_what_a_handler_leaves():
    notes = Notes(takes=False)
    torch.manual_seed(3)
    with intercept(notes):
        found = torch_init.sparse_(torch.empty(9, 9), sparsity=0.5)
    assert [name for name, *_ in notes.calls] == ["sparse_"]  # not for its parts
    torch.manual_seed(3)
    torch_init.normal_(torch.empty(3))  # the handler's own
    assert torch.equal(found, torch_init.sparse_(torch.empty(9, 9), sparsity=0.5))


def test_handlers_that_raise_are_asked_again():
    class Raises:
        def fill(self, *_):
            raise ZeroDivisionError

    with intercept(Raises()):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                torch_init.normal_(torch.empty(3))


def test_handlers_are_told_of_what_reads_tensors_unseen(monkeypatch):
    """What DistributedDataParallel sends to all."""
    done = []

    class Puts(Notes):
        def __init__(self, name):
            super().__init__(takes=False)
            self.do_all = lambda: done.append(name)

    def send(*_):
        done.append("sent")

    monkeypatch.setattr(torch.distributed, "_broadcast_coalesced", send)
    with intercept(Puts("outer")), intercept(Puts("inner")):
        torch.distributed._broadcast_coalesced(None, [torch.ones(3)], 0)
    assert done == ["inner", "outer", "sent"]
    assert torch.distributed._broadcast_coalesced is send


def test_the_innermost_handler_is_asked():
    outer, inner = Notes(takes=True), Notes(takes=False)
    with intercept(outer):
        with intercept(inner):
            torch_init.zeros_(torch.empty(2))
        assert len(inner.calls) == 1
        assert outer.calls == []
        torch_init.zeros_(torch.empty(2))
    assert len(outer.calls) == 1


@native_only
def test_transformers_guard_of_torch_functions():
    """A block that begins, or ends, while nn.init's attributes are Transformers' own."""
    initialization = pytest.importorskip("transformers.initialization")
    before = snapshot()
    with initialization.guard_torch_init_functions():
        with torchinit.patch_nn_init():
            assert is_ours()
        assert not is_ours()
    assert_as_before(before)


@native_only
def test_device_constructors_are_not_remembered_as_hooks():
    torch.utils._device._device_constructors.cache_clear()
    with torchinit.patch_nn_init(), torch.device("meta"):
        assert torch.randn(3).is_meta
    with torch.device("meta"):
        assert torch.randn(3).is_meta


def test_compilers_that_are_loaded_inside_remember_torchs_functions():
    program = Path(__file__).parents[1] / "programs" / "compilers_in_patch.py"
    process = warm.run(program, warnings_as_errors="UserWarning")
    assert process.returncode == 0, process.stderr
