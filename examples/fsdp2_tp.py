"""A Llama under any parallelism has one fingerprint, whatever the layout and number of processes.

    torchrun --nproc-per-node 4 examples/fsdp2_tp.py
    torchrun --nproc-per-node 8 examples/fsdp2_tp.py --layouts plain hsdp+tp --seed 1

Runs on GPUs (nccl) if each process has one, else on CPUs (gloo). Needs Transformers.
"""

import argparse
import math
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from transformers import LlamaConfig, LlamaForCausalLM

import torchinit

CONFIG = LlamaConfig(hidden_size=128, intermediate_size=344, num_hidden_layers=4, vocab_size=1000)
LAYER = "model.layers.*"
COLUMNS = [f"{LAYER}.self_attn.[qkv]_proj", f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"]
ROWS = [f"{LAYER}.self_attn.o_proj", f"{LAYER}.mlp.down_proj"]
STAGES = (
    ["model.embed_tokens", "model.layers.0", "model.layers.1"],
    ["model.layers.2", "model.layers.3", "model.norm", "lm_head"],
)
LAYOUTS = ["plain", "fsdp2", "hsdp", "tp", "fsdp2+tp", "hsdp+tp", "pipeline"]


def parallelise(model: LlamaForCausalLM, layout: str, device: str) -> None:
    """Parallelises a model on the meta device; in a pipeline, drops the other half's stages."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if layout == "pipeline" and world > 1:
        for name in STAGES[1 - rank * 2 // world]:  # the stages of the other half
            model.set_submodule(name, nn.Identity())
    if layout in ("plain", "pipeline"):
        return
    tp = world if layout == "tp" else math.gcd(world, 2) if layout.endswith("+tp") else 1
    replicas = math.gcd(world // tp, 2) if layout.startswith("hsdp") else 1
    sizes = replicas, world // replicas // tp, tp
    mesh = init_device_mesh(device, sizes, mesh_dim_names=("replicate", "shard", "tp"))
    if tp > 1:
        plan: dict[str, ParallelStyle] = dict.fromkeys(["lm_head", *COLUMNS], ColwiseParallel())
        plan |= dict.fromkeys(ROWS, RowwiseParallel())
        parallelize_module(model, mesh["tp"], plan)
    if layout != "tp":
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=mesh["replicate", "shard"] if replicas > 1 else mesh["shard"])


def build(layout: str, seed: int, device: str) -> LlamaForCausalLM:
    """This process's initialised part of the model in a layout."""
    with torch.device("meta"):
        model = LlamaForCausalLM(CONFIG)
    parallelise(model, layout, device)
    return torchinit.init_model_(model, seed=seed, device=device, dtype=torch.bfloat16)


def main() -> None:
    """Prints the model's fingerprint in each layout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = "cpu"
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        device = "cuda"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    for layout in arguments.layouts:
        found = torchinit.fingerprint(build(layout, arguments.seed, device), group=dist.group.WORLD)
        if dist.get_rank() == 0:
            print(f"{layout:8} on {dist.get_world_size()} x {device}: {found}", flush=True)
    dist.barrier()  # so that no thread still holds a tensor when Python ends
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
