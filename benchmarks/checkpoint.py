"""Times writing a checkpoint: plain writes of as many bytes, torchinit's, and safetensors' shards.

    python benchmarks/checkpoint.py                     # a Llama of 3.2 G parameters, 6.4 GB
    python benchmarks/checkpoint.py --small             # does it run?
    python benchmarks/checkpoint.py --folder /mnt/disk --rounds 5 --markdown table.md

Every measurement has its own process, and every round measures all ways in turn. The time ends when
the files are on the disk, except for `save_file`, which leaves them in the page cache; a separate
row has the time until they are on the disk. Files are removed after each measurement.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

GB = 10**9
SHARD = 5 * GB
LARGE: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = LARGE | {
    "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 1024, "num_hidden_layers": 4,
}  # fmt: skip
WAYS = {
    "direct": "plain write past the page cache, one thread",
    "ours": "`write_checkpoint`",
    "save_file": "`init_model_` and `save_file`, shard by shard",
    "synced": "the same, until it is on the disk",
}
PIECE = 1 << 26


def resident(which: str = "VmRSS") -> int:
    """Bytes of memory of this process, now or at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def shards_of(model: torch.nn.Module, small: bool) -> list[dict[str, torch.Size]]:
    """Names and shapes of the parameters of each shard."""
    limit = SHARD // 500 if small else SHARD
    shards: list[dict[str, torch.Size]] = [{}]
    size = 0
    for name, parameter in model.named_parameters():
        if size + 2 * parameter.numel() > limit:
            shards.append({})
            size = 0
        shards[-1][name] = parameter.shape
        size += 2 * parameter.numel()
    return shards


def write_direct(folder: Path, sizes: list[int]) -> None:
    """Zeros, in pieces."""
    memory = memoryview(mmap.mmap(-1, PIECE))
    memory[:] = bytes(PIECE)
    for number, size in enumerate(sizes):
        file = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | getattr(os, "O_DIRECT", 0))
        for begin in range(0, size, PIECE):
            count = -(-min(PIECE, size - begin) // 4096) * 4096
            os.pwrite(file, memory[:count], begin)
        os.ftruncate(file, size)
        os.fsync(file)
        os.close(file)


def save_shard(path: Path, shapes: dict[str, torch.Size], rules: dict[str, Any]) -> None:
    """One shard, in memory first."""
    from safetensors.torch import save_file

    import torchinit

    model = torch.nn.Module()
    for name, shape in shapes.items():
        *path_to, last = name.split(".")
        module = model
        for atom in path_to:
            if atom not in module._modules:
                module.add_module(atom, torch.nn.Module())
            module = module.get_submodule(atom)
        parameter = torch.nn.Parameter(torch.empty(shape, device="meta"))
        module.register_parameter(last, parameter)
    tied = {"model.embed_tokens.weight": "lm_head.weight"}
    torchinit.init_model_(
        model, rules, seed=0, dtype=torch.bfloat16, device="cpu", strict=False, rename=tied
    )
    save_file({n: p.detach() for n, p in model.named_parameters()}, path, {"format": "pt"})


def sync(folder: Path) -> None:
    """Flushes all files of a folder to the disk."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


def run_one(way: str, folder: Path, small: bool) -> dict[str, float]:
    """One measurement, in this process."""
    before = resident()
    from transformers import LlamaConfig, LlamaForCausalLM

    import torchinit

    def build() -> torch.nn.Module:
        with torch.device("meta"):
            return LlamaForCausalLM(LlamaConfig(**(SMALL if small else LARGE)))

    rules = {"**norm*.weight": "ones", "**": torchinit.Normal(0.02)}
    shards = shards_of(build(), small)
    imported = resident()
    cpu, start = os.times(), perf_counter()
    if way == "direct":
        sizes = [sum(2 * shape.numel() for shape in shapes.values()) for shapes in shards]
        write_direct(folder, sizes)
    elif way == "ours":
        torchinit.write_checkpoint(
            build, folder, rules, seed=0, dtype=torch.bfloat16,
            shard_size=SHARD // 500 if small else SHARD,
        )  # fmt: skip
    else:
        for number, shapes in enumerate(shards):
            save_shard(folder / f"{number}.safetensors", shapes, rules)
        if way == "synced":
            sync(folder)
    seconds, after = perf_counter() - start, os.times()
    sync(folder)
    return {
        "seconds": seconds,
        "cpu": after.user + after.system - cpu.user - cpu.system,
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "memory": resident("VmHWM") - before,
        "imported": imported - before,
    }


def measure(way: str, folder: Path, small: bool) -> dict[str, float]:
    """One measurement, in its own process."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, __file__, "--child", way, "--folder", place]
        child = subprocess.run(
            command + ["--small"] * small, capture_output=True, text=True, check=False
        )
        if child.returncode:
            raise SystemExit(child.stderr)
        found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
        return found


def table(samples: dict[str, list[dict[str, float]]]) -> str:
    """The rounds as Markdown: medians, with the least and the largest in brackets."""

    def spread(ratio: Callable[[int], float], rounds: int, digits: int = 2) -> str:
        values = [ratio(number) for number in range(rounds)]
        numbers = (median(values), min(values), max(values))
        middle, least, most = (f"{value:.{digits}f}" for value in numbers)
        return f"{middle} ({least} to {most})"

    lines = [
        "| way | seconds | times the plain write | CPU seconds | GB | MB of memory above torch's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, found in samples.items():
        rounds = len(found)
        cells = [
            WAYS[way],
            spread(lambda n, f=found: f[n]["seconds"], rounds),  # type: ignore[misc]
            spread(
                lambda n, f=found: f[n]["seconds"] / samples["direct"][n]["seconds"],  # type: ignore[misc]
                rounds,
            ),
            f"{median(one['cpu'] for one in found):.1f}",
            f"{found[0]['bytes'] / GB:.3f}",
            f"{max(one['memory'] for one in found) / 1e6:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    ours = samples["ours"]
    for way in ("save_file", "synced"):
        part = spread(
            lambda n, w=way: ours[n]["seconds"] / samples[w][n]["seconds"],  # type: ignore[misc]
            len(ours),
        )
        lines += ["", f"`write_checkpoint` takes {part} of the time of: {WAYS[way]}."]
    imported = max(one["imported"] for one in ours) / 1e6
    lines += ["", f"Of all memory, Transformers and torchinit themselves take {imported:,.0f} MB."]
    return "\n".join(lines)


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tens of megabytes, one round")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk; default: here")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_one(arguments.child, arguments.folder, arguments.small)))
        return
    needed = GB if arguments.small else 8 * GB
    if shutil.disk_usage(arguments.folder).free < needed:
        raise SystemExit(f"{arguments.folder} has not the {needed / GB:.0f} GB that this writes")
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(1 if arguments.small else arguments.rounds):
        order = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
        for way in order:
            samples[way].append(measure(way, arguments.folder, arguments.small))
    text = table(samples)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
