"""Parameters that lie in one memory: an error where they share an element, and only there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchinit
from torchinit.placement import overlap
from torchinit.placement.overlap import overlapping


def addresses(tensor):
    """The bytes of every element."""
    size = tensor.element_size()
    offsets = torch.arange(tensor.untyped_storage().nbytes() // size)
    elements = offsets.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return {int(one) * size + i for one in elements.flatten() for i in range(size)}


@st.composite
def some_views(draw):
    """Views of 240 bytes, of any strides, some of another dtype."""
    memory = torch.empty(60)
    views = []
    for _ in range(draw(st.integers(2, 5))):
        base = memory.view(draw(st.sampled_from([torch.float32, torch.float16, torch.int64])))
        offset = draw(st.integers(0, base.numel() - 1))
        left, sizes, strides = base.numel() - 1 - offset, [], []
        for _ in range(draw(st.integers(0, 3))):
            strides.append(draw(st.integers(0, 12)))
            most = 1 + left // strides[-1] if strides[-1] else 4
            sizes.append(draw(st.integers(0, min(most, 5))))
            left -= max(sizes[-1] - 1, 0) * strides[-1]
        views.append(base.as_strided(sizes, strides, offset))
    return views


@given(some_views())
def test_views_are_found_to_share_elements_exactly_where_they_do(views):
    taken = [addresses(one) for one in views]
    pairs = {
        (i, j) for j in range(len(views)) for i in range(j) if not taken[i].isdisjoint(taken[j])
    }
    found = overlapping(views)
    assert found in pairs if pairs else found is None


class Holder(nn.Module):
    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))


W = torch.zeros(8, 6)
SHARING = {
    "transposed": (W, W.t()),
    "columns": (W[:, ::2], W[:, 2:4]),
    "the last element": (W[:, :3], W[7, 2:]),
    "a row of every other": (W[::2], W[4]),
    "diagonal": (W.diagonal(), W[3:5, 2:5]),
    "another dtype": (W[:, 1::2], W.view(torch.float16)[:, 2:4]),
}
EQUAL = {"equal": (W, W), "equal with gaps": (W[:, ::2], W[:, ::2])}
APART = {
    "rows": (W[:4], W[4:]),
    "every other row": (W[0::2], W[1::2]),
    "every other column": (W[:, 0::2], W[:, 1::2]),
    "columns": (W[:, :2], W[:, 2:]),
    "blocks": (W[:4, :3], W[:4, 3:], W[4:, :2], W[4:, 2:]),
    "around a diagonal": (W.diagonal(), W[0, 1:], W[1:, 0]),
    "empty": (W, W[:, :0]),
}


def init(*tensors, rules=None):
    model = Holder(**dict(zip("pqrs", tensors, strict=False)))
    rules = {"**": torchinit.Normal(1.0)} if rules is None else rules
    return torchinit.init_model_(model, rules, seed=0)


@pytest.mark.parametrize("tensors", SHARING.values(), ids=SHARING)
def test_parameters_that_share_elements_are_an_error_that_names_both(tensors):
    before = W.clone()
    for some in (tensors, tensors[::-1], (torch.zeros(3), *tensors)):
        with pytest.raises(torchinit.ArgumentError, match="share memory") as caught:
            init(*some)
        names = "pqr"[: len(some)][-2:]
        assert all(f"'{name}'" in str(caught.value) for name in names)
    assert torch.equal(W, before)


@pytest.mark.parametrize("tensors", APART.values(), ids=APART)
def test_parameters_that_share_none_are_filled(tensors):
    apart = [one.detach().clone() for one in init(*(one.clone() for one in tensors)).parameters()]
    together = init(*tensors)
    for one, other in zip(apart, together.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("tensors", SHARING.values(), ids=SHARING)
def test_what_only_leaves_out_is_not_overwritten(tensors):
    model = Holder(p=tensors[0], q=tensors[1], r=torch.zeros(3))
    for only in ("p", "q", ["q", "r"]):
        with pytest.raises(torchinit.ArgumentError, match="'p' and 'q' share memory"):
            torchinit.init_model_(model, {"**": "ones"}, seed=0, only=only)
    torchinit.init_model_(model, {"**": "ones"}, seed=0, only="r")
    assert torch.equal(model.r, torch.ones(3))


@pytest.mark.parametrize("tensors", EQUAL.values(), ids=EQUAL)
def test_equal_views_are_one_parameter(tensors):
    memory = W.clone()
    both = init(*(memory.as_strided(one.shape, one.stride()) for one in tensors))
    assert torch.equal(both.p, both.q)
    assert torch.equal(both.p, init(tensors[0].clone()).p)
    other = {"p": "ones", "q": "zeros"}
    with pytest.raises(torchinit.ArgumentError, match="one parameter has 2 names"):
        init(*(memory.as_strided(one.shape, one.stride()) for one in tensors), rules=other)


@pytest.mark.parametrize("tensors", [*APART.values(), *SHARING.values()])
def test_on_the_meta_device_views_of_one_memory_are_an_error(tensors):
    memory = torch.empty(W.numel(), device="meta")
    views = [memory.as_strided(one.shape, one.stride()) for one in tensors if one.dtype == W.dtype]
    with pytest.raises(torchinit.ArgumentError, match=r"'p' and '[qr]'.*meta"):
        init(*views, memory)


def test_plans_and_checkpoints_are_checked_too(tmp_path):
    def build(device):
        whole = torch.empty(4, 6, device=device)
        return Holder(p=whole, q=whole.t())

    with pytest.raises(torchinit.ArgumentError, match="'p' and 'q'"):
        torchinit.plan_model(build("cpu"), {"**": "ones"})
    with pytest.raises(torchinit.ArgumentError, match="'p' and 'q'"):
        torchinit.write_checkpoint(lambda: build("meta"), tmp_path / "out", {"**": "ones"}, seed=0)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_shards_are_checked_too():
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        apart, sharing = (
            [DTensor.from_local(one, mesh, [Shard(0)]) for one in tensors]
            for tensors in (APART["every other row"], SHARING["transposed"])
        )
        init(*apart)
        with pytest.raises(torchinit.ArgumentError, match="'p' and 'q'"):
            init(*sharing)
    finally:
        torch.distributed.destroy_process_group()


def test_views_of_a_flat_buffer_are_compared_with_their_neighbours_alone(monkeypatch):
    """Thousands of them: no marks are made, and each is looked at once."""
    looked_at = []
    bytes_of = overlap._bytes_of

    def counted(tensor, number):
        looked_at.append(number)
        return bytes_of(tensor, number)

    monkeypatch.setattr(overlap, "_bytes_of", counted)
    monkeypatch.setattr(overlap, "_by_marks", None)
    flat = torch.zeros(20000)
    views = [*flat.view(2000, 10).unbind(0)]
    assert overlapping([*views[::2], *reversed(views[1::2])]) is None
    assert looked_at == list(range(2000))
    assert overlapping([*views, flat[12345:12347]]) == (1234, 2000)


def test_interleaved_views_are_marked_once_each(monkeypatch):
    made = []
    view = overlap._view

    def counted(*arguments):
        made.append(view(*arguments))
        return made[-1]

    monkeypatch.setattr(overlap, "_view", counted)
    columns = torch.zeros(30, 500, 8).unbind(1)
    assert overlapping(columns) is None
    # The runs of eight elements are looked at as one.
    assert [one.numel() for one in made] == [30] * 500
