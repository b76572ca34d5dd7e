"""Programs in processes of their own, without the seconds that importing torch takes.

The first program starts a Python that imports torch, and nothing of ours; each is run by a fork of
it, as ``python -c``, ``python -m`` or ``python FILE`` would, and ends without taking torch apart.
For what only a process that starts from nothing shows (interrupts, closed streams, interpreter
options) there is subprocess.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

_server: subprocess.Popen[str] | None = None


def run(
    *arguments: object,
    env: dict[str, str] | None = None,
    cwd: object = None,
    warnings_as_errors: str = "",
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Runs Python with arguments, in a process where torch is imported already.

    Args:
        arguments: ``"-c", code``, ``"-m", module, ...`` or a file and its arguments.
        env: all of its environment; None is that of this process.
        cwd: its working directory; None is that of this process.
        warnings_as_errors: the name of the class of warnings that are errors.
        timeout: seconds until it is killed, with subprocess.TimeoutExpired.
    """
    server = _start()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(os.environ) if env is None else env,
            "folder": str(cwd or Path.cwd()),
            "streams": [str(out), str(err)],
            "errors": warnings_as_errors,
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], timeout)[0]:
            _stop()
            said = out.read_text() if out.exists() else "", err.read_text() if err.exists() else ""
            raise subprocess.TimeoutExpired(request["arguments"], timeout, *said)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(
            request["arguments"], code, out.read_text(), err.read_text()
        )


def _start() -> subprocess.Popen[str]:
    global _server
    if _server is None or _server.poll() is not None:
        unset = ("TORCHINIT_", "PYTHONPATH")
        _server = subprocess.Popen(
            [sys.executable, __file__],
            env={name: value for name, value in os.environ.items() if not name.startswith(unset)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(_stop)
    return _server


def _stop() -> None:
    """Kills the server and its forks."""
    if _server is not None and _server.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_server.pid, signal.SIGKILL)
        _server.wait()


# What follows runs in the server, and in its forks.


def _serve() -> dict[str, Any]:
    """Forks for each request and answers with the exit code. Returns, in each fork, its request."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    while line := requests.readline():
        child = os.fork()
        if child == 0:
            request: dict[str, Any] = json.loads(line)
            for descriptor, path in zip((1, 2), request["streams"], strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
            os.close(requests.fileno())
            os.close(answers.fileno())
            return request
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()
    os._exit(0)


def _execute(request: dict[str, Any]) -> None:
    """Does what Python would with the arguments."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    if request["errors"]:
        warnings.simplefilter("error", getattr(builtins, request["errors"]))
    kind, *rest = request["arguments"]
    sys.path[0] = "" if kind in ("-c", "-m") else str(Path(kind).parent)
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    with contextlib.suppress(ImportError):
        importlib.import_module("sitecustomize")
    if kind == "-c":
        code, *rest = rest
        sys.argv = [kind, *rest]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    elif kind == "-m":
        module, *rest = rest
        sys.argv = [kind, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def _run(request: dict[str, Any]) -> int:
    """Returns the exit code, having printed the traceback of an error."""
    try:
        _execute(request)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    import torch  # here alone: the tests import this module too

    gc.freeze()  # collections in forks would copy all of it
    code = _run(_serve())
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
