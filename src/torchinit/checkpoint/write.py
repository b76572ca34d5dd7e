"""``write_checkpoint``: an initialised checkpoint, whatever its size, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import torch

from torchinit.checkpoint.files import OpenFiles
from torchinit.checkpoint.folder import write_folder
from torchinit.checkpoint.pieces import PIECE, write_shards
from torchinit.checkpoint.plan import CheckpointPlan, plan_checkpoint
from torchinit.checkpoint.progress import in_view
from torchinit.checkpoint.safetensors import Shard
from torchinit.checkpoint.source import Config, Rules


def write_checkpoint(
    config: Config,
    path: str | PathLike[str],
    rules: Rules = None,
    *,
    seed: int,
    dtype: torch.dtype | None = None,
    shard_size: int | str = "5GB",
    resume: bool = False,
) -> Path:
    """Writes an initialised checkpoint that ``from_pretrained`` loads, without building the model.

    The values are those of ``init_model_(model, rules, seed=seed, dtype=dtype)``, bit for bit.
    They are filled in pieces of 64 MiB, straight into the files, by several threads: no more memory
    is taken than these, and one tensor where values can only be made together (orthogonal matrices,
    ``sparse_``, callables).

    Args:
        config: the path of a Transformers ``config.json``, or of a directory that has one, whose
            ``architectures[0]`` names the class; or a function that gives a module with parameters
            on the meta device.
        path: of the directory to be written, which must be empty or not be there.
        rules: as ``init_model_``, or a function that gives them for the model's config. None is the
            model's own initialisation.
        seed: as ``init_model_``.
        dtype: of floating-point parameters; None is their own, which is the config's.
        shard_size: bytes of values in a file, or a string as ``"5GB"``.
        resume: whether to go on from the whole shards of a run that was broken off, with the same
            arguments. Callables among the rules are compared by name and text, and not by what they
            close over. A directory that is empty or not there is begun.

    Returns:
        The directory.

    Raises:
        ArgumentError: as ``init_model_``; for a config that gives no model, a directory that is not
            empty, one that was begun with other arguments, a disk without room. Nothing has been
            written then.
        TypeError: as ``init_model_``.
        OSError: for what cannot be read or written. What is left of a run that was broken off does
            not load.
        ImportError: where safetensors' companions (``torchinit[checkpoint]``) are not installed.

    >>> import tempfile, torch, torchinit
    >>> def linear():
    ...     return torch.nn.Linear(8, 4, device="meta")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = torchinit.write_checkpoint(linear, f"{folder}/new", seed=0)
    ...     sorted(file.name for file in path.iterdir())
    ['model.safetensors', 'torchinit.json']
    """
    plan = plan_checkpoint(config, rules, seed=seed, dtype=dtype, shard_size=shard_size)
    return carry_out_plan(plan, Path(path), resume=resume)


def carry_out_plan(
    plan: CheckpointPlan, path: Path, *, resume: bool = False, piece_size: int = PIECE
) -> Path:
    """Writes a checkpoint that is known.

    Args:
        plan: of it.
        path, resume: as ``write_checkpoint``.
        piece_size: bytes that are filled and written together.

    Raises:
        ArgumentError, OSError: as ``write_checkpoint``.
    """
    write = partial(_write_shards, piece_size=piece_size)
    write_folder(path, plan.layout, plan.small, plan.fingerprint, write, resume=resume)
    return path


def _write_shards(folder: Path, shards: Sequence[Shard], *, piece_size: int) -> None:
    if not shards:
        return
    with in_view(sum(shard.size for shard in shards)) as tell:
        write_shards(shards, OpenFiles(folder), tell, piece_size=piece_size)
