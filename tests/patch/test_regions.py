"""Names of tensors by where they lie."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchinit.patch.regions import ByteRange, Names, _Holders, byte_range_of


@st.composite
def regions(draw, count=12):
    found = []
    for _ in range(draw(st.integers(1, count))):
        begin = draw(st.integers(0, 20))
        found.append(ByteRange(0, begin, begin + draw(st.integers(0, 12)), draw(st.integers(1, 3))))
    return found


@given(regions(), regions())
def test_the_smallest_that_holds_a_region_is_found(held, asked):
    names = {region: f"name{i % 5}" for i, region in enumerate(held)}
    holders = _Holders(names)
    for region in asked:
        holding = [
            (one.end - one.begin, name)
            for one, name in names.items()
            if one.begin <= region.begin and region.end <= one.end
        ]
        assert holders.name(region) == (min(holding)[1] if holding else None)


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
    names = {ByteRange(0, Place(0), Place(8 * count), 1): "all"}
    names |= {ByteRange(0, Place(8 * i), Place(8 * i + 8), 1): f"{i}" for i in range(count)}
    Place.compared = 0
    holders = _Holders(names)
    assert Place.compared <= 4 * count * math.log2(count) ** 2
    Place.compared = 0
    for i in range(count):
        assert holders.name(ByteRange(0, Place(8 * i + 2), Place(8 * i + 4), 1)) == f"{i}"
    assert Place.compared <= 2 * count * math.log2(count) ** 2
    assert holders.name(ByteRange(0, Place(6), Place(12), 1)) == "all"


def test_views_of_a_flat_buffer_have_their_names():
    flat = torch.empty(60)
    names = Names([("all", flat), *((f"{i}", flat[6 * i : 6 * i + 6]) for i in range(10))])
    for tensor, whole, holding in [
        (flat, "all", "all"),
        (flat[12:18], "2", "2"),
        (flat[12:18].view(2, 3).t(), "2", "2"),
        (flat[13:18], None, "2"),
        (flat[11:18], None, "all"),
        (torch.empty(6), None, None),
    ]:
        region = byte_range_of(tensor, tensor.untyped_storage())
        assert names.whole(region) == whole
        assert names.holding(region) == holding
