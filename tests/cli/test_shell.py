"""What can go wrong between a command and the shell: one line, an exit code and no traceback."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from processes import TINY, environment, finish, lines_but_of_torch, start

import warm
from conftest import long
from torchinit.cli import demo, shell
from torchinit.cli.main import main

pytestmark = pytest.mark.skipif(os.name == "nt", reason="streams and signals as POSIX has them")
INFO, HELP = ["info"], ["--help"]
DEMO = pytest.param(TINY, marks=long)  # behaves like the others, and takes seconds
each_short_command = pytest.mark.parametrize("arguments", [pytest.param(INFO, marks=long), HELP])
each_command = pytest.mark.parametrize("arguments", [INFO, DEMO, HELP])
# The error comes either from the write itself or when Python flushes.
each_buffering = pytest.mark.parametrize("buffered", [True, pytest.param(False, marks=long)])
full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def run_in_shell(arguments, redirections, **options):
    """Runs a command in a shell that redirects its streams."""
    process = start(
        "-c",
        "import os, sys; os.execvp('sh', ['sh', '-c', sys.argv[1], sys.executable, *sys.argv[2:]])",
        f'exec "$0" "$@" {redirections}',
        "-m",
        "torchinit",
        *arguments,
        **options,
    )
    return finish(process)


# Pipes without a reader


@pytest.fixture
def unread():
    """A pipe whose reader is gone."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    yield write_end
    os.close(write_end)


@pytest.mark.parametrize(
    ("arguments", "buffered"),
    [(INFO, True), pytest.param(TINY, True, marks=long), (HELP, True), (HELP, False)],
)
def test_output_that_nobody_reads(arguments, buffered, unread):
    process = start("-m", "torchinit", *arguments, stdout=unread, buffered=buffered)
    code, _, err = finish(process)
    assert (code, err) == (141, "")


@each_short_command
def test_no_stream_is_read(arguments, unread):
    process = start("-m", "torchinit", *arguments, stdout=unread, stderr=unread)
    assert process.wait(timeout=60) == 141


@each_buffering
def test_notes_that_nobody_reads_do_not_matter(buffered, unread):
    process = start(
        "-m", "torchinit", *TINY, "--json", stderr=unread, native=False, buffered=buffered
    )
    code, out, _ = finish(process)
    assert code == 0
    assert out.startswith("{")


# Full disks


@full_disk
@pytest.mark.parametrize(
    ("arguments", "buffered"),
    [(INFO, True), pytest.param(TINY, True, marks=long), (HELP, True), (HELP, False)],
)
def test_full_disk(arguments, buffered):
    code, _, err = run_in_shell(arguments, "> /dev/full", buffered=buffered)
    assert code == 1
    assert err == "torchinit: cannot write the output: No space left on device\n"


@full_disk
@each_short_command
def test_full_disk_for_both_streams(arguments):
    assert run_in_shell(arguments, "> /dev/full 2> /dev/full") == (1, "", "")


@full_disk
@each_buffering
def test_full_disk_for_notes_does_not_matter(buffered):
    arguments = [*TINY, "--json"]
    code, out, _ = run_in_shell(arguments, "2> /dev/full", buffered=buffered, native=False)
    assert code == 0
    assert out.startswith("{")


# Closed streams


@pytest.mark.parametrize("arguments", [DEMO, HELP])
def test_closed_output(arguments):
    code, _, err = run_in_shell(arguments, ">&-")
    assert (code, err) == (1, "torchinit: standard output is closed\n")


@each_command
def test_closed_error(arguments):
    code, out, _ = run_in_shell(arguments, "2>&-")
    assert code == 0
    assert out


def test_notes_for_a_closed_error_go_nowhere(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(demo, "available_memory", lambda _device: 0)
    assert main(["demo", "--device", "cpu", "--json"]) == 0
    assert capsys.readouterr().out.startswith("{")
    assert sys.stderr is None


HOSTILE = "\x1b[31mred\u202e"


@pytest.mark.parametrize("arguments", [
    ["report", HOSTILE], ["report", ".", "-o", f"{HOSTILE}.jpg"],
    ["report", ".", "--rules", HOSTILE], ["checkpoint", HOSTILE, "out"],
    ["checkpoint", "--build", HOSTILE, "out"],
    ["checkpoint", "--build", f"os.path:{HOSTILE}", "out"],
])  # fmt: skip
def test_names_in_errors_are_escaped(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    said = capsys.readouterr().err
    assert r"\x1b[31mred\u202e" in said
    assert all(line.isprintable() for line in said.split("\n"))


def test_bad_usage_with_a_closed_error():
    code, out, _ = run_in_shell(["demo", "--model", "gpt5"], "2>&-")
    assert (code, out) == (2, "")


@each_short_command
def test_all_streams_closed(arguments):
    assert run_in_shell(arguments, "<&- >&- 2>&-") == (1, "", "")


# Text that others wrote


HOSTILE = "a\x1b[31mred\x1b[0m\r\x07 \ud800 \u202e\x9b …"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_a_terminal_would_obey_is_escaped(encoding):
    """And what it cannot show: as in the names of tensors, which a checkpoint can have."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        assert shell.run(lambda: (f"{HOSTILE}\nsecond", 0)) == 0
        shell.say(f"{HOSTILE}\nsecond")
    said, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    shown = r"a\x1b[31mred\x1b[0m\r\x07 \ud800 \u202e\x9b " + (
        "…" if encoding == "utf-8" else r"\u2026"
    )
    assert said == f"{shown}\nsecond\n"
    assert err == f"torchinit: {shown} second\n".replace(r"\r", " ")


def test_warnings_are_one_line():
    shown = []

    def warn():
        shown.append(warnings.formatwarning(UserWarning(f"{HOSTILE}\nsecond"), UserWarning, "f", 1))
        return "", 0

    before = warnings.formatwarning
    assert shell.run(warn) == 0
    assert warnings.formatwarning is before
    (line,) = shown
    assert line.startswith(r"torchinit: a\x1b[31mred")
    assert line.endswith("second\n")
    assert line.count("\n") == 1


# Interrupts


def test_interrupt_in_process(capsys, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "judge_values", interrupted)
    assert main(TINY) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "torchinit: interrupted"


def interrupt(process, ready):
    """Interrupts a process once it has written a line, and returns its standard error."""
    assert process.stdout is not None
    assert process.stdout.readline() == f"{ready}\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    # A shell reports 130 either way.
    assert code in (130, -signal.SIGINT)
    assert out == ""
    assert err.splitlines()[-1] == "torchinit: interrupted"
    assert "Traceback" not in err
    return err


def test_interrupt_from_outside():
    program = (
        "import sys, time\n"
        "from torchinit.cli.main import main\n"
        "from torchinit.cli import demo\n"
        "def slow(*_):\n"
        "    print('building', flush=True)\n"
        "    time.sleep(60)\n"
        "demo.take = slow\n"
        f"sys.exit(main({TINY}))\n"
    )
    interrupt(start("-c", program), "building")


@pytest.mark.parametrize("arguments", [TINY, INFO])
@pytest.mark.parametrize("swallow", [False, True])
def test_interrupt_of_an_import(tmp_path, arguments, swallow):
    # torch's own import swallows interrupts in places, in C++ too.
    (tmp_path / "torch.py").write_text(
        "import time\n"
        "print('importing', flush=True)\n"
        "try:\n"
        "    time.sleep(20)\n"
        f"except {'BaseException' if swallow else '()'}:\n"
        "    pass\n"
        "raise ImportError('not interrupted')\n"
    )
    err = interrupt(start("-m", "torchinit", *arguments, path=[tmp_path]), "importing")
    assert err == "torchinit: interrupted\n"


def test_interrupts_are_as_before_an_import():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with shell.importing():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ignored_interrupts_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with shell.importing():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# Memory that runs out


def allocate_too_much():
    torch.empty(2**60)


def raise_memory_error():
    raise MemoryError


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (allocate_too_much, "torchinit: out of memory: can't allocate memory: you tried"),
        (raise_memory_error, "torchinit: out of memory"),
    ],
)
@pytest.mark.parametrize("step", ["take", "judge_values"])
def test_memory_that_runs_out_later(step, fail, message, capsys, monkeypatch):
    monkeypatch.setattr(demo, step, lambda *_: fail())
    assert main(TINY) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = lines_but_of_torch(err)
    assert line.startswith(message)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines."),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_other_words_for_memory_that_ran_out(error):
    line = shell.out_of_memory(error)
    assert line == f"out of memory: {str(error).splitlines()[0]}"


def test_other_errors_are_bugs_and_keep_their_traceback(monkeypatch):
    def bug(*_arguments):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(demo, "take", bug)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(TINY)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits as Linux has them")
def test_address_space_that_is_limited():
    program = (
        "import resource, sys, torch._dynamo, torchinit\n"  # meta tensors import _dynamo
        "from pathlib import Path\n"
        "from torchinit.cli.main import main\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "limit = used + 2**29\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "from torchinit.cli import demo\n"
        "demo.available_memory = lambda _device: float('inf')\n"
        "sys.exit(main(['demo', '--model', 'decoder', '--device', 'cpu']))\n"
    )
    done = warm.run("-c", program, env=environment())
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("torchinit: out of memory: can't allocate memory")
