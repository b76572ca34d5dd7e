"""The functions of torch.nn.init: signatures, returns, warnings, errors, and the fallback."""

from __future__ import annotations

import inspect
import math
import threading

import numpy as np
import pytest
import torch
from torch.nn import init as torch_init

import torchinit
from conftest import native_only
from torchinit.dtypes import FLOAT8_DTYPES
from torchinit.fill.torch_fallback import fill_by_torch
from torchinit.schemes.distributions import normal_draw, uniform_draw
from torchinit.streams import keys
from torchinit.streams.keys import draw_key_number

NAMES = [
    "uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "eye_", "dirac_",
    "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_",
    "sparse_", "calculate_gain",
]  # fmt: skip

# Calls that work, by function, on a tensor of a shape that serves.
CALLS = {
    "uniform_": ((3, 4), {"a": -1.0, "b": 2.0}),
    "normal_": ((3, 4), {"mean": 1.0, "std": 2.0}),
    "trunc_normal_": ((3, 4), {"std": 2.0}),
    "constant_": ((3, 4), {"val": 0.3}),
    "ones_": ((3, 4), {}),
    "zeros_": ((3, 4), {}),
    "eye_": ((3, 4), {}),
    "dirac_": ((4, 4, 3), {"groups": 2}),
    "xavier_uniform_": ((3, 4), {"gain": 2.0}),
    "xavier_normal_": ((3, 4), {"gain": 2.0}),
    "kaiming_uniform_": ((3, 4), {"a": 0.1, "mode": "fan_out"}),
    "kaiming_normal_": ((3, 4), {"nonlinearity": "relu"}),
    "orthogonal_": ((3, 4), {"gain": 2.0}),
    "sparse_": ((3, 4), {"sparsity": 0.5}),
}
RANDOM = [
    "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_",
    "kaiming_uniform_", "kaiming_normal_", "orthogonal_",
]  # fmt: skip

# Calls that torch refuses too: function, shape, arguments.
REFUSED = [
    ("uniform_", (3,), {"a": 1.0, "b": 0.0}),
    ("normal_", (3,), {"std": -1.0}),
    ("eye_", (3,), {}),
    ("dirac_", (3, 3), {}),
    ("dirac_", (3, 3, 3), {"groups": 2}),
    ("xavier_uniform_", (3,), {}),
    ("xavier_normal_", (3,), {}),
    ("kaiming_uniform_", (3,), {}),
    ("kaiming_normal_", (3, 3), {"mode": "fan_sideways"}),
    ("kaiming_uniform_", (3, 3), {"nonlinearity": "gelu_tanh"}),
    ("orthogonal_", (3,), {}),
    ("sparse_", (3,), {"sparsity": 0.5}),
]

# Calls that torch takes and fills with NaN, or with what is not meant.
STRICTER = [
    ("normal_", {"mean": math.nan}),
    ("normal_", {"std": math.inf}),
    ("uniform_", {"a": -math.inf}),
    ("trunc_normal_", {"mean": math.nan}),
    ("trunc_normal_", {"std": -1.0}),
    ("trunc_normal_", {"a": math.nan}),
    ("xavier_normal_", {"gain": math.nan}),
    ("orthogonal_", {"gain": math.inf}),
]


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_those_of_torch(name):
    ours = inspect.signature(getattr(torchinit, name)).parameters.values()
    theirs = inspect.signature(getattr(torch_init, name)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs
    ]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fills_and_returns_its_tensor(name, dtype):
    shape, arguments = CALLS[name]
    tensor = torch.nn.Parameter(torch.full(shape, math.nan, dtype=dtype))
    version = tensor._version
    result = getattr(torchinit, name)(tensor, **arguments)
    assert result is tensor
    assert torch.isfinite(tensor).all()
    assert tensor._version > version
    assert tensor.is_leaf
    assert tensor.grad_fn is None


@pytest.mark.parametrize(("name", "shape", "arguments"), REFUSED)
def test_errors_are_those_of_torch(name, shape, arguments):
    try:
        getattr(torch_init, name)(torch.ones(shape), **arguments)
    except Exception as error:
        expected = type(error)
    else:
        pytest.fail("torch accepts the call")
    tensor = torch.ones(shape)
    with pytest.raises(expected):
        getattr(torchinit, name)(tensor, **arguments)
    assert (tensor == 1).all()


@native_only
@pytest.mark.parametrize(("name", "arguments"), STRICTER)
def test_stricter_than_torch(name, arguments):
    tensor = torch.ones(3, 3)
    state = torch.get_rng_state()
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match=next(iter(arguments))):
            getattr(torchinit, name)(tensor, **arguments)
    assert (tensor == 1).all()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [n for n in RANDOM if n != "kaiming_uniform_"])
def test_expanded_tensors_are_refused(name):
    with pytest.raises(RuntimeError):
        getattr(torchinit, name)(torch.ones(1, 3).expand(3, 3))


def test_warnings_of_torch():
    with pytest.warns(UserWarning, match="zero-element tensors is a no-op"):
        torchinit.kaiming_uniform_(torch.empty(0, 3))
    with pytest.warns(UserWarning, match="zero-element tensors is a no-op"):
        torchinit.kaiming_normal_(torch.empty(3, 0))
    with pytest.warns(UserWarning, match="mean is more than 2 std"):
        torchinit.trunc_normal_(torch.empty(3), mean=5.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["uniform_", "normal_", "ones_", "xavier_normal_", "orthogonal_"])
def test_zero_elements_are_a_quiet_no_op(name):
    assert getattr(torchinit, name)(torch.empty(3, 0)).shape == (3, 0)


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_and_generators(name):
    shape, arguments = CALLS[name]
    fill = getattr(torchinit, name)
    torch.manual_seed(5)
    default = fill(torch.empty(shape), **arguments)
    generator = torch.Generator().manual_seed(5)
    state = torch.get_rng_state()
    given = fill(torch.empty(shape), **arguments, generator=generator)
    assert torch.equal(default, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(given, fill(torch.empty(shape), **arguments, generator=generator))


@native_only
@pytest.mark.parametrize("name", CALLS)
def test_draws(name):
    """One 64-bit draw for each random fill, none for the others."""
    if name == "sparse_":
        pytest.skip("torch's own")
    shape, arguments = CALLS[name]
    torch.manual_seed(9)
    getattr(torchinit, name)(torch.empty(shape), **arguments)
    state = torch.get_rng_state()
    torch.manual_seed(9)
    if name in RANDOM:
        torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    assert torch.equal(torch.get_rng_state(), state)


@native_only
def test_draws_of_init():
    for init, draws in {"normal": 1, "biased_normal": 2, "kaiming_normal": 2, "zeros": 0}.items():
        torch.manual_seed(9)
        torchinit.init_(torch.empty(3, 3), torch.empty(3), init)
        state = torch.get_rng_state()
        torch.manual_seed(9)
        for _ in range(draws):
            torch.empty((), dtype=torch.int64).random_(-(2**63), None)
        assert torch.equal(torch.get_rng_state(), state)


def test_other_dtypes_fall_back():
    assert torch.equal(torchinit.ones_(torch.empty(3, dtype=torch.int64)), torch.ones(3).long())
    torch.manual_seed(1)
    ours = torchinit.normal_(torch.empty(5, dtype=torch.complex64))
    torch.manual_seed(1)
    assert torch.equal(ours, torch_init.normal_(torch.empty(5, dtype=torch.complex64)))
    assert torchinit.which(ours, "normal").kind == "torch"


class Subclass(torch.Tensor):
    """Sees the functions called on it, as DTensor does."""

    seen = ()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen = (*cls.seen, getattr(func, "__name__", ""))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclasses_fall_back():
    tensor = torch.zeros(3).as_subclass(Subclass)
    torchinit.normal_(tensor)
    assert "normal_" in Subclass.seen
    assert (
        "Subclass" in torchinit.which(tensor, "normal").reason
        or torchinit.native.load.module is None
    )


def test_every_thread_draws_keys_into_a_tensor_of_its_own():
    """Into one, a thread might read what another has drawn."""
    places, barrier = [], threading.Barrier(2)

    def draw():
        draw_key_number()
        places.append(keys._local.scratch[1])
        barrier.wait()  # so that neither tensor is freed before the other is made

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places[0] != places[1]


def test_keys_by_which_torch_fills_keep_their_sign():
    one, other, again = (torch.empty(8, dtype=torch.complex64) for _ in range(3))
    for tensor, key in ((one, 5), (other, -5), (again, 5)):
        fill_by_torch(normal_draw(0.0, 1.0), tensor, key)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_views_with_the_negative_bit():
    view = torch.zeros(6, dtype=torch.complex64).conj().imag
    assert view.is_neg()
    torchinit.uniform_(view, 1.0, 2.0)
    assert (view >= 1).all()


def test_which():
    tensor = torch.empty(3)
    assert torchinit.which(tensor, "sparse").kind == "torch"
    assert torchinit.which(tensor, "eye_").kind == "torch"
    path = torchinit.which(tensor, "trunc_normal")
    assert path.kind == ("native" if torchinit.native.load.module else "torch")
    assert path.reason
    with pytest.raises(ValueError, match="'lecun'"):
        torchinit.which(tensor, "lecun")


@pytest.mark.parametrize("nonlinearity", ["linear", "relu", "tanh", "leaky_relu", "selu"])
def test_calculate_gain(nonlinearity):
    assert torchinit.calculate_gain(nonlinearity) == torch_init.calculate_gain(nonlinearity)


# Everything that `from torch.nn import init` gives.


def test_the_module_init_has_every_public_name_of_torch():
    from torchinit import init

    assert set(torch_init.__all__) <= set(init.__all__)
    for name in init.__all__:
        assert callable(getattr(init, name))


def test_the_module_init_is_imported_as_torchs_is():
    import torchinit.init as init

    assert init is torchinit.init
    assert init.normal_ is torchinit.normal_


@pytest.mark.parametrize("name", [name for name in torch_init.__all__ if f"{name}_" in NAMES])
def test_deprecated_names(name):
    needed = {"constant": {"val": 0.5}, "sparse": {"sparsity": 0.5}}.get(name, {})
    tensor = torch.empty((4, 4, 3) if name == "dirac" else (4, 4))
    with pytest.warns(FutureWarning, match=f"`nn.init.{name}` is now deprecated") as warned:
        result = getattr(torchinit.init, name)(tensor, **needed)
    assert [warning.filename for warning in warned] == [__file__]
    assert result is tensor


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 6), (0, 4)])
def test_fans_by_their_underscored_names(shape):
    tensor = torch.empty(shape)
    expected = torch_init._calculate_fan_in_and_fan_out(tensor)
    assert torchinit.init._calculate_fan_in_and_fan_out(tensor) == expected
    for mode, fan in zip(("fan_in", "fan_out"), expected, strict=True):
        assert torchinit.init._calculate_correct_fan(tensor, mode) == fan
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        torchinit.init._calculate_fan_in_and_fan_out(torch.empty(3))


@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_kaiming_with_a_slope_of_none(name):
    torch.manual_seed(1)
    none = getattr(torchinit, name)(torch.empty(4, 5), a=None)
    torch.manual_seed(1)
    assert torch.equal(none, getattr(torchinit, name)(torch.empty(4, 5), a=0.01))
    relu = getattr(torchinit, name)(torch.empty(4, 5), None, nonlinearity="relu")
    assert relu.isfinite().all()


@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
@pytest.mark.parametrize("shape", [(0,), (4, 0)])
def test_kaiming_of_nothing_warns(name, shape):
    tensor = torch.empty(shape)
    with pytest.warns(UserWarning, match="zero-element"):
        assert getattr(torchinit, name)(tensor) is tensor


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("normal_", ("0.5", 2.0)),
        ("normal_", (0.5, "2")),
        ("uniform_", ("0", "1")),
        ("trunc_normal_", (0.0, 1.0, "-2")),
        ("constant_", ("2",)),
        ("constant_", ("x",)),
        ("constant_", (None,)),
        ("normal_", (None,)),
        ("xavier_uniform_", ("1",)),
        ("orthogonal_", ("1",)),
    ],
)
def test_strings_are_no_numbers(name, arguments):
    tensor = torch.full((3, 3), 7.0)
    with pytest.raises(TypeError):
        getattr(torchinit, name)(tensor, *arguments)
    with pytest.raises(TypeError):
        getattr(torch_init, name)(torch.empty(3, 3), *arguments)
    assert (tensor == 7).all()


@pytest.mark.parametrize("number", [2, True, torch.tensor(2.0), np.float32(2), np.int64(2)])
def test_other_numbers_are(number):
    torch.manual_seed(1)
    expected = torchinit.normal_(torch.empty(3), 0.0, float(number))
    torch.manual_seed(1)
    assert torch.equal(torchinit.normal_(torch.empty(3), 0, number), expected)
    assert (torchinit.constant_(torch.empty(3), number) == float(number)).all()


def test_constants_of_other_dtypes_are_torchs():
    assert torchinit.constant_(torch.empty(2, dtype=torch.int64), 2**60 + 1)[0] == 2**60 + 1
    assert torchinit.constant_(torch.empty(2, dtype=torch.complex64), 1 + 2j)[0] == 1 + 2j
    assert torchinit.constant_(torch.empty(2, dtype=torch.bool), True).all()
    with pytest.raises((TypeError, RuntimeError)):
        torchinit.constant_(torch.empty(2), 1 + 2j)


@pytest.mark.parametrize("dtype", FLOAT8_DTYPES)
def test_float8_without_a_kernel(dtype):
    """Filled by way of float32 where torch serves: never b, and by every function."""
    tensor = torch.empty(2**14, dtype=dtype)
    fill_by_torch(uniform_draw(0.0, 1.0), tensor, None)
    values = tensor.float()
    assert values.max() < 1
    assert values.max() >= 0.75
    assert values.min() >= 0
    for function, shape, arguments in (
        (torchinit.sparse_, (8, 8), (0.5, 1.0)),
        (torchinit.eye_, (8, 8), ()),
        (torchinit.dirac_, (4, 4, 3), ()),
    ):
        torch.manual_seed(1)
        got = function(torch.empty(shape, dtype=dtype), *arguments).float()
        torch.manual_seed(1)
        expected = function(torch.empty(shape), *arguments)
        assert (got[expected == 0] == 0).all()
        assert (got - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("generator", [5, 0, True, "x", torch.Generator])
@pytest.mark.parametrize("name", RANDOM)
def test_what_is_no_generator(name, generator):
    with pytest.raises(TypeError, match="generator"):
        getattr(torchinit, name)(torch.empty(3, 3), generator=generator)
    with pytest.raises(TypeError, match="generator"):
        torchinit.init_(torch.empty(3, 3), None, "normal", generator=generator)


def test_zeros_of_tensors_that_are_not_dense():
    assert torchinit.zeros_(torch.eye(3).to_sparse()).to_dense().sum() == 0
    assert torchinit.zeros_(torch.ones(3, 3).to_mkldnn()).to_dense().sum() == 0


@pytest.mark.parametrize("gain", ["2", None, 1j, [1.0]])
def test_gains_that_are_no_numbers(gain):
    for function in (torchinit.xavier_uniform_, torchinit.xavier_normal_):
        with pytest.raises(TypeError, match="gain"):
            function(torch.empty(3, 3), gain)


@native_only
@pytest.mark.parametrize("val", [2 + 0j, torch.tensor([2.0, 3.0]), [1.0]])
def test_constants_that_are_no_numbers(val):
    with pytest.raises(TypeError, match="val"):
        torchinit.constant_(torch.empty(3), val)


def test_remote_truncations_warn_where_the_call_stands():
    for call in (
        lambda: torchinit.trunc_normal_(torch.empty(3), 9.0, 1.0),
        lambda: torchinit.init_(torch.empty(3), None, "trunc_normal", mean=9.0, std=1.0),
    ):
        with pytest.warns(UserWarning, match="mean is more than 2 std") as caught:
            call()
        assert caught[0].filename == __file__
