"""Initialises one small model for every config of Transformers' AutoModel, and compares.

Each config is made small by the names of its fields. Its model is built on the meta device and
initialised by ``init_model_``: with one rule for all parameters, and by its own code. The reference
is the model as people build it, plain and inside ``patch_nn_init``. An error must name the tensors
that it leaves; a difference without an error is a silent fault, the worst that this can find.

    python tools/transformers_configs.py --out benchmarks/results/transformers-configs

Each config has its own process, so that no crash or lack of memory stops the run. Not part of any
test: it takes half an hour. Packages that some models need (timm, torchvision) are used if
installed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import gzip
import importlib
import json
import logging
import math
import multiprocessing
import re
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import torchinit

_LARGEST = 50_000_000  # parameters of a model that is built in memory
_SAMPLE = 20_000  # elements of a parameter used to compare distributions
_NEVER = 1e-10  # probability of a false alarm for one parameter
_WIDTHS = (16, 8, 4, 2, 1)  # divisors of widths: the first with which a model can be built

# Imported here, so that child processes need not.
_IMPORTED = (
    "transformers.modeling_utils", "transformers.modeling_layers", "transformers.loss.loss_utils",
    "transformers.modeling_outputs", "transformers.masking_utils", "timm", "torchvision",
)  # fmt: skip

_WIDTH = re.compile(
    r"hidden_size|hidden_dim|d_model|n_embd|embed_dim|embedding_(size|dim)|intermediate|ffn_|_ffn"
    r"|mlp_dim|d_ff|dff|d_inner|n_inner|projection_(dim|size)|^dim|_dim$|_rank$|channels|d_kv"
    r"|head_size|feature_size|^num_filters$|lru_width|_units$|output_size|linear_units|ssm_state"
)
_COUNT = re.compile(r"(^|_)(n_|num_)?layers?$|layers$|^depth$|^num_blocks$|num_.*layers")
_STAGES = re.compile(r"depths|blocks_per_stage|num_block_repeats|stage_num_blocks")
_WORDS = re.compile(r"vocab_size(?!s)|vocab$|_buckets$|ngram_vocab")
_EXPERTS = re.compile(r"(num|n)_.*experts$|num_experts$|moe_num_experts")
_TOKEN = re.compile(r"token_id$|token_index$|_pad_id$|^_pad_token_id$")
_INDICES = re.compile(r"index|idx|_layers$|indices")
_FEW, _WORDS_LEFT, _EXPERTS_LEFT = 4, 512, 8


class Size(NamedTuple):
    """The reduction of a config: divisor of widths, and whether layers, words, experts shrink."""

    width: int
    fewer: bool


SIZES = [*(Size(width, True) for width in _WIDTHS), *(Size(width, False) for width in _WIDTHS)]


def shrink(fields: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """The fields of a config with small numbers, including those of nested configs."""
    counts = {
        value
        for name, value in fields.items()
        if _COUNT.search(name) and _is_int(value) and value > _FEW
    }
    return {name: _shrink(name, value, size, counts) for name, value in fields.items()}


def _shrink(name: str, value: Any, size: Size, counts: set[int]) -> Any:
    if isinstance(value, Mapping):  # labels have numbers for names
        return shrink(value, size) if all(isinstance(key, str) for key in value) else value
    if isinstance(value, list | tuple) and value and size.fewer:
        if all(map(_is_int, value)) and _STAGES.search(name):
            return [min(number, 2) for number in value]
        if len(value) in counts:
            value = list(value)[:_FEW]
        elif all(map(_is_int, value)) and _INDICES.search(name) and "out_ind" not in name:
            value = [number for number in value if number < _FEW] or [0]
    if isinstance(value, list | tuple) and value and all(map(_is_int, value)):
        narrow = [_narrow(name, number, size) for number in value]
        changed = [new != old for new, old in zip(narrow, value, strict=True)]
        return narrow if all(changed) else list(value)
    if not _is_int(value):
        return value
    if size.fewer:
        for pattern, most in ((_COUNT, _FEW), (_WORDS, _WORDS_LEFT), (_EXPERTS, _EXPERTS_LEFT)):
            if pattern.search(name):
                return min(value, most)
        if _TOKEN.search(name):
            return min(value, _WORDS_LEFT - 1)
    return _narrow(name, value, size)


def _narrow(name: str, value: int, size: Size) -> int:
    if _WIDTH.search(name) and value % size.width == 0 and value // size.width >= 4:
        return value // size.width
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# One config, in its own process.

Values = dict[str, Tensor]


class Built(NamedTuple):
    """A model's values."""

    parameters: Values
    buffers: Values


def examine(key: str) -> dict[str, Any]:
    """Everything recorded about one config."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    found: dict[str, Any] = {"key": key}
    try:
        kind = CONFIG_MAPPING[key]
        models = MODEL_MAPPING[kind]
        model_class: Any = models[0] if isinstance(models, list | tuple) else models
        found["model"] = model_class.__name__
        config, size, count = smallest(kind, model_class)
    except Exception as error:
        return found | {"build": _said(error)}
    found |= {"build": "ok", "size": list(size), "parameters": count}

    def build(device: str) -> nn.Module:
        with torch.device(device):
            model: nn.Module = model_class(config)
            return model

    in_memory = count <= _LARGEST
    found["in_memory"] = in_memory
    if not in_memory:
        found["own"] = _try(lambda: str(len(torchinit.plan_model(build("meta")))))
        return found
    plain: list[Built] = []
    found["plain"] = _try(lambda: plain.extend(_plain(build, seed) for seed in (1, 2)))
    found["own"], found["own_faults"] = _compared(plain, lambda seed: _by_own(build, seed))
    found["rules"], found["rules_faults"] = _compared_rules(plain, build)
    found["patched"], found["patched_faults"] = _compared(plain, lambda seed: _patched(build, seed))
    return found


def smallest(kind: Any, model_class: Any) -> tuple[Any, Size, int]:
    """The smallest config with which a model can be built, how it was made, and its parameters."""
    fields = kind().to_dict()
    last: Exception | None = None
    for size in SIZES:
        small = shrink(fields, size)
        try:
            config = kind.from_dict(small) if size != SIZES[-1] else kind()
            with torch.device("meta"):
                model = model_class(config)
            return config, size, sum(p.numel() for p in model.parameters())
        except Exception as error:
            last = error
    assert last is not None
    raise last


def _plain(build: Callable[[str], nn.Module], seed: int) -> Built:
    torch.manual_seed(seed)
    return _values(build("cpu"))


def _patched(build: Callable[[str], nn.Module], seed: int) -> Built:
    torch.manual_seed(seed)
    with torchinit.patch_nn_init():
        return _values(build("cpu"))


def _by_own(build: Callable[[str], nn.Module], seed: int) -> Built:
    return _values(torchinit.init_model_(build("meta"), seed=seed, device="cpu"))


def _values(model: nn.Module) -> Built:
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                raise RuntimeError(f"{name}.{attribute} is a tensor, and on the meta device still")
    return Built(
        {name: value.detach() for name, value in model.named_parameters()},
        dict(model.named_buffers()),
    )


def _compared(plain: Sequence[Built], make: Callable[[int], Built]) -> tuple[str, list[str]]:
    """The error of making a model, and its differences from the plain model."""
    made: list[Built] = []
    said = _try(lambda: made.extend(make(seed) for seed in (1, 2)))
    if said != "ok" or not plain:
        return said, []
    return said, differences(plain, made)


def _compared_rules(
    plain: Sequence[Built], build: Callable[[str], nn.Module]
) -> tuple[str, list[str]]:
    made: list[Built] = []
    rules = {"**": torchinit.Normal(0.02)}

    def make() -> None:
        for seed in (1, 2):
            model = torchinit.init_model_(build("meta"), rules, seed=seed, device="cpu")
            made.append(_values(model))

    said = _try(make)
    if said != "ok" or not plain:
        return said, []
    faults = []
    for name, value in made[0].parameters.items():
        if value.is_meta or not bool(value.isfinite().all()):
            faults.append(f"{name}: not filled")
    if made[0].parameters.keys() != plain[0].parameters.keys():
        faults.append("other parameters")
    faults += _of_buffers(plain, made)
    return said, faults


def differences(plain: Sequence[Built], made: Sequence[Built]) -> list[str]:
    """The differences of two models of different seeds from two plain ones."""
    faults: list[str] = []
    ours = [built.parameters for built in made]
    theirs = [built.parameters for built in plain]
    if ours[0].keys() != theirs[0].keys():
        faults.append(f"other parameters: {sorted(ours[0].keys() ^ theirs[0].keys())[:5]}")
    for name in theirs[0].keys() & ours[0].keys():
        fault = _difference([one[name] for one in theirs], [one[name] for one in ours])
        if fault:
            faults.append(f"{name}: {fault}")
    faults += _of_buffers(plain, made)
    return sorted(faults) + _shared(theirs[0], ours[0])


def _of_buffers(plain: Sequence[Built], made: Sequence[Built]) -> list[str]:
    faults = []
    ours = [built.buffers for built in made]
    theirs = [built.buffers for built in plain]
    if ours[0].keys() != theirs[0].keys():
        faults.append(f"other buffers: {sorted(ours[0].keys() ^ theirs[0].keys())[:5]}")
    for name in theirs[0].keys() & ours[0].keys():
        if fault := _difference([one[name] for one in theirs], [one[name] for one in ours]):
            faults.append(f"buffer {name}: {fault}")
    return faults


def _difference(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> str:
    """The difference of a tensor in two of our models from that in two plain ones."""
    before, after = theirs[0], ours[0]
    if after.is_meta:
        return "on the meta device"
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return f"{list(after.shape)} {after.dtype} for {list(before.shape)} {before.dtype}"
    if before.dtype.is_complex:
        theirs = [torch.view_as_real(x) for x in theirs]
        ours = [torch.view_as_real(x) for x in ours]
    if all(torch.equal(x, before) for x in (*theirs, *ours)):
        return ""
    x1, x2, y1, y2 = (x.reshape(-1).double() for x in (*theirs, *ours))
    if bool(x1.isnan().any()):
        return "" if bool(y1.isnan().any()) else "filled, and the plain one is not"
    if not bool(y1.isfinite().all()) and bool(x1.isfinite().all()):
        return f"{int((~y1.isfinite()).sum())} of {y1.numel()} values are not finite"
    fixed_before, fixed_after = x1 == x2, y1 == y2
    unlike = fixed_before != fixed_after
    if int(unlike.sum()) > 0.01 * unlike.numel():
        if not bool(fixed_after.all()):
            return f"random ({_summary(y1)}) for fixed ({_summary(x1)})"
        return f"fixed ({_summary(y1)}) for random ({_summary(x1)})"
    fixed = fixed_before & fixed_after
    wrong = fixed & (x1 != y1)
    if bool(wrong.any()):
        return f"{_summary(y1[fixed])} for {_summary(x1[fixed])}, {int(wrong.sum())} values"
    random = ~fixed_before & ~fixed_after
    return _unlike(x1[random], y1[random])


def _unlike(before: Tensor, after: Tensor) -> str:
    """The difference of two samples of one distribution, if any (Kolmogorov-Smirnov)."""
    if before.numel() < 2:
        return ""
    pick = torch.randperm(before.numel(), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    before, after = before[pick].sort().values, after[pick].sort().values
    both = torch.cat([before, after])
    gap = torch.searchsorted(before, both, right=True) - torch.searchsorted(after, both, right=True)
    distance = float(gap.abs().max()) / before.numel()
    allowed = math.sqrt(-math.log(_NEVER / 2) / 2) * math.sqrt(2 / before.numel())
    if distance <= allowed:
        return ""
    return f"{_summary(after)} for {_summary(before)} (distance {distance:.3f})"


def _summary(values: Tensor) -> str:
    if values.numel() == 0:
        return "nothing"
    mean, std = float(values.mean()), float(values.std(correction=0))
    low, high = float(values.min()), float(values.max())
    return f"mean {mean:.4g}, std {std:.4g}, {low:.4g} to {high:.4g}"


def _shared(theirs: Values, ours: Values) -> list[str]:
    """Parameters that wrongly have equal random values."""
    faults = []
    seen: dict[tuple[float, ...], str] = {}
    for name, value in ours.items():
        head = tuple(value.reshape(-1)[:8].double().tolist())
        if len(head) < 8 or len(set(head)) < 8:
            continue
        other = seen.setdefault(head, name)
        if other != name and not torch.equal(
            theirs[other].reshape(-1)[:8], theirs[name].reshape(-1)[:8]
        ):
            faults.append(f"{name}: the values of {other}")
    return faults


def _try(function: Callable[[], object]) -> str:
    try:
        function()
    except Exception as error:
        return _said(error)
    return "ok"


def _said(error: BaseException) -> str:
    said = re.sub(r"/\S*/(?=[\w-]+(\.py)?\b)", "", f"{type(error).__name__}: {error}")
    return said[:3000]  # without the folders of this machine


# All configs.


class _Child(NamedTuple):
    process: Any
    pipe: Connection
    key: str
    since: float


def run(
    keys: Sequence[str], jobs: int, timeout: float, memory: int, done: Callable[[Any], None]
) -> None:
    """Examines configs, each in a fork of this process."""
    for module in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(keys)), list[_Child]()
    while waiting or running:
        while waiting and len(running) < jobs:
            ours, theirs = context.Pipe(duplex=False)
            key = waiting.pop()
            process = context.Process(target=_child, args=(key, memory, theirs))
            process.start()
            theirs.close()
            running.append(_Child(process, ours, key, time.monotonic()))
        wait([child.pipe for child in running], timeout=1)
        for child in list(running):
            late = time.monotonic() - child.since > timeout
            if not child.pipe.poll() and not late:
                continue
            done(_result(child, late))
            child.process.kill()
            child.process.join()
            running.remove(child)


def _result(child: _Child, late: bool) -> dict[str, Any]:
    try:
        if child.pipe.poll():
            result: dict[str, Any] = child.pipe.recv()
            return result | {"seconds": round(time.monotonic() - child.since, 1)}
    except EOFError:
        pass
    said = f"took more than {time.monotonic() - child.since:.0f} s" if late else "the process died"
    return {"key": child.key, "build": said}


def _child(key: str, memory: int, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory << 30, memory << 30))
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # Makes unwritten memory NaN, deterministically.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        pipe.send(examine(key))
    except MemoryError:
        pipe.send({"key": key, "build": "out of memory"})


# The table.


def kind_of_error(said: str) -> str:
    """The kind of an error of ``init_model_``, in a few words."""
    if said == "ok":
        return "initialised"
    for pattern, kind in (
        (r"parameters unfilled", "parameters named as unfilled"),
        (r"buffers on the meta device have no known values", "buffers named as unknown"),
        (r"has no value without it", "a step that raised, named with its parameter"),
        (r"views of one storage", "parameters that are views of one storage, named"),
        (r"on the meta device still", "plain tensor attributes left on the meta device"),
    ):
        if re.search(pattern, said):
            return kind
    return "other errors"


def unfilled(said: str) -> list[str]:
    """The kinds of names in an error: last two components, without numbers."""
    match = re.search(r"(?:unfilled|knows): (.*?)(?: \(raised|\. |$)", said)
    if not match:
        return []
    names = re.sub(r" and \d+ more", "", match[1]).split(", ")
    kinds = dict.fromkeys(
        ".".join([atom for atom in name.split(".") if not atom.isdigit()][-2:]) for name in names
    )
    return list(kinds)


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """The summary, in Markdown."""
    found = list(results)
    built = [one for one in found if one["build"] == "ok"]
    rows = [
        ("configs", len(found)),
        ("build on the meta device", len(built)),
        ("compared in memory", sum(one["in_memory"] for one in built)),
        ("too large, planned only", sum(not one["in_memory"] for one in built)),
    ]
    compared = [one for one in built if one["in_memory"]]
    lines = ["| | configs |", "|---|---|", *(f"| {name} | {number} |" for name, number in rows)]
    for title, mode in (
        ("`init_model_(model, seed=0)`", "own"),
        ('`init_model_(model, {"**": Normal(0.02)}, seed=0)`', "rules"),
        ("built inside `patch_nn_init()`", "patched"),
    ):
        kinds = Counter(kind_of_error(one[mode]) for one in compared if mode in one)
        lines += [f"| {title}: {kind} | {number} |" for kind, number in kinds.most_common()]
        silent = sum(bool(one.get(f"{mode}_faults")) for one in compared)
        lines.append(f"| {title}: **silently different from the plain build** | {silent} |")
    names = Counter(kind for one in built for kind in unfilled(one.get("own", "ok")))
    lines += ["", "| named by its own initialisation as unfilled | configs |", "|---|---|"]
    lines += [f"| `{name}` | {number} |" for name, number in names.most_common()]
    lines += ["", "| differs silently | how, how often, e.g. |", "|---|---|"]
    for mode in ("own", "rules", "patched"):
        for one in compared:
            faults = one.get(f"{mode}_faults") or []
            if faults:
                lines.append(f"| {one['key']}, {mode} | {len(faults)}: {faults[0]} |")
    lines += ["", "| no model, or an error of another kind | |", "|---|---|"]
    for one in found:
        if one["build"] != "ok":
            lines.append(f"| {one['key']} | {_short(one['build'])} |")
        for mode in ("plain", "own", "rules", "patched"):
            if mode in one and kind_of_error(one[mode]) == "other errors":
                lines.append(f"| {one['key']}, {mode} | {_short(one[mode])} |")
    return "\n".join(lines) + "\n"


def _short(said: str) -> str:
    return " ".join(said.split()).replace("|", "/")[:200]


def read_details(path: Path) -> dict[str, Any]:
    """The results of each config, from a file of compressed JSON."""
    return json.loads(gzip.decompress(path.read_bytes()))  # type: ignore[no-any-return]


def write_details(path: Path, details: Mapping[str, Any]) -> None:
    """Writes a file for ``read_details``; the same details make the same bytes."""
    path.write_bytes(gzip.compress(json.dumps(details, indent=1).encode(), mtime=0))


def main() -> None:
    """Examines configs, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, help="files to write (.md, .json.gz), without the ending"
    )
    parser.add_argument("--only", default="", help="a regular expression that keys match")
    parser.add_argument("--again", action="store_true", help="only those with faults in --out")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=180, help="seconds for one")
    parser.add_argument("--memory", type=int, default=12, help="GiB of addresses for one")
    options = parser.parse_args()

    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    results: dict[str, Any] = {}
    details = options.out.with_suffix(".json.gz") if options.out else None
    if details and details.exists():
        results = {one["key"]: one for one in read_details(details)["results"]}
    keys = [key for key in MODEL_MAPPING_NAMES if re.search(options.only, key)]
    if options.again:
        keys = [key for key in keys if key not in results or _is_open(results[key])]
    versions = {
        "torchinit": torchinit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }

    def done(one: Any) -> None:
        results[one["key"]] = one
        faults = [*one.get("own_faults", []), *one.get("rules_faults", [])]
        faults += one.get("patched_faults", [])
        own = _short(one.get("own", one["build"]))[:100]
        print(f"{len(results)} {one['key']}: {own}", *faults[:2], sep="\n    ", flush=True)
        if details:
            ordered = [results[key] for key in MODEL_MAPPING_NAMES if key in results]
            write_details(details, {"versions": versions, "results": ordered})
            said = ", ".join(f"{name} {version}" for name, version in versions.items())
            title = "# Every config of Transformers' AutoModel, made small\n\n"
            options.out.with_suffix(".md").write_text(f"{title}{said}.\n\n{table(ordered)}")

    run(keys, options.jobs, options.timeout, options.memory, done)
    if not details:
        print(table(results.values()))


def _is_open(one: Mapping[str, Any]) -> bool:
    modes = ("plain", "own", "rules", "patched")
    return one["build"] != "ok" or any(
        one.get(mode, "ok") != "ok" or one.get(f"{mode}_faults") for mode in modes
    )


if __name__ == "__main__":
    main()
