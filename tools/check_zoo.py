"""Looks for what nobody wrote in one small model for every config of Transformers' AutoModel.

Each model is made on the meta device, emptied onto the CPU and initialised by its own
``init_weights()``, inside ``check_init``. A judge that shares nothing with it does the same twice,
over two byte patterns and with one seed: what keeps both patterns was not written. It has a list of
tensors of its own, all that can be reached from the model. Three other ways to find unwritten
tensors are judged too: version counters, recorded writes, and torch's deterministic fill.

Then torchinit's own ways must leave nothing that plain code does not: ``init_model_`` after
``to_empty``; ``build_model`` beside the constructor; ``write_checkpoint`` beside
``save_pretrained``, both followed by ``from_pretrained``.

    python tools/check_zoo.py --out benchmarks/results/check-init

It takes some minutes, in one process and one thread; ``make test-all`` compares with its results.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import json
import logging
import re
import tempfile
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchinit
from torchinit import Uninitialized, UninitializedError, check_init, find_uninitialized
from transformers_configs import read_details, smallest, write_details

_LARGEST = 20_000_000  # parameters of a model
_PATTERNS = (0x11, 0x2E)


class Small(NamedTuple):
    """A small model of Transformers.

    Attributes:
        key: of its config.
        kind: its class.
        config: that was made small.
    """

    key: str
    kind: Any
    config: Any

    def build(self, device: str = "cpu") -> nn.Module:
        """Builds it."""
        with torch.device(device):
            model: nn.Module = self.kind(copy.deepcopy(self.config))
            return model


def small(key: str) -> Small:
    """The small model of a config: the one for causal language modelling if there is one."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    config_kind = CONFIG_MAPPING[key]
    causal = config_kind in MODEL_FOR_CAUSAL_LM_MAPPING
    kind: Any = (MODEL_FOR_CAUSAL_LM_MAPPING if causal else MODEL_MAPPING)[config_kind]
    kind = kind[0] if isinstance(kind, list | tuple) else kind
    config, _, count = smallest(config_kind, kind)
    if count > _LARGEST:
        raise ValueError(f"{count / 1e6:.0f} M parameters even when small")
    return Small(key, kind, config)


def own_init(model: Any) -> None:
    """What Transformers says initialises a model."""
    model.init_weights()


# The judge.


def reachable(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that objects below a model refer to: by torch's names, others by number."""
    seen: set[int] = set()
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
    passed = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType)
    todo: list[Any] = [model]
    number = 0
    while todo:
        one = todo.pop()
        if id(one) in seen and one is not model:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            number += 1
            yield f"#{number}", one
        elif not isinstance(one, passed):
            todo += gc.get_referents(one)


def holding(tensor: Tensor, pattern: int) -> Tensor:
    """Which elements of a tensor consist of one byte alone."""
    plain = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    bits = plain.contiguous().view(getattr(torch, f"int{8 * plain.itemsize}"))
    held = bits == int.from_bytes(bytes([pattern] * plain.itemsize), "little")
    return held.all(-1) if tensor.is_complex() else held


def judged(make: Callable[[], nn.Module], init: Callable[[Any], None]) -> dict[str, int]:
    """How many elements of each tensor keep what was in memory before, or are on meta still.

    It knows no marks.
    """
    runs = []
    for pattern in _PATTERNS:
        model = make().to_empty(device="cpu")
        for one in (*model.parameters(), *model.buffers()):
            torch.tensor([], dtype=torch.uint8).set_(one.untyped_storage()).fill_(pattern)
        torch.manual_seed(0)
        init(model)
        runs.append({name: one for name, one in reachable(model) if one.numel()})
    kept = {}
    for name, first in runs[0].items():
        second = runs[1].get(name)
        if second is None or second.shape != first.shape:
            continue
        if first.is_meta and second.is_meta:
            kept[name] = first.numel()
        elif bool((held := holding(first, _PATTERNS[0])).any()):
            kept[name] = int((held & holding(second, _PATTERNS[1])).sum())
    return {name: count for name, count in kept.items() if count}


# Other ways to find unwritten tensors: the names that each gives.


class Writes(TorchDispatchMode):
    """Records the storages that operators write to; they are kept, so that no address is reused."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and notes its written arguments."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                for one in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(one, Tensor) and not one.is_meta:
                        storage = one.untyped_storage()
                        self.seen[storage.data_ptr()] = storage
        return result


def _registered(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def by_versions(make: Callable[[], nn.Module], init: Callable[[Any], None]) -> set[str]:
    """Tensors that stay and whose version counter does too."""
    model = make().to_empty(device="cpu")
    before = {name: (one, one._version) for name, one in _registered(model).items()}
    init(model)
    return {
        name for name, one in _registered(model).items()
        if name in before and one is before[name][0] and one._version == before[name][1]
    }  # fmt: skip


def by_writes(make: Callable[[], nn.Module], init: Callable[[Any], None]) -> set[str]:
    """Tensors that no operator was seen to write to."""
    model = make().to_empty(device="cpu")
    with Writes() as mode:
        init(model)
    return {
        name for name, one in _registered(model).items()
        if one.numel() and not one.is_meta and one.untyped_storage().data_ptr() not in mode.seen
    }  # fmt: skip


def by_deterministic_fill(make: Callable[[], nn.Module], init: Callable[[Any], None]) -> set[str]:
    """Tensors that hold what torch's deterministic algorithms fill new memory with."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model = make().to_empty(device="cpu")
        init(model)
    finally:
        torch.use_deterministic_algorithms(before)
    found = set()
    for name, one in _registered(model).items():
        if one.is_floating_point() or one.is_complex():
            bad = one.isnan()
        elif one.dtype == torch.bool:
            bad = one.all()
        else:
            bad = one == torch.iinfo(one.dtype).max
        if bool(bad.any()):
            found.add(name)
    return found


PEERS = {"versions": by_versions, "writes": by_writes, "deterministic": by_deterministic_fill}


# One config.


def rows_of(check: Callable[[], Any]) -> list[Uninitialized]:
    """The rows of a check that may raise."""
    try:
        check()
    except UninitializedError as error:
        return error.rows
    return []


def told(rows: list[Uninitialized]) -> list[list[Any]]:
    """Rows for the file."""
    return [[row.name, row.kind, row.what, row.count, row.total, row.where] for row in rows]


def examine(key: str, peers: Iterable[str] = PEERS) -> dict[str, Any]:
    """Everything recorded about one config; peers are the other ways to look that are judged."""
    found: dict[str, Any] = {"key": key}
    try:
        one = small(key)
    except Exception as error:
        return found | {"build": _said(error)}
    found |= {"build": "ok", "model": one.kind.__name__}
    make = functools.partial(one.build, "meta")
    try:
        found["tensors"] = len(list(reachable(make())))
        rows = rows_of(lambda: check_init(make, own_init))
    except Exception as error:
        return found | {"build": _said(error)}
    found["left"] = told(rows)
    kept = judged(make, own_init)
    flagged = {name: row.count for row in rows for name in row.names}
    unnamed = {count for name, count in kept.items() if name.startswith("#")}  # attributes too
    found["false"] = sorted(
        row.name for row in rows
        if not any(kept.get(name) == row.count for name in row.names)
        and not (row.kind == "attribute" and row.count in unnamed)
    )  # fmt: skip
    found["missed"] = sorted(
        name for name, count in kept.items()
        if flagged.get(name) != count and not (name.startswith("#") and count in flagged.values())
    )  # fmt: skip
    for peer in peers:
        try:
            said = PEERS[peer](make, own_init)
        except Exception as error:
            found[peer] = _said(error)
            continue
        registered = {name for name in kept if not name.startswith("#")}
        missed = registered - said
        found[peer] = {"false": sorted(said - registered), "missed": sorted(missed)}
    own_ways(one, found)
    return found


def own_ways(one: Small, found: dict[str, Any]) -> None:
    """What torchinit's ways leave that plain code does not, which runs only if they do."""
    meta = functools.partial(one.build, "meta")

    def init(model: nn.Module) -> None:
        torchinit.init_model_(model, seed=0)

    def made(make: Callable[[], nn.Module]) -> list[Uninitialized]:
        with torchinit.marked_memory():
            model = make()
        return find_uninitialized(model)

    def loaded(write: Callable[[Path], Any]) -> list[Uninitialized]:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "out")
            return made(lambda: one.kind.from_pretrained(Path(folder) / "out"))

    def saved(folder: Path) -> None:
        one.build().save_pretrained(folder)  # type: ignore[operator]

    ways: dict[str, tuple[_Way, _Way]] = {
        "init_model_": (lambda: rows_of(lambda: check_init(meta, init)), list),
        "build_model": (
            lambda: made(lambda: torchinit.build_model(one.build, seed=0)),
            lambda: made(one.build),
        ),
        "write_checkpoint": (
            lambda: loaded(lambda folder: torchinit.write_checkpoint(meta, folder, seed=0)),
            lambda: loaded(saved),
        ),
    }
    for name, (own, plain) in ways.items():
        try:
            rows = own()
            known = set().union(*(row.names for row in plain())) if rows else set()
            found[name] = told([row for row in rows if not known & set(row.names)])
        except torchinit.ArgumentError as error:
            found[name] = "refused: " + _said(error)
        except Exception as error:
            found[name] = ("plain code fails too: " if _fails(plain) else "") + _said(error)


_Way = Callable[[], list[Uninitialized]]


def _fails(way: _Way) -> bool:
    try:
        way()
    except Exception:
        return True
    return False


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


# The results.


def table(results: list[dict[str, Any]]) -> str:
    """The page of results."""
    there = [one for one in results if one["build"] == "ok"]
    left = [one for one in there if one["left"]]
    lines = [
        f"{len(there)} models of {len(results)} configs; {sum(one['tensors'] for one in there):,} "
        f"tensors; `init_weights()` after `to_empty` leaves "
        f"{sum(len(one['left']) for one in left)} in {len(left)} models.",
        "",
        "| way | false alarms | missed |",
        "| --- | --- | --- |",
        f"| `check_init` | {_sum(there, 'false')} | {_sum(there, 'missed')} |",
    ]
    titles = ("version counters", "recorded writes", "`use_deterministic_algorithms`")
    for peer, title in zip(PEERS, titles, strict=True):
        some = [one[peer] for one in there if isinstance(one.get(peer), dict)]
        lines.append(f"| {title} | {_sum(some, 'false')} | {_sum(some, 'missed')} |")
    lines += ["", "| config | model | what `init_weights()` leaves |", "| --- | --- | --- |"]
    lines += [f"| {one['key']} | {one['model']} | {_names(one['left'])} |" for one in left]
    for way in ("init_model_", "build_model", "write_checkpoint"):
        some = [one for one in there if way in one]
        bad = [one for one in some if isinstance(one[way], list) and one[way]]
        refused = [one for one in some if str(one[way]).startswith("refused")]
        failed = [one for one in some if isinstance(one[way], str) and one not in refused]
        than = "anything" if way == "init_model_" else "more than plain code"
        lines += ["", f"`{way}` leaves {than} in {len(bad)} of {len(some)} models; it refuses "]
        lines[-1] += f"{len(refused)}, and {len(failed)} fail otherwise."
        lines += [""] if bad or refused or failed else []
        lines += [f"- left: {one['key']}: {_names(one[way])}" for one in bad]
        lines += [f"- {one['key']}: {one[way][:160]}" for one in (*refused, *failed)]
    absent = [one for one in results if one["build"] != "ok"]
    lines += ["", f"Not built here: {', '.join(one['key'] for one in absent)}.", ""]
    return "\n".join(lines)


def _sum(results: list[dict[str, Any]], what: str) -> int:
    return sum(len(one.get(what, ())) for one in results)


def table_of_docs(results: list[dict[str, Any]]) -> str:
    """The table of docs/check_init.md: models whose ``init_weights()`` leaves something."""
    lines = ["| model | tensors | what `init_weights()` leaves |", "| --- | --- | --- |"]
    for one in results:
        if one.get("left"):
            names = _names(one["left"], most=3)
            lines.append(f"| {one['model']} | {len(one['left'])} | {names} |")
    return "\n".join(lines)


def _names(rows: list[list[Any]], most: int = 1 << 30) -> str:
    """Names of rows, with numbers of layers taken together."""
    alike: dict[tuple[str, str], int] = {}
    for name, _, what, *_ in rows:
        key = re.sub(r"\.\d+\.", ".N.", name), what
        alike[key] = alike.get(key, 0) + 1
    said = [
        f"`{name}`{f' × {count}' if count > 1 else ''}{'' if what == 'unwritten' else f' ({what})'}"
        for (name, what), count in alike.items()
    ]
    return ", ".join(said[:most]) + (", …" if len(said) > most else "")


def main() -> None:
    """Examines configs, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="files to write, without the ending")
    parser.add_argument("--only", default="", help="a regular expression that keys match")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    details = options.out.with_suffix(".json.gz") if options.out else None
    results: dict[str, Any] = {}
    if details and details.exists():
        results = {one["key"]: one for one in read_details(details)["results"]}
    versions = {
        "torchinit": torchinit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    torch.set_num_threads(1)  # models are small: threads would wait for each other
    for key in MODEL_MAPPING_NAMES:
        if not re.search(options.only, key):
            continue
        try:
            one = results[key] = examine(key)
        except Exception as error:
            one = results[key] = {"key": key, "build": "tool: " + _said(error)}
        gc.collect()
        shown = {name: one[name] for name in one if name not in ("left", "tensors")}
        print(len(results), json.dumps(shown)[:400], len(one.get("left", ())), flush=True)
    ordered = [results[key] for key in MODEL_MAPPING_NAMES if key in results]
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    page = f"# What `init_weights()` leaves unwritten\n\n{said}.\n\n{table(ordered)}"
    if details:
        write_details(details, {"versions": versions, "results": ordered})
        options.out.with_suffix(".md").write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
