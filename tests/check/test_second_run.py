"""The second run of an initialisation, which tells integers that hold their marks by chance."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import nn

from torchinit import UninitializedError, check_init, marked_memory
from torchinit.check import check_init as module
from torchinit.check.look import _may_be_chance


class Table(nn.Module):
    """A weight, and a table of bytes, of which some hold their marks whatever is drawn."""

    def __init__(self, count: int = 4096) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))
        self.register_buffer("q", torch.zeros(count, dtype=torch.uint8))


def table(count=4096):
    return torch.randint(0, 256, (count,), dtype=torch.uint8)


@pytest.mark.parametrize("make", [Table, Table()], ids=["function", "model"])
def test_what_init_puts_into_the_model_keeps_its_values(make):
    saved = {"w": torch.ones(4), "q": table()}
    before = {name: one.clone() for name, one in saved.items()}
    check_init(make, lambda model: model.load_state_dict(saved, assign=True))
    assert all(torch.equal(saved[name], before[name]) for name in saved)


@pytest.mark.parametrize("make", [Table, Table()], ids=["function", "model"])
def test_an_initialisation_that_keeps_a_note_in_the_model(make):
    def once(model):
        if not hasattr(model, "is_done"):
            model.w.data.fill_(1)
            model.q.copy_(table())
            model.is_done = True

    check_init(make, once)


def test_an_initialisation_that_keeps_a_note_elsewhere():
    seen = []

    def once(model):
        if not seen:
            model.w.data.fill_(1)
            model.q.copy_(table())
            seen.append(model)

    with pytest.warns(UserWarning, match="second time.*left 'w' unwritten"):
        check_init(Table(), once)


class Shared(Table):
    def __deepcopy__(self, _memo):
        return self


@pytest.mark.parametrize("shares", ["copy", "function", "memory"])
def test_another_model_that_shares_something_with_the_first(shares):
    """Marks would overwrite what init has put there."""
    saved = {"w": torch.ones(4), "q": table()}
    before = {name: one.clone() for name, one in saved.items()}
    shared = Shared()

    def make():
        model = Table()
        model.w, model.q = shared.w, shared.q
        return model

    def init(model):
        for one in (model, shared):
            one.load_state_dict(saved, assign=True)

    given = {"copy": shared, "function": lambda: shared, "memory": make}[shares]
    with pytest.warns(UserWarning, match=r"second time.*but the other model for it shares"):
        check_init(given, init)
    assert all(torch.equal(saved[name], before[name]) for name in saved)


class Attribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = torch.empty(64, dtype=torch.int16)


def replaced(model):
    model.q = torch.empty(64, dtype=torch.int16)


def grown(model):
    model.q.zero_().resize_(128)


@pytest.mark.parametrize(
    ("make", "init", "where"),
    [
        (Attribute, lambda _: None, ""),
        (lambda: Table(64), replaced, ""),
        (lambda: Table(64), marked_memory()(replaced), ""),
        (lambda: Table(64), grown, "[64:128]"),
    ],
)
def test_new_memory_in_the_second_run_has_its_marks(make, init, where):
    """Integers that hold the marks of the first run would count as written."""

    def all_but_q(model):
        nn.init.ones_(getattr(model, "w", torch.empty(0)))
        init(model)

    with pytest.raises(UninitializedError) as error:
        check_init(make, all_but_q)
    assert [(row.name, row.count, row.where) for row in error.value.rows] == [("q", 64, where)]


def test_integers_under_keys_of_the_same_text():
    def make():
        model = nn.Module()
        model.tables = {1: torch.empty(8, dtype=torch.int8), "1": torch.empty(8, dtype=torch.int8)}
        return model

    with pytest.raises(UninitializedError, match=r"^2 of 2 tensors") as error:
        check_init(make, lambda _: None)
    assert [row.name for row in error.value.rows] == ["tables.1", "tables.1'"]


def test_values_that_differ_in_every_run():
    """Some bytes hold both marks then, by chance; more of them are named."""
    draws = numpy.random.default_rng(0)

    def init(model, written=slice(None)):
        model.w.data.fill_(1)
        drawn = draws.integers(0, 256, model.q.numel(), dtype=numpy.uint8)
        model.q[written] = torch.from_numpy(drawn)[written]

    with pytest.warns(UserWarning, match="cannot be told.*: q"):
        check_init(lambda: Table(1 << 20), init)
    with pytest.raises(UninitializedError) as error:
        check_init(lambda: Table(1 << 20), lambda model: init(model, slice(0, None, 2)))
    assert [row.names for row in error.value.rows] == [("q",)]


@pytest.mark.parametrize("count", [1, 1 << 20])
@pytest.mark.parametrize("itemsize", [1, 2])
def test_chance_is_poissons(count, itemsize):
    from scipy.stats import poisson

    mean = count / 2 ** (16 * itemsize)
    for held in (1, 2, 5, 16, 30, 60, 200):
        assert _may_be_chance(held, count, itemsize) == (poisson.sf(held - 1, mean) > 1e-4)


def test_ranks_run_once(monkeypatch):
    """Other ranks would not follow."""
    monkeypatch.setattr(module, "rank_of_world", lambda: 1)
    runs = []

    def init(model):
        runs.append(model)
        model.w.data.fill_(1)
        model.q.copy_(table())

    check_init(Table, init)
    assert len(runs) == 1


def test_models_that_transformers_has_initialised():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        vocab_size=16, max_position_embeddings=8,
    )  # fmt: skip
    model = transformers.BertModel(config)
    check_init(model, lambda model: model.init_weights())
    check_init(lambda: transformers.BertModel(config), lambda model: model.init_weights())
