"""Modes of torch: fake and traced tensors, inference, opcheck, other default devices."""

from __future__ import annotations

import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import torchinit
import warm
from conftest import native_only
from torchinit.native import load as native

ops = torch.ops.torchinit

KEY = torch.tensor(5)
OPERATORS = {
    "uniform": (ops.uniform_, (KEY, 0.0, 1.0)),
    "normal": (ops.normal_, (KEY, 0.0, 1.0)),
    "trunc_normal": (ops.trunc_normal_, (KEY, 0.0, 1.0, -2.0, 2.0)),
    "constant": (ops.constant_, (0.5,)),
    "words": (ops.random_words_, (KEY,)),
}
each_operator = pytest.mark.parametrize(
    ("operator", "arguments"), OPERATORS.values(), ids=OPERATORS
)


def empty(operator, *shape):
    return torch.empty(shape, dtype=torch.int32 if operator is ops.random_words_ else torch.float32)


@native_only
@each_operator
def test_opcheck(operator, arguments):
    torch.library.opcheck(operator, (empty(operator, 4, 4), *arguments))
    if operator is not ops.constant_:
        torch.library.opcheck(operator, (empty(operator, 2, 3), *arguments, [9, 9], [4, 5]))
    if operator is not ops.random_words_:
        torch.library.opcheck(operator, (torch.nn.Parameter(torch.empty(3)), *arguments))


@native_only
@each_operator
def test_operators_count_their_writes(operator, arguments):
    tensor = empty(operator, 4)
    before = tensor._version
    operator(tensor, *arguments)
    assert tensor._version == before + 1


@native_only
@each_operator
def test_operators_check(operator, arguments):
    with pytest.raises(TypeError, match="dtype"):
        operator(torch.empty(3, dtype=torch.bool), *arguments)
    with pytest.raises(ValueError, match="share memory"):
        operator(empty(operator, 1).expand(3), *arguments)
    if operator is ops.constant_:
        return
    with pytest.raises(TypeError, match="key"):
        operator(empty(operator, 3), torch.tensor(1.0), *arguments[1:])
    with pytest.raises(ValueError, match="together"):
        operator(empty(operator, 3), *arguments, [3])
    with pytest.raises(ValueError, match="does not lie within"):
        operator(empty(operator, 3), *arguments, [4], [2])


def test_fake_tensors():
    state = torch.get_rng_state()
    with FakeTensorMode():
        tensor = torch.empty(8, 8)
        assert torchinit.normal_(tensor) is tensor
        assert torchinit.zeros_(tensor) is tensor
        # torch's own trunc_normal_ looks at values, and cannot be faked.
        scheme = "trunc_normal" if native.module else "normal"
        weight, _ = torchinit.init_(tensor, torch.empty(8), scheme)
    assert isinstance(weight, FakeTensor)
    assert torch.equal(torch.get_rng_state(), state)


def test_inference_mode():
    plain = torch.empty(5)
    with torch.inference_mode():
        for tensor in (plain, torch.empty(5)):
            torch.manual_seed(1)
            torchinit.normal_(tensor)
            torchinit.init_(tensor, None, "ones")
    assert (plain == 1).all()


def test_default_device_does_not_matter():
    torch.manual_seed(2)
    expected = torchinit.normal_(torch.empty(5))
    tensor = torch.empty(5)
    torch.manual_seed(2)
    torch.set_default_device("meta")
    try:
        torchinit.normal_(tensor)
    finally:
        torch.set_default_device(None)
    assert torch.equal(tensor, expected)


def test_native_module_can_be_turned_off():
    code = "import torch, torchinit; print(torchinit.which(torch.empty(3), 'normal'))"
    run = warm.run("-c", code, env={**os.environ, "TORCHINIT_DISABLE_NATIVE": "1"})
    assert "kind='torch'" in run.stdout
    assert "TORCHINIT_DISABLE_NATIVE" in run.stdout
