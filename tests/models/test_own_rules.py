"""Rules that ask the model: ``"own"``, ``"reset_parameters"``; and ``only=``, what is filled."""

from __future__ import annotations

import re

import pytest
import torch
from compared import made, on_meta, refusal, values
from torch import nn
from torch.nn.utils import parametrizations

import torchinit
from torchinit import ArgumentError, Normal, build_model, init_model_, plan_model


class Net(nn.Module):
    """Its constructor does something besides."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.gate, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.head.weight = self.embed.weight
        nn.init.zeros_(self.gate.weight)


class Scaled(nn.Module):
    """Its reset does not all that its constructor does, and fills what lies below too."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.below = nn.Parameter(torch.empty(8, 6)), nn.Linear(6, 6)
        self.reset_parameters()
        with torch.no_grad():
            self.w.mul_(3)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.w, std=0.5)
        nn.init.ones_(self.below.weight)


class OldReset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(4, 4))

    def _reset_parameters(self) -> None:
        nn.init.constant_(self.w, 7.0)


class NeedsMore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(4, 4))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.w, std=std)


class FillsLess(OldReset):
    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.ones(3))


def _layers() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)})


# "own".


def test_own_is_what_no_rules_give() -> None:
    rules = {"a.*": "own", "norm.*": "own", "**": Normal(0.02)}
    for model in (on_meta(_layers), _layers()):
        init_model_(model, rules, seed=3, device="cpu")
        own, ruled = made(_layers, seed=3), init_model_(_layers(), {"**": Normal(0.02)}, seed=3)
        assert torch.equal(model["a"].weight, own["a"].weight)
        assert torch.equal(model["norm"].weight, own["norm"].weight)
        assert torch.equal(model["b"].weight, ruled["b"].weight)


def test_own_of_a_built_model() -> None:
    model = build_model(Net, seed=0, device="meta")
    init_model_(model, {"gate.bias": "ones", "**": "own"}, seed=4, device="cpu")
    expected = build_model(Net, seed=4)
    assert bool((model.gate.bias == 1).all())
    assert torch.count_nonzero(model.gate.weight) == 0
    assert torch.equal(model.embed.weight, expected.embed.weight)
    assert model.head.weight is model.embed.weight


def test_own_is_refused_where_it_is_not_known() -> None:
    said = refusal(Net(), rules={"gate.*": "own", "**": "zeros"})
    assert "default initialisation of 2 of 2 parameters is not known: gate.weight, gate" in said
    assert "torchinit.build_model(lambda: Net(...), seed=0)" in said
    init_model_(Net(), {"**.bias": "zeros", "**": "ones"}, seed=0)  # nobody asks for it


# "reset_parameters".


def test_reset_parameters_is_what_the_owners_give() -> None:
    rules = {"w": "reset_parameters", "**": "zeros"}
    for model in (on_meta(Scaled), Scaled()):
        init_model_(model, rules, seed=0, device="cpu")
        assert float(model.w.detach().std()) == pytest.approx(0.5, rel=0.4)
        assert torch.equal(model.w, init_model_(Scaled(), {"**": Normal(0.5)}, seed=0).w)
        assert torch.count_nonzero(model.below.weight) == 0  # what it fills below is not asked for
    below = init_model_(Scaled(), {"w": "keep", "**": "reset_parameters"}, seed=0).below
    assert torch.equal(below.weight, init_model_(nn.ModuleDict({"below": nn.Linear(6, 6)}),
                                                 seed=0)["below"].weight)  # fmt: skip


def test_old_names_of_resets() -> None:
    model = init_model_(on_meta(OldReset), {"**": "reset_parameters"}, seed=0, device="cpu")
    assert bool((model.w == 7).all())
    attention = nn.MultiheadAttention(8, 2)
    init_model_(attention, {"**": "reset_parameters"}, seed=0)
    own = made(lambda: nn.MultiheadAttention(8, 2))
    assert torch.equal(attention.in_proj_weight, own.in_proj_weight)
    # Its owner is a Linear, which does not know that the layer above zeroes it.
    assert torch.count_nonzero(attention.out_proj.bias) == 8


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (NeedsMore, "'w': NeedsMore has no reset_parameters that can be called without arguments"),
        (lambda: nn.ParameterList([torch.ones(3)]), "'0': ParameterList has no reset_parameters"),
        (FillsLess, r"reset_parameters of 1 of 2 parameters is not known: v \(reset_par"),
    ],
)  # fmt: skip
def test_reset_parameters_that_are_not_there(build, why) -> None:
    said = refusal(build(), rules={"**": "reset_parameters"})
    assert re.search(why, said), said


def test_resets_that_raise() -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4))

        def reset_parameters(self) -> None:
            nn.init.ones_(self.w)
            raise RuntimeError("no network")

    model = Raises()
    said = refusal(model, rules={"**": "reset_parameters"})
    assert "raised RuntimeError: no network" in said
    assert torch.count_nonzero(model.w) == 0


def test_what_resets_gave_is_not_what_the_constructor_gives() -> None:
    model = init_model_(Scaled(), {"**": "reset_parameters"}, seed=0)
    assert "only the constructor of Scaled knows" in refusal(model)


def test_what_is_said_of_both() -> None:
    plan = plan_model(_layers(), {"a.*": "own", "**": "reset_parameters"})
    assert [row.law.std for row in plan if row.name == "a.weight"] == pytest.approx([18**-0.5])
    assert {row.rule for row in plan} == {"reset_parameters()"}
    for scheme in (torchinit.Stack("own"), torchinit.Blocks({"x": 3, "y": 3}, "reset_parameters"),
                   torchinit.by(lambda _: "own")):  # fmt: skip
        with pytest.raises(ArgumentError, match="can only be the value of a rule of init_model_"):
            plan_model(_layers(), {"**": scheme})


# only=.


class Untouchable(nn.Parameter):
    """What nobody may use."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of what is not asked for: {types}, {args}, {kwargs}")


def test_only_leaves_all_else_alone() -> None:
    import torch.distributed.fsdp  # its flat pieces are looked for then

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LazyLinear(3), nn.Linear(3, 3))
    model[0].weight.data = torch.ones(1).expand(3, 3)  # which nobody could write to
    model[3].weight.__class__ = Untouchable
    versions = [model[0].weight._version, model[0].bias._version]
    init_model_(model, {"**": Normal(1.0)}, seed=0, only="1.*")
    expected = init_model_(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), {"**": Normal(1.0)},
                           seed=0)  # fmt: skip
    assert torch.equal(model[1].weight, expected[1].weight)
    assert [model[0].weight._version, model[0].bias._version] == versions


def test_only_leaves_the_meta_device_as_it_is() -> None:
    model = init_model_(on_meta(_layers), seed=0, device="cpu", only=["b.*", "norm.weight"])
    there = [name for name, value in model.state_dict().items() if not value.is_meta]
    assert there == ["b.weight", "b.bias", "norm.weight"]
    assert torch.equal(model["b"].weight, made(_layers)["b"].weight)


def test_only_asks_for_no_rules_of_the_rest() -> None:
    """Nor do rules have to match, which are for all of the model."""
    rules = {"a.*": "ones", "b.weight": Normal(1.0), "norm.*": "zeros", "b.bias": "zeros"}
    model = init_model_(_layers(), rules, seed=0, only="b.bias")
    assert torch.count_nonzero(model["b"].bias) == 0
    assert torch.count_nonzero(model["b"].weight) == 36
    with pytest.raises(ArgumentError, match=r"no rule matches 1 of 1 parameter: b\.bias"):
        init_model_(_layers(), {"a.*": "ones"}, seed=0, only="b.bias")


def test_only_a_new_head_of_a_trained_model() -> None:
    model = build_model(Net, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.new = nn.Linear(8, 3)
    before = values(model)
    for options in ({"rules": {"**": "reset_parameters"}}, {"rules": {"**": Normal(1.0)}}):
        init_model_(model, seed=0, only="new.*", **options)
        after = values(model)
        assert not torch.equal(after.pop("new.weight"), before["new.weight"])
        after.pop("new.bias")
        assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_only_what_a_load_misses() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=3,
    )  # fmt: skip
    state = transformers.LlamaForCausalLM(config).state_dict()
    model = transformers.LlamaForSequenceClassification(config)
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert missing == ["score.weight"]
    init_model_(model, seed=0, only=missing)
    own = build_model(lambda: transformers.LlamaForSequenceClassification(config), seed=0)
    assert torch.equal(model.score.weight, own.score.weight)
    loaded = {name: value for name, value in model.state_dict().items() if name in state}
    assert loaded
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_only_a_tie_by_any_of_its_names() -> None:
    for name in ("embed.weight", "head.weight", "*.weight"):
        model = Net()
        init_model_(model, {"**": "ones"}, seed=0, only=name)
        assert bool((model.embed.weight == 1).all()), name


def test_only_buffers() -> None:
    model = _layers()
    model["norm"].running_mean.fill_(3)
    model["norm"].running_var.fill_(3)
    init_model_(model, seed=0, only="norm.running_mean")
    assert torch.count_nonzero(model["norm"].running_mean) == 0
    assert bool((model["norm"].running_var == 3).all())


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.spectral_norm, torch.compile, nn.DataParallel],
    ids=lambda wrap: wrap.__name__,
)
def test_only_by_names_of_the_state_dict(wrap) -> None:
    """As ``missing_keys`` has them."""
    model, rules = wrap(nn.Linear(3, 3)), {"**": "ones"}
    names = [name for name, _ in model.named_parameters()]
    init_model_(model, rules, seed=0, only=names)
    assert all(bool((parameter == 1).all()) for parameter in model.parameters())


def test_only_without_rules_runs_nothing_of_the_rest() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))
    init_model_(model, seed=0, only="1.*")
    own = made(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    assert torch.equal(model[1].weight, own[1].weight)


def test_only_what_is_not_there() -> None:
    with pytest.raises(ArgumentError, match=r"only: a\.wieght, x\.\* matches no parameter or buff"):
        init_model_(_layers(), seed=0, only=["a.wieght", "a.weight", "x.*"])
    with pytest.raises(ArgumentError, match=r"only: \[\] matches no parameter"):
        init_model_(_layers(), seed=0, only=[])
    for nonsense in ([3], 3):
        with pytest.raises(TypeError, match=r"only=\[?3\]? must be names or globs"):
            init_model_(_layers(), seed=0, only=nonsense)
