"""That ``in_worlds`` tells what is wrong, on which rank, and waits for nobody for ever."""

from __future__ import annotations

import importlib
import json

import pytest
import torch.distributed as dist
import worlds

WRONG = """
import os
import torch
import torch.distributed as dist
from worlds import in_worlds

@in_worlds(2)
def test_raises():
    assert dist.get_rank() == 0, "mine"
    dist.all_reduce(torch.ones(1))

@in_worlds(2)
def test_ends():
    if dist.get_rank() == 0:
        os._exit(3)

@in_worlds(2, each={"one": 1, "two": 2})
def test_passes(number):
    total = torch.tensor([number])
    dist.all_reduce(total)
    assert total == 2 * number
"""


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)
def test_what_is_told(tmp_path, monkeypatch):
    (tmp_path / "wrong_on_purpose.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("wrong_on_purpose")
    cases = [
        worlds.Case(2, module.__name__, name, what, 30)
        for name, whats in (
            ("test_raises", [""]),
            ("test_ends", [""]),
            ("test_passes", ["one", "two"]),
        )
        for what in whats
    ]
    worlds._run(cases, tmp_path)
    outcomes = json.loads((tmp_path / "worlds.json").read_text())
    raises, ends, *passes = (outcomes[case.key()] for case in cases)
    assert len(raises) == 2
    assert raises[0].startswith("rank 0: it had not returned")
    assert "all_reduce" in raises[0]  # where it waits
    assert raises[1].startswith("rank 1: Traceback")
    assert "AssertionError: mine" in raises[1]
    assert ends == ["rank 0: the process has ended"]
    assert passes == [[], []]


def test_cases_that_were_not_run_do_not_pass(monkeypatch):
    @worlds.in_worlds(2)
    def test_body():
        pass

    monkeypatch.setattr(worlds, "_found", {"another": []})
    case = worlds.Case(2, test_body.__module__, "test_body", "", 1)
    with pytest.raises(pytest.fail.Exception, match="it was not run"):
        test_body(None, case)
