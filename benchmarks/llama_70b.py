"""Each rank's shards of a Llama 70B under parallelism, in numbers, without a process group."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

import torchinit
from torchinit.placement.mesh import Cut, ShardPiece, pieces_of

HIDDEN, INNER, KEYS, VOCABULARY, LAYERS = 8192, 28672, 1024, 128256, 80
# Shape, and the dimension that tensor parallelism cuts.
LAYER: dict[str, tuple[tuple[int, ...], int | None]] = {
    "self_attn.q_proj": ((HIDDEN, HIDDEN), 0),
    "self_attn.k_proj": ((KEYS, HIDDEN), 0),
    "self_attn.v_proj": ((KEYS, HIDDEN), 0),
    "self_attn.o_proj": ((HIDDEN, HIDDEN), 1),
    "mlp.gate_proj": ((INNER, HIDDEN), 0),
    "mlp.up_proj": ((INNER, HIDDEN), 0),
    "mlp.down_proj": ((HIDDEN, INNER), 1),
    "input_layernorm": ((HIDDEN,), None),
    "post_attention_layernorm": ((HIDDEN,), None),
}
LLAMA_70B: dict[str, tuple[tuple[int, ...], int | None]] = {
    "model.embed_tokens.weight": ((VOCABULARY, HIDDEN), 0),
    **{
        f"model.layers.{number}.{name}.weight": place
        for number in range(LAYERS)
        for name, place in LAYER.items()
    },
    "model.norm.weight": ((HIDDEN,), None),
    "lm_head.weight": ((VOCABULARY, HIDDEN), 0),
}
SCHEME = torchinit.TruncNormal(0.02, cut=3)


class Layout(NamedTuple):
    """A mesh: numbers of replicas, of shards of ``fully_shard``, and of tensor parallelism."""

    replicas: int
    shards: int
    tp: int

    def __str__(self) -> str:
        name = (
            f"FSDP {self.shards}" if self.replicas == 1 else f"HSDP {self.replicas} x {self.shards}"
        )
        return name if self.tp == 1 else f"{name} x TP {self.tp}"

    def coordinate(self, rank: int) -> tuple[int, int, int]:
        """The coordinates of a rank in the mesh."""
        return (
            rank // (self.shards * self.tp),
            rank // self.tp % self.shards,
            rank % self.tp,
        )

    def pieces(self, rank: int, shape: tuple[int, ...], tp_dim: int | None) -> list[ShardPiece]:
        """A rank's pieces of a parameter: rows of its tensor-parallel shard."""
        rows = Cut(0, self.tp if tp_dim == 0 else 1)
        columns = None if tp_dim is None else Cut(tp_dim)
        return pieces_of(shape, self, self.coordinate(rank), (None, rows, columns))


class Owned(NamedTuple):
    """A box that a rank owns of a parameter."""

    name: str
    shape: tuple[int, ...]
    piece: ShardPiece


def owned_by(layout: Layout, rank: int) -> list[Owned]:
    """All boxes of a rank."""
    return [
        Owned(name, shape, piece)
        for name, (shape, tp_dim) in LLAMA_70B.items()
        for piece in layout.pieces(rank, shape, tp_dim)
    ]


def fill(memory: Tensor, box: Owned) -> Tensor:
    """Fills one box with the full model's values."""
    return torchinit.init_shard_(
        memory, SCHEME, global_shape=box.shape, offset=box.piece.offset, seed=0, name=box.name
    )
