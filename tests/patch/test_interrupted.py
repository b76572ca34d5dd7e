"""Handlers of signals that begin and end blocks while torch's functions are being replaced."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from itertools import count

import pytest
from test_blocks import assert_as_before, is_ours, snapshot

import torchinit
from conftest import native_only
from torchinit.patch import swap

_SETTLE = swap._Hooks._settle.__code__


class RaisedError(Exception):
    """What a handler raises, as Python's own handler of Ctrl-C does."""


class Interrupted:
    """Runs a handler once, before a given line of the code that replaces functions."""

    def __init__(self, line, handler):
        self.left, self.handler = line, handler

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_):
        sys.settrace(self.before)

    def _trace(self, frame, event, _):
        if not is_replacing(frame):
            return None if "/torchinit/" not in frame.f_code.co_filename else self._trace
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.handler()
        return self._trace


def is_replacing(frame):
    """Whether code of torchinit runs that replaces or restores functions."""
    if "/torchinit/" not in frame.f_code.co_filename:
        return False
    while frame is not None and frame.f_code is not _SETTLE:
        frame = frame.f_back
    return frame is not None


def block():
    with torchinit.patch_nn_init():
        assert is_ours()


def raise_error():
    raise RaisedError


@native_only
@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("what", ["a block", "a block that stays open", "an error"])
def test_at_any_line(what, step):
    block()
    before = snapshot()
    done = 0
    for line in count(step, 7):
        with ExitStack() as stays_open:
            handler = {
                "a block": block,
                "a block that stays open": lambda to=stays_open: to.enter_context(
                    torchinit.patch_nn_init()
                ),
                "an error": raise_error,
            }[what]
            interrupted = Interrupted(line, handler)
            try:
                with interrupted, torchinit.patch_nn_init():
                    pass
            except RaisedError:
                block()
            if what == "a block that stays open" and interrupted.left <= 0:
                assert is_ours()
        assert_as_before(before)
        assert not is_ours()
        if interrupted.left > 0:
            break
        done += 1
    assert done > 15
    block()
    assert_as_before(before)


@native_only
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_signals():
    before, seen = snapshot(), []

    def handler(*_):
        seen.append(1)
        block()

    old = signal.signal(signal.SIGUSR1, handler)
    try:
        for _ in range(50):
            kill = Interrupted(5, lambda: os.kill(os.getpid(), signal.SIGUSR1))
            with kill, torchinit.patch_nn_init():
                assert is_ours()
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert len(seen) == 50
    assert_as_before(before)
