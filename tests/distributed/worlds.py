"""Tests whose bodies run on every rank of a world of real processes.

``in_worlds`` makes a test of a function: in each world it is named for, every rank calls it, and it
passes if it returns on all of them. The first of these tests to run starts a process of its own,
which imports torch once and forks the ranks of one world after another; all the session's cases of
a world are run by the same ranks, in turn. A rank that does not return in time has its stack
written down, and its world is started anew for the cases that follow.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib.util
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock

from torchinit.native import load as native

HERE = Path(__file__).parent
_parent = os.getppid()
SEED = 7
MOST_WITHOUT_NATIVE = 4
GRACE = 5  # seconds for the others when a rank has failed
SLACK = 60  # to start processes, on a busy machine


class Case(NamedTuple):
    """One call on every rank.

    Attributes:
        size: of the world; 0 for one process without a process group.
        module, function: where the body is.
        what: which of the function's parameters, by name; empty if it has none.
        seconds: until which it has to return.
    """

    size: int
    module: str
    function: str
    what: str
    seconds: float

    def key(self) -> str:
        return f"{self.module}.{self.function}[{self.what}] in a world of {self.size}"


def in_worlds(
    *sizes: int,
    each: dict[str, object] | Iterable[str] | None = None,
    where: Callable[[int, Any], bool] = lambda size, parameter: True,  # noqa: ARG005
    seconds: float = 120,
    long: Callable[[int, str], bool] = lambda size, name: False,  # noqa: ARG005
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test of a function, one for each world.

    Args:
        sizes: of the worlds; 0 is one process without a process group.
        each: parameters for the function, by names for the test's; or names that are parameters.
        where: which parameters in which world.
        long: which of them, by name, are left to `make test-all`.
        seconds: until a rank is taken for one that waits for ever.
    """
    if each is None:
        parameters = {}
    else:
        parameters = dict(each) if isinstance(each, dict) else {name: name for name in each}

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        def test(request: pytest.FixtureRequest, case: Case) -> None:
            said = _outcomes(request).get(case.key(), ["it was not run"])
            if said:
                pytest.fail("\n".join(said), pytrace=False)

        many = pytest.mark.skip(reason="so many processes take minutes: native only")
        cases = [
            pytest.param(
                Case(size, body.__module__, body.__name__, what, seconds),
                id=f"{size}-{what}" if what else str(size),
                marks=[many] * (not _is_run(size)) + [pytest.mark.long] * long(size, what),
            )
            for size in sizes
            for what, parameter in (parameters or {"": None}).items()
            if where(size, parameter)
        ]
        test.body, test.parameters = body, parameters  # type: ignore[attr-defined]
        test.__name__, test.__doc__ = body.__name__, body.__doc__
        test.__module__ = body.__module__
        gloo = dist.is_available() and dist.is_gloo_available()
        test = pytest.mark.skipif(not gloo, reason="torch was built without gloo")(test)
        return pytest.mark.parametrize("case", cases)(test)

    return decorate


def of_eight(size: int, name: str) -> bool:  # noqa: ARG001
    return size == 8


def _is_run(size: int) -> bool:
    return native.module is not None or size <= MOST_WITHOUT_NATIVE


_found: dict[str, list[str]] = {}


def _outcomes(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """What was wrong with each of the session's cases; one of pytest's processes runs them all."""
    if not _found:
        folder = request.getfixturevalue("tmp_path_factory").getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            folder = folder.parent
        cases = [
            case
            for item in request.session.items
            if hasattr(getattr(item, "function", None), "body")
            and isinstance(case := item.callspec.params["case"], Case)  # else there are none
            and _is_run(case.size)
        ]
        with FileLock(folder / "worlds.lock"):
            if not (folder / "worlds.json").exists():
                _run(cases, folder)
        _found.update(json.loads((folder / "worlds.json").read_text()))
    return _found


def _run(cases: list[Case], folder: Path) -> None:
    """Has a process run cases, and leaves what came of them in a file."""
    (folder / "cases.json").write_text(json.dumps(cases))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent, *filter(None, sys.path)))),
    }
    limit = SLACK * 5 + sum(case.seconds for case in cases)
    with (folder / "worlds.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: object = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = f"more than {limit} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # ranks too
                os.killpg(process.pid, signal.SIGKILL)
    if not (folder / "worlds.json").exists():
        said = [f"the process of the worlds ended with {code}", (folder / "worlds.txt").read_text()]
        (folder / "worlds.json").write_text(json.dumps({case.key(): said for case in cases}))


# From here on: the process that forks worlds, and the ranks.


class _World:
    """The processes of one world."""

    def __init__(self, size: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.pids: list[int] = []
        self.commands: list[int] = []
        self.answers: list[int] = []
        self.used = 0.0  # CPU time of all ranks
        for rank in range(max(size, 1)):
            (reads, commands), (answers, writes) = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    for other in (commands, answers, *self.commands, *self.answers):
                        os.close(other)
                    _be_rank(rank, size, Path(self.folder.name), reads, writes)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            os.close(reads)
            os.close(writes)
            self.pids.append(pid)
            self.commands.append(commands)
            self.answers.append(answers)

    def run(self, case: Case, more: float) -> list[str]:
        """Runs one case; returns what was wrong, by rank."""
        for commands in self.commands:
            with contextlib.suppress(BrokenPipeError):
                os.write(commands, (json.dumps(case) + "\n").encode())
        said: dict[int, str] = {}
        texts = dict.fromkeys(range(len(self.pids)), b"")
        deadline = time.monotonic() + case.seconds + more
        with selectors.DefaultSelector() as selector:
            for rank, answers in enumerate(self.answers):
                selector.register(answers, selectors.EVENT_READ, rank)
            while len(said) < len(self.pids) and (left := deadline - time.monotonic()) > 0:
                if os.getppid() != _parent:
                    sys.exit("pytest has ended")
                for key, _ in selector.select(min(left, 1)):
                    rank = key.data
                    text = os.read(key.fd, 1 << 16)
                    texts[rank] += text
                    if not text or texts[rank].endswith(b"\n"):
                        selector.unregister(key.fd)
                        answer = json.loads(texts[rank]) if text else ["the process has ended", 0]
                        said[rank], used = answer
                        self.used += used
                        if said[rank]:
                            deadline = min(deadline, time.monotonic() + GRACE)
        waiting = [rank for rank in texts if rank not in said]
        for rank in waiting:
            os.kill(self.pids[rank], signal.SIGUSR1)  # writes down its stack
        if waiting:
            time.sleep(0.5)
        for rank in waiting:
            path = Path(self.folder.name) / f"stack{rank}"
            stack = path.read_text() if path.exists() else ""
            said[rank] = f"it had not returned\n{stack}"
        return [f"rank {rank}: {text}" for rank, text in sorted(said.items()) if text]

    def end(self, *, failed: bool = False) -> None:
        for descriptor in (*self.commands, *self.answers):
            os.close(descriptor)
        deadline = time.monotonic() + (0 if failed else 5)
        left = set(self.pids)
        while left and time.monotonic() < deadline:
            left = {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0] == 0}
            time.sleep(0.005)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.folder.cleanup()


def _be_rank(rank: int, size: int, folder: Path, reads: int, writes: int) -> None:
    """Runs the cases that come over a pipe, and answers each with an error or nothing."""
    stack = (folder / f"stack{rank}").open("w")
    faulthandler.register(signal.SIGUSR1, stack, all_threads=True)
    torch.set_num_threads(1)
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    if size:
        store = dist.FileStore(str(folder / "store"), size)
        limit = timedelta(seconds=SLACK)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    with os.fdopen(reads) as commands:
        for line in commands:
            case = Case(*json.loads(line))
            test = getattr(sys.modules[case.module], case.function)
            torch.manual_seed(SEED)
            said, begin = "", time.process_time()
            try:
                test.body(*([test.parameters[case.what]] if case.what else []))
            except BaseException:
                said = traceback.format_exc()
            with contextlib.suppress(BrokenPipeError):
                answer = [said, time.process_time() - begin]
                os.write(writes, (json.dumps(answer) + "\n").encode())


def _run_worlds(folder: Path) -> None:
    cases = [Case(*each) for each in json.loads((folder / "cases.json").read_text())]
    # The first are what every rank would import when it first needs it.
    lazy = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]
    if importlib.util.find_spec("transformers") is not None:
        lazy.append("transformers.models.llama.modeling_llama")
    for module in (*lazy, *{case.module for case in cases}):
        importlib.import_module(module)
    gc.freeze()  # or every rank's collections would copy all of it

    outcomes: dict[str, list[str]] = {}
    for size in sorted({case.size for case in cases}):
        world, more = None, 0
        for case in cases:
            if case.size != size:
                continue
            if world is None:
                world, more = _World(size), SLACK
            begin, used = time.monotonic(), world.used
            outcomes[case.key()] = world.run(case, more)
            took, used = time.monotonic() - begin, world.used - used
            print(f"{took:6.2f} s, {used:6.2f} s of CPUs: {case.key()}", flush=True)
            more = 0
            if outcomes[case.key()]:  # others may be amid a collective
                world.end(failed=True)
                world = None
        if world is not None:
            world.end()
    (folder / "worlds.part").write_text(json.dumps(outcomes))
    (folder / "worlds.part").rename(folder / "worlds.json")


if __name__ == "__main__":
    # Under the name by which the modules of tests import it.
    importlib.import_module("worlds")._run_worlds(Path(sys.argv[1]))
