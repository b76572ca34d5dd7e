"""A model built without memory, then initialised on its final device, without a copy.

python examples/meta_to_gpu.py    (on the GPU if there is one, else on the CPU)
"""

import torch
from torch import nn

import torchinit

device = "cuda" if torch.cuda.is_available() else "cpu"


def build() -> nn.Module:
    """Builds the model; on the meta device it has shapes but no memory."""
    layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


model = torchinit.build_model(build, seed=0, device="meta")  # stores how to fill each tensor
torchinit.init_model_(model, seed=0, device=device, dtype=torch.bfloat16)

with torch.device("meta"):
    again = build()
rules = {
    "**norm*.weight": "ones",
    "**bias": "zeros",
    "**.{out_proj,linear2}.weight": torchinit.Normal(0.02 / (2 * 6) ** 0.5),
    "**": torchinit.Normal(0.02),
}
plan = str(torchinit.plan_model(again, rules))  # a table of the planned values; nothing is written
print(*plan.splitlines()[:8], sep="\n")
torchinit.init_model_(again, rules, seed=0, device=device, dtype=torch.bfloat16)

weight = again.get_parameter("layers.0.linear2.weight")
print(f"linear2: std {weight.float().std():.4f}, {weight.dtype} on {weight.device}")
