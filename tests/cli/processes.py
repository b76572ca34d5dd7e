"""Runs commands in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torchinit
import warm
from torchinit.native import load

SOURCES = Path(torchinit.__file__).parents[1]
TINY = ["demo", "--model", "tiny", "--device", "cpu"]
# With and without the native module, if there is one.
ON = [False] if load.module is None else [True, False]


def environment(native=True, buffered=True, path=()):
    """The environment of a process that finds the package, and modules in other folders first."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (*path, SOURCES))),
        "PYTHONUNBUFFERED": "" if buffered else "1",
        "TORCHINIT_DISABLE_NATIVE": "" if native else "1",
    }


def let_be_interrupted():
    """Restores the handling of SIGINT, which nohup and background jobs ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments, native=True, buffered=True, path=(), **options):
    """Starts Python with arguments; its output is piped unless the options say otherwise."""
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": environment(native, buffered, path),
        "preexec_fn": let_be_interrupted,
        **options,
    }
    return subprocess.Popen([sys.executable, *arguments], text=True, **options)


def finish(process):
    """Returns the exit code and what was written to standard output and error."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def run_command(*arguments, native=True):
    """Runs ``python -m torchinit`` and waits for it to end."""
    done = warm.run("-m", "torchinit", *arguments, env=environment(native))
    return done.returncode, done.stdout, done.stderr


def lines_but_of_torch(err):
    """Lines of standard error, without the note that torch fills if there is no native module."""
    note = "torchinit: torch.nn.init fills everything"
    return [line for line in err.splitlines() if not line.startswith(note)]
