"""One rank of a pretended world: saves its shards of the small model of benchmarks/scale.py, checks
them, and again after one value of each of two parameters has changed.

    python tests/programs/pretended_rank.py FILE RANKS RANK REPLICAS TP EP
"""

import sys

import torch

import scale
import torchinit

case = scale.Case("tiny", *map(int, sys.argv[2:]))
scale.join(case)
model = scale.shard(scale.build("tiny"), case)
torchinit.init_model_(model, seed=0, device="cpu", dtype=torch.bfloat16)
torch.save({name: p.to_local().detach() for name, p in model.named_parameters()}, sys.argv[1])
print(scale.compare(model, scale.build("tiny")))
for name in ("model.layers.2.mlp.experts.down_proj", "model.layers.0.self_attn.o_proj.weight"):
    local = model.get_parameter(name).to_local().detach()
    kept = local.clone()
    local.view(-1)[-1] += 1
    try:
        scale.compare(model, scale.build("tiny"))
    except SystemExit as error:
        print(error)
    local.copy_(kept)
