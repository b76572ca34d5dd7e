"""Keys derived from names, and the names of draws: section 7 of docs/streams.md."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

from torchinit.errors import ArgumentError, shown

# A seed's function from a name to its key.
KeyOfName: TypeAlias = Callable[[str], int]

_BYTES = 8


def check_seed(seed: Any) -> int:
    """Returns a seed modulo 2^64, as ``torch.manual_seed`` takes it.

    Raises:
        TypeError: if it is not an integer.
        ArgumentError: if it is outside -2^63 to 2^64 - 1.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed={shown(seed)} must be an integer, not {type(seed).__name__}")
    number = seed.__index__()
    if not -(2**63) <= number < 2**64:
        raise ArgumentError(f"seed={shown(seed)} must be within -2**63 and 2**64 - 1")
    return int(number) % 2**64


def keys_of_names(seed: int) -> KeyOfName:
    """Returns a seed's function from a name to its key, a signed 64-bit number.

    The key is the BLAKE2b hash (RFC 7693) of the name in UTF-8, 8 bytes long, keyed with the 8
    bytes of the seed; both are little-endian.
    """
    # Copying a hash that has taken in the seed is twice as fast as making a new one.
    copy = blake2b(digest_size=_BYTES, key=check_seed(seed).to_bytes(_BYTES, "little")).copy
    unpack = Struct("<q").unpack

    def key_of_name(name: str) -> int:
        state = copy()
        try:
            state.update(name.encode())
        except UnicodeEncodeError:
            raise ArgumentError(
                f"the name {name!r} is not Unicode text, so it has no key: rename the tensor"
            ) from None
        return unpack(state.digest())[0]  # type: ignore[no-any-return]

    return key_of_name


def part_of(name: str, ordinal: int) -> str:
    """The name of a numbered part of a parameter: one matrix of a stack, or one draw of several."""
    return f"{name}\0{ordinal}"


class Name(NamedTuple):
    """The name of a draw.

    Attributes:
        base: the name of a tensor or a module.
        ordinal: the number of the part; None for the full tensor.
    """

    base: str
    ordinal: int | None = None

    @property
    def text(self) -> str:
        """The text from which the key is derived."""
        return self.base if self.ordinal is None else part_of(self.base, self.ordinal)


class Elements(NamedTuple):
    """The elements of a tensor in its storage: equal for all views of the same elements.

    Attributes:
        storage: the identity of the storage.
        begin, end: the half-open range of bytes in it.
        nbytes: the bytes of its elements; of a DTensor, of the full tensor.
        steps: (stride, size) of its runs of bytes, from the innermost; empty without gaps.
    """

    storage: int
    begin: int
    end: int
    nbytes: int
    steps: tuple[tuple[int, int], ...] = ()


def elements_of(
    storage: int, size: Sequence[int], stride: Sequence[int], offset: int, itemsize: int
) -> Elements:
    """The elements of a tensor with the given geometry, in elements of ``itemsize`` bytes."""
    nbytes, begin = math.prod(size) * itemsize, offset * itemsize
    steps = [(1, itemsize)]  # equal for transposed and flattened views
    for step, count in sorted(zip(stride, size, strict=True)):
        inner, length = steps[-1]
        if step * itemsize == inner * length:
            steps[-1] = (inner, length * count)
        elif count != 1:
            steps.append((step * itemsize, count))
    if len(steps) == 1 or not nbytes:
        return Elements(storage, begin, begin + nbytes, nbytes)
    end = begin + 1 + sum(step * (count - 1) for step, count in steps)
    return Elements(storage, begin, end, nbytes, tuple(steps))


class _Holders:
    """The named elements of one storage, to find the smallest range that contains another.

    Sorted by begin, they are grouped as in a binary indexed tree, so those that begin early enough
    make up a few full groups. Each group is sorted by end, with the smallest range of every suffix.
    """

    def __init__(self, names: Mapping[Elements, str]) -> None:
        ordered = sorted(names)
        self._begins = [one.begin for one in ordered]
        groups: list[list[Elements]] = [[] for _ in range(len(ordered) + 1)]
        for i, one in enumerate(ordered, 1):
            while i < len(groups):
                groups[i].append(one)
                i += i & -i
        self._groups: list[tuple[list[int], list[tuple[int, str]]]] = []
        for group in groups:
            group.sort(key=lambda one: one.end)
            sizes = [(one.end - one.begin, names[one]) for one in reversed(group)]
            smallest = list(itertools.accumulate(sizes, min))
            self._groups.append(([one.end for one in group], smallest[::-1]))

    def name(self, drawn: Elements) -> str | None:
        """The name of the smallest range that contains a range; of equal ones, the first name."""
        found: list[tuple[int, str]] = []
        i = bisect.bisect_right(self._begins, drawn.begin)
        while i:
            ends, smallest = self._groups[i]
            first = bisect.bisect_left(ends, drawn.end)
            if first < len(ends):
                found.append(smallest[first])
            i -= i & -i
        return min(found)[1] if found else None


class DrawNames:
    """Names draws by the tensors that they fill, and numbers the parts of each name.

    Args:
        named: names with their elements; if elements have several names, the smallest is used.
        once: whether only the first draw into all of a tensor has its name, and later ones are
            parts of it; otherwise all have it.
    """

    def __init__(self, named: Iterable[tuple[str, Elements]], *, once: bool = False) -> None:
        self._counts: Counter[str] = Counter()
        self._once, self._used = once, set[str]()
        self.rename(named)

    def rename(self, named: Iterable[tuple[str, Elements]]) -> None:
        """Replaces the named tensors; the numbers of parts go on."""
        self._by_storage: dict[int, dict[Elements, str]] = {}
        self._holders: dict[int, _Holders] = {}
        for name, one in named:
            names = self._by_storage.setdefault(one.storage, {})
            names[one] = min(name, names.get(one, name))

    def of(self, drawn: Elements) -> Name | None:
        """The name of a draw into a named tensor or a part of one; None if it is neither."""
        names = self._by_storage.get(drawn.storage)
        if names is None:
            return None
        whole = names.get(drawn)
        if whole is not None and not (self._once and whole in self._used):
            self._used.add(whole)
            return Name(whole)
        if whole is None:
            if drawn.storage not in self._holders:
                self._holders[drawn.storage] = _Holders(names)
            whole = self._holders[drawn.storage].name(drawn)
        return None if whole is None else self.part(whole)

    def part(self, base: str) -> Name:
        """The next part of a name."""
        self._counts[base] += 1
        return Name(base, self._counts[base] - 1)
