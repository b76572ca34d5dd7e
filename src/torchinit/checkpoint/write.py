"""``write_checkpoint``: an initialised checkpoint of any size, in little memory.

A plan comes first: the model on the meta device, its tensors under their stored names, what fills
each, and the files. Whatever is wrong is found before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from torchinit.checkpoint.fillers import CopyFiller, FileTensor, Filler, filler_of
from torchinit.checkpoint.folder import fingerprint_of, write_folder
from torchinit.checkpoint.safetensors import Layout, Shard, checked_size, lay_out
from torchinit.checkpoint.writer import PIECE, OpenFiles, write_shards
from torchinit.errors import ArgumentError
from torchinit.frameworks.transformers import (
    as_published,
    is_transformers_model,
    model_of_config,
    saved_configs,
    without_unsaved,
)
from torchinit.models.build_model import build_model
from torchinit.models.carry_out import whole_of
from torchinit.models.init_model import Prepared, prepare
from torchinit.models.plan import Plan
from torchinit.native.torch_private import storage_number
from torchinit.progress import progress
from torchinit.streams.named_keys import keys_of_names

Config: TypeAlias = "str | PathLike[str] | Callable[[], nn.Module]"
RulesOrFunction: TypeAlias = "Mapping[Any, Any] | Callable[[Any], Mapping[Any, Any]] | None"

_CPU = torch.device("cpu")


def write_checkpoint(
    config: Config,
    path: str | PathLike[str],
    rules: RulesOrFunction = None,
    *,
    seed: int,
    dtype: torch.dtype | None = None,
    shard_size: int | str = "5GB",
    resume: bool = False,
) -> Path:
    """Writes an initialised checkpoint that ``from_pretrained`` loads, without building the model.

    The values are those of ``init_model_(model, rules, seed=seed, dtype=dtype)``, bit for bit.
    Threads fill them in pieces of 64 MiB, straight into the files. Memory holds no more than these
    pieces, and one tensor where values can only be made all at once (orthogonal matrices,
    ``sparse_``, callables).

    Args:
        config: the path of a Transformers ``config.json``, or of a directory with one, whose
            ``architectures[0]`` names the class; or a function that returns a module: with rules,
            on the meta device; without, as ``build_model`` takes it.
        path: of the directory to write, which must be empty or not exist.
        rules: as ``init_model_`` takes them, or a function of the model's config that returns them.
            None is the model's own initialisation.
        seed: as ``init_model_``.
        dtype: of floating-point parameters; None is the config's.
        shard_size: bytes of values in a file, or a string such as ``"5GB"``.
        resume: whether to keep the complete shards of an interrupted run with the same arguments.
            Callables among the rules are compared by name and source text; closures are not
            compared. A directory that is empty or missing is begun.

    Returns:
        The directory.

    Raises:
        ArgumentError: as ``init_model_``; for a config that gives no model, a directory that is not
            empty or was begun with other arguments, a disk without room. Nothing has been written
            then.
        TypeError: as ``init_model_``.
        OSError: for what cannot be read or written. What an interrupted run leaves does not load.
        ImportError: without the extra ``torchinit[checkpoint]``.

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


class CheckpointPlan(NamedTuple):
    """A checkpoint that is still to be written.

    Attributes:
        parameters: how many values all parameters have, tied ones once.
        layout: of the weights.
        small: names and contents of the files beside them.
        fingerprint: what decides the bytes.
        table: what each parameter gets.
    """

    parameters: int
    layout: Layout
    small: Mapping[str, bytes]
    fingerprint: Mapping[str, object]
    table: Plan


def plan_checkpoint(
    config: Config,
    rules: RulesOrFunction,
    *,
    seed: int,
    dtype: torch.dtype | None,
    shard_size: int | str,
    rules_source: bytes | None = None,
) -> CheckpointPlan:
    """Finds out what a checkpoint will be, and that nothing is wrong with it.

    Args:
        config, rules, seed, dtype, shard_size: as ``write_checkpoint``.
        rules_source: the text of the rules, by which callables among them are compared.

    Raises:
        ArgumentError, TypeError, OSError, ImportError: as ``write_checkpoint``.
    """
    keys_of_names(seed)  # checks it
    size = checked_size(shard_size)
    model = _model_on_meta(config, seed, has_rules=rules is not None)
    found = prepare(model, _rules_for(rules, model), seed, device=_CPU, dtype=dtype)
    parameters = sum(one.named.tensor.numel() for one in found.assignments)
    layout = lay_out(list(_file_tensors(model, _fillers(found, seed))), size, parameters)
    small = saved_configs(model, dtype) if is_transformers_model(model) else {}
    fingerprint = fingerprint_of(
        found,
        layout,
        seed=seed,
        dtype=dtype,
        shard_size=size,
        config=small.get("config.json"),
        rules_source=rules_source,
    )
    return CheckpointPlan(
        parameters, layout, small, fingerprint, Plan([*found.assignments, *found.ruled])
    )


def carry_out_plan(
    plan: CheckpointPlan, path: Path, *, resume: bool = False, piece_size: int = PIECE
) -> Path:
    """Writes a planned checkpoint.

    Args:
        plan: of it.
        path, resume: as ``write_checkpoint``.
        piece_size: bytes that are filled and written together.

    Raises:
        ArgumentError, OSError: as ``write_checkpoint``.
    """

    def write(folder: Path, shards: Sequence[Shard]) -> None:
        if shards:
            with progress("checkpoint", sum(shard.size for shard in shards)) as advance:
                write_shards(shards, OpenFiles(folder), advance, piece_size=piece_size)

    write_folder(path, plan.layout, plan.small, plan.fingerprint, write, resume=resume)
    return path


def _model_on_meta(config: Config, seed: int, *, has_rules: bool) -> nn.Module:
    if isinstance(config, nn.Module):
        raise TypeError(
            "config is a module: give a function that returns it, as in "
            "write_checkpoint(lambda: model, ...)"
        )
    if isinstance(config, str | PathLike):
        path = Path(config)
        model = model_of_config(path / "config.json" if path.is_dir() else path)
    elif callable(config):
        model = config() if has_rules else build_model(config, seed=seed, device="meta")
    else:
        raise TypeError(
            f"config={config!r} must be the path of a config.json, or a function that returns a "
            f"module on the meta device, not {type(config).__name__}"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"config() gave a {type(model).__name__}, and no torch.nn.Module")
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or not parameter.is_meta:
            where = parameter.device if type(parameter) is nn.Parameter else type(parameter)
            raise ArgumentError(
                f"parameter {name!r} is on {where}: build the model on the meta device, as in "
                'with torch.device("meta"): ..., so that it takes no memory'
            )
    return model


def _rules_for(rules: RulesOrFunction, model: nn.Module) -> Mapping[Any, Any] | None:
    """The rules, or what a function returns as such for the model's config."""
    if rules is None or isinstance(rules, Mapping):
        return rules
    if not callable(rules):
        raise TypeError(
            f"rules must be a mapping, or a function of the config, not {type(rules).__name__}"
        )
    config = getattr(model, "config", None)
    if config is None:
        raise ArgumentError("rules is a function of the config, and the model has no config")
    found = rules(config)
    if not isinstance(found, Mapping):
        raise TypeError(f"rules(config) must give a mapping, not a {type(found).__name__}")
    return found


def _fillers(found: Prepared, seed: int) -> dict[int, Filler]:
    """The fillers of all parameters and buffers, by their storage."""
    key_of_name = keys_of_names(seed)
    fillers: dict[int, Filler] = {}
    for one in found.assignments:
        make = partial(whole_of, one, _CPU, key_of_name)
        fillers[storage_number(one.named.tensor)] = filler_of(one, key_of_name, make)
    for named in found.buffers:
        if not named.tensor.is_meta:
            fillers[storage_number(named.tensor)] = CopyFiller(named.tensor)
    for one in found.filled:
        fillers[storage_number(one.named.tensor)] = CopyFiller(whole_of(one, _CPU, key_of_name))
    return fillers


def _file_tensors(model: nn.Module, fillers: Mapping[int, Filler]) -> Iterator[FileTensor]:
    """The tensors of the checkpoint; those of one parameter are neighbours."""
    owners = {storage_number(one): one for one in (*model.parameters(), *model.buffers())}
    for name, of, view in _stored_views(model, owners):
        number = storage_number(view)
        owner, filler = owners[number], fillers[number]
        is_all = view.shape == owner.shape
        if isinstance(filler, CopyFiller) and is_all:
            yield FileTensor(name, filler.shape, filler, of, 0)
            continue
        shape, first = tuple(view.shape), int(view.storage_offset())
        if is_all and view.stride() == owner.stride():
            yield FileTensor(name, shape, filler, of, 0)
        elif view.is_contiguous():
            yield FileTensor(name, shape, filler, of, first)
        else:
            yield FileTensor(name, shape, filler, of, first, tuple(view.stride()))


def _stored_views(model: nn.Module, owners: Mapping[int, Tensor]) -> list[tuple[str, str, Tensor]]:
    """Stored names; the parameters or buffers that the tensors are of, by name; views of these."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentError(
                f"state_dict()[{name!r}] is a {type(tensor).__name__}: safetensors holds tensors"
            )
        names.setdefault(storage_number(tensor), name)
    unknown = [name for number, name in names.items() if number not in owners]
    if unknown:
        raise ArgumentError(
            f"state_dict()[{unknown[0]!r}] is no parameter or buffer of the model: its values are "
            "unknown"
        )
    views = {name: tensor.detach() for name, tensor in state.items()}
    if is_transformers_model(model):
        views = as_published(model, _once(without_unsaved(model, views)))
    else:
        views = _once(views)
    found = [(name, names[storage_number(view)], view) for name, view in views.items()]
    order = {of: number for number, of in enumerate(dict.fromkeys(of for _, of, _ in found))}
    return sorted(found, key=lambda one: order[one[1]])


def _once(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the first of their names."""
    first: dict[tuple[Any, ...], str] = {}
    for name, view in views.items():
        place = storage_number(view), view.storage_offset(), tuple(view.shape), view.stride()
        first.setdefault(place, name)
    return {name: views[name] for name in first.values()}
