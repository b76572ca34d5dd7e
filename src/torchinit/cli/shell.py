"""The boundary between a command and the shell: output, exit code, and what can go wrong with both.

Streams can be closed, full or no longer read; any allocation can run out of memory, and Ctrl-C can
come at any time. Each of these ends in an exit code and one line. Tracebacks are for bugs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress

FAILED = 1
INTERRUPTED = 128 + 2  # what shells report for a process killed by SIGINT
UNREAD = 128 + 13  # and by SIGPIPE

# What errors other than MemoryError say when memory runs out: those of torch's CPU allocator, of
# CUDA's, of C++, of the system, and of the loader of shared libraries.
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
        command: returns what to write to standard output, and the exit code.
    """
    with _standard_error():
        if sys.stdout is None:  # closed when Python started
            say("standard output is closed")
            return FAILED
        try:
            text, status = command()
            return _write(text) or status
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except BrokenPipeError:
            _silence()
            return UNREAD
        except (MemoryError, RuntimeError, ImportError) as error:
            why = out_of_memory(error)
            if not why:
                raise
            say(why)
            return FAILED


def say(text: str) -> None:
    """Writes a line to standard error, if that can be written to."""
    try:
        print(f"torchinit: {text}", file=sys.stderr, flush=True)
    except OSError:
        _silence()


@contextmanager
def importing() -> Iterator[None]:
    """Makes Ctrl-C end the process at once, while there is nothing to clean up yet.

    An exception would not do: code that runs during imports swallows it or, in C++, aborts.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield  # SIGINT is not ours to handle: it is ignored, as under nohup, or a caller's
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
    """A one-line message if an error means that memory ran out, else an empty string."""
    text = str(error)
    first_line = text.strip().partition("\n")[0]
    if isinstance(error, MemoryError):
        return first_line or "out of memory"
    if not any(sign in text for sign in _OUT_OF_MEMORY):
        return ""
    # torch's message begins with a location in its source.
    return f"out of memory: {first_line.rpartition('DefaultCPUAllocator: ')[2]}"


def _write(text: str) -> int:
    """Writes to standard output; returns the exit code of a failure, else 0."""
    try:
        if text:
            print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        say(f"cannot write the output: {error.strerror}")
        _silence()
        return FAILED
    return 0


@contextmanager
def _standard_error() -> Iterator[None]:
    """Replaces a standard error that was closed at the start by one that discards everything.

    Without one, ``print(file=None)`` would write to standard output, and other code would fail.
    """
    if sys.stderr is not None:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # noqa: PTH123 (not a path)
        yield


def _silence() -> None:
    """Stops Python from flushing at exit what it could not write before: that would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError):  # not a file: a caller replaced it
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
