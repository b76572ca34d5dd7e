"""What nvcc's PTX must and must not have for the bits of values to be those of the CPU.

A product or sum of floating point without .rn is one that ptxas may contract into a fused
multiply-add; .ftz takes subnormals for zeros; .approx is another number on every GPU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Instructions that are none of these but allowed, and why their values are the same anywhere.
ALLOWED: Mapping[str, str] = {
    "rcp.approx.ftz.f32": "whatever it gives, the quotient is right: tests/native/division.cpp",
}

# Those whose result is rounded, without the modifiers that say how.
_ROUNDED = {"add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", "rsqrt", "sin", "cos", "lg2",
            "ex2", "tanh"}  # fmt: skip
_INSTRUCTION = re.compile(r"\s*(?:@!?%\w+\s+)?([a-z][a-z0-9_.]*)(?:\s|$)")
_COMMENT = re.compile(r"//.*")


class Lint(NamedTuple):
    """What was found in one text.

    Attributes:
        kernels: how many there are.
        instructions: how many of each name.
        rounded: how many products, sums and quotients of floating point.
        wrong: the instructions that must not be there, how often each, and why.
    """

    kernels: int
    instructions: Counter[str]
    rounded: int
    wrong: dict[str, str]


def instructions_of(text: str) -> Iterator[str]:
    """The names of all instructions."""
    for statement in re.split(r"[;{}]|:\s", _COMMENT.sub("", text)):
        if match := _INSTRUCTION.match(statement):
            yield match[1]


def fault_of(name: str, allowed: Mapping[str, str] = ALLOWED) -> str:
    """Why an instruction must not be there; empty if it may."""
    parts = name.split(".")
    if name in allowed:
        return ""
    if "ftz" in parts:
        return "takes subnormals for zeros"
    if "approx" in parts or "full" in parts:
        return "is an approximation"
    is_float = re.fullmatch(r"f\d+|f16x2|bf16|bf16x2|tf32", parts[-1]) is not None
    if is_float and parts[0] in _ROUNDED and "rn" not in parts:
        return "has no .rn"
    return ""


def lint(text: str, allowed: Mapping[str, str] = ALLOWED) -> Lint:
    """Looks at a text of PTX."""
    counted = Counter(instructions_of(text))
    floats = (name for name in counted if re.search(r"\.f(16|32|64)$", name))
    rounded = sum(counted[name] for name in floats if name.split(".")[0] in _ROUNDED)
    wrong = {
        name: f"{name} ({times} times) {fault}"
        for name, times in counted.items()
        if (fault := fault_of(name, allowed))
    }
    return Lint(len(re.findall(r"^\s*(?:\.\w+ )*\.entry\s", text, re.M)), counted, rounded, wrong)
