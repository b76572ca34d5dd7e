"""Work in a forked child."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

SECONDS = 30


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a forked child that does some work; -SIGALRM if it hangs."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
