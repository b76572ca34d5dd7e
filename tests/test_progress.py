"""Progress bars: where they are shown, and what they say."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from torchinit.progress import batches, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown_on(monkeypatch):
    """A terminal in place of standard error; not a fixture, as pytest sets that after them."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_a_bar_has_its_title_and_the_next(monkeypatch):
    terminal = shown_on(monkeypatch)
    with progress("reading", 3, " steps") as advance:
        advance(2)
        advance(1, "writing")
    assert "reading:   0%|          | 0/3 " in terminal.getvalue()
    assert "writing: 100%|##########| 3/3 " in terminal.getvalue()


def test_few_bytes_are_not_worth_a_bar(monkeypatch):
    terminal = shown_on(monkeypatch)
    with progress("reading", 2**30 - 1) as advance:
        advance(5, "writing")
    assert terminal.getvalue() == ""
    with progress("reading", 2**30):
        pass
    assert "reading" in terminal.getvalue()
    with progress("measuring", 2**27, least=2**27):
        pass
    assert "measuring" in terminal.getvalue()


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [io.StringIO(), None, object(), closed()])
def test_nothing_is_shown_elsewhere(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("reading", 2**40) as advance:
        advance(1)
    assert getattr(stream, "closed", True) or stream.getvalue() == ""


def test_batches_are_all_tensors_in_order(monkeypatch):
    terminal = shown_on(monkeypatch)
    tensors = [torch.empty(10, dtype=torch.uint8)] * 7
    assert list(batches("filling", tensors)) == [slice(0, 7)]
    monkeypatch.setattr("torchinit.progress._LEAST", 1)
    monkeypatch.setattr("torchinit.progress._STEP", 30)
    assert list(batches("filling", tensors)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert "filling" in terminal.getvalue()
    assert list(batches("filling", [])) == [slice(0, 0)]
