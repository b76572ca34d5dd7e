"""Views of one storage: each has the entries that determine it, and no others."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from torchinit import ArgumentError, build_model, init_model_
from torchinit.tape import program
from torchinit.tape.program import recall


class Views(nn.Module):
    """Parameters that are views of a flat buffer, after random writes to parts of it."""

    def __init__(self, choice: random.Random) -> None:
        super().__init__()
        size = 24
        flat = torch.empty(size)
        choice.choice([flat.zero_, flat.normal_])()
        for _ in range(choice.randrange(12)):
            begin = choice.randrange(size)
            part = flat[begin : choice.randrange(begin, size) + 1 : choice.choice([1, 1, 1, 2])]
            other = flat[size - len(part) :]
            choice.choice(
                [
                    lambda part=part: part.normal_(),
                    lambda part=part: part.mul_(2),
                    lambda part=part: part.exponential_(),
                    lambda part=part: part.copy_(torch.randn(len(part)) + 1),
                    lambda part=part: part.fill_(3),
                    lambda part=part: part.view(torch.int32).zero_(),
                    lambda part=part, other=other: part.copy_(other.clone()),
                ]
            )()
        cuts = sorted(choice.sample(range(1, size), 5))
        for i, (begin, end) in enumerate(zip([0, *cuts], [*cuts, size], strict=True)):
            self.register_parameter(f"p{i}", nn.Parameter(flat[begin:end]))


@pytest.mark.parametrize("number", range(60))
def test_a_model_filled_from_meta_equals_one_that_was_built(number):
    def build():
        return Views(random.Random(number))

    built = build_model(build, seed=1)
    filled = init_model_(build_model(build, seed=1, device="meta"), seed=1, device="cpu")
    for (name, one), other in zip(built.named_parameters(), filled.parameters(), strict=True):
        assert torch.equal(one.data.view(torch.int32), other.data.view(torch.int32)), name


def test_each_has_its_own_entries():
    def build():
        model, flat = nn.Module(), torch.empty(40)
        for i, part in enumerate(flat.split(10)):
            model.register_parameter(f"p{i}", nn.Parameter(part))
        with torch.no_grad():
            model.p0.normal_().mul_(2)
            flat[15:25].uniform_()  # of two parameters
            flat[10:].fill_(1)
            model.p3.copy_(torch.randn(10) * 3)
        return model

    model = build_model(build, seed=0, device="meta")
    assert [len(recall(model, f"p{i}").entries) for i in range(4)] == [2, 5, 5, 5]
    assert torch.equal(build_model(build, seed=0).p3, init_model_(model, seed=0, device="cpu").p3)


def test_a_flat_buffer_is_made_once_for_all_its_views(monkeypatch):
    def build():
        model = nn.Module()
        for i, part in enumerate((torch.randn(40) * 2).split(4)):
            model.register_parameter(f"p{i}", nn.Parameter(part))
        return model

    def counting(*arguments):
        count.append(1)
        return play(*arguments)

    count, play = [], program.play
    built = build_model(build, seed=0)
    model = build_model(build, seed=0, device="meta")
    monkeypatch.setattr(program, "play", counting)
    init_model_(model, seed=0, device="cpu")
    assert count == [1]
    assert all(map(torch.equal, built.parameters(), model.parameters()))


def test_what_no_entry_writes_is_unfilled():
    def build():
        model, flat = nn.Module(), torch.empty(30)
        for i, part in enumerate(flat.split(10)):
            model.register_parameter(f"p{i}", nn.Parameter(part))
        nn.init.normal_(model.p0)
        nn.init.normal_(model.p2)
        return model

    model = build_model(build, seed=0, device="meta")
    with pytest.raises(ArgumentError, match="the constructor leaves 'p1' unfilled"):
        init_model_(model, seed=0, device="cpu")
    init_model_(model, {"p1": "zeros", "**": "own"}, seed=0, device="cpu")
    assert torch.equal(model.p2, build_model(build, seed=0).p2)
