"""Fills whose first launch ever, in this process, is inside a graph capture.

    python first_launch.py KIND DEVICE

CUDA loads a kernel at its first use, which a capture could forbid. On a CPU there is no graph: the
fill itself is compared, so that this program is known to be right.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch

import torchinit

KINDS = {
    "contiguous": lambda device: torchinit.normal_(torch.empty(5000, device=device)),
    "constant": lambda device: torchinit.ones_(torch.empty(5000, device=device)),
    "transposed": lambda device: torchinit.trunc_normal_(torch.empty(70, 90, device=device).t()),
    "orthogonal": lambda device: torchinit.orthogonal_(torch.empty(70, 90, device=device)),
}


def main() -> None:
    """Captures, replays and compares."""
    kind, device = sys.argv[1:]
    torch.zeros(1, device=device)
    on_gpu = device == "cuda"
    graph = torch.cuda.CUDAGraph() if on_gpu else None
    torch.manual_seed(9)
    with torch.cuda.graph(graph) if graph else nullcontext():
        filled = KINDS[kind](device)
    if graph:
        assert torchinit.which(filled, "normal").kind == "native"
        graph.replay()
    torch.manual_seed(9)
    expected = KINDS[kind]("cpu")
    assert torch.equal(filled.cpu(), expected)
    assert expected.std() > 0 or kind == "constant"
    print("equal")


if __name__ == "__main__":
    main()
