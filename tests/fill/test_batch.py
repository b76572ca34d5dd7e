"""``torchinit.batch()``: the values of single calls, and nothing done by halves."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import torchinit
from conftest import native_only
from torchinit.dtypes import ALL_DTYPES
from torchinit.fill.door import ElementwiseFill, fill_all
from torchinit.fill.door import fill as fill_one
from torchinit.native import load as native
from torchinit.placement.box import Box
from torchinit.schemes.distributions import constant_draw, normal_draw, uniform_draw


def layers():
    """Tensors of many sizes, dtypes and layouts."""
    for dtype in ALL_DTYPES:
        yield from (torch.full(shape, 7.0).to(dtype) for shape in [(3,), (0, 4), (64, 33), (1, 1)])
    yield torch.full((40, 70), 7.0).t()
    yield torch.full((9, 4, 8), 7.0)[:, 1:3, ::2]
    yield torch.full((300, 1000), 7.0)
    yield torch.nn.Parameter(torch.full((5, 6), 7.0))


def fill(tensors, generator):
    """Every scheme, some of them done at once, in a fixed order."""
    for i, tensor in enumerate(tensors):
        kind = i % 9
        if kind == 0:
            torchinit.normal_(tensor, 0.5, 2.0)
        elif kind == 1:
            torchinit.uniform_(tensor, -1.0, 1.0, generator)
        elif kind == 2 and tensor.dim() > 1:
            torchinit.init_(tensor, None, "kaiming_uniform")
        elif kind == 3:
            torchinit.trunc_normal_(tensor, std=0.7)
        elif kind == 4:
            torchinit.ones_(tensor)
        elif kind == 5 and tensor.dim() > 1 and tensor.numel():
            torchinit.orthogonal_(tensor)
        elif kind == 6 and tensor.dim() == 2 and tensor.dtype == torch.float32:
            torchinit.sparse_(tensor.detach(), 0.5)
        elif kind == 7:
            torchinit.trunc_normal_(tensor, generator=generator)
        else:
            torchinit.normal_(tensor, generator=generator)


def run(together):
    torch.manual_seed(11)
    generator = torch.Generator().manual_seed(5)
    tensors = list(layers())
    with torchinit.batch() if together else contextlib.nullcontext():
        fill(tensors, generator)
    return tensors, torch.get_rng_state(), generator.get_state()


def as_bytes(tensor):
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def test_values_and_generators_are_those_of_single_calls():
    one_by_one, batched = run(together=False), run(together=True)
    for expected, got in zip(one_by_one[0], batched[0], strict=True):
        assert torch.equal(as_bytes(expected), as_bytes(got)), (expected.dtype, expected.shape)
    assert torch.equal(one_by_one[1], batched[1])
    assert torch.equal(one_by_one[2], batched[2])


@native_only
def test_nothing_is_filled_before_the_end():
    tensor = torch.zeros(100)
    with torchinit.batch():
        torchinit.ones_(tensor)
        assert not tensor.any()
    assert tensor.all()


@native_only
def test_fills_are_collected(monkeypatch):
    """One call of the module for all of them, and none of the others."""
    lists = []
    monkeypatch.setattr("torchinit.native.load.module", Recorder(native.module, lists))
    with torchinit.batch():
        for _ in range(5):
            torchinit.normal_(torch.empty(3))
            torchinit.zeros_(torch.empty(3))
    assert [len(items) for items in lists] == [10]


class Recorder:
    """The native module, of which single fills are missing and lists are noted."""

    def __init__(self, module, lists):
        self.quick_fill = module.quick_fill
        self.fill_list = lambda *columns: (lists.append(columns[0]), module.fill_list(*columns))


@native_only
def test_a_block_that_raises_has_filled_what_came_before():
    """As single calls would have."""
    tensor, expected = torch.full((50,), 7.0), torch.empty(50)
    torch.manual_seed(1)
    torchinit.normal_(expected)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="std=-1"), torchinit.batch():  # noqa: PT012
        torchinit.normal_(tensor)
        torchinit.normal_(tensor, std=-1.0)
    assert torch.equal(tensor, expected)
    assert torch.equal(torch.get_rng_state(), state)
    torchinit.ones_(tensor)  # the batch is closed
    assert (tensor == 1).all()


@native_only
@pytest.mark.parametrize("bad", ["expanded", "inference"])
def test_a_tensor_that_cannot_be_written_to(bad):
    good = torch.full((50,), 7.0)
    with torch.inference_mode(bad == "inference"):
        other = torch.full((1,), 7.0)
    if bad == "expanded":
        other = other.expand(5)
    with pytest.raises(ValueError, match=r"share memory|inference tensor"), torchinit.batch():  # noqa: PT012
        torchinit.normal_(good)
        torchinit.normal_(other)
    assert (good == 7).all()
    assert (other == 7).all()


@native_only
@pytest.mark.parametrize("by", [torchinit.normal_, lambda w: torchinit.init_(w, None, "normal")])
def test_a_write_after_the_call_is_an_error(by):
    """As when a model zeroes the padding row of the embedding that it has just filled."""
    weight = torch.nn.Parameter(torch.full((4, 5), 7.0))
    with pytest.raises(RuntimeError, match=r"\(4, 5\) was written to"), torchinit.batch():  # noqa: PT012
        by(weight)
        with torch.no_grad():
            weight[0].fill_(0)
    assert (weight[1:] == 7).all()


def test_a_write_before_the_call_is_none():
    weight = torch.nn.Parameter(torch.full((4, 5), 7.0))
    with torchinit.batch():
        with torch.no_grad():
            weight[0].fill_(0)
        torchinit.ones_(weight)
    assert (weight == 1).all()


@pytest.mark.parametrize("order", [1, -1])
def test_overlapping_tensors_are_filled_in_order(order):
    memory = torch.full((100_000,), 7.0)
    views = [(memory, 1.0), (memory[500:600], 2.0), (memory[550:90_000], 3.0)][::order]
    with torchinit.batch():
        for view, value in views:
            torchinit.constant_(view, value)
    expected = torch.full((100_000,), 7.0)
    for view, value in views:
        expected[view.storage_offset() :][: view.numel()] = value
    assert torch.equal(memory, expected)


@native_only
def test_a_batch_in_a_batch_is_part_of_it():
    tensor = torch.zeros(10)
    with torchinit.batch():
        with torchinit.batch():
            torchinit.ones_(tensor)
        assert not tensor.any()
    assert tensor.all()


def test_other_threads_are_not_collected():
    tensor = torch.zeros(10)
    with torchinit.batch():
        thread = threading.Thread(target=torchinit.ones_, args=[tensor])
        thread.start()
        thread.join()
        assert tensor.all()


def test_threads_with_a_copy_of_the_context_are_not_collected():
    tensor = torch.zeros(10)
    with torchinit.batch():
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=[torchinit.ones_, tensor])
        thread.start()
        thread.join()
        assert tensor.all()


def test_tensors_without_memory():
    meta = torch.empty(3, 4, device="meta")
    with torchinit.batch():
        assert torchinit.normal_(meta) is meta
        torchinit.init_(meta, None, "normal")
        with FakeTensorMode():
            torchinit.normal_(torch.empty(3, 4))


def test_writes_are_counted_once_for_each_fill():
    tensor, other = torch.empty(3), torch.empty(3)
    versions = tensor._version, other._version
    with torchinit.batch():
        torchinit.normal_(tensor)
        torchinit.ones_(other)
    assert tensor._version > versions[0]
    assert other._version > versions[1]


def test_an_empty_batch():
    with torchinit.batch():
        pass


def test_inference_tensors_inside_inference_mode():
    with torch.inference_mode(), torchinit.batch():
        tensor = torch.zeros(10)
        torchinit.ones_(tensor)
        torchinit.normal_(torch.empty(4))
    assert tensor.all()


def test_a_batch_is_entered_once():
    batch = torchinit.batch()
    with batch:
        torchinit.ones_(torch.empty(3))
    with pytest.raises(RuntimeError, match="entered before"), batch:
        pass


def halved(tensor):
    tensor.data = tensor.data.half()


def moved(tensor):
    """As ``module.to("meta")`` does where torch is told to swap tensors."""
    torch.utils.swap_tensors(tensor, torch.nn.Parameter(torch.empty(tensor.shape, device="meta")))


def freed(tensor):
    tensor.untyped_storage().resize_(0)


def replaced(tensor):
    tensor.data = torch.zeros(tensor.shape)


def viewed(tensor):
    tensor.requires_grad = False
    tensor.data = tensor.data.view(torch.int32)


def resized(tensor):
    tensor.t_()


@native_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (halved, r"\(3, 4\) has become torch.float16"),
        (moved, "moved to meta"),
        (freed, r"\(3, 4\) has no memory"),
        (replaced, r"\(3, 4\) has other memory"),
        (viewed, r"\(3, 4\) has become torch.int32"),
        (resized, r"was written to"),
    ],
)
@pytest.mark.parametrize("together", [1, 100])
def test_a_tensor_changed_after_the_call(change, message, together):
    good = torch.full((50,), 7.0)
    tensors = [torch.nn.Parameter(torch.full((3, 4), 7.0)) for _ in range(together)]
    with pytest.raises(RuntimeError, match=message), torchinit.batch():  # noqa: PT012
        torchinit.normal_(good)
        for tensor in tensors:
            torchinit.normal_(tensor)
        with torch.no_grad():
            change(tensors[-1])
    assert (good == 7).all()
    assert all((tensor == 7).all() for tensor in tensors[:-1])


def collecting(tensor):
    with torchinit.batch():
        torchinit.normal_(tensor)
        yield


@native_only
@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_abandoned_generator_closes_its_batch(elsewhere):
    """It may be in another thread that a generator is closed."""
    tensor, later = torch.zeros(10), torch.zeros(10)
    generator = collecting(tensor)
    next(generator)
    if elsewhere:
        thread = threading.Thread(target=generator.close)
        thread.start()
        thread.join()
    else:
        generator.close()
    torchinit.ones_(later)
    assert later.all()
    assert tensor.any()  # as a block that raises
    with torchinit.batch():
        torchinit.zeros_(later)
    assert not later.any()


@native_only
def test_seeding_within_the_block():
    """Each key is drawn where its call stands."""

    def fill(tensors):
        own = torch.Generator()
        for i, tensor in enumerate(tensors):
            torch.manual_seed(i)
            torchinit.normal_(tensor)
            with torch.random.fork_rng():
                torch.manual_seed(99)
                torchinit.uniform_(tensor[:3])
            torchinit.trunc_normal_(tensor[3:], generator=own.manual_seed(i))
            torch.rand(2)

    expected, got = torch.empty(4, 50), torch.empty(4, 50)
    fill(list(expected))
    with torchinit.batch():
        fill(list(got))
    assert torch.equal(got, expected)


@native_only
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.to(torch.bfloat16),
        lambda layer: setattr(layer.weight, "data", torch.zeros(4, 5)),
        lambda layer: layer.to_empty(device="cpu"),
    ],
)
def test_a_layer_converted_within_the_block(change):
    layer = torch.nn.Linear(5, 4)
    with pytest.raises(RuntimeError, match="since its fill was collected"), torchinit.batch():  # noqa: PT012
        torchinit.init_(layer.weight, layer.bias, "ones")
        change(layer)


@native_only
def test_asyncio_tasks_are_apart():
    """Those that run beside the block, and those that it starts."""
    inside, child, other = (torch.zeros(5) for _ in range(3))

    async def fill(tensor, started=None):
        if started is not None:
            await started.wait()
        torchinit.ones_(tensor)
        return bool(tensor.all())

    async def main():
        started = asyncio.Event()
        beside = asyncio.create_task(fill(other, started))
        with torchinit.batch():
            torchinit.ones_(inside)
            started.set()
            assert await asyncio.create_task(fill(child))
            assert await beside
            assert await asyncio.to_thread(lambda: bool(torchinit.ones_(torch.zeros(3)).all()))
            assert not inside.any()
        assert inside.all()

    asyncio.run(main())


@native_only
def test_fake_tensors_beside_collected_ones():
    tensor, other = torch.zeros(50), torch.zeros(50)
    torch.manual_seed(4)
    with torchinit.batch():
        torchinit.normal_(tensor)
        torchinit.normal_(other)
        with FakeTensorMode():
            torchinit.normal_(torch.empty(3))
    torch.manual_seed(4)
    assert torch.equal(tensor, torchinit.normal_(torch.empty(50)))
    assert torch.equal(other, torchinit.normal_(torch.empty(50)))


@native_only
def test_a_fill_done_at_once_after_a_collected_one_is_an_error():
    weight = torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match="written to"), torchinit.batch():  # noqa: PT012
        torchinit.normal_(weight)
        torchinit.orthogonal_(weight)


@native_only
def test_negated_views():
    """Torch fills them, at once; contiguous ones, which torch makes inside alone, are refused."""
    view = torch.zeros(6, dtype=torch.complex64).conj().imag
    with torchinit.batch():
        torchinit.ones_(view)
        assert (view == 1).all()
    with pytest.raises(ValueError, match="negative bit"), torchinit.batch():
        torchinit.normal_(torch._neg_view(torch.zeros(6)))


@native_only
def test_what_torch_serves_is_done_at_once():
    sparse, whole = torch.eye(3).to_sparse(), torch.zeros(3, dtype=torch.complex64)
    with torchinit.batch():
        torchinit.normal_(whole)
        assert whole.any()
        with pytest.raises((RuntimeError, NotImplementedError)):
            torchinit.normal_(sparse)


@native_only
def test_fill_all_is_fill_on_each_in_turn():
    draws = [
        normal_draw(0.0, 1.0),
        uniform_draw(-1.0, 1.0),
        constant_draw(3.0),
        normal_draw(2.0, 0.5),
    ]
    boxes = [None, Box((10, 7), (2, 3)), None, Box((40,), (5,))]
    generator = torch.Generator()
    streams = [None, 5, None, generator]

    def tensors():
        return [torch.empty(4, 4), torch.empty(3, 2), torch.empty(9), torch.empty(30)[::2]]

    torch.manual_seed(2)
    generator.manual_seed(3)
    expected = [fill_one(*each) for each in zip(draws, tensors(), streams, boxes, strict=True)]
    torch.manual_seed(2)
    generator.manual_seed(3)
    got = tensors()
    fill_all(map(ElementwiseFill, draws, got, streams, boxes))
    assert all(map(torch.equal, got, expected))


@native_only
def test_fill_all_writes_all_or_nothing():
    good = torch.full((5,), 7.0)
    with pytest.raises(ValueError, match="std=-1"):
        fill_all(
            [
                ElementwiseFill(normal_draw(0.0, 1.0), good, 1),
                ElementwiseFill(normal_draw(0.0, -1.0), torch.empty(3), 2),
            ]
        )
    assert (good == 7).all()


@native_only
@pytest.mark.parametrize("change", [lambda t: t[:2], lambda t: t.t(), lambda t: t[:, :3]])
def test_another_view_of_the_same_memory_is_an_error(change):
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(RuntimeError, match="another shape"), torchinit.batch():  # noqa: PT012
        torchinit.normal_(weight)
        weight.data = change(weight.data)


def test_a_constant_is_read_where_the_call_stands():
    value, tensor = torch.tensor(2.0), torch.zeros(3)
    with torchinit.batch():
        torchinit.constant_(tensor, value)
        value.fill_(9)
    assert (tensor == 2).all()
