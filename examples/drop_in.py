"""torchinit in your own code by one changed import, and in code that you cannot edit by a patch.

python examples/drop_in.py
"""

import torch
from torch import nn

import torchinit
from torchinit import init  # was: from torch.nn import init


class Block(nn.Module):
    """A feed-forward block that initialises itself with torch.nn.init's functions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.up, self.down):
            init.trunc_normal_(layer.weight, std=0.02)
            init.zeros_(layer.bias)


torch.manual_seed(0)  # governs torchinit's fills too
block = Block(256)
print("up.weight:", [round(value, 4) for value in block.up.weight.flatten()[:3].tolist()])

with torchinit.patch_nn_init():  # for code that you cannot edit
    layer = nn.TransformerEncoderLayer(256, 4, batch_first=True)
print("self_attn.in_proj_weight: std", round(layer.self_attn.in_proj_weight.std().item(), 4))

print(torchinit.which(block.up.weight, "trunc_normal"))  # what filled it, and why
