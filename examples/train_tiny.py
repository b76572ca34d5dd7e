"""Trains a small model from several initialisations and compares the first steps.

python examples/train_tiny.py [curves.png]    (prints the loss curves; matplotlib draws them)
"""

import sys

import torch
from torch import nn

import torchinit
from torchinit import Normal, Orthogonal, VarianceScaling

schemes = {"N(0, 0.02²)": Normal(0.02), "LeCun": VarianceScaling(1), "He": VarianceScaling(2)}
inits = schemes | {"orthogonal, √2": Orthogonal(2**0.5)}
torch.manual_seed(0)
inputs = torch.randn(256, 64)
labels = (inputs @ torch.randn(64, 10)).argmax(1)
curves: dict[str, list[float]] = {name: [] for name in inits}
for name, scheme in inits.items():
    hidden = [layer for _ in range(10) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    torchinit.init_model_(model, {"**bias": "zeros", "**": scheme}, seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.03)
    for _ in range(100):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimiser.step()
        curves[name].append(loss.item())
    print(f"{name:16}", *(f"{value:6.3f}" for value in curves[name][::10]))

if len(sys.argv) > 1:
    import matplotlib.pyplot as plt

    lines = [plt.plot(curve)[0] for curve in curves.values()]
    plt.legend(lines, curves, title="loss, step by step")
    plt.savefig(sys.argv[1])
