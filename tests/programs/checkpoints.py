"""Saves initialised models from these ranks by torch.distributed.checkpoint, or loads them.

    torchrun ... checkpoints.py FOLDER save
    torchrun ... checkpoints.py FOLDER load

Each checkpoint is loaded in every layout, over other values, and compared with a model that was
initialised in that layout.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torchinit

# Vocabulary and width of the hidden layer; what layouts can be saved. (Checkpoints of shards that
# two dimensions of a mesh cut unevenly cannot be loaded, in torch 2.13.)
MODELS = {
    "even": (48, 56, ["fsdp2", "tp", "fsdp2+tp"]),
    "uneven": (37, 51, ["fsdp2", "tp"]),
}
WIDTH = 16
SEED = 5


class Block(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)


def build(name):
    """A model on the meta device, which knows its own initialisation."""
    vocabulary, hidden, _ = MODELS[name]

    def make():
        embedding, head = nn.Embedding(vocabulary, WIDTH), nn.Linear(WIDTH, vocabulary, bias=False)
        return nn.ModuleDict(
            {"embed": embedding, "a": Block(hidden), "b": Block(hidden), "z": head}
        )

    return torchinit.build_model(make, seed=SEED, device="meta")


def parallelise(model, layout):
    world = dist.get_world_size()
    tp = {"fsdp2": 1, "tp": world, "fsdp2+tp": min(2, world)}[layout]
    mesh = init_device_mesh("cpu", (world // tp, tp), mesh_dim_names=("shards", "tp"))
    if layout != "fsdp2":
        plan = {"*.up": ColwiseParallel(), "*.down": RowwiseParallel(), "z": ColwiseParallel()}
        parallelize_module(model, mesh["tp"], plan)
    if layout != "tp":
        for part in (model["a"], model["b"], model["embed"], model["z"]):
            fully_shard(part, mesh=mesh["shards"])
    return model


def initialised(model, seed=SEED):
    return torchinit.init_model_(model, seed=seed, device="cpu")


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def load(folder, model, **options):
    """Loads a checkpoint over other values; says which parameters are not what they should be."""
    wanted = {name: local(value).clone() for name, value in model.state_dict().items()}
    state = initialised(model, SEED + 1).state_dict()
    assert any(not torch.equal(local(state[name]), wanted[name]) for name in wanted)
    checkpoint.load(state, checkpoint_id=folder, **options)
    return [name for name in wanted if not torch.equal(local(state[name]), wanted[name])]


def save(path, name, layout):
    model = initialised(parallelise(build(name), layout))
    checkpoint.save(model.state_dict(), checkpoint_id=path)


def load_as(layout, path, name):
    wrong = load(path, initialised(parallelise(build(name), layout)))
    assert not wrong, f"{path.name} loaded as {layout}: {wrong}"


def main():
    folder, what = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name, (_, _, layouts) in MODELS.items():
        for saved in layouts:
            path = folder / f"{name} {saved}"
            if what == "save":
                save(path, name, saved)
                continue
            for layout in layouts:
                load_as(layout, path, name)
                if dist.get_rank() == 0:
                    print(f"{path.name} as {layout}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
