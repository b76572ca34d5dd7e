"""Between a command and the shell: its output, its exit code, and what may go wrong with either.

Streams may be closed, full or no longer read; memory may run out at any allocation, and Ctrl-C may
come at any time. Each ends in an exit code and one line, never in a traceback: those are for bugs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import TextIO

FAILED = 1
INTERRUPTED = 128 + 2  # as of a process that SIGINT ended
UNREAD = 128 + 13  # likewise SIGPIPE

# How those say that memory ran out who raise no MemoryError: torch's allocator on the CPU, CUDA's,
# that of C++, the system, and the loader of shared libraries.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "out of memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "failed to map segment",
)


def run(command: Callable[[], tuple[str, int]]) -> int:
    """Runs a command, writes its output and returns the exit code.

    Args:
        command: returns what is to be written to standard output, and the exit code.
    """
    with _standard_error():
        if sys.stdout is None:  # closed when Python started
            say("standard output is closed")
            return FAILED
        try:
            text, status = command()
            if text:
                _write(text)
            return status
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except BrokenPipeError:
            _silence()
            return UNREAD
        except _CannotWriteError as error:
            say(f"cannot write the output: {error}")
            _silence()
            return FAILED
        except (MemoryError, RuntimeError, ImportError) as error:
            why = out_of_memory(error)
            if not why:
                raise
            say(why)
            return FAILED


def say(text: str) -> None:
    """Writes a line to standard error, if anything can be written there."""
    try:
        print(f"torchinit: {text}", file=sys.stderr, flush=True)
    except OSError:
        _silence()


@contextmanager
def importing() -> Iterator[None]:
    """Lets Ctrl-C end the process at once, while there is nothing yet to leave in order.

    An import is no place for exceptions: what runs in it swallows them, or aborts if it is C++.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield  # SIGINT is not ours: ignored under nohup, or handled by a caller
        return

    def leave(*_: object) -> None:
        try:
            say("interrupted")
        finally:
            os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def out_of_memory(error: BaseException) -> str:
    """Returns the line that tells of an error, if it is that memory ran out; else nothing."""
    text = str(error)
    first_line = text.strip().partition("\n")[0]
    if isinstance(error, MemoryError):
        return first_line or "out of memory"
    if not any(sign in text for sign in _OUT_OF_MEMORY):
        return ""
    # torch's begins with the place in its source.
    return f"out of memory: {first_line.rpartition('DefaultCPUAllocator: ')[2]}"


class _CannotWriteError(Exception):
    """Standard output is there and takes nothing."""


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _CannotWriteError(error.strerror) from None


@contextmanager
def _standard_error() -> Iterator[None]:
    """Gives a process that was started without a standard error one that goes nowhere.

    Otherwise ``print`` would take standard output in its place, and others fail.
    """
    if sys.stderr is not None:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # noqa: PTH123 (no path)
        yield


def _silence() -> None:
    """Keeps Python from writing at its exit what could not be written, which would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if not _can_flush(stream):
            with suppress(OSError, ValueError):  # no file: replaced by a caller
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _can_flush(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return False
    return True
