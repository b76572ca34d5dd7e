"""TorchFunctionModes: they see our functions as torch's, and our bits stay."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from torch.overrides import TorchFunctionMode

import torchinit
from conftest import native_only


class EmptyInit(TorchFunctionMode):
    """As Lightning's ``_EmptyInit``: skips the functions of ``torch.nn.init``."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return keywords["tensor"] if "tensor" in keywords else arguments[0]
        return function(*arguments, **keywords)


FUNCTIONS = {
    name: getattr(torchinit, name)
    for name in torchinit.__all__
    if name.endswith("_")
    and name not in ("init_", "init_model_", "init_shard_", "orthogonal_batch_")
    and "__" not in name
}


def call(function):
    shape = (4, 4, 3) if function is torchinit.dirac_ else (4, 4)
    needed = {"val": 0.5, "sparsity": 0.5}
    arguments = {k: v for k, v in needed.items() if k in inspect.signature(function).parameters}
    tensor = torch.full(shape, 7.0)
    return tensor, function(tensor, **arguments)


def test_there_are_all_functions():
    assert len(FUNCTIONS) == 14


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_modes_that_skip_initialisation(function):
    with EmptyInit():
        tensor, result = call(function)
    assert result is tensor
    assert (tensor == 7).all()


@pytest.mark.parametrize("scheme", ["kaiming_uniform", "trunc_normal", "constant", "orthogonal"])
def test_init_too(scheme):
    weight, bias = torch.full((4, 4), 7.0), torch.full((4,), 7.0)
    with EmptyInit():
        torchinit.init_(weight, bias, scheme)
    assert (weight == 7).all()
    assert (bias == 7).all()


@native_only
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_device_contexts_keep_the_bits(function):
    torch.manual_seed(1)
    expected, _ = call(function)
    for contexts in (1, 2):
        torch.manual_seed(1)
        with torch.device("cpu"):
            if contexts == 2:
                with torch.device("cpu"):
                    tensor, _ = call(function)
            else:
                tensor, _ = call(function)
        assert torch.equal(tensor, expected)


def test_public_functions_are_pickled_as_ours():
    for name, function in FUNCTIONS.items():
        assert pickle.loads(pickle.dumps(function)) is getattr(torchinit, name)
        assert function.__module__ == "torchinit.functional"


def test_a_subclass_is_asked_as_torch_asks_it():
    asked = []

    class Asked(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), keywords=None):
            if function is torch.nn.init.normal_:
                asked.append(function)
                return (keywords or {}).get("tensor", arguments[0] if arguments else None)
            return super().__torch_function__(function, types, arguments, keywords or {})

    tensor = torch.zeros(3).as_subclass(Asked)
    assert torchinit.normal_(tensor) is tensor
    assert asked == [torch.nn.init.normal_]
