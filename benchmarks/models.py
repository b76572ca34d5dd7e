"""Times whole models: built plainly, inside patch_nn_init, and by build_model.

    python benchmarks/models.py                                          # Markdown tables
    python benchmarks/models.py --markdown benchmarks/results/models.md --json models.json
    python benchmarks/models.py --models gpt2-medium,vit-large --rounds 5
    python benchmarks/models.py --small                                  # many small parameters
    python benchmarks/models.py --quick                                  # does it run?

Every measurement has its own process (one_build.py), and every round measures all modes in turn.
Rounds in which other processes used the machine are dropped if quiet rounds remain; if none was
quiet, the figures are marked with ~. Ratios are of the best times of each mode.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import small_models
from one_build import MODES
from report import table
from run import machine
from zoo import CASES, SMOKE

Samples = dict[str, Any]

_CHILD = Path(__file__).with_name("one_build.py")
# The fraction of a core used by other processes during a measurement.
_BUSY = 0.15
_OURS = ("patch", "build_model")


def busy_seconds() -> float:
    """CPU seconds of the whole machine since it started; 0 if unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, *rest = map(int, fields)
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")  # to stolen time


def own_seconds() -> float:
    """CPU seconds of this process and of child processes that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(name: str, mode: str) -> Samples:
    """One measurement in its own process, and other processes' use of the machine meanwhile."""
    busy, own, start = busy_seconds(), own_seconds(), perf_counter()
    child = subprocess.run([sys.executable, _CHILD, name, mode], capture_output=True, text=True)
    elapsed = perf_counter() - start
    others = max(busy_seconds() - busy - (own_seconds() - own), 0.0) / elapsed
    if child.returncode:
        lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        return {"error": lines[-1], "others": others}
    return {**json.loads(child.stdout.splitlines()[-1]), "others": others}


def time_model(name: str, rounds: int) -> Samples:
    """All modes of a model, round by round."""
    case = {**CASES, **SMOKE}[name]
    modes: dict[str, list[Samples]] = {mode: [] for mode in MODES}
    for round_ in range(rounds):
        for mode, samples in modes.items():
            samples.append(measure(name, mode))
            said = samples[-1].get("error") or f"{samples[-1]['seconds']:.3f} s"
            print(f"{name} {mode} {round_}: {said}", file=sys.stderr, flush=True)
    return {
        "name": name,
        "title": case.title,
        "dtype": str(case.dtype).removeprefix("torch."),
        "modes": modes,
    }


def counted(samples: list[Samples]) -> tuple[list[float], bool]:
    """Seconds of quiet rounds, and true; or of all rounds, and false, if none was quiet."""
    good = [sample for sample in samples if "error" not in sample]
    quiet = [sample["seconds"] for sample in good if sample["others"] < _BUSY]
    return (quiet, True) if quiet else ([sample["seconds"] for sample in good], False)


def seconds_cell(samples: list[Samples]) -> str:
    """Least, median and largest seconds, marked if no round was quiet."""
    values, is_quiet = counted(samples)
    if not values:
        return samples[0]["error"]  # type: ignore[no-any-return]
    mark = "" if is_quiet else "~"
    return f"{mark}{min(values):.3f} ({median(values):.3f}, {max(values):.3f})"


def ratio_cell(model: Samples, above: str, below: str, digits: int) -> str:
    """The best of one mode over the best of another."""
    first, second = (counted(model["modes"][mode]) for mode in (above, below))
    if not first[0] or not second[0]:
        return "-"
    mark = "" if first[1] and second[1] else "~"
    return f"{mark}{min(first[0]) / min(second[0]):.{digits}f}"


def about(model: Samples) -> Samples:
    """A model's description, as its processes reported."""
    samples = [sample for mode in model["modes"].values() for sample in mode if "values" in sample]
    return samples[0] if samples else {"values": 0, "bytes": 0, "threads": 0}


def title(model: Samples) -> str:
    """A model, its dtype and its size."""
    return f"{model['title']}, {model['dtype']}, {about(model)['values'] / 1e6:.4g} M"


def markdown(results: Samples) -> str:
    """All tables, with the machine above."""
    parts = [machine_line(results)]
    if results["models"]:
        models = results["models"]
        seconds = [[title(m), *map(seconds_cell, m["modes"].values())] for m in models]
        faster = [
            [
                title(m),
                *(ratio_cell(m, "plain", mode, 1) for mode in _OURS),
                *(ratio_cell(m, mode, "zero", 2) for mode in _OURS),
            ]
            for m in models
        ]
        parts += [
            "Seconds: best (median, largest). `zero` is `torch.empty().zero_()` of the same shapes "
            "and dtypes.",
            table(["model", *MODES], seconds),
            "Times faster than plain, and times as long as `zero`, best against best:",
            table(["model", *_OURS, *(f"{mode} / zero" for mode in _OURS)], faster),
        ]
    if results["small"]:
        parts += [
            f"From the meta device by {results['small'][0]['rules']} rules, medians:",
            table(small_models.HEADER, small_models.rows(results["small"])),
        ]
    return "\n\n".join(parts) + "\n"


def machine_line(results: Samples) -> str:
    """The conditions that the figures depend on."""
    about_ = results["machine"]
    threads = {about(model)["threads"] for model in results["models"]}
    others = [
        sample["others"]
        for model in results["models"]
        for mode in model["modes"].values()
        for sample in mode
    ]
    busy = sum(other >= _BUSY for other in others)
    line = (
        f"{about_['cpu']}, {about_['cores']} cores, Linux {about_['kernel']}, "
        f"{about_['instruction_set']}, {about_['date']}; torch {about_['torch']}, "
        f"Transformers {about_['transformers']}, x-transformers {about_['x-transformers']}"
    )
    if others:
        line += f"; {', '.join(map(str, sorted(threads)))} threads, one process a measurement, "
        line += f"{results['rounds']} rounds"
    if busy:
        line += (
            f". **The machine was busy**: in {busy} of {len(others)} measurements others used more "
            f"than {_BUSY:.0%} of a core; ~ marks what has no quiet one"
        )
    return line + "."


def versions() -> Samples:
    """Versions of the libraries whose models are timed."""
    found = {}
    for name in ("transformers", "x-transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", help=f"comma-separated, of {', '.join(CASES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument(
        "--small", action="store_true", help="many small parameters; alone unless with --models"
    )
    parser.add_argument("--quick", action="store_true", help="small and few: not for figures")
    options = parser.parse_args()
    known = {**CASES, **SMOKE}
    names = options.models.split(",") if options.models else [] if options.small else list(CASES)
    if options.quick:
        options.rounds, options.small, names = 1, True, names if options.models else ["tiny"]
    for name in names:
        if name not in known:
            parser.error(f"argument --models: {name!r} is none of {', '.join(known)}")
    results: Samples = {
        "machine": {**machine(), **versions()},
        "rounds": options.rounds,
        "models": [time_model(name, options.rounds) for name in names],
        "small": [],
    }
    if options.small:
        results["small"] = small_models.time_small(
            *((200, 2) if options.quick else (2000, 4 * options.rounds + 1))
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    if options.markdown:
        options.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
