"""Every row of the table of init_ against its definition, for every dtype."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import torchinit
from conftest import long, native_only
from distribution_checks import (
    assert_bounded,
    assert_distributed,
    assert_moments,
    assert_tail_count,
    truncated_normal_cdf,
)
from torchinit import UnknownSchemeError, init_
from torchinit.dtypes import FLOAT8_DTYPES
from torchinit.native import load as native
from torchinit.schemes.distributions import law_of, truncated_draw
from torchinit.schemes.init_table import INIT_SCHEMES as SCHEMES
from torchinit.schemes.law import truncated_std

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPE = (256, 512)
INF = math.inf

each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def made(init, dtype, shape=SHAPE, bias=4096, **arguments):
    torch.manual_seed(20)
    weight, offset = (
        torch.full(shape, math.nan, dtype=dtype),
        torch.full((bias,), math.nan).to(dtype),
    )
    result = init_(weight, offset, init, **arguments)
    assert result[0].data_ptr() == weight.data_ptr()
    assert result[1].data_ptr() == offset.data_ptr()
    return result


def rounding(dtype, density):
    """How far rounding can move the CDF: half a step of the dtype at 1, times the density there."""
    return {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(dtype, 0.0) * density


@each_dtype
def test_normal(dtype):
    weight, bias = made("normal", dtype, mean=0.5, std=0.25)
    assert_distributed(weight, stats.norm(0.5, 0.25).cdf, rounding(dtype, 1.6))
    assert_moments(weight, 0.5, 0.25)
    assert_tail_count(weight - 0.5, 0.75, 2 * stats.norm.sf(3)) if dtype.itemsize > 2 else None
    assert not bias.any()


@each_dtype
def test_biased_normal(dtype):
    weight, bias = made("biased_normal", dtype, mean=-0.5, std=0.25)
    for tensor in (weight, bias):
        assert_distributed(tensor, stats.norm(-0.5, 0.25).cdf, rounding(dtype, 1.6))
        assert_moments(tensor, -0.5, 0.25)
    assert not torch.equal(weight.flatten()[: bias.numel()], bias)


@each_dtype
def test_uniform(dtype):
    weight, bias = made("uniform", dtype, scale=0.3)
    assert_distributed(weight, stats.uniform(0, 0.3).cdf, rounding(dtype, 1.0))
    if native.module or dtype.itemsize > 2:  # torch's own 16-bit uniform_ may return its bound
        assert_bounded(weight, 0, 0.3, open_above=True)
    assert not bias.any()


@each_dtype
@pytest.mark.parametrize(
    ("init", "bound"),
    [("kaiming_uniform", math.sqrt(6 / 512)), ("xavier_uniform", math.sqrt(6 / (256 + 512)))],
)
def test_fan_uniform(init, bound, dtype):
    weight, bias = made(init, dtype)
    assert_distributed(weight, stats.uniform(-bound, 2 * bound).cdf, rounding(dtype, 0.5))
    r = 1 / math.sqrt(512)
    assert_distributed(bias, stats.uniform(-r, 2 * r).cdf, rounding(dtype, 0.5))
    if native.module:
        assert_bounded(weight, -bound, bound, open_above=True)
        assert_bounded(bias, -r, r, open_above=True)


@each_dtype
@pytest.mark.parametrize(
    ("init", "std"),
    [("kaiming_normal", math.sqrt(2 / 512)), ("xavier_normal", math.sqrt(2 / (256 + 512)))],
)
def test_fan_normal(init, std, dtype):
    weight, bias = made(init, dtype)
    assert_distributed(weight, stats.norm(0, std).cdf, rounding(dtype, 0.4))
    assert_moments(weight, 0, std)
    r = 1 / math.sqrt(512)
    assert_distributed(bias, stats.uniform(-r, 2 * r).cdf, rounding(dtype, 0.5))


def test_fans_of_convolutions_count_the_kernel():
    weight, bias = made("kaiming_normal", torch.float32, (64, 32, 5, 5))
    assert_moments(weight, 0, math.sqrt(2 / (32 * 25)))
    assert_bounded(bias, -1 / math.sqrt(800), 1 / math.sqrt(800), open_above=True)


@pytest.mark.parametrize("init", ["kaiming_uniform", "xavier_normal"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_bias_is_zero_without_fan_in(init):
    _, bias = made(init, torch.float32, (4, 0))
    assert not bias.any()


@each_dtype
def test_trunc_normal(dtype):
    weight, bias = made("trunc_normal", dtype, mean=0.1, std=1.0, trunc_clip=(-0.7, 1.5))
    cdf = truncated_normal_cdf(0.1, 1.0, -0.7, 1.5)
    assert_distributed(weight, cdf, rounding(dtype, 0.6))
    if native.module or dtype.itemsize > 2:  # torch's 16-bit fill exceeds its bounds
        assert_bounded(weight, -0.7, 1.5, open_above=False)
    assert not bias.any()


@each_dtype
def test_trunc_normal_defaults_truncate_nothing(dtype):
    weight, _ = made("trunc_normal", dtype)
    assert_distributed(weight, stats.norm(0, 0.01).cdf, rounding(dtype, 0.4))
    assert_moments(weight, 0, 0.01)


@native_only
@each_dtype
@pytest.mark.parametrize(
    ("a", "b"),
    [(8.0, 10.0), (3.0, INF), (-INF, -40.0), (1.0, 1.25), (-1.0, 8.0), (-INF, 2.5), (-INF, INF)],
)
@pytest.mark.filterwarnings("ignore:mean is more than 2 std")
def test_trunc_normal_anywhere(a, b, dtype):
    """Remote, one-sided, narrow and lopsided bounds; the tail is that of the distribution."""
    weight = made("trunc_normal", dtype, std=1.0, trunc_clip=(a, b))[0]
    assert_bounded(weight, a, b, open_above=False)
    values = weight.double()
    span = min(b - a, 1 / max(1.0, abs(a) if a > 0 else abs(b) if b < 0 else 1.0))
    largest = min(float(values.abs().max()), 64.0)
    step = rounding(dtype, 2 * largest / span)
    if step < 0.1:  # else the dtype has but a few values there
        assert_distributed(values, truncated_normal_cdf(0.0, 1.0, a, b), step)


@pytest.mark.parametrize(("a", "b"), [(-2.0, 2.0), (-1.0, 3.0), (0.0, INF), (-INF, -4.0)])
def test_the_law_of_a_truncation_has_its_moments(a, b):
    law = law_of(truncated_draw(0.5, 2.0, 0.5 + 2.0 * a, 0.5 + 2.0 * b))
    mean, variance, kurtosis = stats.truncnorm(a, b, 0.5, 2.0).stats("mvk")
    assert law.mean == pytest.approx(mean, rel=1e-6)
    assert law.std == pytest.approx(variance**0.5, rel=1e-6)
    assert law.kurtosis == pytest.approx(kurtosis + 3, rel=1e-5)


@pytest.mark.parametrize("cut", [0.05, 0.3, 1.0, 2.0, 3.0, 5.0, 8.0, 30.0])
def test_the_std_of_a_truncation_is_one_number(cut):
    """In closed form, integrated, and by SciPy."""
    law = law_of(truncated_draw(0.0, 1.0, -cut, cut))
    assert truncated_std(cut) == pytest.approx(law.std, rel=1e-12)
    assert truncated_std(cut) == pytest.approx(stats.truncnorm(-cut, cut).std(), rel=1e-9)
    assert law.mean == pytest.approx(0, abs=1e-15)


@native_only
@pytest.mark.parametrize(
    ("pieces", "reached"), [(2, 5.0), pytest.param(8, 5.3, marks=long)], ids=["2^25", "2^27"]
)
def test_gaussian_tails_reach_far(pieces, reached):
    """Beyond 5.0 of 2^25 draws 19 are expected, beyond 5.3 of 2^27 15; beyond 6.7 none (3e-3)."""
    torch.manual_seed(3)
    for fill in (torchinit.normal_, lambda t: torchinit.trunc_normal_(t, a=-7.0, b=6.5)):
        largest, beyond_4 = 0.0, 0
        for _ in range(pieces):
            values = fill(torch.empty(2**24))
            largest = max(largest, float(values.abs().max()))
            beyond_4 += int((values.abs() > 4).sum())
        assert reached < largest < 6.7
        assert stats.binomtest(beyond_4, pieces * 2**24, 2 * stats.norm.sf(4)).pvalue > 1e-6


@each_dtype
@pytest.mark.parametrize("shape", [(40, 40), (60, 20), (20, 60), (8, 3, 2, 2), (1, 5), (5, 1)])
def test_orthogonal(shape, dtype):
    weight, bias = made("orthogonal", dtype, shape)
    narrow = dtype.itemsize == 2
    matrix = weight.double().flatten(1) / (0.01 if narrow else 1.0)
    gram = matrix.t() @ matrix if shape[0] >= matrix.shape[1] else matrix @ matrix.t()
    tolerance = {2: 3e-2, 4: 1e-5, 8: 1e-13}[dtype.itemsize]
    assert torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64), atol=tolerance)
    assert not bias.any()


@each_dtype
def test_orthogonal_gain(dtype):
    weight, _ = made("orthogonal", dtype, (32, 32), gain=2.0)
    gram = weight.double() @ weight.double().t()
    tolerance = 0.2 if dtype.itemsize == 2 else 1e-4
    assert torch.allclose(gram, 4 * torch.eye(32, dtype=torch.float64), atol=tolerance)


def test_orthogonal_is_haar_at_the_corner():
    """The first entry of a 2 x 2 rotation or reflection is a cosine of a uniform angle."""
    torch.manual_seed(0)
    corners = torch.stack([torchinit.orthogonal_(torch.empty(2, 2))[0, 0] for _ in range(4000)])
    assert_distributed(corners, stats.arcsine(-1, 2).cdf)


@each_dtype
@pytest.mark.parametrize("groups", [1, 2])
def test_dirac(groups, dtype):
    weight, bias = made("dirac", dtype, (8, 4, 3, 3), groups=groups)
    assert torch.equal(weight, torch.nn.init.dirac_(torch.empty(8, 4, 3, 3), groups).to(dtype))
    assert not bias.any()


@each_dtype
@pytest.mark.parametrize(("init", "value"), [("constant", 0.3), ("zeros", 0.0), ("ones", 1.0)])
def test_constants(init, value, dtype):
    weight, bias = made(init, dtype, scale=0.3)
    assert torch.equal(weight, torch.full(SHAPE, value, dtype=torch.float64).to(dtype))
    assert not bias.any()


@pytest.mark.parametrize("init", SCHEMES)
def test_parameters_are_unwrapped(init):
    layer = torch.nn.Conv2d(4, 8, 3)
    weight, bias = init_(layer.weight, layer.bias, init)
    for plain, parameter in ((weight, layer.weight), (bias, layer.bias)):
        assert type(plain) is torch.Tensor
        assert not plain.requires_grad
        assert parameter.requires_grad
        assert parameter.grad_fn is None
        assert plain.data_ptr() == parameter.data_ptr()
        assert torch.isfinite(parameter).all()


@pytest.mark.parametrize("init", SCHEMES)
def test_without_bias(init):
    assert init_(torch.empty(8, 4, 3), None, init)[1] is None


@pytest.mark.parametrize("init", SCHEMES)
def test_meta_tensors_come_back_untouched(init):
    weight = torch.nn.Parameter(torch.empty(8, 4, 3, device="meta"))
    bias = torch.empty(8, device="meta")
    state = torch.get_rng_state()
    result = init_(weight, bias, init)
    assert result[0] is weight
    assert result[1] is bias
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", FLOAT8_DTYPES)
@pytest.mark.parametrize("init", [scheme for scheme in SCHEMES if scheme != "dirac"])
def test_float8(init, dtype):
    """The float32 values rounded, those of an orthogonal matrix with float8's own default gain."""
    gain = {"gain": 1.0} if init == "orthogonal" else {}
    wide = made(init, torch.float32, (64, 96), 64, std=0.5, scale=0.7, **gain)
    narrow = made(init, dtype, (64, 96), 64, std=0.5, scale=0.7)
    for tensor, values in zip(narrow, wide, strict=True):
        info = torch.finfo(dtype)
        step = info.eps * values.abs() + info.tiny * info.eps  # bounds may move a value by one
        assert ((tensor.float() - values).abs() <= step).all()


@pytest.mark.parametrize("dtype", FLOAT8_DTYPES)
@pytest.mark.parametrize("fill", [torchinit.normal_, torchinit.orthogonal_])
def test_float8_saturates(fill, dtype):
    torch.manual_seed(1)
    limit = torch.finfo(dtype).max
    arguments = {"std": 8 * limit} if fill is torchinit.normal_ else {"gain": 30 * limit}
    values = fill(torch.empty(64, 64, dtype=dtype), **arguments).float()
    assert values.abs().max() == limit
    assert values.isfinite().all()


def test_without_a_bias_the_scheme_may_come_second():
    weight = torch.empty(5, 3)
    torch.manual_seed(1)
    filled, bias = init_(weight, "orthogonal")
    assert bias is None
    torch.manual_seed(1)
    assert torch.equal(filled, init_(torch.empty(5, 3), None, "orthogonal")[0])
    assert init_(weight, init="ones")[0].sum() == 15
    with pytest.raises(UnknownSchemeError, match="init='orthogonl' is not implemented"):
        init_(weight, "orthogonl")
    with pytest.raises(UnknownSchemeError, match="init=3 is not implemented"):
        init_(weight, 3)
    with pytest.raises(UnknownSchemeError, match="init=None is not implemented"):
        init_(weight, torch.empty(5))
    with pytest.raises(TypeError, match=r"bias must be a tensor, not .zeros.: write init_"):
        init_(weight, "zeros", "ones")
