"""``torchinit checkpoint``: an initialised checkpoint of a config, or what it would be."""

from __future__ import annotations

import runpy
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from torchinit.checkpoint.plan import CheckpointPlan, plan_checkpoint
from torchinit.checkpoint.write import carry_out_plan
from torchinit.commands import shell
from torchinit.errors import ArgumentError


def run(arguments: Namespace) -> tuple[str, int]:
    """Writes a checkpoint, or says what it would be; returns what to print, and the exit code.

    Args:
        arguments: of the command line.
    """
    try:
        return _run(arguments), 0
    except (ArgumentError, TypeError, ValueError, NotImplementedError, ImportError) as error:
        shell.say(str(error))
    except OSError as error:
        shell.say(f"{error.filename or arguments.out}: {error.strerror or error}")
    return "", shell.FAILED


def _run(arguments: Namespace) -> str:
    rules, source = None, None
    if arguments.rules is not None:
        rules, source = _read_rules(arguments.rules)
    plan = plan_checkpoint(
        arguments.config,
        rules,
        seed=arguments.seed,
        dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
        shard_size=arguments.shard_size,
        rules_source=source,
    )
    if arguments.dry_run:
        return f"{plan.table}\n\n{_totals(plan)}"
    out = Path(arguments.out)
    carry_out_plan(plan, out, resume=arguments.resume)
    return f"{out}: {_totals(plan)}"


def _read_rules(path: Path) -> tuple[Any, bytes]:
    """What a file of Python calls ``rules``, and its text."""
    text = path.read_bytes()
    try:
        found = runpy.run_path(str(path))
    except Exception as error:
        raise ArgumentError(f"{path} raised {type(error).__name__}: {error}") from error
    if "rules" not in found:
        raise ArgumentError(
            f"{path} defines no `rules`: it must be a mapping, or a function of the config"
        )
    return found["rules"], text


def _totals(plan: CheckpointPlan) -> str:
    count = len(plan.layout.shards)
    return (
        f"{plan.parameters:,} parameters, {plan.layout.nbytes:,} bytes in {count} "
        f"file{'s' * (count > 1)}"
    )
