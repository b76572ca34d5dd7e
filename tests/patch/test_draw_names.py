"""Names of draws: one rule, section 7 of docs/streams.md, wherever code draws."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchinit
from conftest import native_only
from torchinit.fill.door import fill
from torchinit.orthogonal import fill_orthogonal
from torchinit.schemes.distributions import normal_draw, uniform_draw
from torchinit.streams.named_keys import (
    DrawNames,
    Elements,
    Name,
    _Holders,
    elements_of,
    keys_of_names,
    part_of,
)

SEED = 5
NAME = "m.w"


class Holder(nn.Module):
    """Has one parameter, which a function fills."""

    def __init__(self, make, function, *, now=False):
        super().__init__()
        self.w = nn.Parameter(make())
        self.function = function
        if now:
            self.draw()

    def draw(self):
        with torch.no_grad():
            self.function(self.w)


def by_patch(make, function):
    model = nn.ModuleDict({"m": Holder(make, function)})
    with torchinit.patch_nn_init(seed=SEED, names_from=model):
        model["m"].draw()
    return model["m"].w


def by_callable(make, function):
    model = nn.ModuleDict({"m": Holder(make, function)})
    return torchinit.init_model_(model, {"**": function}, seed=SEED)["m"].w


def by_build(make, function):
    build = lambda: nn.ModuleDict({"m": Holder(make, function, now=True)})  # noqa: E731
    return torchinit.build_model(build, seed=SEED)["m"].w


def normal(view, key):
    fill(normal_draw(0.0, 1.0), view, key)


def xavier(view, key):
    bound = math.sqrt(6 / sum(view.shape))
    fill(uniform_draw(-bound, bound), view, key)


def orthogonal(view, key):
    fill_orthogonal(view, 1.0, key)


def redraw(w):
    for _ in range(3):
        nn.init.normal_(w)


def in_pieces(function, count):
    def fill_pieces(w):
        for piece in w.chunk(count):
            function(piece)

    return fill_pieces


def whole_then_part(w):
    nn.init.normal_(w)
    nn.init.orthogonal_(w[2:4])


def copied(w):
    w.copy_(nn.init.normal_(torch.empty(8, 6)))


def joined(w):
    w.copy_(torch.cat([nn.init.normal_(torch.empty(4, 6)) for _ in range(2)]))


dense = partial(torch.zeros, 8, 6)
# What code does to a parameter, and the fills that it amounts to: a view, the number of the part
# (None for all of it), and how it is filled.
CASES = {
    "all": (dense, nn.init.normal_, [(lambda w: w, None, normal)]),
    "a method": (dense, lambda w: w.normal_(), [(lambda w: w, None, normal)]),
    "flattened": (dense, lambda w: nn.init.normal_(w.view(-1)), [(lambda w: w, None, normal)]),
    "again": (dense, redraw, [(lambda w: w, None, normal)]),
    "transposed": (dense, lambda w: nn.init.normal_(w.t()), [(lambda w: w.t(), None, normal)]),
    "transposed, with gaps": (
        lambda: torch.zeros(8, 12)[:, ::2],
        lambda w: nn.init.normal_(w.t()),
        [(lambda w: w.t(), None, normal)],
    ),
    "complex": (
        partial(torch.zeros, 8, 6, dtype=torch.complex64),
        lambda w: nn.init.normal_(torch.view_as_real(w)),
        [(torch.view_as_real, None, normal)],
    ),
    "a part": (
        dense,
        lambda w: nn.init.normal_(nn.init.zeros_(w)[1:3]),
        [(lambda w: w[1:3], 0, normal)],
    ),
    "one part twice": (
        dense,
        lambda w: redraw(nn.init.zeros_(w)[1:3]),
        [(lambda w: w[1:3], number, normal) for number in range(3)],
    ),
    "a strided part": (
        dense,
        lambda w: nn.init.normal_(nn.init.zeros_(w)[:, ::2]),
        [(lambda w: w[:, ::2], 0, normal)],
    ),
    "a transposed part": (
        dense,
        lambda w: nn.init.normal_(nn.init.zeros_(w)[2:].t()),
        [(lambda w: w[2:].t(), 0, normal)],
    ),
    "an orthogonal part": (
        dense,
        lambda w: nn.init.orthogonal_(nn.init.zeros_(w)[:4]),
        [(lambda w: w[:4], 0, orthogonal)],
    ),
    "all, then a part": (
        dense,
        whole_then_part,
        [(lambda w: w, None, normal), (lambda w: w[2:4], 0, orthogonal)],
    ),
    "chunks of an LSTM": (
        dense,
        in_pieces(nn.init.orthogonal_, 4),
        [(lambda w, i=i: w.chunk(4)[i], i, orthogonal) for i in range(4)],
    ),
    "attention's projections": (
        partial(torch.zeros, 9, 3),
        in_pieces(nn.init.xavier_uniform_, 3),
        [(lambda w, i=i: w.chunk(3)[i], i, xavier) for i in range(3)],
    ),
    "a copy": (dense, copied, [(lambda w: w, 0, normal)]),
    "joined": (dense, joined, [(lambda w, i=i: w.chunk(2)[i], i, normal) for i in range(2)]),
}
# The interception of calls does not see what is copied where: these are parts of the module.
OF_THE_MODULE = {"a copy", "joined"}


@native_only
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", [by_patch, by_callable, by_build])
def test_all_ways_name_draws_alike(way, case):
    make, function, fills = CASES[case]
    base = "m" if way is by_patch and case in OF_THE_MODULE else NAME
    expected = make()
    for view, number, how in fills:
        name = base if number is None else part_of(base, number)
        how(view(expected), keys_of_names(SEED)(name))
    assert torch.equal(way(make, function), expected)


@pytest.mark.parametrize("once", [True, False])
def test_parts_are_numbered_by_name(once):
    all_, half = elements_of(1, (4, 2), (2, 1), 0, 4), elements_of(1, (2, 2), (2, 1), 4, 4)
    names = DrawNames([("b", all_), ("a", all_), ("h", half)], once=once)
    drawn = [names.of(one) for one in (all_, half, half._replace(end=28, nbytes=12), all_)]
    again = Name("a", 0) if once else Name("a")
    assert drawn == [Name("a"), Name("h"), Name("h", 0), again]
    assert names.of(all_._replace(end=40)) is None
    assert names.of(all_._replace(storage=2)) is None
    names.rename([("h", half)])
    assert names.of(half._replace(begin=20)) == Name("h", 1)
    assert [names.part("m"), names.part("m")] == [Name("m", 0), Name("m", 1)]


def elements(tensor):
    return elements_of(
        tensor.untyped_storage()._cdata,
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
        tensor.itemsize,
    )


@given(st.data())
def test_elements_are_equal_where_the_bytes_are(data):
    base = torch.arange(360)

    def view():
        found = base[data.draw(st.integers(0, 20)) :]
        size = data.draw(st.lists(st.integers(1, 4), max_size=3))
        stride = [data.draw(st.integers(1, 9)) for _ in size]
        found = found.as_strided(size, stride, found.storage_offset())
        if data.draw(st.booleans()):
            found = found.view(torch.int32) if found.dim() and stride[-1] == 1 else found
        dims = data.draw(st.permutations(range(found.dim())))
        return found.permute(dims)

    def bytes_of(one):
        words = one.itemsize // 4
        places = torch.arange(720)[: 720 // words * words]
        at = one.storage_offset() * words
        first = places.as_strided(one.shape, [words * step for step in one.stride()], at)
        return sorted(int(place) + word for place in first.flatten() for word in range(words))

    one, other = view(), view()
    if len(set(bytes_of(one))) == len(bytes_of(one)) and len(set(bytes_of(other))) == len(
        bytes_of(other)
    ):
        assert (elements(one) == elements(other)) == (bytes_of(one) == bytes_of(other))


@st.composite
def ranges(draw, count=12):
    found = []
    for _ in range(draw(st.integers(1, count))):
        begin = draw(st.integers(0, 20))
        found.append(Elements(0, begin, begin + draw(st.integers(0, 12)), draw(st.integers(1, 3))))
    return found


@given(ranges(), ranges())
def test_the_smallest_that_holds_a_range_is_found(held, asked):
    names = {one: f"name{i % 5}" for i, one in enumerate(held)}
    holders = _Holders(names)
    for drawn in asked:
        holding = [
            (one.end - one.begin, name)
            for one, name in names.items()
            if one.begin <= drawn.begin and drawn.end <= one.end
        ]
        assert holders.name(drawn) == (min(holding)[1] if holding else None)


class Place(int):
    """A number that counts how often it is compared."""

    compared = 0

    def __lt__(self, other):
        Place.compared += 1
        return int(self) < int(other)

    def __gt__(self, other):
        Place.compared += 1
        return int(self) > int(other)

    __le__ = None
    __hash__ = int.__hash__


def test_views_of_one_storage_are_found_by_few_comparisons():
    """A flat buffer of thousands, and each row of each asked for."""
    count = 4096
    names = {Elements(0, Place(0), Place(8 * count), 1): "all"}
    names |= {Elements(0, Place(8 * i), Place(8 * i + 8), 1): f"{i}" for i in range(count)}
    Place.compared = 0
    holders = _Holders(names)
    assert Place.compared <= 4 * count * math.log2(count) ** 2
    Place.compared = 0
    for i in range(count):
        assert holders.name(Elements(0, Place(8 * i + 2), Place(8 * i + 4), 1)) == f"{i}"
    assert Place.compared <= 2 * count * math.log2(count) ** 2
    assert holders.name(Elements(0, Place(6), Place(12), 1)) == "all"


def test_views_of_a_flat_buffer_have_their_names():
    flat = torch.empty(60)
    views = [("all", flat), *((f"{i}", flat[6 * i : 6 * i + 6]) for i in range(10))]
    for tensor, expected in [
        (flat, Name("all")),
        (flat[12:18], Name("2")),
        (flat[12:18].view(2, 3).t(), Name("2")),
        (flat[13:18], Name("2", 0)),
        (flat[11:18], Name("all", 0)),
        (flat[::2], Name("all", 0)),
        (torch.empty(6), None),
    ]:
        names = DrawNames((name, elements(view)) for name, view in views)
        assert names.of(elements(tensor)) == expected
