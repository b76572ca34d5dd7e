"""Checks that all ranks have the same random state, without which fills of DTensors go wrong."""

from __future__ import annotations

from typing import Any

from torch import Generator

from torchinit.errors import RankError
from torchinit.placement.distributed import gather_over
from torchinit.streams.keys import digest_of_state


def assert_same_generator(mesh: Any, generator: Generator | None = None) -> None:
    """Raises on every rank of a mesh unless their generators are all in the same state.

    A fill of a DTensor draws its key from each rank's own generator, so the shards fit together
    only if those agree. This checks that they do, and communicates: every rank of the mesh must
    call it. A rank outside the mesh returns at once.

    Args:
        mesh: a ``DeviceMesh``, such as ``tensor.device_mesh``.
        generator: the one to compare; None is torch's default CPU generator, which keys are drawn
            from unless a generator is given.

    Raises:
        RankError: (a ``RuntimeError``) if the states differ; it names the ranks.
        TypeError: if mesh is not a DeviceMesh, or generator is not a torch.Generator.

    >>> import torch, torchinit
    >>> from torch.distributed import HashStore, destroy_process_group, init_process_group
    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    >>> mesh = init_device_mesh("cpu", (1,))
    >>> torchinit.assert_same_generator(mesh)
    >>> destroy_process_group()
    """
    if not (generator is None or isinstance(generator, Generator)):
        raise TypeError(f"generator={generator!r} must be a torch.Generator or None")
    if not hasattr(mesh, "get_all_groups"):
        raise TypeError(f"mesh must be a DeviceMesh, not {type(mesh).__name__}")
    states = gather_over(mesh, digest_of_state(generator))
    if len(set(states.values())) <= 1:
        return
    first = next(iter(states))
    others = [str(rank) for rank, state in states.items() if state != states[first]]
    which, remedy = "the generator given", "generators in the same state"
    if generator is None:
        which, remedy = "torch's default generator", "torch.manual_seed with one seed"
    raise RankError(
        f"{which} is in another state on rank{'s' * (len(others) > 1)} {', '.join(others)} than on "
        f"rank {first}: use {remedy} on every rank, or take keys from names: "
        "torchinit.init_model_(model, rules, seed=...)"
    )
