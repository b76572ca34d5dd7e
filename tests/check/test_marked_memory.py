"""marked_memory: which memory is marked, where, and that nothing else changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from conftest import native_only
from forked import in_child
from torchinit import build_model, find_uninitialized, marked_memory, patch_nn_init
from torchinit.check.marked_memory import unmarked
from torchinit.native.torch_private import dispatch_modes

NEW = 1 << 26  # so large that the memory is new, and not one with old marks


def left_of(tensor: Tensor) -> int:
    """How many elements of a tensor hold marks, or the NaN of torch's deterministic fill."""
    module = nn.Module()
    module.register_buffer("x", tensor)
    return sum(row.count for row in find_uninitialized(module))


FACTORIES = {
    "empty": (lambda: torch.empty(5), 5),
    "empty_like": (lambda: torch.empty_like(torch.ones(5)), 5),
    "new_empty": (lambda: torch.ones(2).new_empty(5), 5),
    "empty_strided": (lambda: torch.empty_strided((2, 3), (1, 2)), 6),
    "empty_permuted": (lambda: torch.empty_permuted((2, 3), (1, 0)), 6),
    "out": (lambda: torch.empty(7, out=torch.empty(0)), 7),
    "resize_": (lambda: torch.ones(2).resize_(6), 4),
    "resize_as_": (lambda: torch.ones(3, 4).resize_as_(torch.ones(20)), 8),
    "resize_ of bytes": (lambda: torch.ones(12, dtype=torch.uint8).resize_(50), 34),
    "Tensor(n, m)": (lambda: torch.Tensor(3, 4), 12),
    "FloatTensor": (lambda: torch.FloatTensor(4), 4),
    "new": (lambda: torch.ones(2).new(3, 3), 9),
    "to_empty": (lambda: nn.Linear(3, 4, device="meta").to_empty(device="cpu").weight.data, 12),
    "skip_init": (lambda: nn.utils.skip_init(nn.Linear, 3, 4).weight.data, 12),
    "a list's values": (lambda: torch.tensor([1.0, 2.0]), 0),
    "randn": (lambda: torch.randn(5), 0),
    "a copy": (lambda: torch.ones(5).clone(), 0),
    "a layer": (lambda: nn.Linear(3, 4).weight.data, 0),
}


@pytest.mark.parametrize("way", FACTORIES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_factories(way, deterministic):
    """Also where torch itself fills new memory."""
    make, count = FACTORIES[way]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with marked_memory():
            made = make()
    finally:
        torch.use_deterministic_algorithms(before)
    assert left_of(made) == count


def test_what_a_bare_storage_holds_is_not_seen():
    """As the docs say."""
    with marked_memory():
        made = torch.empty(0).set_(torch.UntypedStorage(NEW))
    assert left_of(made) == 0


def test_decorated_functions():
    @marked_memory()
    def make(count: int) -> Tensor:
        return make(count - 1) if count else torch.empty(3)

    assert make.__name__ == "make"
    assert left_of(make(3)) == 3
    assert dispatch_modes() == 0

    async def coroutine() -> None:
        pass

    def generator() -> Iterator[None]:
        yield

    async def both() -> AsyncIterator[None]:
        yield

    for function in (coroutine, generator, both):
        with pytest.raises(
            TypeError, match=r"marked_memory cannot decorate a (coroutine|generator)"
        ):
            marked_memory()(function)


def test_contexts():
    with marked_memory(), torch.device("cpu"):
        assert left_of(torch.empty(3)) == 3
    with torch.device("cpu"), marked_memory():
        assert left_of(torch.empty(3)) == 3
    with marked_memory(), torch.inference_mode():
        assert left_of(torch.empty(3)) == 3
    with marked_memory(), FakeTensorMode():
        assert torch.empty(3).shape == (3,)
    with marked_memory():
        assert torch.equal(vmap(lambda x: x + torch.empty(2).zero_())(torch.ones(3, 2)),
                           torch.ones(3, 2))  # fmt: skip
        with unmarked():
            assert left_of(torch.empty(NEW)) == 0
        assert left_of(torch.empty(3)) == 3


@pytest.mark.parametrize("outer", [False, True])
def test_values_inside_patch_nn_init_are_the_same(outer):
    torch.manual_seed(1)
    with patch_nn_init():
        plain = nn.Linear(30, 40).weight.detach(), torch.randn(700)
    torch.manual_seed(1)
    blocks = [marked_memory(), patch_nn_init()]
    first, second = blocks if outer else reversed(blocks)
    with first, second:
        made = nn.Linear(30, 40).weight.detach(), torch.randn(700)
        assert left_of(torch.empty(3)) == 3
    assert all(map(torch.equal, plain, made))


@pytest.mark.parametrize("inside", [False, True])
def test_pending_memory_of_build_model_is_left_alone(inside):
    """Marks in it would be writes that it does not know, which it refuses."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(3), nn.Linear(3, 3))

    @marked_memory()
    def marked() -> nn.Module:
        return make()

    plain = build_model(make, seed=0).state_dict()
    if inside:
        model = build_model(marked, seed=0)
    else:
        with marked_memory():
            model = build_model(make, seed=0)
            assert left_of(torch.empty(3)) == 3
    assert find_uninitialized(model) == []
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items())


def test_threads_that_start_inside():
    start = threading.Thread.start
    made: dict[str, Tensor] = {}

    class Own(threading.Thread):
        def run(self) -> None:
            made["own class"] = torch.empty(3)

    with marked_memory():
        threads = [
            threading.Thread(target=lambda: made.update(target=torch.empty(3))),
            threading.Timer(0, lambda: made.update(timer=torch.empty(3))),
            Own(),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
            assert "run" not in vars(thread)
        with ThreadPoolExecutor(1) as pool:
            made["pool"] = pool.submit(torch.empty, 3).result()
            made["thread of a thread"] = pool.submit(
                lambda: ThreadPoolExecutor(1).submit(torch.empty, 3).result()
            ).result()
        made["asyncio"] = asyncio.run(asyncio.to_thread(torch.empty, 3))
    assert {name: left_of(tensor) for name, tensor in made.items()} == dict.fromkeys(
        ("target", "timer", "own class", "pool", "thread of a thread", "asyncio"), 3
    )
    assert threading.Thread.start is start


def test_threads_of_others():
    """One that another thread starts, and one that outlives the block."""
    begun, go = threading.Event(), threading.Event()
    made: dict[str, Tensor] = {}

    def wait(name: str) -> None:
        begun.set()
        go.wait()
        made[name] = torch.zeros(3).resize_(9)  # an empty might get the memory of a marked one

    def start() -> None:
        thread = threading.Thread(target=wait, args=("a stranger's",))
        thread.start()
        go.wait()
        thread.join()

    stranger = threading.Thread(target=start)
    stranger.start()
    begun.wait()
    with marked_memory():
        survivor = threading.Thread(target=wait, args=("a survivor's",))
        survivor.start()
    go.set()
    stranger.join()
    survivor.join()
    assert {name: left_of(tensor) for name, tensor in made.items()} == {
        "a stranger's": 0, "a survivor's": 0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_nested_blocks_and_errors(kind):
    start = threading.Thread.start
    with marked_memory():
        with pytest.raises(kind), marked_memory(), marked_memory():
            raise kind
        assert left_of(torch.empty(3)) == 3
        assert threading.Thread.start is not start
    block = marked_memory()
    with block, block:
        assert left_of(torch.empty(3)) == 3
    assert threading.Thread.start is start
    assert dispatch_modes() == 0


def test_blocks_of_generators_that_end_in_another_order():
    """As those of coroutines may: each ends the mode that was begun last."""
    made = []

    def work():
        with marked_memory():
            yield
            made.append(torch.zeros(3).resize_(9))

    both = [work(), work()]
    for one in both * 2:
        next(one, None)
    assert [left_of(tensor) for tensor in made] == [6, 6]
    assert dispatch_modes() == 0


def test_other_code_that_replaces_start_is_kept():
    start = threading.Thread.start

    def other(thread: threading.Thread) -> None:
        start(thread)

    try:
        with marked_memory():
            threading.Thread.start = other
        assert threading.Thread.start is other
    finally:
        threading.Thread.start = start


@native_only  # which knows that torch's threads are gone
def test_a_forked_child_goes_on():
    def work() -> None:
        assert left_of(torch.empty(1 << 16)) == 1 << 16
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()

    with marked_memory():
        assert in_child(work) == 0

    def look() -> None:
        assert left_of(values) == 0

    values = torch.ones(1 << 16)
    assert in_child(look) == 0


def test_compiled_graphs():
    model = nn.Linear(8, 8)
    x = torch.ones(2, 8)
    compiled = torch.compile(model, backend="eager")
    with marked_memory():
        assert torch.equal(compiled(x), model(x))
        assert left_of(torch.empty(3)) == 3

    @torch.compile(backend="eager")
    def over(x: Tensor) -> Tensor:
        with marked_memory():
            return x + torch.empty(8).fill_(1)

    assert torch.equal(over(x), x + 1)


# What must keep its values or its marks.


def test_memory_that_a_new_tensor_shares_with_its_source_is_not_new():
    ragged = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)], layout=torch.jagged)
    with marked_memory():
        made = torch.empty_like(ragged)
    assert ragged.offsets().tolist() == [0, 3, 5]
    assert made.values().isnan().all()


@pytest.mark.parametrize(
    "copied",
    [
        lambda mask: torch.zeros(4, 6, dtype=torch.bool).copy_(mask),
        lambda mask: mask.t().contiguous(),
        lambda mask: mask.clone(),
        lambda mask: mask.to(torch.bool, copy=True),
        lambda mask: mask[None].expand(2, 4, 6).contiguous(),
    ],
    ids=["copy_", "transposed", "clone", "to", "expanded"],
)
def test_copies_of_booleans_keep_marks(copied):
    model = nn.Module()
    with marked_memory():
        model.register_buffer("mask", copied(torch.empty(4, 6, dtype=torch.bool)))
        model.register_buffer("fine", copied(torch.ones(4, 6, dtype=torch.bool)))
    assert [row.names for row in find_uninitialized(model)] == [("mask",)]
    assert model.fine.all()


def test_a_thread_of_an_inner_block_marks_until_the_outer_one_ends():
    inner_has_ended, made = threading.Event(), []

    def work():
        inner_has_ended.wait()
        made.append(torch.empty(3))

    with marked_memory():
        with marked_memory():
            thread = threading.Thread(target=work)
            thread.start()
        inner_has_ended.set()
        thread.join()
    assert made[0].isnan().all()
