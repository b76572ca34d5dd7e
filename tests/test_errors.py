"""Bad calls of init_: a clear error that names the argument, and both tensors as they were."""

from __future__ import annotations

import ctypes
import math
import mmap
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import torchinit
from conftest import native_only
from torchinit import ArgumentError, cast_init_type, init_
from torchinit.native import load as native
from torchinit.schemes.init_table import INIT_SCHEMES as SCHEMES

NAN, INF = math.nan, math.inf

# Arguments of init_, and what the message must contain.
BAD_ARGUMENTS = [
    ({"std": -1.0}, "std=-1.0"),
    ({"std": NAN}, "std=nan"),
    ({"std": INF}, "std=inf"),
    ({"mean": NAN}, "mean=nan"),
    ({"mean": -INF}, "mean=-inf"),
    ({"scale": NAN}, "scale=nan"),
    ({"scale": INF}, "scale=inf"),
    ({"gain": NAN}, "gain=nan"),
    ({"trunc_clip": (2.0, 1.0)}, r"trunc_clip=\(2.0, 1.0\)"),
    ({"trunc_clip": (NAN, 1.0)}, r"trunc_clip=\(nan, 1.0\)"),
    ({"trunc_clip": (INF, INF)}, r"trunc_clip=\(inf, inf\)"),
    ({"trunc_clip": 3.0}, "trunc_clip=3.0"),
    ({"groups": 0}, "groups=0"),
    ({"groups": 2.0}, "groups=2.0"),
]


def check(error, message, weight, bias, init, **arguments):
    """The call raises, names what is wrong, and writes and draws nothing."""
    tensors = [t for t in (weight, bias) if isinstance(t, torch.Tensor) and not t.is_meta]
    tensors = [t for t in tensors if t.layout is torch.strided and not t.is_quantized]
    before = [t.clone() for t in tensors]
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        init_(weight, bias, init, **arguments)
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor, old)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("init", SCHEMES)
@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_arguments(init, arguments, message):
    check(ValueError, message, torch.ones(8, 4, 3), torch.ones(8), init, **arguments)


def test_scale_of_uniform():
    check(ValueError, "scale=-1.0", torch.ones(3), torch.ones(3), "uniform", scale=-1.0)
    check(ValueError, "scale=100000.0", torch.ones(3).half(), None, "uniform", scale=1e5)
    check(ValueError, "scale=100000.0", torch.ones(3).half(), None, "constant", scale=1e5)


@native_only
def test_widths_that_float8_e4m3fn_has_not():
    """Both ends are within its range, 448, and far from those of any other dtype."""
    tensor = torch.ones(3).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"width of \[a=-300.0, b=300.0\) exceeds the range"):
        torchinit.uniform_(tensor, -300.0, 300.0)
    assert (tensor.float() == 1).all()


def test_unknown_scheme():
    check(NotImplementedError, "'gaussian'.*orthogonal.*ones", torch.ones(3), None, "gaussian")


@pytest.mark.parametrize("init", ["orthogonal", "kaiming_uniform", "xavier_normal", "dirac"])
def test_too_few_dimensions(init):
    check(ValueError, r"shape \(7,\)", torch.ones(7), torch.ones(7), init)


def test_dirac():
    check(ValueError, "dimensions for dirac", torch.ones(2, 2, 2, 2, 2, 2), None, "dirac")
    check(ValueError, "groups=3 does not divide", torch.ones(8, 4, 3), None, "dirac", groups=3)


def test_devices():
    weight = torch.ones(3, 3)
    check(ValueError, "bias is on meta and weight on cpu", weight, weight[0].to("meta"), "normal")
    check(ValueError, "bias is on cpu and weight on meta", weight.to("meta"), weight[0], "normal")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_dtypes(dtype):
    for init in SCHEMES:
        bad = torch.ones(8, 4, 3, dtype=dtype)
        check(TypeError, f"weight has dtype {dtype}", bad, torch.ones(8), init)
        check(TypeError, f"bias has dtype {dtype}", torch.ones(8, 4, 3), bad, init)


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_sparse():
    quantised = torch.quantize_per_tensor(torch.ones(3, 3), 1.0, 0, torch.qint8)
    check(TypeError, "weight has dtype torch.qint8", quantised, None, "normal")
    check(TypeError, "weight has layout torch.sparse_coo", torch.eye(3).to_sparse(), None, "normal")
    check(
        TypeError, "weight has layout torch.sparse_csr", torch.eye(3).to_sparse_csr(), None, "ones"
    )


def test_no_tensor():
    check(TypeError, "weight must be a torch.Tensor, got list", [1.0], None, "normal")
    check(TypeError, "bias must be a torch.Tensor, got float", torch.ones(3), 1.0, "normal")


@pytest.mark.parametrize("init", SCHEMES)
@pytest.mark.parametrize(
    "overlapping",
    [
        torch.ones(1, 4, 3).expand(8, 4, 3),
        torch.ones(200).as_strided((8, 4, 3), (1, 8, 1)),
        torch.ones(1, 1, 1).expand(8, 4, 3),
    ],
)
def test_overlapping(init, overlapping):
    check(ValueError, "weight: .*share memory", overlapping, None, init)
    check(ValueError, "bias: .*share memory", torch.ones(8, 4, 3), overlapping, init)


def test_interleaved_views_do_not_overlap():
    """Strides 2 and 3 of a 3 x 2 view reach six different places, in no simple order."""
    tensor = torch.zeros(8).as_strided((3, 2), (2, 3))
    weight, _ = init_(tensor, None, "ones")
    assert weight.sum() == 6


def test_inference_tensor_outside():
    with torch.inference_mode():
        tensor = torch.ones(3, 3)
        init_(tensor, None, "normal")
    check(ValueError, "weight: .*inference tensor", tensor, None, "normal")


@native_only
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the permissions of memory")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_memory_mapped_read_only(tmp_path):
    path = tmp_path / "weights"
    np.ones(5000, dtype=np.float32).tofile(path)
    tensor = torch.from_numpy(np.memmap(path, dtype=np.float32, mode="r"))
    check(ValueError, "weight: .*read-only", tensor, torch.ones(3), "normal")
    check(ValueError, "bias: .*read-only", torch.ones(3), tensor, "normal")
    for fill in (torchinit.normal_, torchinit.zeros_):
        with pytest.raises(ValueError, match="read-only"):
            fill(tensor)
    assert (tensor == 1).all()


def test_cast_init_type():
    assert [cast_init_type(name) for name in SCHEMES] == list(SCHEMES)
    for error in (ValueError, AssertionError):
        with pytest.raises(error, match=r"'lecun'.*orthogonal.*kaiming_uniform.*ones"):
            cast_init_type("lecun")


def test_cast_init_type_under_optimisation():
    code = """
import torchinit
try:
    torchinit.cast_init_type("lecun")
except AssertionError as error:
    assert_error = isinstance(error, ValueError)
    print(assert_error, __debug__)
"""
    run = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["True", "False"]


@native_only
@pytest.mark.parametrize("val", [449.0, math.inf, -math.inf])
def test_float8_e4m3fn_has_no_infinity(val):
    tensor = torch.ones(3).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"val=.*inf.*|val=449"):
        torchinit.constant_(tensor, val)
    assert (tensor.float() == 1).all()
    wide = torchinit.constant_(torch.ones(3).to(torch.float8_e5m2), val).float()
    assert wide[0] == torch.tensor(val).to(torch.float8_e5m2).float()


@native_only
@pytest.mark.parametrize(
    "fill",
    [
        torchinit.normal_,
        torchinit.ones_,
        torchinit.trunc_normal_,
        torchinit.orthogonal_,
        lambda weight: torchinit.init_(weight, None, "xavier_normal"),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_freed_storage(fill, transposed):
    """As sharded training frees a gathered parameter."""
    tensor = torch.empty(3, 4).t() if transposed else torch.empty(3, 4)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"has no memory: its storage was resized to 0"):
        fill(tensor)


def test_empty_tensors_have_no_memory():
    tensor = torch.empty(0, 4)
    tensor.untyped_storage().resize_(0)
    assert torchinit.normal_(tensor) is tensor
    with torchinit.batch():
        torchinit.normal_(tensor)


@native_only
@pytest.mark.parametrize("fill", [torchinit.normal_, torchinit.uniform_, torchinit.orthogonal_])
def test_a_refused_tensor_draws_no_key(fill):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="share memory"):
        fill(torch.ones(1, 3).expand(3, 3))
    assert torch.equal(torch.get_rng_state(), state)


@native_only
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the permissions of memory")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(
    ("fill", "shape", "arguments"),
    [
        (torchinit.eye_, (50, 100), ()),
        (torchinit.dirac_, (50, 50, 2), ()),
        (torchinit.sparse_, (50, 100), (0.5,)),
        (torchinit.orthogonal_, (50, 100), ()),
    ],
)
def test_read_only_memory_by_every_function(fill, shape, arguments, tmp_path):
    path = tmp_path / "weights"
    np.ones(5000, dtype=np.float32).tofile(path)
    tensor = torch.from_numpy(np.memmap(path, dtype=np.float32, mode="r")).view(shape)
    with pytest.raises(ValueError, match="read-only"):
        fill(tensor, *arguments)
    with pytest.raises(ValueError, match="read-only"), FlopCounterMode(display=False):
        fill(tensor, *arguments)


@native_only
def test_pages_read_only_in_the_middle():
    size = 64 * mmap.PAGESIZE
    memory = mmap.mmap(-1, size)
    tensor = torch.frombuffer(memory, dtype=torch.float32)
    address = tensor.data_ptr()
    libc = ctypes.CDLL(None, use_errno=True)
    middle = ctypes.c_void_p(address + 30 * mmap.PAGESIZE)
    assert libc.mprotect(middle, mmap.PAGESIZE, mmap.PROT_READ) == 0
    try:
        with pytest.raises(ValueError, match="read-only"):
            torchinit.normal_(tensor)
    finally:
        libc.mprotect(middle, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)
    torchinit.ones_(tensor)
    assert (tensor == 1).all()


def test_a_freed_storage_behind_an_offset():
    """The address is an offset from null then, and small but not zero."""
    tensor = torch.zeros(100)[40:]
    tensor.untyped_storage().resize_(0)
    for fill in (torchinit.normal_, torchinit.zeros_):
        if native.module:
            with pytest.raises(ValueError, match="has no memory"):
                fill(tensor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trunc_clip": ("a", "b")}, "trunc_clip"),
        ({"mean": "0"}, "mean"),
        ({"std": None}, "std"),
        ({"scale": [1.0]}, "scale"),
        ({"gain": "2"}, "gain"),
        ({"groups": "2"}, "groups"),
        ({"groups": True}, "groups"),
    ],
)
@pytest.mark.parametrize("init", ["normal", "trunc_normal", "ones"])
def test_arguments_of_wrong_types_are_named(init, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        init_(torch.ones(8, 4, 3), None, init, **arguments)


def test_groups_of_numpy():
    weight, _ = init_(torch.empty(8, 4, 3), None, "dirac", groups=np.int64(2))
    assert torch.equal(weight, torch.nn.init.dirac_(torch.empty(8, 4, 3), 2))


@pytest.mark.parametrize("init", ["ones", "normal", "orthogonal", "zeros"])
def test_init_counts_its_write(init):
    """Autograd must not differentiate by values that were overwritten."""
    weight = torch.nn.Parameter(torch.full((3, 3), 2.0))
    y = (weight * weight).sum()
    init_(weight, None, init)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("name", ["gaussian", "", None, 3, "normal_init"])
def test_one_class_for_unknown_schemes(name):
    for call in (
        lambda: init_(torch.ones(3, 3), None, name),
        lambda: torchinit.which(torch.ones(3, 3), name),
        lambda: cast_init_type(name),
    ):
        with pytest.raises(torchinit.UnknownSchemeError, match="choose one of"):
            call()


# Calls that fail, at whatever depth, and the public name that the message begins with.
CALLS = {
    "init_": lambda model: torchinit.init_(model.weight, None, "normal", std=-1.0),
    "Normal": lambda _: torchinit.Normal(-1.0),
    "init_model_": lambda model: torchinit.init_model_(model, {"weihgt": "zeros"}, seed=0),
    "plan_model": lambda model: torchinit.plan_model(model, {"a": "zeros"}),
    "xavier_normal_": lambda model: torchinit.xavier_normal_(model.bias),
    "orthogonal_": lambda model: torchinit.orthogonal_(model.bias),
    "patch_nn_init": lambda _: torchinit.patch_nn_init(seed=-1),
    "init_shard_": lambda model: torchinit.init_shard_(
        model.bias, "zeros", seed=0, name="bias", global_shape=(2,), offset=(0,)
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_message_begins_with_the_public_function(name):
    with pytest.raises(ArgumentError) as caught:
        CALLS[name](torch.nn.Linear(3, 3))
    assert str(caught.value).startswith(f"{name}: ")
    assert str(caught.value).count(f"{name}: ") == 1


@native_only  # torch's own message otherwise
def test_a_function_that_fills_names_itself():
    with pytest.raises(ArgumentError, match=r"^uniform_: a=2\.0 "):
        torchinit.uniform_(torch.empty(3), 2, 1)


@native_only
def test_a_message_inside_another_has_no_prefix():
    def rule(weight):
        torchinit.normal_(weight, std=-1.0)

    with pytest.raises(ValueError, match=r"^init_model_: .*'weight': std=-1\.0 must not be"):
        torchinit.init_model_(torch.nn.Linear(3, 3), {"**": rule}, seed=0)


def test_an_error_that_was_not_raised_has_no_prefix():
    assert str(ArgumentError("std=-1")) == "std=-1"
