"""Rules that match buffers: by their names, never by "**"; a tensor, a function, or "keep"."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import torchinit
from torchinit import ArgumentError, Constant, Normal, by, init_model_, plan_model

PARAMETERS = {"**": Normal(0.02)}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(3, 3, dtype=torch.bool))
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64), persistent=False)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))


def causal(shape):
    return torch.tril(torch.ones(shape))


RULES = {
    "**.mask": causal,
    "**.scale": torch.arange(4),
    re.compile(r"layers\.\d\.steps"): lambda shape: torch.full(shape, 7),
    **PARAMETERS,
}


def made(device: str) -> Model:
    with torch.device(device):
        return Model()


def check(model):
    for layer in model.layers:
        assert torch.equal(layer.mask, causal((3, 3)).bool())
        assert layer.scale.tolist() == [0, 1, 2, 3]
        assert layer.scale.dtype == torch.float32
        assert layer.steps.tolist() == [7, 7]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_they_are_filled(device):
    model = made(device)
    before = dict(model.named_buffers())
    init_model_(model, RULES, seed=0, device="cpu")
    check(model)
    if device == "cpu":
        assert all(value is before[name] for name, value in model.named_buffers())
    assert [name for name in model.state_dict() if "steps" in name] == []
    rules = {name: value for name, value in RULES.items() if name == "**"}
    plain = init_model_(made("cpu"), rules, seed=0)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_given_tensor_is_copied():
    given = torch.zeros(4)
    model = init_model_(made("meta"), {**RULES, "**.scale": given}, seed=0, device="cpu")
    model.layers[0].scale += 1
    assert given.sum() == model.layers[1].scale.sum() == 0


def test_the_plan_shows_them_and_a_checkpoint_has_the_persistent_ones(tmp_path):
    plan = plan_model(made("meta"), RULES)
    rows = {row.name: (row.rule, row.values) for row in plan if "linear" not in row.name}
    assert rows["layers.0.mask"] == ("**.mask", "causal")
    assert rows["layers.1.steps"][0].startswith("re.compile")
    assert rows["layers.1.scale"] == ("**.scale", "computed values")
    assert "layers.1.scale" in str(plan)
    path = torchinit.write_checkpoint(lambda: made("meta"), tmp_path / "out", RULES, seed=3)
    stored = load_file(path / "model.safetensors")
    model = init_model_(made("meta"), RULES, seed=3, device="cpu")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[name], one) for name, one in model.state_dict().items())
    again = torchinit.write_checkpoint(
        lambda: made("meta"), tmp_path / "out", RULES, seed=3, resume=True
    )
    assert again == path
    with pytest.raises(ArgumentError, match="differ"):
        torchinit.write_checkpoint(
            lambda: made("meta"), tmp_path / "out", {**RULES, "**.scale": torch.ones(4)}, seed=3,
            resume=True,
        )  # fmt: skip


def test_keep_is_for_buffers_in_memory():
    model = made("cpu")
    rules = {"**.{mask,scale,steps}": "keep", **PARAMETERS}
    model.to("meta").to_empty(device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init_model_(model, rules, seed=0)
    assert plan_model(model, rules)[-1].values == "keep"
    norm = nn.BatchNorm1d(4, device="meta")
    init_model_(norm, {"running_*": "keep", **PARAMETERS}, seed=0, device="cpu")
    assert norm.running_var.tolist() == [1] * 4  # there was nothing to keep


class Attention(nn.Module):
    """As in nanoGPT: the causal mask has the name of biases."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)
        self.register_buffer("bias", torch.tril(torch.ones(3, 3)))


@pytest.mark.parametrize(
    "rules",
    [
        {"**.bias": lambda tensor: nn.init.zeros_(tensor), **PARAMETERS},
        {"**.bias": "zeros", **PARAMETERS},
        {re.compile(".*bias"): Constant(3), **PARAMETERS},
        {nn.Linear: "zeros", "**": "ones"},
        {nn.Module: lambda tensor: tensor.zero_()},
        {"**": lambda tensor: tensor.zero_()},
        {"*.*": lambda tensor: tensor.zero_(), "**": "ones"},
    ],
)
@pytest.mark.parametrize("only", [None, "bias", "**.bias"])
def test_rules_for_parameters_are_not_for_buffers(rules, only):
    model = nn.ModuleDict({"attention": Attention()})
    init_model_(model, rules, seed=0, strict=False, only=None if only is None else "**bias")
    assert torch.equal(model["attention"].bias, torch.tril(torch.ones(3, 3)))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(3), r"shape \(3,\) must be of \(2, 2\)"),
        (lambda shape: torch.ones(*shape, 1), r"shape \(2, 2, 1\) must be of \(2, 2\)"),
        (lambda _: [1.0], r"\[1\.0\] is a list"),
        (torch.full((2, 2), 0.5), "has values that torch.int64 cannot represent"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
        (by(lambda _: Normal(0.02)), "is not for a buffer"),
        (by(lambda p: p.nothing), "AttributeError"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_values_that_cannot_be_are_errors_that_name_buffer_and_rule(value, said, device):
    with torch.device(device):
        model = nn.Linear(2, 2)
        model.register_buffer("table", torch.zeros(2, 2, dtype=torch.int64))
    before = [one.clone() for one in model.parameters()]
    with pytest.raises(ArgumentError, match=said) as error:
        init_model_(model, {"table": value, **PARAMETERS}, seed=0, device="cpu")
    assert re.search(r"table", str(error.value))
    if device == "cpu":
        assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("value", ["zeros", Normal(1.0), nn.init.ones_])
def test_a_scheme_for_a_buffer_alone_tells_what_to_give(value):
    said = r"'\*\*\.mask' \(but the buffer layers\.0\.mask, which takes a tensor, a function"
    with pytest.raises(ArgumentError, match=said):
        init_model_(made("cpu"), {"**.mask": value, **PARAMETERS}, seed=0)


def test_by_sees_the_buffer():
    seen = []

    def of(p):
        seen.append((p.name, p.shape, p.depth, type(p.module)))
        return torch.full(p.shape, float(p.depth))

    model = init_model_(made("cpu"), {"**.scale": by(of), **PARAMETERS}, seed=0)
    assert [layer.scale.tolist() for layer in model.layers] == [[0.0] * 4, [1.0] * 4]
    assert seen[1] == ("layers.1.scale", (4,), 1, Layer)


def test_what_a_function_draws_is_keyed_by_the_name():
    rules = {**RULES, "**.scale": torch.randn}
    torch.manual_seed(0)
    one = init_model_(made("meta"), rules, seed=0, device="cpu")
    torch.manual_seed(1)
    other = init_model_(made("cpu"), rules, seed=0)
    first, second = (layer.scale for layer in one.layers)
    assert not torch.equal(first, second)
    assert torch.equal(other.layers[1].scale, second)


def test_a_tensor_may_be_a_parameter_s_too():
    model = init_model_(made("meta"), {"**.linear.bias": torch.arange(4), "**": "zeros",
                                       "**.{mask,scale,steps}": torch.zeros}, seed=0,
                        device="cpu", strict=False)  # fmt: skip
    assert model.layers[0].linear.bias.tolist() == [0, 1, 2, 3]


def test_a_buffer_that_overlaps_a_parameter_is_an_error():
    model = nn.Linear(4, 4)
    model.register_buffer("view", model.weight.detach().t())
    with pytest.raises(ArgumentError, match="share memory"):
        init_model_(model, {"view": torch.zeros(4, 4), **PARAMETERS}, seed=0)
    init_model_(model, {"view": "keep", **PARAMETERS}, seed=0)


@pytest.mark.parametrize("tensor", [torch.ones(2, 3).to_sparse(), torch.ones(2, 3, device="meta")])
def test_a_tensor_without_values_in_memory_is_refused_before_anything_is_written(tensor):
    model = nn.Linear(3, 3)
    model.register_buffer("mask", torch.zeros(2, 3))
    before = model.weight.detach().clone()
    with pytest.raises(ArgumentError, match="has no values to copy: give a dense one"):
        torchinit.init_model_(model, {"mask": tensor, "**": torchinit.Normal(0.1)}, seed=0)
    assert torch.equal(model.weight, before)


def test_keep_by_a_function_leaves_no_buffer_on_meta():
    with torch.device("meta"):
        model = nn.Linear(3, 3)
        model.register_buffer("mask", torch.zeros(2, 3))
    rules = {"mask": torchinit.by(lambda _: "keep"), "**": torchinit.Normal(0.1)}
    with pytest.raises(ArgumentError, match="mask"):
        torchinit.init_model_(model, rules, seed=0, device="cpu")


@pytest.mark.parametrize("view", [lambda t: t, lambda t: t.T, lambda t: t.data[:], lambda t: t[0]])
def test_a_tensor_of_the_model_itself_is_refused(view):
    """It is overwritten by its own rule, before or after it is read."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    rules = {"1.weight": view(model[0].weight), "**": Normal(0.1)}
    before = model[0].weight.detach().clone()
    with pytest.raises(ArgumentError, match=r"in the memory of '0.weight', .* give its clone\(\)"):
        init_model_(model, rules, seed=0)
    assert torch.equal(model[0].weight, before)
    if view(before).shape == before.shape:
        rules["1.weight"] = view(before).clone()
        assert torch.equal(init_model_(model, rules, seed=0)[1].weight, view(before))


def test_a_report_takes_the_same_rules():
    model = nn.Linear(64, 64, bias=False)
    model.register_buffer("mask", torch.zeros(2, 3))
    rules = {"mask": torch.ones(2, 3), "**": Normal(0.1)}
    report = torchinit.report_model(init_model_(model, rules, seed=0), rules)
    assert [row.name for row in report] == ["weight"]
    assert not report.outliers
    with pytest.raises(ArgumentError, match="nothing"):
        torchinit.report_model(model, {"nothing": "zeros", **rules})


@pytest.mark.parametrize("rules", [{"mask": Constant(5)}, {}, {"ma*": "zeros"}])
def test_only_a_buffer_that_no_rule_is_for_is_an_error(rules):
    model = nn.Linear(3, 3)
    model.register_buffer("mask", torch.zeros(2, 3))
    with pytest.raises(ArgumentError, match=r"no rule gives values to mask\. A buffer needs"):
        init_model_(model, {**rules, "**": Normal(0.1)}, seed=0, only="mask")
    kept = init_model_(model, {"mask": "keep", "**": Normal(0.1)}, seed=0, only="mask")
    assert not kept.mask.any()


@pytest.mark.parametrize("value", [torch.ones(3, 3), causal, "keep"])
@pytest.mark.parametrize("key", ["**.bias", re.compile(".*bias"), "**.{bias,nothing}"])
@pytest.mark.parametrize("only", ["a.bias", "a.b*"])
def test_only_does_not_turn_a_rule_for_parameters_into_one_for_buffers(value, key, only):
    model = nn.ModuleDict({"a": Attention()})
    with pytest.raises(ArgumentError, match=r"no rule gives values to a\.bias"):
        init_model_(model, {key: value, **PARAMETERS}, seed=0, only=only)
    assert torch.equal(model["a"].bias, torch.tril(torch.ones(3, 3)))
    init_model_(model, {"a.bias": torch.ones(3, 3), **PARAMETERS}, seed=0, only=only)
    assert model["a"].bias.sum() == 9


def test_an_error_shows_a_few_of_many_rules():
    rules = {f"mask{i}": "zeros" for i in range(30)} | {f"**{i}": "ones" for i in range(20)}
    with pytest.raises(ArgumentError, match=r"50 of 51 rules match no .*'mask9' and 40 more"):
        init_model_(nn.Linear(2, 2), {**rules, **PARAMETERS}, seed=0)
    late = {**PARAMETERS, **{f"{i}.weight": "ones" for i in range(12)}}
    with pytest.raises(ArgumentError, match=r"12 of 13 rules come too late: .* and 2 more"):
        init_model_(nn.Sequential(*(nn.Linear(2, 2) for _ in range(12))), late, seed=0)


@pytest.mark.parametrize(
    ("given", "dtype", "said"),
    [
        (torch.tensor([1.0, 1e39], dtype=torch.float64), torch.float32, "1 value .* 1e\\+39"),
        (torch.tensor([7e4, -7e4]), torch.float16, "2 values beyond the range of torch.float16"),
        (torch.tensor([7, 70000]), torch.float16, "1 value .* 70000"),
        (torch.tensor([1.0, 500.0]), torch.float8_e4m3fn, "1 value .* 500"),
        (torch.tensor([1.0, float("inf")]), torch.float8_e4m3fn, "1 value .* inf"),
        (torch.tensor([1.0, 7e4], dtype=torch.bfloat16), torch.float8_e5m2, "1 value"),
    ],
)
@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_values_that_would_become_infinite_are_an_error(given, dtype, said, as_function, kind):
    model = nn.Module()
    model.first = nn.Parameter(torch.zeros(2))
    tensor = torch.zeros(2, dtype=dtype)
    if kind == "buffer":
        model.register_buffer("table", tensor)
    else:
        model.table = nn.Parameter(tensor, requires_grad=False)
    value = given
    if as_function:
        value = torchinit.by(lambda _: given) if kind == "parameter" else lambda _: given
    with pytest.raises(ArgumentError, match=f"table.*{said}"):
        init_model_(model, {"table": value, **PARAMETERS}, seed=0)
    assert not model.first.any()
    fine = given.clamp(-400, 400) if dtype is torch.float8_e4m3fn else given.clamp(-6e4, 6e4)
    fine = torch.where(given == 7, torch.tensor(float("inf")), fine) if given[0] == 7 else fine
    init_model_(model, {"table": fine, **PARAMETERS}, seed=0)
    assert torch.equal(model.table.float(), fine.to(dtype).float())
