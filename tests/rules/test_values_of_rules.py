"""What stands for a scheme: strings, functions and partials of them, any callable of a tensor."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import torchinit
from made import fill, law, model_of
from torchinit import ArgumentError, UnknownSchemeError
from torchinit.rules.rules import Rules, as_scheme

SHAPE = (12, 8)
STD = {
    "xavier_normal": math.sqrt(2 / 20),
    "xavier_uniform": math.sqrt(2 / 20),
    "kaiming_normal": math.sqrt(2 / 8),
    "kaiming_uniform": math.sqrt(2 / 8),
    "orthogonal": math.sqrt(1 / 12),
    "zeros": 0.0,
    "ones": 0.0,
}


@pytest.mark.parametrize("underscore", ["", "_"])
@pytest.mark.parametrize("name", STD)
def test_strings(name, underscore):
    got = law(name + underscore, SHAPE)
    assert got.std == pytest.approx(STD[name], rel=1e-12)
    assert got.mean == (name == "ones")
    assert as_scheme(name) == as_scheme(getattr(torch.nn.init, f"{name}_"))


def test_the_string_dirac():
    got = fill({"w": (4, 4, 3)}, "dirac")["w"]
    assert torch.equal(got, nn.init.dirac_(torch.empty(4, 4, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_string_orthogonal_has_gain_1_in_every_dtype(dtype):
    got = fill({"w": (32, 16)}, "orthogonal", dtype=dtype)["w"].double()
    assert (got.T @ got - torch.eye(16)).abs().max() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["normal", "trunc_normal_", "uniform", "constant"])
def test_strings_that_need_a_number_say_what_to_write(name):
    wanted = {"normal": "Normal", "trunc_normal_": "TruncNormal", "uniform": "Uniform"}
    with pytest.raises(UnknownSchemeError, match=rf"write {wanted.get(name, 'Constant')}\("):
        as_scheme(name)


def test_unknown_strings_are_named_with_their_rule():
    with pytest.raises(
        UnknownSchemeError, match=r"the rule for '\*\*': scheme 'kaming' is unknown"
    ):
        Rules({"**": "kaming"})


def test_keep_leaves_a_parameter_alone():
    model = nn.Linear(3, 3)
    before = model.weight.clone()
    torchinit.init_model_(model, {"weight": "keep", "bias": "zeros"}, seed=0)
    assert torch.equal(model.weight, before)


def test_keep_on_meta_is_an_error():
    with pytest.raises(ArgumentError, match=r"'w' is on the meta device"):
        fill({"w": (3,)}, "keep")


@pytest.mark.parametrize("module", [torch.nn.init, torchinit], ids=["torch", "torchinit"])
@pytest.mark.parametrize(
    ("name", "arguments", "scheme"),
    [
        ("normal_", {"std": 0.3, "mean": 1.0}, torchinit.Normal(0.3, mean=1.0)),
        ("uniform_", {"a": -2.0, "b": 3.0}, torchinit.Uniform(-2, 3)),
        ("trunc_normal_", {"std": 0.5, "a": -1.0, "b": 1.0}, torchinit.TruncNormal(0.5, cut=2)),
        ("constant_", {"val": 0.7}, torchinit.Constant(0.7)),
        ("orthogonal_", {"gain": 2.0}, torchinit.Orthogonal(2.0)),
        ("kaiming_normal_", {"nonlinearity": "relu"}, torchinit.VarianceScaling(2.0)),
        ("kaiming_uniform_", {"a": math.sqrt(5)},
         torchinit.VarianceScaling(1 / 3, distribution="uniform")),
        ("xavier_normal_", {"gain": 3.0}, torchinit.VarianceScaling(9.0, "fan_avg")),
        ("xavier_uniform_", {},
         torchinit.VarianceScaling(1.0, "fan_avg", distribution="uniform")),
    ],
)  # fmt: skip
def test_partials_of_functions_are_the_schemes_they_mean(module, name, arguments, scheme):
    function = partial(getattr(module, name), **arguments)
    assert as_scheme(function) == as_scheme(partial(getattr(torch.nn.init, name), **arguments))
    got, wanted = (fill({"w": SHAPE}, value)["w"] for value in (function, scheme))
    assert (got - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    ours, theirs = law(function, SHAPE), law(scheme, SHAPE)
    assert (ours.mean, ours.std, ours.low, ours.high) == pytest.approx(
        (theirs.mean, theirs.std, theirs.low, theirs.high), rel=1e-12
    )


def test_a_plain_function_is_its_defaults():
    assert law(torchinit.normal_, SHAPE).std == 1.0


@pytest.mark.parametrize("function", [torch.nn.init.normal_, torchinit.normal_])
def test_partials_with_positional_arguments_are_errors(function):
    with pytest.raises(TypeError, match=r"would pass 0\.02 as the tensor"):
        as_scheme(partial(function, 0.02))


def test_partials_with_a_generator_are_errors():
    with pytest.raises(ArgumentError, match="was given a generator"):
        as_scheme(partial(torchinit.normal_, generator=torch.Generator()))
    assert as_scheme(partial(torchinit.normal_, generator=None)) == as_scheme(torchinit.normal_)


def test_partials_with_arguments_that_there_are_not_are_errors():
    with pytest.raises(TypeError, match=r"the rule for 'w': .*sdt"):
        Rules({"w": partial(torchinit.normal_, sdt=1)})
    with pytest.raises(TypeError, match="val"):
        as_scheme(torchinit.constant_)


def test_a_negative_std_of_a_function_names_the_parameter():
    with pytest.raises(ArgumentError, match=r"parameter 'w': std=-1"):
        fill({"w": SHAPE}, partial(torchinit.normal_, std=-1.0))


@pytest.mark.parametrize("value", [3, 0.02, None, ["zeros"], {"std": 1}])
def test_other_values_are_no_schemes(value):
    with pytest.raises(TypeError, match=r"the rule for 'w': .*is not a scheme"):
        Rules({"w": value})


def test_a_class_is_to_be_called():
    with pytest.raises(TypeError, match=r"Normal is a class: call it, as in Normal\(\.\.\.\)"):
        as_scheme(torchinit.Normal)


def test_any_callable_of_a_tensor_fills_by_the_name():
    def double(tensor):
        tensor.normal_().mul_(2)

    names = {"a": SHAPE, "b": SHAPE}
    first = fill(names, double)
    assert not torch.equal(first["a"], first["b"])
    assert torch.equal(fill({"b": SHAPE}, double)["b"], first["b"])
    assert torch.equal(first["a"], 2 * fill(names, torchinit.Normal(1.0))["a"])
    assert not torch.equal(fill(names, double, seed=1)["a"], first["a"])


def test_sparse_is_a_callable_that_the_name_seeds():
    scheme = partial(nn.init.sparse_, sparsity=0.5)
    torch.manual_seed(0)
    first = fill({"a": SHAPE, "b": SHAPE}, scheme)
    assert (first["a"] == 0).sum(0).tolist() == [6] * 8
    torch.manual_seed(1)
    assert torch.equal(fill({"b": SHAPE}, scheme)["b"], first["b"])


def test_a_callable_that_raises_leaves_the_model_as_it_was():
    def half_way(tensor):
        tensor[0] = 1.0
        raise RuntimeError("broken")

    model = model_of({"a": SHAPE, "b": SHAPE})
    with pytest.raises(
        ArgumentError, match=r"rule b raised RuntimeError for parameter 'b': broken"
    ):
        torchinit.init_model_(model, {"a": "zeros", "b": half_way}, seed=0, device="cpu")
    assert model.a.is_meta
    assert model.b.is_meta


def test_a_callable_that_writes_nothing_is_an_error():
    with pytest.raises(ArgumentError, match=r"wrote nothing to parameter 'w'"):
        fill({"w": SHAPE}, lambda tensor: torch.zeros_like(tensor))
