"""Initialises one rank of many, alone: any rank of a sharded model of a terabyte, on this machine.

    python benchmarks/scale.py deepseek-v3 512 0 --check    # 671 B parameters over 512 ranks
    python benchmarks/scale.py llama-405b 4096 4095 --replicas 4 --tp 8
    python benchmarks/scale.py --markdown benchmarks/results/scale.md    # the table

torch's pretended ("fake") process group stands for the other ranks: the model is built on the meta
device and sharded by torch as in a real run, and init_model_, which never communicates, fills the
shards of this rank. Experts are divided over ``--ep`` ranks and cut further by FSDP; attention,
dense layers and embeddings are divided over ``--tp`` ranks and cut further by FSDP, or HSDP with
``--replicas``. With --check, values of every parameter are compared with the full tensor's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

import torchinit
from models import busy_seconds, own_seconds
from report import table
from run import machine
from shards import held, resident
from torchinit.cli.demo import forget

SEED, DTYPE, ROUNDS = 0, torch.bfloat16, 2
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-v3": ("DeepseekV3", {}),
    "llama-405b": ("Llama", {
        "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
    }),
    "mixtral-8x22b": ("Mixtral", {
        "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56,
        "num_attention_heads": 48, "num_key_value_heads": 8, "vocab_size": 32768,
    }),
    "tiny": ("DeepseekV3", {
        "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
        "num_hidden_layers": 3, "first_k_dense_replace": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
        "num_experts_per_tok": 2, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 16, "vocab_size": 256,
    }),
}  # fmt: skip
# The dimension of a weight that tensor parallelism cuts.
TP = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj"), 0),
    **dict.fromkeys(("gate_proj", "up_proj", "embed_tokens", "lm_head"), 0),
    **dict.fromkeys(("o_proj", "down_proj"), 1),
}
SMALL = 1 << 25  # elements of a full tensor that --check draws whole


class Case(NamedTuple):
    """A rank of a model over a mesh."""

    model: str
    ranks: int
    rank: int
    replicas: int = 1
    tp: int = 1
    ep: int = 1

    def mesh(self) -> str:
        """The mesh in words."""
        shards = self.ranks // (self.replicas * self.tp)
        parts = [f"FSDP {shards}" if self.replicas == 1 else f"HSDP {self.replicas} × {shards}"]
        parts += [f"TP {self.tp}"] * (self.tp > 1) + [f"experts over {self.ep}"] * (self.ep > 1)
        return ", ".join(parts)


TABLE = [
    *(Case("deepseek-v3", 512, rank) for rank in (0, 255, 511)),
    Case("deepseek-v3", 512, 511, ep=64),
    Case("deepseek-v3", 2048, 2047, replicas=4, ep=64),
    Case("deepseek-v3", 4096, 4095, tp=8, ep=256),
    Case("llama-405b", 512, 0),
    Case("llama-405b", 4096, 4095, replicas=8, tp=8),
    Case("mixtral-8x22b", 64, 63, ep=8),
]


def build(name: str) -> nn.Module:
    """A model on the meta device."""
    family, sizes = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**sizes)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, f"{family}ForCausalLM")(config)
    return model


def distribute(module: nn.Module, mesh: DeviceMesh, dims: dict[str, int]) -> None:
    """Makes the named parameters of a module DTensors, cut along these dimensions."""
    for name, dim in dims.items():
        whole = module.get_parameter(name)
        cut = distribute_tensor(whole.detach(), mesh, [Shard(dim)], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(cut))


def experts_of(model: nn.Module) -> list[nn.Module]:
    """The modules that hold the stacked weights of experts."""
    return [each for each in model.modules() if "gate_up_proj" in each._parameters]


def shard(model: nn.Module, case: Case) -> nn.Module:
    """Tensor and expert parallelism, then fully_shard of experts, layers and the rest."""
    shards = case.ranks // (case.replicas * case.tp)
    mesh = init_device_mesh(
        "cpu", (case.replicas, shards, case.tp), mesh_dim_names=("replicas", "shards", "tp")
    )
    data = mesh["replicas", "shards"] if case.replicas > 1 else mesh["shards"]
    if case.tp > 1:
        for name, module in list(model.named_modules()):
            dim = TP.get(name.rpartition(".")[2])
            if dim is not None and "weight" in module._parameters:
                distribute(module, mesh["tp"], {"weight": dim})
    if experts := experts_of(model):
        rows = case.ranks // (case.replicas * case.ep)
        spread = init_device_mesh(
            "cpu", (case.replicas, rows, case.ep), mesh_dim_names=("replicas", "rows", "ep")
        )
        for module in experts:
            count = len(module.get_parameter("down_proj")) // case.ep
            if case.ep > 1:
                distribute(module, spread["ep"], {"gate_up_proj": 0, "down_proj": 0})
            fully_shard(
                module,
                mesh=spread["replicas", "rows"] if case.replicas > 1 else spread["rows"],
                # With more ranks than experts, each has some rows of every expert.
                shard_placement_fn=(lambda _: Shard(1)) if rows > count else None,
            )
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer, mesh=data)
    fully_shard(model, mesh=data)
    return model


def shard_or_exit(model: nn.Module, case: Case) -> nn.Module:
    """As ``shard``, with an error that says what to do about an uneven cut."""
    try:
        return shard(model, case)
    except NotImplementedError as error:  # fully_shard cuts dimension 1 evenly only
        raise SystemExit(
            f"torch cannot shard {case.model} over this mesh ({error}): divide experts with --ep, "
            "or take fewer ranks, more --tp or more --replicas"
        ) from None


class Spent(NamedTuple):
    """Seconds that a call took, those of its own threads, and how many cores others used."""

    seconds: float
    user: float
    others: float


def spent(call: Callable[[], object]) -> Spent:
    """Calls, in memory that is fresh."""
    forget(torch.device("cpu"))
    busy, own, user, start = busy_seconds(), own_seconds(), os.times().user, perf_counter()
    result = call()
    seconds, user = perf_counter() - start, os.times().user - user
    others = max(busy_seconds() - busy - (own_seconds() - own), 0.0) / seconds
    del result
    return Spent(seconds, user, others)


def zeros(shapes: list[torch.Size]) -> list[Tensor]:
    """As much zeroed memory as the shards take."""
    return [torch.empty(shape, dtype=DTYPE).zero_() for shape in shapes]


def join(case: Case) -> None:
    """Takes this process for a rank of a world that is not there."""
    dist.init_process_group("fake", rank=case.rank, world_size=case.ranks, store=FakeStore())


def measure(case: Case, check: bool) -> dict[str, Any]:
    """Times, bytes and memory of one rank, each at its best of ROUNDS."""
    join(case)
    torchinit.init_model_(build("tiny"), seed=SEED, device="cpu")  # imports
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        begin = perf_counter()
        model = build(case.model)
        built = perf_counter()
        shard_or_exit(model, case)
        sharded = perf_counter()
        shapes = [local_of(parameter).shape for parameter in model.parameters()]
        zeroed = spent(partial(zeros, shapes))
        forget(torch.device("cpu"))
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = resident("VmRSS")
        filled = spent(partial(torchinit.init_model_, model, seed=SEED, device="cpu", dtype=DTYPE))
        rounds.append({
            "built": built - begin, "sharded": sharded - built, "zeroed": zeroed.seconds,
            "filled": filled.seconds, "user": filled.user,
            "others": min(zeroed.others, filled.others),
            "beside": resident("VmHWM") - before - held(model),
        })  # fmt: skip
        if len(rounds) < ROUNDS:
            del model
            forget(torch.device("cpu"))
    return {
        **case._asdict(),
        "parameters": sum(each.numel() for each in model.parameters()),
        "shards": held(model),
        **{name: min(each[name] for each in rounds) for name in rounds[0]},
        "checked": compare(model, build(case.model)) if check else None,
    }


def local_of(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def compare(model: nn.Module, whole: nn.Module) -> int:
    """Compares values of every parameter with the full tensor's; returns how many.

    Of each name without its layer, the first full tensor of at most SMALL elements is drawn whole,
    by the model's own initialisation, and this rank's part is compared. Of every other matrix, the
    first and the last row that this rank holds are drawn alone, as boxes. Positions are torch's.
    """
    std = float(model.config.initializer_range)  # type: ignore[union-attr, arg-type]
    count, kinds = 0, set()
    for name, parameter in model.named_parameters():
        local, at = local_of(parameter).detach(), offset_of(parameter)
        kind = ".".join(part for part in name.split(".") if not part.isdecimal())
        if not local.numel():
            continue
        if kind not in kinds and parameter.numel() <= SMALL:
            kinds.add(kind)
            torchinit.init_model_(whole, seed=SEED, device="cpu", dtype=DTYPE, only=name)
            full = whole.get_parameter(name).detach()
            for dim, (start, length) in enumerate(zip(at, local.shape, strict=True)):
                full = full.narrow(dim, start, length)
            pairs = [(full, local)]
        else:
            rows = rows_of(local) if local.dim() > 1 else []
            pairs = [(row_alone(name, parameter, at, row, std), local[row]) for row in rows]
        for alone, ours in pairs:
            if not torch.equal(alone, ours):
                raise SystemExit(f"{name}: values differ from those of the full tensor")
            count += ours.numel()
    return count


def offset_of(parameter: Tensor) -> tuple[int, ...]:
    """Where torch says that this rank's part begins in the full tensor."""
    if not isinstance(parameter, DTensor):
        return (0,) * parameter.dim()
    size, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    if parameter.to_local().numel() and tuple(size) != parameter.to_local().shape:
        raise SystemExit(f"torch says {tuple(size)}, and holds {parameter.to_local().shape}")
    return tuple(offset)


def row_alone(
    name: str, parameter: Tensor, at: tuple[int, ...], row: tuple[int, ...], std: float
) -> Tensor:
    """One row of this rank's part of a parameter, drawn as a box of its own."""
    place = [start + index for start, index in zip(at, (*row, 0), strict=True)]
    length = local_of(parameter).shape[-1]
    box = torch.empty([1] * len(row) + [length], dtype=DTYPE)
    torchinit.init_shard_(
        box, torchinit.Normal(std), global_shape=tuple(parameter.shape), offset=tuple(place),
        seed=SEED, name=name,
    )  # fmt: skip
    return box.flatten()


def rows_of(local: Tensor) -> Iterator[tuple[int, ...]]:
    """The indices of the first and the last row of a tensor."""
    yield (0,) * (local.dim() - 1)
    yield tuple(length - 1 for length in local.shape[:-1])


def in_new_process(case: Case) -> dict[str, Any]:
    """The measurements of a case, by a process of its own."""
    options = [f"--{name}={getattr(case, name)}" for name in ("replicas", "tp", "ep")]
    command = [sys.executable, __file__, *map(str, case[:3]), *options, "--check", "--json"]
    found: dict[str, Any] = json.loads(subprocess.check_output(command))
    return found


HEADER = [
    "model", "ranks", "mesh", "rank", "shards, GB", "built on meta, s", "sharded by torch, s",
    "zeroed, s", "`init_model_`, s", "of it user, s", "memory beside, MB", "values compared",
]  # fmt: skip


def row(found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    case = Case(*(found[name] for name in Case._fields))
    busy = "~" if found["others"] > 0.15 else ""
    return [
        f"{case.model}, {found['parameters'] / 1e9:.1f} G", f"{case.ranks:,}", case.mesh(),
        f"{case.rank:,}", f"{found['shards'] / 1e9:.2f}", f"{found['built']:.1f}",
        f"{found['sharded']:.1f}", f"{busy}{found['zeroed']:.2f}", f"{busy}{found['filled']:.2f}",
        f"{found['user']:.2f}", f"{found['beside'] / 1e6:,.0f}",
        f"{found['checked'] / 1e6:.1f} M" if found["checked"] else "-",
    ]  # fmt: skip


def page(rows: list[dict[str, Any]]) -> str:
    """The table, with what it says."""
    about = machine()
    return f"""\
{about["cpu"]}, {about["cores"]} cores, {torch.get_num_threads()} threads, torch \
{about["torch"]}, Transformers {transformers.__version__}, {about["instruction_set"]}, \
{about["date"]}.

One rank of many, alone in a process, with torch's pretended process group: `python \
benchmarks/scale.py MODEL RANKS RANK`, each figure the best of {ROUNDS}. The shards are bfloat16, \
those of `init_model_(model, seed=0)` with the model's own initialisation. `zeroed` is \
`torch.empty().zero_()` of the same shapes, in fresh memory too. `of it user` is what \
`init_model_` itself takes, in seconds of all threads; the rest is the system's, which provides \
the memory, and waiting: a virtual machine may have to get memory from its host, at less than \
1 GB/s. `memory beside` is the increase of the peak by `init_model_`, less the shards. Every \
matrix was compared with its full tensor: one of each name drawn whole, where it has at most 2^25 \
elements, and of every other the first and the last row that the rank holds. A ~ marks rows beside \
which other programs used more than 15% of a core all the time (load average at the end: \
{os.getloadavg()[1]:.0f}).

{table(HEADER, map(row, rows))}"""


def main() -> None:
    """Measures one rank, or makes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", choices=MODELS)
    parser.add_argument("ranks", nargs="?", type=int)
    parser.add_argument("rank", nargs="?", type=int)
    parser.add_argument("--replicas", type=int, default=1, help="HSDP: replicas of the shards")
    parser.add_argument("--tp", type=int, default=1, help="ranks of tensor parallelism")
    parser.add_argument("--ep", type=int, default=1, help="ranks over which experts are divided")
    parser.add_argument("--check", action="store_true", help="compare values of every parameter")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", type=Path, help="measure the table, and put it there")
    given = parser.parse_args()
    if given.markdown:
        rows: list[dict[str, Any]] = []
        for case in TABLE:
            rows.append(in_new_process(case))
            print(" | ".join(row(rows[-1])), flush=True)
            given.markdown.write_text(page(rows) + "\n")
        return
    if given.rank is None or not 0 <= given.rank < given.ranks:
        parser.error("give MODEL RANKS RANK, with 0 <= RANK < RANKS")
    names = ("model", "ranks", "rank", "replicas", "tp", "ep")
    found = measure(Case(*(getattr(given, name) for name in names)), given.check)
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in zip(HEADER, row(found), strict=True):
            print(f"{name.replace('`', ''):22} {value}")
        if found["checked"]:
            print(f"all {found['checked']:,} values compared are those of the full tensors")


if __name__ == "__main__":
    main()
