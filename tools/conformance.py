"""Whether the values of an init function depend on anything but the seed and the position.

    python tools/conformance.py torch.nn.init:normal_ my_init.py:fill_

Prints a table, a column for each function. The exit code is 0 if all values are independent, 1 if
some are not, 2 if a function cannot be loaded or run. Needs torch alone; docs/conformance.md says
what is checked.

A function is called as f(tensor) and fills in place; it takes its random numbers from torch's
default generator, which is seeded before. If it has parameters of these names it is given them too:
seed (the number), name (of the parameter), and for a shard global_shape and offset (its place).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn

SEED, NAME, OTHER = 1234, "layers.1.weight", "layers.0.weight"
MATRIX, KERNEL, LARGE = (46, 33), (12, 6, 3, 5), (311, 1009)
SECONDS = 120  # for the other processes

# What is compared, how to get the values, and those that should be there.
Compared = tuple[str, Callable[[], Tensor], Tensor]
# What differs or fails; the share of elements that differ and the largest difference; the error.
Fault = tuple[str, float, float, str]


class Subject:
    """The function under test.

    Args:
        spec: "module:function" or "path/to/file.py:function".
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        source, separator, name = spec.rpartition(":")
        if not separator:
            raise ValueError(f"{spec!r} must be module:function or file.py:function")
        if source.endswith(".py"):
            # Not by its stem, which may be the name of a module; dataclasses look for their module.
            found = importlib.util.spec_from_file_location(f"under test {source}", source)
            if found is None or found.loader is None or not Path(source).is_file():
                raise ValueError(f"{spec!r}: there is no file {source}")
            module = sys.modules[found.name] = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
        self.function: Callable[..., Any] = getattr(module, name)
        self.accepts = set(inspect.signature(self.function).parameters)
        left = int(self.seeded(torch.full(MATRIX, torch.nan)).isnan().sum())
        if left:  # what is not written never differs
            raise ValueError(f"{spec} leaves {left} of {MATRIX[0] * MATRIX[1]} values unwritten")

    @property
    def takes_boxes(self) -> bool:
        """Whether it can be told the place of a shard."""
        return {"global_shape", "offset"} <= self.accepts

    def fill(self, tensor: Tensor, name: str = NAME, **place: Any) -> Tensor:
        """Calls it on a tensor, without seeding."""
        given = {"seed": SEED, "name": name, **place}
        with torch.no_grad():
            self.function(tensor, **{key: given[key] for key in given.keys() & self.accepts})
        return tensor

    def seeded(self, tensor: Tensor, **place: Any) -> Tensor:
        """As the first fill after the seed."""
        torch.manual_seed(SEED)
        return self.fill(tensor, **place)

    def plain(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A new contiguous tensor, filled first."""
        return self.seeded(torch.zeros(shape, dtype=dtype))


def again(subject: Subject) -> Iterator[Compared]:
    """The same call twice."""
    yield "twice", lambda: subject.plain(MATRIX), subject.plain(MATRIX)


def threads(subject: Subject) -> Iterator[Compared]:
    """Numbers of threads."""
    before = torch.get_num_threads()

    def on(count: int) -> Tensor:
        torch.set_num_threads(count)
        try:
            return subject.plain(LARGE)
        finally:
            torch.set_num_threads(before)

    for count in (2, 7):
        yield f"{count} threads", partial(on, count), on(1)


def sizes(subject: Subject) -> Iterator[Compared]:
    """Another layer before, of two sizes."""

    def after(*shape: int) -> Tensor:
        subject.seeded(torch.zeros(shape), name=OTHER)
        return subject.fill(torch.zeros(MATRIX))

    yield "a larger layer before", partial(after, 40, 31), after(3, 5)


def order(subject: Subject) -> Iterator[Compared]:
    """Another layer before, or none."""

    def second() -> Tensor:
        subject.seeded(torch.zeros(MATRIX), name=OTHER)
        return subject.fill(torch.zeros(MATRIX))

    yield "second", second, subject.plain(MATRIX)


def layout(subject: Subject) -> Iterator[Compared]:
    """The same logical tensor in other memory."""
    matrix, kernel = subject.plain(MATRIX), subject.plain(KERNEL)
    rows, columns = MATRIX
    memories = {
        "transposed": torch.zeros(columns, rows).t(),
        "every second column": torch.zeros(rows, 2 * columns)[:, ::2],
        "padded rows": torch.zeros(rows, columns + 7)[:, 3:-4],
        "from element 1": torch.zeros(rows * columns + 9)[1:-8].view(rows, columns),
    }
    for name, memory in memories.items():
        yield name, partial(subject.seeded, memory), matrix
    last = torch.zeros(KERNEL).to(memory_format=torch.channels_last)
    yield "channels last", partial(subject.seeded, last), kernel


def beside(subject: Subject) -> Iterator[Compared]:
    """The elements of a storage that are not the tensor's."""
    rows, columns = MATRIX
    memory = torch.full((3 * rows, columns), 9.0)

    def around(cut: slice) -> Tensor:
        subject.seeded(memory[cut]).fill_(9.0)
        return memory

    yield "around rows", partial(around, slice(rows, 2 * rows)), memory.clone()
    yield "between rows", partial(around, slice(None, None, 3)), memory.clone()


def narrow(subject: Subject) -> Iterator[Compared]:
    """Narrow dtypes against the rounded float32 fill."""
    for shape in (MATRIX, KERNEL):
        for dtype in (torch.bfloat16, torch.float16):
            right = subject.plain(shape).to(dtype)
            yield str(dtype).removeprefix("torch."), partial(subject.plain, shape, dtype), right


def boxes(subject: Subject) -> Iterator[Compared]:
    """Shards that are filled alone, by global_shape and offset."""
    for shape in (MATRIX, KERNEL):
        whole = subject.plain(shape)
        for offset, size in (((0, 0), (13, 3)), ((9, 2), (3, 3)), ((11, 5), (1, 1))):
            at, to = (*offset, *[0] * (len(shape) - 2)), (*size, *shape[2:])
            to = tuple(min(n, side - o) for n, side, o in zip(to, shape, at, strict=True))
            place = tuple(slice(o, o + n) for o, n in zip(at, to, strict=True))
            fill = partial(subject.seeded, torch.zeros(to), global_shape=shape, offset=at)
            yield f"{to} at {at}", fill, whole[place]


CHECKS: dict[str, Callable[[Subject], Iterator[Compared]]] = {
    "the same call again": again,
    "number of threads": threads,
    "sizes of other layers": sizes,
    "order of layers": order,
    "memory layout": layout,
    "memory beside the tensor": beside,
    "narrow dtype = rounded float32": narrow,
    "shards, by global_shape and offset": boxes,
}
PROCESS, PROCESSOR = "another process", "instruction set"
DTENSOR = "shards, as DTensors"


def faults(compared: Iterator[Compared]) -> list[Fault]:
    """What differs or fails in a check."""
    found: list[Fault] = []
    try:
        for what, fill, right in compared:
            try:
                values = fill()
            except Exception as error:
                found.append((what, 0.0, 0.0, type(error).__name__))
                continue
            wrong, apart = values != right, (values.double() - right.double()).abs()
            if wrong.any():
                found.append((what, float(wrong.double().mean()), float(apart.max()), ""))
    except Exception as error:  # of what there is to compare with
        found.append(("", 0.0, 0.0, type(error).__name__))
    return found


def cell_of(found: list[Fault]) -> str:
    """A cell of the table: the worst."""
    if not found:
        return "same"
    what, share, apart, error = max(found, key=lambda one: one[1])
    if share:
        percent = float(f"{100 * share:.2g}")
        return f"{what}: {percent:g} % differ, by up to {apart:.0g}"
    return f"{what}: {error}" if what else error


def as_dtensors(subject: Subject) -> Iterator[Compared]:
    """This rank's shards of DTensors, and what an unsharded fill has there."""
    count = dist.get_world_size()
    meshes = [(count,)] + ([(2, count // 2)] if count > 2 and count % 2 == 0 else [])
    for shape in (MATRIX, KERNEL):
        whole = subject.plain(shape)
        positions = torch.arange(whole.numel()).view(shape)
        for sides in meshes:
            mesh = init_device_mesh("cpu", sides)
            ways: list[tuple[Any, ...]] = [(Shard(0),), (Shard(1),), (Replicate(),)]
            if len(sides) == 2:
                ways = [(Shard(0), Shard(1)), (Shard(0), Shard(0)), (Replicate(), Shard(0))]
            for placements in ways:
                mine = distribute_tensor(positions, mesh, placements).to_local()
                name = ", ".join(map(str, placements))
                fill = partial(_local, subject, shape, mesh, placements)
                yield name, fill, whole.flatten()[mine]


def _local(subject: Subject, shape: tuple[int, ...], mesh: DeviceMesh, placements: Any) -> Tensor:
    tensor = distribute_tensor(torch.zeros(shape), mesh, placements)
    return subject.seeded(tensor).to_local()  # type: ignore[attr-defined,no-any-return]


def run_rank(rank: int, specs: list[str], count: int, folder: Path) -> None:
    """One rank of a world: writes what differs on it."""
    warnings.filterwarnings("ignore", "DTensor random operators")
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=SECONDS), count, rank)
    found = [faults(as_dtensors(Subject(spec))) for spec in specs]
    (folder / str(rank)).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def in_world(specs: list[str], count: int) -> list[str]:
    """The cells of the row of DTensors, from a world of processes on this machine.

    A function that ends a process, or that some ranks leave early, ends the world of all: then each
    has a world of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = spawn(run_rank, (specs, count, Path(folder)), count, join=False)
        late = threading.Timer(SECONDS, lambda: [one.kill() for one in ranks.processes])
        late.start()
        try:
            while not ranks.join():
                pass
        except Exception as error:
            if len(specs) > 1:
                return [cell for spec in specs for cell in in_world([spec], count)]
            return [str(error).strip().rpartition("\n")[2]]
        finally:
            late.cancel()
        found = [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(count)]
    return [cell_of([*chain(*of_ranks)]) for of_ranks in zip(*found, strict=True)]


def in_another_process(subjects: list[Subject], **variables: str) -> list[str]:
    """The cells of a row of processes with other variables of the environment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.pt"
        specs = [subject.spec for subject in subjects]
        command = [sys.executable, __file__, *specs, "--values", str(path)]
        subprocess.run(command, env=os.environ | variables, check=True)
        theirs = torch.load(path)
    return [
        cell_of(faults(iter([("values", partial(subject.plain, MATRIX), values)])))
        for subject, values in zip(subjects, theirs, strict=True)
    ]


def table(subjects: list[Subject], ranks: int, variables: dict[str, str]) -> dict[str, list[str]]:
    """The cells of every row."""
    rows = {
        PROCESS: in_another_process(subjects, PYTHONHASHSEED="77"),
        PROCESSOR: in_another_process(subjects, ATEN_CPU_CAPABILITY="default", **variables),
    }
    for name, check in CHECKS.items():
        rows[name] = [
            cell_of(faults(check(subject)))
            if check is not boxes or subject.takes_boxes
            else "no such arguments"
            for subject in subjects
        ]
    rows[DTENSOR] = in_world([subject.spec for subject in subjects], ranks)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Runs the checks, prints the table, returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("functions", nargs="+", help="module:function or file.py:function")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE",
        help="a variable by which the function takes an older instruction set, as torch does by "
        "ATEN_CPU_CAPABILITY=default",
    )  # fmt: skip
    parser.add_argument("--ranks", type=int, default=4, help="processes that share a DTensor (4)")
    parser.add_argument("--values", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.ranks < 1:
        parser.error(f"--ranks={given.ranks} must be positive")
    try:
        subjects = [Subject(spec) for spec in given.functions]
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if given.values:
        torch.save([subject.plain(MATRIX) for subject in subjects], given.values)
        return 0
    try:
        rows = table(subjects, given.ranks, dict(one.split("=", 1) for one in given.env))
    except (subprocess.CalledProcessError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    lines = [["", *(subject.spec for subject in subjects)]]
    lines += [[name, *cells] for name, cells in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        print("| " + " | ".join(map(str.ljust, line, widths)) + " |")
    fine = {"same", "no such arguments"}
    return int(any(cell not in fine for cells in rows.values() for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
