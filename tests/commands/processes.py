"""Commands as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torchinit
from torchinit.native import load

SOURCES = Path(torchinit.__file__).parents[1]
TINY = ["demo", "--model", "tiny", "--device", "cpu"]
# Whether the native module is to be used: both ways, where it is there.
ON = [False] if load.module is None else [True, False]

# What comes before a program that is to run the command line without importing the package, which
# imports torch: an empty package takes its place.
BARE = f"""
import sys, types
package = types.ModuleType("torchinit")
package.__path__ = [{str(SOURCES / "torchinit")!r}]
sys.modules["torchinit"] = package
from torchinit.commands import cli
"""


def start(*arguments, native=True, buffered=True, path=(), **options):
    """Starts Python with arguments, its output piped unless the options say otherwise."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (*path, SOURCES))),
        "PYTHONUNBUFFERED": "" if buffered else "1",
        "TORCHINIT_DISABLE_NATIVE": "" if native else "1",
    }
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, *arguments], text=True, env=environment, **options)


def finish(process):
    """Returns the exit code and what was written to standard output and error."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def run_command(*arguments, **options):
    """Runs ``python -m torchinit`` to its end."""
    return finish(start("-m", "torchinit", *arguments, **options))


def lines_but_of_torch(err):
    """Lines of standard error, without the note that torch fills, which is there without native."""
    note = "torchinit: torch.nn.init fills everything"
    return [line for line in err.splitlines() if not line.startswith(note)]
