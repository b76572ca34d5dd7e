"""Quantised fills: bits beside other libraries, time beside a bfloat16 fill, and memory.

    python benchmarks/quantised.py bits      needs torchao, and compressed-tensors if installed
    python benchmarks/quantised.py time      one thread, medians of interleaved rounds
    python benchmarks/quantised.py memory    peaks of resident memory, one process each
    python benchmarks/quantised.py llama     all weights of a Llama of 1.2 billion parameters

Prints the tables of benchmarks/results/quantised.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import torchinit
from torchinit import MXFP8, NVFP4, FP8Blocks

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

SHAPE = (8192, 8192)
FORMATS = {
    "MXFP8": MXFP8(),
    "MXFP8 floor": MXFP8("floor"),
    "FP8 128x128": FP8Blocks(),
    "FP8 128x128 ue8m0": FP8Blocks(scale="ue8m0"),
    "NVFP4 16x16": NVFP4(rows=16),
    "NVFP4 1x16": NVFP4(),
    "NVFP4 1x16 measured": NVFP4(amax="measured"),
}


def memory_for(form: Any, shape: tuple[int, ...]) -> tuple[Tensor, Any]:
    """Payload and scales."""
    payload = torch.zeros(form.payload_shape(shape), dtype=form.payload_dtypes[0])
    scales = torch.zeros(form.scales_shape(shape), dtype=next(iter(form.scale_dtypes)))
    return payload, (scales, torch.zeros(1)) if form.has_whole else scales


def fill(form: Any, payload: Tensor, scales: Any, rule: Any, shape: tuple[int, ...]) -> None:
    """A quantised fill of a whole weight."""
    torchinit.init_shard_(
        payload, rule, global_shape=shape, offset=(0, 0), seed=0, name="w", format=form,
        scales=scales,
    )  # fmt: skip


def masters(rule: Any, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of the same key."""
    made = torch.empty(shape, dtype=dtype)
    torchinit.init_shard_(made, rule, global_shape=shape, offset=(0, 0), seed=0, name="w")
    return made


# Bits.


Quantiser = Callable[[Tensor], tuple[Tensor, Tensor]]


def of_torchao() -> dict[str, tuple[Any, Quantiser]]:
    """Torchao's casts of MXFP8 and NVFP4."""
    import torchao
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

    def by_mode(mode: Any) -> Quantiser:
        return lambda values: to_mx(values, torch.float8_e4m3fn, 32, mode)[::-1]

    def four(values: Tensor) -> tuple[Tensor, Tensor]:
        whole = per_tensor_amax_to_scale(values.abs().max())
        scales, data = nvfp4_quantize(values, per_tensor_scale=whole)
        return data, scales

    title = f"torchao {torchao.__version__}"
    return {
        f"{title} to_mx, RCEIL": (MXFP8(), by_mode(ScaleCalculationMode.RCEIL)),
        f"{title} to_mx, FLOOR": (MXFP8("floor"), by_mode(ScaleCalculationMode.FLOOR)),
        f"{title} nvfp4_quantize": (NVFP4(amax="measured"), four),
    }


def of_transformers() -> dict[str, tuple[Any, Quantiser]]:
    """Transformers' quantiser of FP8 blocks."""
    import transformers
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    def by(scale: str) -> Quantiser:
        config = SimpleNamespace(weight_block_size=(128, 128), scale_fmt=scale)
        quantiser: Any = Fp8Quantize(  # type: ignore[no-untyped-call]
            SimpleNamespace(quantization_config=config)
        )

        def make(values: Tensor) -> tuple[Tensor, Tensor]:
            made = quantiser._quantize_one("a.weight", values)
            return made["a.weight"], made["a.weight_scale_inv"]

        return make

    title = f"Transformers {transformers.__version__} Fp8Quantize"
    return {
        f"{title}, ue8m0": (FP8Blocks(scale="ue8m0"), by("ue8m0")),
        title: (FP8Blocks(), by("float")),
    }


def of_compressed_tensors() -> dict[str, tuple[Any, Quantiser]]:
    """compressed-tensors' compressors of MXFP8 and NVFP4."""
    import compressed_tensors
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme, quant_scheme
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

    def by(preset: str, columns: int, packing: str) -> Quantiser:
        arguments = getattr(quant_scheme, preset)["weights"]
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        compressor = BaseCompressor.get_value_from_registry(packing)

        def make(values: Tensor) -> tuple[Tensor, Tensor]:
            blocks = values.view(values.shape[0], -1, columns)
            whole = generate_gparam(values.min(), values.max()) if columns == 16 else None
            scales, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), arguments, whole)
            state = {"weight": values.clone(), "weight_scale": scales}
            if whole is not None:
                state["weight_global_scale"] = whole
            made = compressor.compress(state, scheme)
            return made.get("weight_packed", made.get("weight")), made["weight_scale"]

        return make

    title = f"compressed-tensors {compressed_tensors.__version__}"
    return {
        f"{title} MXFP8": (MXFP8(), by("MXFP8", 32, "mxfp8-quantized")),
        f"{title} NVFP4": (NVFP4(amax="measured"), by("NVFP4", 16, "nvfp4-pack-quantized")),
    }


def peers() -> dict[str, tuple[Any, Quantiser]]:
    """By title: a format, and what another quantiser makes of float32 values."""
    found: dict[str, tuple[Any, Quantiser]] = {}
    for one in (of_torchao, of_transformers, of_compressed_tensors):
        try:
            found |= one()
        except ImportError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def references() -> dict[str, Any]:
    """The published arithmetic of Transformer Engine, written anew in plain torch."""
    from block_reference import quantise

    def make(kind: str, form: Any) -> Quantiser:
        def run(values: Tensor) -> tuple[Tensor, Tensor]:
            largest = values.abs().max().item() if form.has_whole else 0.0
            made: tuple[Tensor, Tensor] = quantise(values, (kind, form.rows, form.columns), largest)
            return made

        return run

    by_law = {
        "Transformer Engine's MXFP8 (rceil)": ("rceil", MXFP8()),
        "Transformer Engine's FP8 128x128": ("float32", FP8Blocks()),
        "Transformer Engine's NVFP4 1x16": ("nvfp4", NVFP4(amax="measured")),
        "Transformer Engine's NVFP4 16x16": ("nvfp4", NVFP4(rows=16, amax="measured")),
    }
    return {title: (form, make(kind, form)) for title, (kind, form) in by_law.items()}


def unlike(one: Tensor, other: Tensor) -> tuple[int, int]:
    """(unlike, all) elements, compared as bytes or as float32."""
    if one.dtype.itemsize == other.dtype.itemsize == 1:
        one, other = one.view(torch.uint8), other.view(torch.uint8)
    elif other.dtype.itemsize == 1:
        other = torch.exp2(other.view(torch.uint8).double() - 127).float()
    return int((one != other.view(one.shape)).sum()), one.numel()


def bits() -> None:
    """Counts bytes that differ, over laws, shapes and six standard deviations."""
    laws: list[Callable[[float], Any]] = [
        lambda std: torchinit.Normal(std),
        lambda std: torchinit.Uniform(-std, std),
        lambda std: torchinit.TruncNormal(std, cut=2.0),
    ]
    shapes = [(256, 512), (384, 1024), (1024, 896)]
    stds = (1e-6, 1e-3, 0.02, 0.5, 10.0, 300.0)
    print("| held against | payload unlike | scales unlike |\n| --- | --- | --- |")
    for title, (form, make) in {**peers(), **references()}.items():
        counts = [0, 0, 0, 0]
        for law in laws:
            for shape in shapes:
                for std in stds:
                    rule = law(std)
                    payload, scales = memory_for(form, shape)
                    fill(form, payload, scales, rule, shape)
                    data, theirs = make(masters(rule, shape))
                    ours = scales[0] if form.has_whole else scales
                    pairs = (*unlike(payload, data), *unlike(ours, theirs))
                    counts = [a + b for a, b in zip(counts, pairs, strict=True)]
        said = [f"{counts[i]:,} of {counts[i + 1]:,}" for i in (0, 2)]
        print(f"| {title} | {said[0]} | {said[1]} |", flush=True)


# Time and memory.


def timing() -> None:
    """One thread: quantised fills over a bfloat16 fill of the same normal values."""
    torch.set_num_threads(1)
    print("| fill, one thread | 2048 x 2048 over a bfloat16 fill | 8192 x 8192 | G values/s |")
    print("| --- | --- | --- | --- |")
    small, large = timed((2048, 2048), 25), timed(SHAPE, 7)
    for title, some in small.items():
        columns = []
        for times in (small, large):
            base = statistics.median(times["bfloat16"])
            low, middle, high = statistics.quantiles([one / base for one in times[title]], n=4)
            columns.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        rate = 2048**2 / statistics.median(some) / 1e9
        print(f"| {title} | {columns[0]} | {columns[1]} | {rate:.2f} |")


def timed(shape: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, in interleaved rounds."""
    rule = torchinit.Normal(0.02)
    plain: Any = torch.zeros(shape, dtype=torch.bfloat16)
    single = torch.zeros(shape)

    def master(tensor: Tensor) -> None:
        torchinit.init_shard_(tensor, rule, global_shape=shape, offset=(0, 0), seed=0, name="w")

    ways: dict[str, Callable[[], object]] = {
        "bfloat16": lambda: master(plain),
        "float32": lambda: master(single),
        "zero_ of bfloat16": plain.zero_,
    }
    for title, form in FORMATS.items():
        ways[title] = partial(fill, form, *memory_for(form, shape), rule, shape)
    times: dict[str, list[float]] = {title: [] for title in ways}
    for _ in range(rounds):
        for title, way in ways.items():
            begin = time.perf_counter()
            way()
            times[title].append(time.perf_counter() - begin)
    return times


def _resident(which: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) / 1024


def memory_of(title: str) -> None:
    """The peak of one fill above what was there before, its payload and scales included."""
    form, rule = FORMATS.get(title), torchinit.Normal(0.02)
    fill(MXFP8(), *memory_for(MXFP8(), (128, 128)), rule, (128, 128))
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    if form is None:
        held = masters(rule, SHAPE, getattr(torch, title)).nbytes
    else:
        payload, scales = memory_for(form, SHAPE)
        fill(form, payload, scales, rule, SHAPE)
        held = payload.nbytes + (scales[0] if form.has_whole else scales).nbytes
    print(f"| {title} | {held / 2**20:.1f} | {_resident('VmHWM') - before:.1f} |")


def memory() -> None:
    """All of them, each in a process of its own."""
    print(
        "| fill of 8192 x 8192 | payload and scales, MiB | peak, MiB |\n| --- | --- | --- |",
        flush=True,
    )
    for title in ("float32", "bfloat16", *FORMATS):
        subprocess.run([sys.executable, __file__, "memory", "--one", title], check=True)


def llama() -> None:
    """The linear layers of a Llama of 1.2 billion parameters, two threads."""
    sizes = [
        (2048, 2048),
        (512, 2048),
        (512, 2048),
        (2048, 2048),
        *[(8192, 2048)] * 2,
        (2048, 8192),
    ]
    shapes = sizes * 16
    rule, names = torchinit.Normal(0.02), [f"{i}.weight" for i in range(len(shapes))]
    print("| linear layers of a Llama 1.2B | s | MiB |\n| --- | --- | --- |")
    for title, form in (("bfloat16", None), ("MXFP8", MXFP8()), ("NVFP4 16x16", NVFP4(rows=16)),
                        ("NVFP4 1x16", NVFP4()), ("FP8 128x128", FP8Blocks())):  # fmt: skip
        took = []
        for _ in range(3):
            begin, held = time.perf_counter(), 0
            kept: list[Any] = []
            for name, shape in zip(names, shapes, strict=True):
                place: dict[str, Any] = {"global_shape": shape, "offset": (0, 0), "name": name}
                if form is None:
                    payload, scales = torch.empty(shape, dtype=torch.bfloat16), None
                    torchinit.init_shard_(payload, rule, seed=0, **place)
                else:
                    payload = torch.empty(form.payload_shape(shape), dtype=form.payload_dtypes[0])
                    blocks = torch.empty(
                        form.scales_shape(shape), dtype=next(iter(form.scale_dtypes))
                    )
                    scales = (blocks, torch.empty(1)) if form.has_whole else blocks
                    torchinit.init_shard_(
                        payload, rule, seed=0, format=form, scales=scales, **place
                    )
                    held += blocks.nbytes
                held += payload.nbytes
                kept.append((payload, scales))
            took.append(time.perf_counter() - begin)
            del kept
        print(f"| {title} | {statistics.median(took):.2f} | {held / 2**20:.0f} |", flush=True)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("bits", "time", "memory", "llama"))
    parser.add_argument("--one", help="of memory: the one fill that this process makes")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.one:
        memory_of(options.one)
        return
    {"bits": bits, "time": timing, "memory": memory, "llama": llama}[options.what]()


if __name__ == "__main__":
    main()
