"""Keys derived from names: a parameter's key depends only on its name and the seed."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from struct import Struct
from typing import Any, TypeAlias

# A seed's function from a name to its key.
KeyOfName: TypeAlias = Callable[[str], int]

_BYTES = 8


def check_seed(seed: Any) -> int:
    """Returns a seed modulo 2^64, as ``torch.manual_seed`` takes it.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is outside -2^63 to 2^64 - 1.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed={seed!r} must be an integer, not {type(seed).__name__}")
    number = seed.__index__()
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"seed={seed} must be within -2**63 and 2**64 - 1")
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
        state.update(name.encode())
        return unpack(state.digest())[0]  # type: ignore[no-any-return]

    return key_of_name


def part_of(name: str, ordinal: int) -> str:
    """The name of a numbered part of a parameter: one matrix of a stack, or one draw of several."""
    return f"{name}\0{ordinal}"
