"""Keys of random streams from names: a parameter's key is that of its name, wherever it stands."""

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
        TypeError: if it is no integer.
        ValueError: if it is outside -2^63 to 2^64 - 1.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed={seed!r} must be an integer, not {type(seed).__name__}")
    number = seed.__index__()
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"seed={seed} must be within -2**63 and 2**64 - 1")
    return int(number) % 2**64


def keys_of_names(seed: int) -> KeyOfName:
    """Returns the function from a name to its key, a signed number of 64 bits, under a seed.

    The key is the keyed hash BLAKE2b (RFC 7693) of the name in UTF-8, with digests of 8 bytes, the
    seed's 8 bytes being the hash's key; both little-endian.
    """
    # To copy a hash that has taken the seed in is twice as quick as to begin a new one.
    copy = blake2b(digest_size=_BYTES, key=check_seed(seed).to_bytes(_BYTES, "little")).copy
    unpack = Struct("<q").unpack

    def key_of_name(name: str) -> int:
        state = copy()
        state.update(name.encode())
        return unpack(state.digest())[0]  # type: ignore[no-any-return]

    return key_of_name


def part_of(name: str, ordinal: int) -> str:
    """The name of a numbered part of a parameter: a matrix of a stack, or a draw into a part."""
    return f"{name}\0{ordinal}"
