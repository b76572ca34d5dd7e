"""Times torchinit and other ways to fill weights in one run.

    python benchmarks/peers.py                                        # Markdown tables
    python benchmarks/peers.py --markdown benchmarks/results/peers.md
    python benchmarks/peers.py --quick                                # does it run?

Peers that are not installed (jax, timm, transformers), or without a CPU kernel in this torch
(torch.func._random), are named and skipped. All may use as many threads as torch; NumPy uses one.
Every round times all in turn, after one uncounted round, in which JAX compiles. Ratios are taken
within a round, and their median is quoted with the smallest and largest; calls of more than two
seconds are timed once.

torch, timm, Transformers and torchinit fill existing memory. JAX makes new arrays, and its
allocator reuses those of the previous round; NumPy fills its own buffer, and rounds to bfloat16
into another.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

import torchinit
from report import spread, table
from run import machine
from torchinit.cli.decoder import Decoder

STD = 0.02
CUT = 2.0  # stds
ELEMENTS = 2**24
SLOW = 2.0  # a call that takes more seconds is timed in one round only
LAWS = ("uniform", "normal", "trunc_normal")
DTYPES = (torch.float32, torch.bfloat16)
Shapes = list[tuple[int, ...]]
Call = Callable[[], object]


def _arguments(law: str) -> dict[str, float]:
    if law == "uniform":
        return {"a": -STD, "b": STD}
    cut = {"a": -CUT * STD, "b": CUT * STD} if law == "trunc_normal" else {}
    return {"mean": 0.0, "std": STD, **cut}


def _each(function: Callable[..., object], tensors: list[Tensor], law: str) -> Call:
    """Calls a function with torch.nn.init's interface on every tensor."""
    arguments = _arguments(law)

    def call() -> None:
        for tensor in tensors:
            function(tensor, **arguments)

    return call


def _torchinit(tensors: list[Tensor], law: str) -> Call:
    function = getattr(torchinit, f"{law}_")
    if len(tensors) == 1:
        return _each(function, tensors, law)

    def call() -> None:
        with torchinit.batch():
            _each(function, tensors, law)()

    return call


def _torch(tensors: list[Tensor], law: str) -> Call:
    return _each(getattr(torch.nn.init, f"{law}_"), tensors, law)


def _torch_stateless(tensors: list[Tensor], law: str) -> Call | None:
    """The in-place functions of torch 2.14 with explicit keys, for two distributions."""
    random = importlib.import_module("torch.func._random")
    key = random.key(0)
    if law == "trunc_normal":
        return None

    def call() -> None:
        for number, tensor in enumerate(tensors):
            mine = random.fold_in(key, number)
            if law == "normal":
                random.normal_(mine, tensor, mean=0.0, std=STD)
            else:
                random.uniform_(mine, tensor, low=-STD, high=STD)

    return call


def _timm(tensors: list[Tensor], law: str) -> Call | None:
    weight_init = importlib.import_module("timm.layers.weight_init")
    return _each(weight_init.trunc_normal_, tensors, law) if law == "trunc_normal" else None


def _transformers(tensors: list[Tensor], law: str) -> Call:
    module = importlib.import_module("transformers.initialization")
    return _each(getattr(module, f"{law}_"), tensors, law)


def _jax(tensors: list[Tensor], law: str, implementation: str) -> Call:
    jax = importlib.import_module("jax")
    dtype = getattr(jax.numpy, str(tensors[0].dtype).removeprefix("torch."))
    initializers = jax.nn.initializers
    function = {
        "uniform": lambda: initializers.uniform(2 * STD),  # from 0 on, for the same work
        "normal": lambda: initializers.normal(STD),
        "trunc_normal": lambda: initializers.truncated_normal(STD, lower=-CUT, upper=CUT),
    }[law]()
    shapes = [tuple(tensor.shape) for tensor in tensors]

    @jax.jit  # type: ignore[untyped-decorator]
    def fill(key: Any) -> list[Any]:
        keys = jax.random.split(key, len(shapes))
        return [function(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)]

    key = jax.random.key(0, impl=implementation)
    return lambda: jax.block_until_ready(fill(key))


def _numpy(tensors: list[Tensor], law: str) -> Call | None:
    """NumPy has no truncated normal; SciPy's takes seconds."""
    if law == "trunc_normal":
        return None
    generator = np.random.default_rng(0)
    memory = np.empty(max(tensor.numel() for tensor in tensors), np.float32)

    def call() -> None:
        for tensor in tensors:
            values = memory[: tensor.numel()]
            if law == "normal":
                generator.standard_normal(dtype=np.float32, out=values)
                values *= STD
            else:
                generator.random(dtype=np.float32, out=values)
                values *= 2 * STD
                values -= STD
            if tensor.dtype != torch.float32:
                tensor.view(-1).copy_(torch.from_numpy(values))

    return call


def _zero(tensors: list[Tensor], _law: str) -> Call:
    def call() -> None:
        for tensor in tensors:
            tensor.zero_()

    return call


PEERS: dict[str, Callable[[list[Tensor], str], Call | None]] = {
    "`zero_`": _zero,
    "torchinit": _torchinit,
    "`torch.nn.init`": _torch,
    "`torch.func._random`": _torch_stateless,
    "JAX, threefry": partial(_jax, implementation="threefry2x32"),
    "JAX, rbg": partial(_jax, implementation="rbg"),
    "NumPy": _numpy,
    "timm": _timm,
    "Transformers": _transformers,
}


def _calls(tensors: list[Tensor], law: str, missing: dict[str, str]) -> Iterator[tuple[str, Call]]:
    for name, make in PEERS.items():
        try:
            call = make(tensors, law)
            if call is not None:
                call()
                yield name, call
        except (ImportError, AttributeError, NotImplementedError) as error:
            missing[name] = str(error).split(". ", 1)[0]


def _measure(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, round by round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if times[name] and times[name][0] > SLOW:
                continue
            start = perf_counter()
            call()
            times[name].append(perf_counter() - start)
    return times


def _over_ours(times: dict[str, list[float]], name: str) -> str:
    ratios = [t / ours for t, ours in zip(times[name], times["torchinit"], strict=False)]
    return f"{spread(ratios)}"


def measured(what: dict[str, Shapes], rounds: int) -> str:
    """A Markdown table: seconds for a billion elements, and ratios to torchinit's time."""
    missing: dict[str, str] = {}
    rows = []
    for title, shapes in what.items():
        for dtype in DTYPES:
            for law in LAWS:
                tensors = [torch.zeros(shape, dtype=dtype) for shape in shapes]
                count = sum(tensor.numel() for tensor in tensors)
                times = _measure(dict(_calls(tensors, law, missing)), rounds)
                print(f"{title} {dtype} {law}", file=sys.stderr, flush=True)
                rows += [
                    [
                        title,
                        f"{law}, {str(dtype).removeprefix('torch.')}",
                        name,
                        f"{median(seconds) / count * 1e9:.2f}",
                        _over_ours(times, name),
                    ]
                    for name, seconds in times.items()
                ]
    header = ["what", "law", "by", "ns an element", "time over torchinit's"]
    said = "".join(f"\n\nNot measured: {name}: {why}." for name, why in missing.items())
    return table(header, rows) + said


def _of_model(layers: int, width: int) -> Shapes:
    with torch.device("meta"):
        model = Decoder(50257 if width > 64 else 512, 1024, width, layers, width // 64 or 1)
    return [tuple(p.shape) for p in model.parameters() if p.dim() > 1]


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--quick", action="store_true", help="small tensors, two rounds")
    options = parser.parse_args()
    if options.quick:
        sizes: dict[str, Shapes] = {"one tensor": [(64, 64)], "a model": _of_model(2, 32)}
        options.rounds = 2
    else:
        sizes = {
            "one tensor, 16 Mi": [(ELEMENTS // 1024, 1024)],
            "one tensor, 1 Mi": [(1024, 1024)],
            "matrices of a GPT-2 of 1 layer, 46 M": _of_model(1, 768),
        }
    about = machine()
    versions = [f"{name} {_version(name)}" for name in ("jax", "numpy", "timm", "transformers")]
    text = (
        f"{about['cpu']}, {torch.get_num_threads()} threads, torch {about['torch']}, "
        f"{', '.join(versions)}, {about['instruction_set']}, {about['date']}. Median of "
        f"{options.rounds} rounds, smallest and largest in brackets.\n\n"
        f"{measured(sizes, options.rounds)}"
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


def _version(name: str) -> str:
    try:
        return str(importlib.import_module(name).__version__)
    except ImportError:
        return "missing"


if __name__ == "__main__":
    main()
