"""Whose key each draw of a constructor has, and that nothing else in the model matters for it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from build_cases import CASES, Adapted, ForgetGate, Made, NanoGPT, built, plain, quiet, scaled, svd
from compared import assert_same, tensors
from torch import nn
from torch.nn import init
from torch.nn.parameter import Parameter

import torchinit
from conftest import native_only
from torchinit import build_model, plan_model
from torchinit.functional import fill
from torchinit.schemes.distributions import normal_draw, uniform_draw
from torchinit.streams.named_keys import keys_of_names, part_of


def normal(name: str, *shape: int, std: float = 1.0, seed: int = 0) -> torch.Tensor:
    """What a normal draw of a name is, by the contract."""
    made = torch.empty(shape)
    fill(normal_draw(0.0, std), made, keys_of_names(seed)(name))
    return made


def uniform(name: str, *shape: int) -> torch.Tensor:
    made = torch.empty(shape)
    fill(uniform_draw(0.0, 1.0), made, keys_of_names(0)(name))
    return made


def build(function: Callable[[nn.Module], object], **options: object) -> nn.Module:
    """Builds a module by a function that is given it, in its constructor."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            function(self)

    return build_model(Model, seed=0, **options)


# Keys, as docs/streams.md has them.


def test_vectors() -> None:
    assert keys_of_names(0)("a.weight") == 4361549062596889287
    assert keys_of_names(0)(part_of("a.weight", 0)) == 354200545526880327
    assert keys_of_names(1)(part_of("a", 1)) != keys_of_names(0)(part_of("a", 1))
    assert keys_of_names(0)(part_of("a", 1)) == 5337037641644562963


@native_only
def test_a_draw_into_all_of_a_tensor_has_its_name() -> None:
    def function(self) -> None:
        self.w, self.scale = Parameter(torch.empty(8, 6)), Parameter(torch.randn(5))
        init.normal_(self.w, std=0.5)
        self.inner = nn.ModuleList([nn.Embedding(7, 3)])
        self.register_buffer("table", torch.rand(4, 4))
        self.kept = torch.randn(9)
        self.turned = Parameter(torch.randn(5, 4).t())

    model = build(function)
    assert torch.equal(model.w, normal("w", 8, 6, std=0.5))
    assert torch.equal(model.scale, normal("scale", 5))
    assert torch.equal(model.inner[0].weight, normal("inner.0.weight", 7, 3))
    assert torch.equal(model.table, uniform("table", 4, 4))
    assert torch.equal(model.kept, normal("kept", 9))
    assert torch.equal(model.turned, normal("turned", 5, 4).t())


@native_only
def test_what_a_tensor_follows_from_is_a_part_of_it() -> None:
    def function(self) -> None:
        self.w = Parameter(torch.randn(8) * 0.5)
        self.v = Parameter(torch.randn(8) + torch.rand(8))
        self.z = Parameter(torch.cat([torch.randn(3), torch.zeros(2)]))
        self.s = Parameter(torch.zeros(6, 4))
        with torch.no_grad():
            self.s[:2].normal_()
            self.s[4:] = torch.rand(2, 4)

    model = build(function)
    assert torch.equal(model.w, normal(part_of("w", 0), 8) * 0.5)
    assert torch.equal(model.v, normal(part_of("v", 0), 8) + uniform(part_of("v", 1), 8))
    assert torch.equal(model.z[:3], normal(part_of("z", 0), 3))
    assert torch.equal(model.s[:2], normal(part_of("s", 0), 2, 4))
    assert torch.equal(model.s[4:], uniform(part_of("s", 1), 2, 4))


@native_only
def test_several_draws_into_one_tensor() -> None:
    """The first that matters has the name, later ones are parts; what is overwritten is nothing."""

    def function(self) -> None:
        self.once, self.both = Parameter(torch.empty(8)), Parameter(torch.empty(8))
        for parameter in (self.once, self.both):
            init.uniform_(parameter)
            init.normal_(parameter)
        with torch.no_grad():
            self.both.add_(torch.randn(8))
        self.again = Parameter(torch.empty(8))
        init.normal_(self.again)
        self.before = Parameter(self.again.detach().clone())
        init.normal_(self.again)

    model = build(function)
    assert torch.equal(model.once, normal("once", 8))
    assert torch.equal(model.both, normal("both", 8) + normal(part_of("both", 0), 8))
    assert torch.equal(model.before, normal("again", 8))
    assert torch.equal(model.again, normal(part_of("again", 0), 8))


@native_only
def test_a_rejection_loop_is_one_draw() -> None:
    calls = []

    def function(self) -> None:
        self.w = Parameter(torch.empty(64))
        calls.clear()
        with torch.no_grad():
            while not calls or float(self.w.abs().max()) >= 2.2:
                self.w.normal_()
                calls.append(len(calls))

    model = build(function)
    assert float(model.w.abs().max()) < 2.2
    assert torch.equal(model.w, normal("w", 64)) == (len(calls) == 1)


@native_only
def test_memory_that_several_tensors_are_views_of() -> None:
    def function(self) -> None:
        q = torch.randn(3, 8, 4)
        self.q1, self.q0, self.q2 = (Parameter(q[i]) for i in (1, 0, 2))

    model = build(function)
    found = torch.stack([model.q0, model.q1, model.q2])
    assert torch.equal(found, normal(part_of("q0", 0), 3, 8, 4))


@native_only
def test_ties_and_copies() -> None:
    def function(self) -> None:
        self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.embed.weight = self.head.weight
        init.normal_(self.head.weight)
        self.b = Parameter(torch.empty(6))
        init.normal_(self.b)
        self.a = Parameter(self.b.detach().clone())
        gone = torch.randn(6)
        self.d, self.c = Parameter(gone * 1), Parameter(gone.clone())

    model = build(function)
    assert torch.equal(model.head.weight, normal("embed.weight", 7, 3))
    assert torch.equal(model.a, normal("b", 6))
    assert torch.equal(model.c, normal(part_of("c", 0), 6))
    assert torch.equal(model.d, model.c)


@native_only
def test_values_that_are_read_and_go_nowhere() -> None:
    """They are parts of the module whose method draws them, or of the model."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.draw()

        def draw(self) -> None:
            self.n = Parameter(torch.full((3,), torch.randn(4).max().item()))
            self.m = Parameter(torch.full((3,), torch.randn(4).max().item()))

    outside = []

    def function(self) -> None:
        self.inner = Inner()
        outside.append(make())

    def make() -> float:
        return torch.randn(4).max().item()

    def whole() -> nn.Module:
        outside.clear()
        value = make()
        model = nn.Linear(2, 2)
        nn.init.constant_(model.bias, value)
        return model

    model = build(function)
    assert model.inner.n.tolist() == [float(normal(part_of("inner", 0), 4).max())] * 3
    assert model.inner.m.tolist() == [float(normal(part_of("inner", 1), 4).max())] * 3
    assert outside[-1] == float(normal(part_of("", 0), 4).max())
    bias = build_model(whole, seed=0).bias
    assert bias.tolist() == [float(normal(part_of("", 0), 4).max())] * 2


def test_draws_of_torch_are_seeded_by_the_key() -> None:
    def function(self) -> None:
        self.register_buffer("order", torch.randperm(64))
        self.register_buffer("mask", torch.empty(64).bernoulli_(0.3))
        self.register_buffer("two", torch.randint(0, 9, (8,)) + 1)

    def seeded(name: str) -> torch.Generator:
        return torch.Generator().manual_seed(keys_of_names(0)(name) % 2**64)

    model = build(function)
    assert torch.equal(model.order, torch.randperm(64, generator=seeded("order")))
    assert torch.equal(model.mask, torch.empty(64).bernoulli_(0.3, generator=seeded("mask")))
    two = torch.randint(0, 9, (8,), generator=seeded(part_of("two", 0)))
    assert torch.equal(model.two, two + 1)


@native_only
def test_other_names() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Embedding(6, 4))

    renamed = build_model(net, seed=0, rename=lambda name: f"stage.{name}")
    assert torch.equal(renamed[0].weight, normal("stage.0.weight", 6, 4))
    renamed = build_model(net, seed=0, rename={"0.weight": "x"}, device="meta")
    torchinit.init_model_(renamed, seed=0, device="cpu", rename={"0.weight": "x"})
    assert torch.equal(renamed[0].weight, normal("x", 6, 4))
    for wrap, name in (
        (torch.compile, "0.weight"), (nn.DataParallel, "0.weight"),
        (torch.optim.swa_utils.AveragedModel, part_of("0.weight", 0)),  # it makes a copy
    ):  # fmt: skip
        model = build_model(lambda wrap=wrap: wrap(net()), seed=0)
        (weight,) = model.parameters()
        assert torch.equal(weight, normal(name, 6, 4)), wrap


# Nothing else in the model matters.


def assert_shared(one: nn.Module, other: nn.Module, besides: str = "?", least: int = 1) -> None:
    """Tensors of one name and shape are equal, but for those of a name that changes its law."""
    left, right = tensors(one), tensors(other)
    shared = [
        name for name in left
        if name in right and left[name].shape == right[name].shape and besides not in name
    ]  # fmt: skip
    assert len(shared) >= least
    for name in shared:
        assert torch.equal(left[name], right[name]), name


def test_layers_more() -> None:
    one, other = (build_model(lambda n=n: NanoGPT(n), seed=0) for n in (3, 4))
    assert_shared(one, other, "c_proj.weight", 21)
    assert torch.allclose(one.h[0].c_proj.weight * 3**0.5, other.h[0].c_proj.weight * 4**0.5)


@pytest.mark.parametrize("name", ["scaled", "item", "svd", "LoRA by QR", "views of one draw",
                                  "boolean mask", "trained", "forget gate"])  # fmt: skip
def test_draws_before_after_and_between(name: str) -> None:
    """Also those that are read, and of more layers."""

    def more() -> nn.Module:
        torch.randn(5)
        torch.randn(8).max().item()
        nn.Linear(3, 3)
        torch.linalg.svd(nn.Linear(6, 6).weight.data)
        model = CASES[name]()
        torch.rand(7).sum().item()
        model.aa_more = nn.Linear(4, 4)
        model.zz_more = Parameter(torch.randn(3) * 2)
        return model

    assert_shared(quiet(lambda: build_model(more, seed=0)), built(name), "listed", least=2)


def test_the_order_of_layers() -> None:
    class Net(nn.Module):
        def __init__(self, names: str) -> None:
            super().__init__()
            for name in names:
                parameter = Parameter(torch.randn(32) * 0.1)
                setattr(self, name, parameter)
                setattr(self, f"{name}_layer", nn.Linear(4, 4))
                self.register_buffer(f"{name}_norm", torch.randn(3).norm()[None])
                read = parameter.detach().norm().item()
                setattr(self, f"{name}_read", Parameter(torch.ones(2) * read))

    one = build_model(lambda: Net("abc"), seed=0)
    for names in ("cba", "bac", "ab", "axbyc"):
        assert_shared(build_model(lambda names=names: Net(names), seed=0), one, least=8)


def test_the_order_of_parts() -> None:
    """Within one module, draws of other tensors may come between."""

    class Net(nn.Module):
        def __init__(self, swapped: bool) -> None:
            super().__init__()
            first, second = torch.randn(8), torch.rand(8)
            if swapped:
                torch.randn(3)
                second = torch.rand(8)
            self.a, self.b = Parameter(first * 2), Parameter(second * 2)

    assert_same(build_model(lambda: Net(False), seed=0), build_model(lambda: Net(True), seed=0))


def test_where_a_part_stands_is_its_name() -> None:
    lstm = build_model(lambda: nn.ModuleDict({"a": ForgetGate(), "b": ForgetGate()}), seed=0)
    other = build_model(lambda: nn.ModuleDict({"b": ForgetGate()}), seed=0)
    assert_shared(lstm, other, least=8)
    assert not torch.equal(lstm["a"].lstm.weight_ih_l0, lstm["b"].lstm.weight_ih_l0)


def test_wrapping_a_layer_changes_nothing_of_it() -> None:
    """An adapter's base has the name that the layer had, and its own parts have theirs."""

    class Net(nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.q, self.v = nn.Linear(8, 8), nn.Linear(8, 8)
            if rank:
                self.adapters = nn.ModuleDict({"q": Adapted(nn.Linear(8, 8), rank)})

    bare, small, large = (build_model(lambda rank=rank: Net(rank), seed=0) for rank in (0, 2, 3))
    assert_shared(small, bare, least=4)
    assert_shared(small, large, least=6)


# Generators of the code's own.


def _warnings_of(name: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_model(CASES[name], seed=5)
    assert all(one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("generator", ["a", "b"]),
        ("seeded", ["a.weight", "a.bias", "b.weight", "b.bias"]),
        ("fork_rng", ["inside.weight", "inside.bias"]),
        ("default generator", ["after.weight", "after.bias"]),
    ],
)
def test_generators_of_the_codes_own_mean_torchs_values(name: str, theirs: list[str]) -> None:
    expected, model = plain(name, 3), built(name, 5)
    other = built(name, 6)
    for key, parameter in model.named_parameters():
        is_torchs = torch.equal(parameter, expected.get_parameter(key))
        assert is_torchs == (key in theirs), key
        assert torch.equal(parameter, other.get_parameter(key)) == (key in theirs), key
    (said,) = _warnings_of(name)
    assert said.startswith(f"torch drew {len(theirs)} tensors from a generator or seed that the")
    assert "seed=5 has no effect on " + ", ".join(map(repr, theirs)) in said
    meta = built(name, device="meta")
    rows = {row.parameter: "seed has no effect" in row.rule for row in plan_model(meta)}
    assert rows == {key: key in theirs for key, _ in model.named_parameters()}


def test_a_plan_of_the_constructor_says_so_too() -> None:
    with pytest.warns(UserWarning, match="torch drew 2 tensors"):
        plan = plan_model(CASES["generator"])
    assert [row.parameter for row in plan if "seed has no effect" in row.rule] == ["a", "b"]


def test_what_follows_from_torchs_draws_is_torchs() -> None:
    def function(self) -> None:
        own = torch.Generator().manual_seed(3)
        self.a = Parameter(torch.randn(8, generator=own) * 2)
        self.b = Parameter(self.a.detach().exp().cumsum(0))
        self.c = Parameter(torch.randn(8))
        self.d = Parameter(self.a.detach() + torch.randn(8))

    with pytest.warns(UserWarning, match="torch drew 3 tensors.* 'a', 'b', 'd'$"):
        model = build(function)
    own = torch.Generator().manual_seed(3)
    assert torch.equal(model.a, torch.randn(8, generator=own) * 2)


def test_many_are_named_in_short() -> None:
    def build_many() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(9)])

    with pytest.warns(UserWarning, match=r"torch drew 9 tensors.*'4\.weight', …$"):
        build_model(build_many, seed=0)


def test_no_warning_where_nothing_is_torchs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_model(NanoGPT, seed=0)
        build_model(lambda: Made(a=Parameter(torch.randn(4, generator=torch.default_generator))),
                    seed=0)  # fmt: skip


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1])
def test_the_seed_that_it_has_anyway(seed: int) -> None:
    """It says which seed it has, and that a constructor may ask for."""

    def function(self) -> None:
        self.seed = torch.initial_seed()
        self.w = Parameter(torch.randn(4))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            function(self)

    model = build_model(Model, seed=seed)
    assert model.seed == keys_of_names(seed)("") % 2**64
    assert torch.equal(model.w, build_model(Model, seed=seed).w)


# The generators of torch, NumPy and Python.


def _states() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()


@pytest.mark.parametrize("name", ["NumPy and random", "discrete", "seeded", "item", "fork_rng"])
def test_generators_are_put_back(name: str) -> None:
    before = _states()
    built(name)
    built(name, device="meta")
    assert _states() == before


def test_generators_are_put_back_after_an_error() -> None:
    def raises() -> nn.Module:
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        raise KeyError("on the way")

    before = _states()
    with pytest.raises(KeyError, match="on the way"):
        build_model(raises, seed=0)
    assert _states() == before


def test_numpy_and_python_follow_from_the_seed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    one = built("NumPy and random")
    np.random.seed(2)
    random.seed(2)
    assert_same(built("NumPy and random"), one)
    other = built("NumPy and random", 1)
    assert not torch.equal(one.a, other.a)
    assert not torch.equal(one.p, other.p)


def test_torchs_generator_outside_has_no_effect() -> None:
    torch.manual_seed(1)
    one = build_model(scaled, seed=0), build_model(svd, seed=0)
    torch.manual_seed(2)
    torch.rand(3)
    for before, after in zip(one, (build_model(scaled, seed=0), build_model(svd, seed=0)),
                             strict=True):  # fmt: skip
        assert_same(before, after)
