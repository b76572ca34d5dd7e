"""Runs the code of docs/packages.md, each section in a process of its own, with what is installed.

    python -m venv build/packages && build/packages/bin/pip install torch==2.13.0 timm peft ...
    PYTHONPATH=src build/packages/bin/python tools/try_packages.py [NAME ...]

A package whose dependencies would replace torch is installed with ``--no-deps``. The outcome and
the installed version of each are printed; a version that differs from the page's is marked.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import multiprocessing
import os
import re
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "packages.md"
NEED_RANKS = ("megatron-core", "deepspeed")
# Sections that go on where another one ends.
AFTER = {"peft": "transformers"}


def sections() -> dict[str, str]:
    """The code of each section, by the first word of its heading."""
    found = {}
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        if code := re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            found[section.split(maxsplit=1)[0]] = code[1]
    return found


def missing(name: str) -> list[str]:
    """The packages that a section imports and that are not installed."""
    roots = set()
    for node in ast.walk(ast.parse(sections()[name])):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        roots |= {one.split(".")[0] for one in names}
    return sorted(root for root in roots if importlib.util.find_spec(root) is None)


def run(name: str) -> dict[str, Any]:
    """Runs a section; returns its names."""
    import torch

    import torchinit

    names: dict[str, Any] = {"torch": torch, "torchinit": torchinit, "nn": torch.nn}
    names["settings"] = defaultdict(str, embedding_size=8, device="cpu")  # of RecBole
    names["dataset"] = types.SimpleNamespace(num=lambda _: 50)
    if name in AFTER:
        names |= run(AFTER[name])
    exec(compile(sections()[name], f"{PAGE.name}: {name}", "exec"), names)
    return names


def _child(name: str) -> None:
    if name in NEED_RANKS:
        import torch.distributed as dist

        ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
        os.environ |= ranks | {"MASTER_PORT": "29577", "DS_ACCELERATOR": "cpu"}
        dist.init_process_group("gloo")
    run(name)


def main(wanted: list[str]) -> int:
    """Runs the sections; returns how many failed."""
    failed = 0
    shown = dict(re.findall(r"^### (\S+) (\S+)$", PAGE.read_text(), re.MULTILINE))
    for name in wanted or list(sections()):
        if absent := missing(name):
            print(f"{name}: skipped, needs {', '.join(absent)}", flush=True)
            continue
        process = multiprocessing.get_context("spawn").Process(target=_child, args=(name,))
        process.start()
        process.join()
        version = importlib.metadata.version(name)
        other = "" if version == shown.get(name) else f" (the page says {shown.get(name)})"
        print(f"{name} {version}{other}: {'failed' if process.exitcode else 'ran'}", flush=True)
        failed += bool(process.exitcode)
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
