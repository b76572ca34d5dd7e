"""``torchinit checkpoint``: writes an initialised checkpoint, or says what it would contain."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import torch

from torchinit.checkpoint.write import carry_out_plan, plan_checkpoint
from torchinit.cli import shell
from torchinit.cli.user_code import formats_of, import_function, run_rules_file, users_line
from torchinit.errors import ArgumentError, counted

# Arguments of write_checkpoint, as its errors have them, and what they are on the command line.
_OPTIONS = {
    "resume=True": "--resume", "shard_size": "--shard-size", "layout=None": "--layout",
    "layout=": "--layout=", "formats:": "--format:", "formats=None": "--format is not given",
    "strict=False allows this, as for a pipeline stage": "Correct them, or take them out",
}  # fmt: skip


def run(arguments: Namespace) -> tuple[str, int]:
    """Runs the command; returns what to print, and the exit code.

    Args:
        arguments: of the command line.
    """
    try:
        return _run(arguments), 0
    except (Exception, SystemExit) as error:
        place = None
        if not isinstance(error, ArgumentError) and not shell.out_of_memory(error):
            place = users_line(error, arguments.rules, arguments.build)
        if place is not None:
            shell.say(f"{place} raised {type(error).__name__}: {error}")
        elif isinstance(error, OSError):
            shell.say(f"{error.filename or arguments.out}: {error.strerror or error}")
        elif isinstance(
            error, ArgumentError | TypeError | ValueError | NotImplementedError | ImportError
        ):
            shell.say(_as_options(str(error)))
        else:
            raise
    return "", shell.FAILED


def _as_options(said: str) -> str:
    """An error in which the arguments of ``write_checkpoint`` are called what they are here."""
    return re.sub(rf"(?<!\S)({'|'.join(_OPTIONS)})", lambda found: _OPTIONS[found[0]], said)


def _run(arguments: Namespace) -> str:
    rules, source = None, None
    if arguments.rules is not None:
        rules, source = run_rules_file(arguments.rules), arguments.rules.read_bytes()
    plan = plan_checkpoint(
        arguments.config if arguments.build is None else import_function(arguments.build),
        rules,
        seed=arguments.seed,
        dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
        shard_size=arguments.shard_size,
        rules_source=source,
        formats=formats_of(arguments.formats),
        layout=arguments.layout,
    )
    totals = (
        f"{counted(plan.parameters, 'parameter')}, {counted(plan.layout.nbytes, 'byte')} in "
        f"{counted(len(plan.layout.shards), 'file')}"
    )
    if arguments.dry_run:
        return f"{plan.table}\n\n{totals}"
    out = Path(arguments.out)
    is_new = carry_out_plan(plan, out, resume=arguments.resume)
    return f"{out}: {'' if is_new else 'was finished already: '}{totals}"
