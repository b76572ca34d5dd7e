"""Work in many tasks, shared out to Python threads whose products use one BLAS thread each.

MKL's products round otherwise on two threads than on one; on one they have the same bits whoever
asks for them. So it is tasks that are shared out.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from torchinit.native import load

# torch knows one number of threads for all: calls that change it take turns.
_turn = threading.RLock()


def _renew_turn() -> None:
    """In a forked child, where the thread that held the lock may be missing."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_turn)


class Task(NamedTuple):
    """A part of some work.

    Attributes:
        run: does it; called with the number of the thread, from 0 on.
        after: the numbers of earlier tasks that must be done before.
    """

    run: Callable[[int], None]
    after: Sequence[int]


@contextlib.contextmanager
def one_blas_thread() -> Iterator[int]:
    """Keeps torch's operations on one thread each; gives the number of threads there were.

    That is one in a child that was forked: threads of the parent's libraries are missing there.
    """
    with _turn:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield 1 if load.module is not None and load.module.is_forked() else threads
        finally:
            torch.set_num_threads(threads)


def carry_out(tasks: Sequence[Task], threads: int) -> None:
    """Does tasks on so many threads, the caller's among them; to be called in one_blas_thread.

    Tasks begin in their order. An exception of one is raised here once all threads have stopped;
    tasks that had not begun are not done then.
    """
    if threads == 1:
        for task in tasks:
            task.run(0)
        return
    sharing = _Sharing(tasks)
    inference = torch.is_inference_mode_enabled()

    def work(number: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            sharing.work(number)

    others = [threading.Thread(target=work, args=(number,)) for number in range(1, threads)]
    try:
        for thread in others:
            thread.start()
        sharing.work(0)
        for thread in others:
            thread.join()
    except BaseException:
        sharing.stop()
        raise
    finally:
        for thread in others:
            if thread.ident is not None:
                thread.join()
    if sharing.error is not None:
        raise sharing.error


class _Sharing:
    """Tasks, and how far some threads have come with them."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.next = 0
        self.done = bytearray(len(tasks))
        self.stopped = False
        self.error: BaseException | None = None
        self.news = threading.Condition()

    def stop(self, error: BaseException | None = None) -> None:
        """Lets every thread end after the task it is at."""
        with self.news:
            self.stopped = True
            self.error = self.error or error
            self.news.notify_all()

    def work(self, thread: int) -> None:
        """Does tasks until there are none left; keeps an error of theirs."""
        try:
            while (number := self._take()) is not None:
                self.tasks[number].run(thread)
                with self.news:
                    self.done[number] = True
                    self.news.notify_all()
        except BaseException as error:
            self.stop(error)

    def _take(self) -> int | None:
        with self.news:
            number = self.next
            self.next += 1
            if number >= len(self.tasks):
                return None
            after = self.tasks[number].after
            while not (self.stopped or all(map(self.done.__getitem__, after))):
                self.news.wait()
            return None if self.stopped else number
