"""Schemes that draw every value alone, against first principles: SciPy, and JAX's formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

import torchinit
from conftest import native_only
from distribution_checks import assert_bounded, assert_distributed, assert_moments
from made import fill, law, rows_of
from torchinit import (
    ArgumentError,
    Constant,
    Normal,
    Orthogonal,
    TruncNormal,
    Uniform,
    VarianceScaling,
)

BIG = (256, 256)


def filled(scheme, shape=BIG, **kwargs):
    return fill({"layers.0.w.weight": shape}, scheme, **kwargs)["layers.0.w.weight"]


def test_normal_draws_its_law():
    got = filled(Normal(0.02, mean=1.0))
    assert_distributed(got, stats.norm(1.0, 0.02).cdf, step=1e-5)
    assert_moments(got, 1.0, 0.02)


def test_uniform_draws_its_law():
    got = filled(Uniform(-1, 3))
    assert_distributed(got, stats.uniform(-1, 4).cdf)
    assert_bounded(got, -1, 3, open_above=True)


def test_constant_is_one_value():
    assert torch.equal(filled(Constant(0.1), (3, 4)), torch.full((3, 4), 0.1))


@native_only
def test_schemes_draw_what_the_functions_of_their_name_do():
    """The bits, too: cut is in standard deviations."""
    for scheme, function in (
        (Normal(0.3, mean=1.0), lambda t: torchinit.normal_(t, 1.0, 0.3)),
        (Uniform(-1, 2), lambda t: torchinit.uniform_(t, -1, 2)),
        (
            TruncNormal(0.5, mean=1.0, cut=2.0),
            lambda t: torchinit.trunc_normal_(t, 1.0, 0.5, 0.0, 2.0),
        ),
    ):
        torch.manual_seed(7)
        wanted = function(torch.empty(33, 5))
        after = torch.get_rng_state()
        torch.manual_seed(7)
        assert torch.equal(scheme(torch.empty(33, 5)), wanted)
        assert torch.equal(torch.get_rng_state(), after)
        given = scheme(torch.empty(33, 5), generator=torch.Generator().manual_seed(7))
        assert torch.equal(given, wanted)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("cut", [0.05, 0.5, 1.0, 2.0, 3.0, 5.0])
def test_trunc_normal_draws_its_law(cut, corrected):
    std, mean = 0.02, 0.1
    own = stats.truncnorm(-cut, cut).std()
    wide = std / own if corrected else std
    exact = stats.truncnorm(-cut, cut, loc=mean, scale=wide)
    found = law(TruncNormal(std, mean=mean, cut=cut, corrected=corrected), BIG)
    assert found.std == pytest.approx(std if corrected else std * own, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((mean - cut * wide, mean + cut * wide))
    got = filled(TruncNormal(std, mean=mean, cut=cut, corrected=corrected))
    assert_distributed(got, exact.cdf, step=1e-4)
    assert_moments(got, mean, exact.std())


@given(st.floats(-4, 1.5).map(lambda x: 10**x))
def test_the_correction_is_right_for_every_cut(cut):
    exact = stats.truncnorm(-cut, cut).std() if cut > 0.1 else cut / math.sqrt(3)
    # Of a short interval the density is flat: the variance is cut^2 / 3 (1 - cut^2 / 10 ...).
    assert TruncNormal(1.0, cut=cut, corrected=True)._draw[2] == pytest.approx(
        1 / exact, rel=1e-9 if cut > 0.1 else 1e-6 + cut**2 / 10
    )


def test_the_figures_of_the_docstring():
    assert law(TruncNormal(1.0), BIG).std == pytest.approx(0.987, abs=5e-4)
    assert law(TruncNormal(1.0, cut=2.0), BIG).std == pytest.approx(0.880, abs=5e-4)


# jax.nn.initializers.variance_scaling (0.6), written down from its source.


def jax_fans(shape, in_axes, out_axes):
    size_in = math.prod(shape[a] for a in in_axes)
    size_out = math.prod(shape[a] for a in out_axes)
    receptive = math.prod(shape) // size_in // size_out
    return size_in * receptive, size_out * receptive


JAX_STDDEV_OF_TRUNCATED = 0.87962566103423978


def jax_law(shape, scale, mode, distribution, in_axes, out_axes):
    """(mean, std, low, high)."""
    fan_in, fan_out = jax_fans(shape, in_axes, out_axes)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    std = math.sqrt(scale / fan)
    bound = {
        "normal": math.inf,
        "uniform": math.sqrt(3 * scale / fan),
        "truncated_normal": 2 * std / JAX_STDDEV_OF_TRUNCATED,
    }[distribution]
    return 0.0, std, -bound, bound


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.floats(0.01, 30),
    st.sampled_from(["fan_in", "fan_out", "fan_avg"]),
    st.sampled_from(["normal", "uniform", "truncated_normal"]),
    st.data(),
)
def test_variance_scaling_against_jax(shape, scale, mode, distribution, data):
    dims = data.draw(st.permutations(range(len(shape))))
    split = data.draw(st.integers(1, len(shape) - 1))
    end = data.draw(st.integers(split + 1, len(shape)))
    in_axes, out_axes = dims[:split], dims[split:end]
    signed = [
        [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
        for axes in (in_axes, out_axes)
    ]
    scheme = VarianceScaling(scale, mode, distribution, *signed)
    found = law(scheme, tuple(shape))
    wanted = jax_law(shape, scale, mode, distribution, in_axes, out_axes)
    assert (found.mean, found.std, found.low, found.high) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_variance_scaling_draws_its_law(distribution):
    got = filled(VarianceScaling(2.0, "fan_in", distribution))
    _, std, low, high = jax_law(BIG, 2.0, "fan_in", distribution, [1], [0])
    assert_moments(got, 0.0, std)
    assert_bounded(got, low, high, open_above=False)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (6, 4, 3, 5)])
def test_the_fans_of_torchs_layout_are_torchs(shape):
    fans = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert VarianceScaling().fans(shape) == fans
    assert VarianceScaling(in_axes=1, out_axes=0).fans(shape) == fans


def test_an_attention_projection_by_heads():
    """(d_model, heads, d_head), as JAX's libraries keep it: the heads count as outputs."""
    scheme = VarianceScaling(in_axes=0, out_axes=(1, 2))
    assert scheme.fans((64, 4, 16)) == (64, 64)


def test_a_fan_of_nothing_is_no_error():
    assert filled(VarianceScaling(), (4, 0)).shape == (4, 0)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_fan_scheme_on_a_vector_fails_in_the_plan(shape):
    with pytest.raises(ArgumentError, match=r"parameter 'layers\.0\.w\.weight' .*has no fans"):
        rows_of(VarianceScaling(), shape)
    with pytest.raises(ArgumentError, match=r"parameter 'layers\.0\.w\.weight' "):
        rows_of("kaiming_normal", shape)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"in_axes": 2, "out_axes": 0}, "axis 2 is out of range for shape"),
        ({"in_axes": -3, "out_axes": 0}, "axis -3 is out of range for shape"),
        ({"in_axes": 0, "out_axes": (0, 1)}, "both contain dimension 0 of"),
        ({"in_axes": -1, "out_axes": 1}, "both contain dimension 1 of"),
    ],
)
def test_axes_that_there_are_not_fail_in_the_plan(axes, said):
    with pytest.raises(ArgumentError, match=said):
        rows_of(VarianceScaling(**axes), (4, 4))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Normal(-0.1), "std=-0.1 must not be negative"),
        (lambda: Normal(math.nan), "std=nan"),
        (lambda: Normal(1, mean=math.inf), "mean=inf"),
        (lambda: Normal(0), r"std=0 is a constant: write Constant\(0\)"),
        (lambda: Normal(std=0.0, mean=0.5), r"write Constant\(0\.5\)"),
        (lambda: TruncNormal(0, cut=2), r"TruncNormal with std=0 is a constant"),
        (lambda: TruncNormal(-1), "std=-1"),
        (lambda: TruncNormal(1, cut=0), "cut=0.0 must be positive"),
        (lambda: TruncNormal(1, cut=-2), "cut=-2.0 must be positive"),
        (lambda: TruncNormal(1, cut=math.inf), "cut=inf"),
        (lambda: Uniform(1, 0), "a"),
        (lambda: Uniform(0, math.inf), "b=inf"),
        (lambda: Orthogonal(math.nan), "gain=nan"),
        (lambda: VarianceScaling(-1), "scale=-1.0 must not be negative"),
        (lambda: VarianceScaling(1, "fan_mid"), "mode='fan_mid'"),
        (lambda: VarianceScaling(1, "fan_in", "cauchy"), "distribution='cauchy'"),
        (lambda: VarianceScaling(in_axes=1), "must be given together"),
    ],
)
def test_arguments_that_cannot_be(make, said):
    with pytest.raises(ArgumentError, match=said):
        make()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Normal(0, 0.02), r"Normal\(0, 0\.02\): .* Write Normal\(0\.02, mean=0\)$"),
        (lambda: Normal(0.02, 0.0), r"Write Normal\(0\.0, mean=0\.02\)$"),
        (lambda: TruncNormal(0, 0.02, cut=2), r"Write TruncNormal\(0\.02, mean=0\)$"),
        (lambda: TruncNormal(0.02, -2, 2), r"Write TruncNormal\(std, mean=\.\.\., cut=\.\.\.\)$"),
        (lambda: TruncNormal(0.0, 1.0, -2.0, 2.0), "only std can be given by position"),
    ],
)
def test_the_order_of_torch_tells_what_to_write(make, said):
    with pytest.raises(TypeError, match=said):
        make()


@pytest.mark.parametrize("make", [Normal, TruncNormal, Constant, Orthogonal, VarianceScaling])
def test_arguments_that_are_no_numbers(make):
    with pytest.raises(TypeError):
        make("wide")


SCHEMES = [
    Normal(0.02), Normal(0.02, mean=1.0), Normal(0.03), TruncNormal(0.02),
    TruncNormal(0.02, cut=2.0), TruncNormal(0.02, corrected=True), Uniform(0, 1), Uniform(-1, 1),
    Constant(0), Constant(1),
    Orthogonal(), Orthogonal(0.5), VarianceScaling(), VarianceScaling(2.0),
    VarianceScaling(mode="fan_out"), VarianceScaling(distribution="uniform"),
    VarianceScaling(in_axes=0, out_axes=1), torchinit.Stack(Normal(0.02)),
    torchinit.Blocks({"a": 2, "b": 2}, Normal(0.02)),
    torchinit.Blocks({"b": 2, "a": 2}, Normal(0.02)),
    torchinit.Blocks({"a": 2, "b": 2}, Normal(0.02), groups=2),
    torchinit.Blocks({"a": 2, "b": 2}, Normal(0.02), dim=1),
    torchinit.Blocks({"a": 2, "b": 2}, {"a": Normal(0.02), "b": Constant(0)}),
]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_a_scheme_equals_what_it_prints_as_and_no_other(scheme):
    again = eval(repr(scheme), vars(torchinit))
    assert again == scheme
    assert hash(again) == hash(scheme)
    assert [other for other in SCHEMES if other == scheme] == [scheme]


def test_numbers_of_any_kind_make_equal_schemes():
    assert Normal(1) == Normal(torch.tensor(1.0)) == Normal(True)
    assert VarianceScaling(in_axes=[0], out_axes=[1, 2]) == VarianceScaling(
        in_axes=0, out_axes=(1, 2)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_float32_rounded(dtype):
    for scheme in (Normal(0.02), TruncNormal(0.02), VarianceScaling()):
        assert torch.equal(
            filled(scheme, (64, 32), dtype=dtype), filled(scheme, (64, 32)).to(dtype)
        )


@given(st.floats(1e-3, 1e3), st.floats(0.1, 6))
def test_truncated_values_stay_within_the_cut(std, cut):
    assume(cut * std < 1e6)
    assert filled(TruncNormal(std, cut=cut), (50, 50)).abs().max() <= cut * std * (1 + 1e-6)
