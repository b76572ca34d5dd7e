"""The cost of one rank of a sharded model: boxes, time and memory, at any scale.

    python benchmarks/shards.py                                   # Markdown
    python benchmarks/shards.py --markdown benchmarks/results/shards.md

Ranks do not communicate, so one of 4096 can be timed alone: its boxes of a Llama 70B are found and
filled without a process group. Measurements that need real processes (memory, two ranks on two
cores) start some over gloo.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn

import torchinit
from llama_70b import Layout, Owned, fill, owned_by
from report import spread, table
from run import machine

LARGE = 1 << 30  # if a rank's shards have more bytes, all share one memory


SCALES = [
    Layout(1, 8, 1),
    *(Layout(1, ranks // tp, tp) for ranks in (64, 512, 1024, 4096) for tp in (1, 8)),
    *(Layout(4, ranks // 32, 8) for ranks in (512, 1024, 4096)),
]  # fmt: skip


def size_of(boxes: list[Owned]) -> int:
    """Bytes of boxes in bfloat16."""
    return 2 * sum(math.prod(box.piece.size) for box in boxes)


def memory_of(boxes: list[Owned]) -> list[Tensor]:
    """Fresh memory for each box; one memory for all if it would be too much."""
    if size_of(boxes) <= LARGE:
        return [torch.empty(box.piece.size, dtype=torch.bfloat16) for box in boxes]
    again = torch.empty(max(math.prod(box.piece.size) for box in boxes), dtype=torch.bfloat16)
    return [again[: math.prod(box.piece.size)].view(box.piece.size) for box in boxes]


def timed(call: Callable[[], object]) -> float:
    """Seconds of CPU time."""
    gc.collect()
    start = process_time()
    call()
    return process_time() - start


def fill_all(boxes: list[Owned]) -> None:
    """Every box of a rank."""
    for box, memory in zip(boxes, memory_of(boxes), strict=True):
        fill(memory, box)


def zero_all(boxes: list[Owned]) -> None:
    """The same memory, zeroed."""
    for memory in memory_of(boxes):
        memory.zero_()


def scale_table(layouts: list[Layout], rounds: int) -> str:
    """Boxes, memory and time of ranks."""
    torch.set_num_threads(1)
    rows = []
    for layout in sorted(layouts, key=math.prod):
        ranks = math.prod(layout)
        counts, sizes, times = [], [], []
        for rank in (0, ranks // 2 - 1, ranks - 1):
            boxes = owned_by(layout, rank)
            counts.append(str(len(boxes)))
            sizes.append(size_of(boxes))
            if rank and sizes[-1] > LARGE:
                continue
            calls: list[Callable[[], object]] = [
                partial(owned_by, layout, rank),
                partial(fill_all, boxes),
                partial(zero_all, boxes),
            ]
            repeats = 1 if sizes[-1] > LARGE else rounds
            times.append([min(timed(call) for _ in range(repeats)) for call in calls])
        finding, filling, zeroing = (max(each) for each in zip(*times, strict=True))
        rows.append(
            [
                f"{ranks:,}",
                str(layout),
                ", ".join(counts),
                ", ".join(f"{size / 2**20:,.0f}" for size in sizes),
                f"{1e3 * finding:.1f}",
                f"{filling:.3f}",
                f"{zeroing:.3f}",
            ]
        )
    header = [
        "ranks", "layout", "boxes of the first, middle and last rank", "MiB", "found, ms",
        "filled, s", "zeroed, s",
    ]  # fmt: skip
    return table(header, rows)


# From here on: real processes.


def resident(what: str) -> int:
    """Bytes of this process's memory: now (VmRSS), or at its peak (VmHWM)."""
    found = re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def held(model: nn.Module) -> int:
    """Bytes of this process's part of a model."""
    return sum(
        (each.to_local() if isinstance(each, DTensor) else each).nbytes
        for each in model.parameters()
    )


def llama(layers: int) -> nn.Module:
    """A Llama on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=layers,
        num_attention_heads=16,
        vocab_size=32000,
    )
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(config)
    return model


def shard(model: nn.Module) -> nn.Module:
    """FSDP2 over all ranks, layer by layer."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def measure_memory(layers: int) -> dict[str, int]:
    """Increase of peak memory by init_model_, and the bytes of the shards."""
    torchinit.init_model_(shard(llama(1)), seed=0)  # imports and one-time allocations
    gc.collect()
    model = shard(llama(layers))
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    torchinit.init_model_(model, seed=0)
    return {
        "peak": resident("VmHWM") - before,
        "shards": held(model),
        "parameters": sum(each.numel() for each in model.parameters()),
    }


def measure_threads(elements: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a fill by two ranks of one thread, and by the first alone with two threads."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.zeros(elements // 1024, 1024)
    sharded = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
    sharded.to_local().zero_()  # resident
    times: dict[str, list[float]] = {"two ranks": [], "one process": []}
    for round_ in range(rounds + 1):
        torch.set_num_threads(1)
        dist.barrier()
        start = perf_counter()
        torchinit.normal_(sharded, generator=torch.Generator().manual_seed(0))
        spent = torch.tensor(perf_counter() - start)
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        alone = 0.0
        if rank == 0:
            torch.set_num_threads(2)
            start = perf_counter()
            torchinit.normal_(whole, generator=torch.Generator().manual_seed(0))
            alone = perf_counter() - start
        dist.barrier()
        if round_:
            times["two ranks"].append(float(spent))
            times["one process"].append(alone)
    return times


def measure_small(count: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU time per parameter from the meta device, for DTensors and plain ones."""

    def build(*, sharded: bool) -> nn.Module:
        with torch.device("meta"):
            model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(count)))
        if sharded:
            fully_shard(model, mesh=mesh)
        return model

    mesh = init_device_mesh("cpu", (1,))
    rules = {"**": torchinit.Normal(0.02)}
    times: dict[str, list[float]] = {"plain": [], "DTensors": [], "to_empty of DTensors": []}
    for round_ in range(rounds + 1):
        plain, sharded, emptied = build(sharded=False), build(sharded=True), build(sharded=True)
        calls = {
            "plain": lambda: torchinit.init_model_(plain, rules, seed=0),  # noqa: B023
            "DTensors": lambda: torchinit.init_model_(sharded, rules, seed=0),  # noqa: B023
            "to_empty of DTensors": lambda: emptied.to_empty(device="cpu"),  # noqa: B023
        }
        for name, call in calls.items():
            seconds = timed(call)
            if round_:
                times[name].append(1e6 * seconds / count)
    return times


MEASURES: dict[str, Callable[..., Any]] = {
    "memory": measure_memory,
    "threads": measure_threads,
    "small": measure_small,
}


def _rank(rank: int, world: int, folder: str, what: str, arguments: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=5),
    )
    (Path(folder) / f"{rank}.json").write_text(json.dumps(MEASURES[what](*arguments)))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(world: int, what: str, *arguments: int) -> list[Any]:
    """The measurements of each rank of a world of new processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (world, folder, what, arguments), nprocs=world)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]


def memory_table(worlds: list[int], layers: int) -> str:
    """Peak memory of real ranks."""
    rows = []
    for world in worlds:
        for rank, found in enumerate(on_ranks(world, "memory", layers)):
            rows.append(
                [
                    f"{rank} of {world}",
                    f"{found['parameters'] / 1e6:.1f} M",
                    f"{found['shards'] / 2**20:.1f}",
                    f"{found['peak'] / 2**20:.1f}",
                    f"{found['peak'] / found['shards']:.3f}",
                ]
            )
    header = [
        "rank",
        "parameters",
        "its shards, MiB",
        "peak above the process before, MiB",
        "ratio",
    ]
    return table(header, rows)


def threads_line(elements: int, rounds: int) -> str:
    """Two ranks against two threads."""
    times = on_ranks(2, "threads", elements, rounds)[0]
    two, one = times["two ranks"], times["one process"]
    ratios = [a / b for a, b in zip(two, one, strict=True)]
    return (
        f"`normal_` of {elements / 2**20:g} Mi float32 elements, {rounds} rounds in turn: two "
        f"ranks of one thread took {spread(ratios)} of the time of one process of two threads, "
        f"round by round; best against best {min(two) / min(one):.2f}."
    )


def small_table(count: int, rounds: int) -> str:
    """The cost of Python code per parameter."""
    times = on_ranks(1, "small", count, rounds)[0]
    rows = [
        [name, f"{min(each):.1f}", f"{median(each):.1f}", f"{max(each):.1f}"]
        for name, each in times.items()
    ]
    title = f"{count:,} parameters of 64x64 from the meta device, µs of CPU time each"
    return table([title, "best", "median", "largest"], rows)


def scale_section(quick: bool) -> str:
    """One rank of many."""
    return (
        "## One rank of many\n\n"
        "A Llama 70B (70.55 G values in 723 parameters, bfloat16, truncated normal), filled by "
        "`init_shard_`: one thread, no process group; seconds of CPU time. The slowest of three "
        "ranks, each at its best of several rounds, so in pages that were touched before; of "
        "shards above 1 GiB, the first rank's, once, in one memory for all. `zeroed` is the same "
        "by `zero_`.\n\n"
        f"{scale_table(SCALES[-1:] if quick else SCALES, 1 if quick else 3)}"
    )


def memory_section(quick: bool) -> str:
    """Peak memory."""
    return (
        "## Peak memory\n\n"
        "Real processes over gloo: `init_model_` of a Llama under `fully_shard`, float32, from the "
        f"meta device.\n\n{memory_table([2] if quick else [2, 4], 1 if quick else 20)}"
    )


def threads_section(quick: bool) -> str:
    """Two ranks and two threads."""
    found = threads_line(2**20 if quick else 2**26, 2 if quick else 60)
    return f"## Two ranks and two threads\n\n{found}"


def small_section(quick: bool) -> str:
    """The cost of Python code per parameter, as a section."""
    found = small_table(100 if quick else 2000, 2 if quick else 7)
    return f"## Python, a parameter\n\n{found}"


SECTIONS: dict[str, Callable[[bool], str]] = {
    "scale": scale_section,
    "memory": memory_section,
    "threads": threads_section,
    "small": small_section,
}


def main() -> None:
    """Measures, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of it, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--markdown", type=Path, help="where to put the page, too")
    arguments = parser.parse_args()
    about = machine()
    page = [
        f"{about['cpu']}, {about['cores']} cores that others use too, torch {about['torch']}, "
        f"{about['instruction_set']}, {about['date']}."
    ]
    print(page[0], flush=True)
    for name in arguments.only:
        page.append(SECTIONS[name](arguments.quick))
        print(f"\n{page[-1]}", flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
