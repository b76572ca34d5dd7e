"""Writers of a small checkpoint in processes of their own, on a disk that fails at a given call.

One process has imported torch with ``disk_faults.c`` before it; each writer is a fork of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torchinit

HERE = Path(__file__).parent
SMALL = {"config.json": b'{"model_type": "small"}\n', "generation_config.json": b"{}\n"}
LAST = "model.safetensors.index.json"


class Ended(NamedTuple):
    """How a writer ended: killed, or with an error's class and text, both empty for none."""

    killed: bool
    kind: str
    text: str
    calls: list[str]


class Disk:
    """Runs writers.

    Args:
        folder: for the compiled library.
    """

    def __init__(self, folder):
        compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
        if compiler is None or not sys.platform.startswith("linux"):
            raise FileNotFoundError("no C compiler, or not Linux")
        library = folder / "disk_faults.so"
        source = HERE / "disk_faults.c"
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise FileNotFoundError(f"{compiler}: {done.stderr}")
        path = [str(HERE), str(HERE.parent), str(Path(torchinit.__file__).parents[1])]
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": ":".join(path)}
        self._server = subprocess.Popen(
            [sys.executable, __file__, library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def close(self):
        """Ends the process that all writers are forks of."""
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def write(self, path, *, at=-1, error=0, lasting=False, resume=False, among=1, locks=True):
        """Writes, with a fault at a call.

        Args:
            path: of the checkpoint, in a folder that faults are confined to.
            at: the number of the call; -1 for none.
            error: of that call; a negative number is a signal that comes just before it.
            lasting: whether all later calls fail too.
            resume: as ``write_checkpoint``.
            among: how many writers at once; only the first has a fault.
            locks: whether the file system has locks.

        Returns:
            How each writer ended.
        """
        order = {"path": str(path), "at": at, "error": error, "lasting": lasting}
        order |= {"resume": resume, "among": among, "locks": locks}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return [Ended(**ended) for ended in json.loads(self._server.stdout.readline())]


def _serve(library):
    from written import RULES, small

    from torchinit.checkpoint.write import plan_checkpoint

    faults = ctypes.CDLL(library)
    faults.called.restype = ctypes.c_char_p
    plan = plan_checkpoint(small, RULES, seed=0, dtype=None, shard_size=30_000)
    plan = plan._replace(small=SMALL)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        order = json.loads(line)
        begun = [_fork(faults, plan, order, number) for number in range(order["among"])]
        print(json.dumps([_wait(child, reader) for child, reader in begun]), flush=True)


def _fork(faults, plan, order, number):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            os.write(writer, json.dumps(_run(faults, plan, order, number)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    return child, reader


def _run(faults, plan, order, number):
    import fcntl

    from written import PIECE

    from torchinit.checkpoint.write import carry_out_plan

    if not order["locks"]:

        def refuse(*_):
            raise OSError(38, "Function not implemented")

        fcntl.flock = refuse
    signal.signal(signal.SIGINT, signal.default_int_handler)
    at = order["at"] if not number else -1
    faults.arm(str(Path(order["path"]).parent).encode(), at, order["error"], order["lasting"])
    kind = text = ""
    try:
        carry_out_plan(plan, Path(order["path"]), resume=order["resume"], piece_size=PIECE)
    except BaseException as error:
        kind, text = type(error).__name__, str(error)
    faults.disarm()
    return {"killed": False, "kind": kind, "text": text, "calls": faults.called().decode().split()}


def _wait(child, reader):
    with open(reader, "rb") as said:  # noqa: PTH123 (a pipe)
        told = said.read()
    os.waitpid(child, 0)
    return json.loads(told) if told else {"killed": True, "kind": "", "text": "", "calls": []}


if __name__ == "__main__":
    _serve(sys.argv[1])
