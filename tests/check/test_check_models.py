"""Some models of tools/check_zoo.py, and the tables of its page; test_zoo.py has all models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from torchinit import check_init

pytest.importorskip("transformers")

from check_zoo import (
    Small,
    by_deterministic_fill,
    by_versions,
    by_writes,
    judged,
    own_init,
    reachable,
    rows_of,
    small,
    table_of_docs,
)
from check_zoo import examine as examined
from transformers_configs import read_details

PAGE = Path(__file__).parents[2] / "docs" / "check_init.md"
LEFT = {
    "gpt2": [],
    "llama": [],
    "vit_mae": ["embeddings.cls_token", "embeddings.position_embeddings"],
}


@pytest.mark.parametrize("key", LEFT)
@pytest.mark.filterwarnings("ignore")
def test_what_plain_code_leaves(key):
    """As a judge has it that knows no marks; and torchinit's ways leave no more."""
    found = examined(key)
    assert found["build"] == "ok"
    assert [name for name, *_ in found["left"]] == LEFT[key]
    assert (found["false"], found["missed"]) == ([], [])
    for way in ("init_model_", "build_model", "write_checkpoint"):
        assert found[way] == [] or str(found[way]).startswith("refused"), way


def test_the_judge_finds_what_is_left_by_itself():
    """Of a model in which one tensor in eight is skipped."""
    one: Small = small("gpt2")
    names = [name for name, _ in reachable(one.build("meta")) if not name.startswith("#")]
    skipped = set(names[::8])

    def init(model):
        kept = {
            name: tensor.detach().clone()
            for name, tensor in reachable(model)
            if name in skipped and not tensor.is_meta
        }
        own_init(model)
        for name, tensor in reachable(model):
            if name in kept:
                tensor.data.copy_(kept[name])

    kept = judged(lambda: one.build("meta"), init)
    assert {name for name in kept if not name.startswith("#")} == skipped
    assert rows_of(lambda: None) == []


# The tables of the page.


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.empty(6, 8))


class Mask(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.empty(6, 8, dtype=torch.bool))


def new(values):
    def replace(model):
        model.weight = values()

    return replace


CASES = {
    "`weight.data.fill_(1)`": (One, lambda m: m.weight.data.fill_(1)),
    "`weight.numpy().fill(1)`": (One, lambda m: m.weight.numpy().fill(1)),
    "a new tensor with values": (One, new(lambda: torch.ones(6, 8))),
    "a mask that is all `True`": (Mask, lambda m: m.weight.fill_(True)),
    "only half of it, through a view": (One, lambda m: m.weight[:, ::2].fill_(1)),
    "arithmetic on what is there": (One, lambda m: m.weight.mul_(0.5)),
    "a copy of a new `empty`": (One, lambda m: m.weight.copy_(torch.empty(6, 8))),
    "a new `empty`": (One, new(lambda: torch.empty(6, 8))),
}
WRITTEN = 4  # of the cases, the first
WAYS = {
    "`check_init`": lambda make, init: {
        row.name for row in rows_of(lambda: check_init(make, init))
    },
    "version counters": by_versions,
    "recorded writes": by_writes,
    "deterministic fill": by_deterministic_fill,
}


def table_of_ways():
    lines = [f"| what the code does | {' | '.join(WAYS)} |", "| --- " * (len(WAYS) + 1) + "|"]
    for number, (title, (make, init)) in enumerate(CASES.items()):
        cells = []
        for way in WAYS.values():
            is_named = "weight" in way(make, init)
            wrong = "false alarm" if is_named else "missed"
            cells.append("right" if is_named == (number >= WRITTEN) else wrong)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_of_other_ways():
    table = table_of_ways()
    assert table in PAGE.read_text(), table
    assert all(line.split(" | ")[1] == "right" for line in table.splitlines()[2:])


def test_the_table_of_models():
    """It is that of the last run of the tool, in which nothing was named wrongly or missed.

    In models that are not refused, torchinit's ways leave nothing that plain code does not.
    """
    results = read_details(PAGE.parents[1] / "benchmarks/results/check-init.json.gz")["results"]
    assert table_of_docs(results) in PAGE.read_text(), table_of_docs(results)
    built = [one for one in results if one["build"] == "ok"]
    assert len(built) > 500
    for one in built:
        assert one["false"] == one["missed"] == [], one["key"]
        for way in ("init_model_", "build_model", "write_checkpoint"):
            rows = [] if str(one[way]).startswith("refused") else one[way]
            assert [row for row in rows if row not in one["left"]] == [], (one["key"], way)
