"""Tracers and transforms of torch: vmap, functionalize, make_fx, jit.trace, forward mode."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import torchinit
from conftest import native_only

pytestmark = native_only

RANDOM = {
    "uniform": torchinit.uniform_,
    "normal": torchinit.normal_,
    "trunc_normal": torchinit.trunc_normal_,
    "xavier_normal": torchinit.xavier_normal_,
    "orthogonal": torchinit.orthogonal_,
}
CONSTANT = {"ones": torchinit.ones_, "zeros": torchinit.zeros_}
each_random = pytest.mark.parametrize("fill", RANDOM.values(), ids=RANDOM)
each_fill = pytest.mark.parametrize(
    "fill", {**RANDOM, **CONSTANT}.values(), ids=[*RANDOM, *CONSTANT]
)


def seeded(function, *arguments):
    torch.manual_seed(8)
    return function(*arguments)


@each_random
def test_vmap_different(fill):
    x = torch.zeros(3, 4, 4)
    y = seeded(torch.vmap(fill, randomness="different"), x)
    assert torch.equal(y, x)  # in place
    assert len({tuple(example.flatten().tolist()) for example in y}) == 3
    if fill in (torchinit.normal_, torchinit.uniform_, torchinit.trunc_normal_):
        assert torch.equal(y, seeded(fill, torch.empty(3, 4, 4)))  # the batch as one tensor


@each_random
@pytest.mark.parametrize("in_dim", [0, 2])
def test_vmap_same(fill, in_dim):
    x = torch.zeros(4, 4, 4)
    y = seeded(torch.vmap(fill, in_dims=in_dim, randomness="same"), x)
    expected = seeded(fill, torch.empty(4, 4))
    for example in y:
        assert torch.equal(example, expected)
    assert torch.equal(x.movedim(in_dim, 0), y)


@each_random
def test_vmap_error(fill):
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(fill, randomness="error")(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_vmap_constants(randomness):
    y = torch.vmap(torchinit.ones_, randomness=randomness)(torch.zeros(3, 2))
    assert (y == 1).all()


@each_random
def test_vmap_of_nothing(fill):
    torch.vmap(fill, randomness="same")(torch.zeros(0, 4, 4))
    torch.vmap(fill, randomness="different")(torch.zeros(0, 4, 4))


@each_fill
def test_functionalize(fill):
    got = seeded(torch.func.functionalize(lambda x: fill(x.clone())), torch.zeros(4, 4))
    assert torch.equal(got, seeded(fill, torch.zeros(4, 4)))


def test_what_functionalize_leaves_behind():
    leaked = torch._to_functional_tensor(torch.zeros(3))
    seeded(torchinit.normal_, leaked)
    torch._sync(leaked)
    assert torch.equal(
        torch._from_functional_tensor(leaked), seeded(torchinit.normal_, torch.empty(3))
    )


@each_fill
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(fill, mode):
    traced = make_fx(lambda x: fill(x.clone()), tracing_mode=mode)(torch.zeros(4, 4))
    assert torch.equal(seeded(traced, torch.zeros(4, 4)), seeded(fill, torch.zeros(4, 4)))
    if fill in RANDOM.values():
        assert not torch.equal(traced(torch.zeros(4, 4)), traced(torch.zeros(4, 4)))


@each_fill
def test_func_grad(fill):
    got = seeded(torch.func.grad(lambda x: (fill(torch.empty_like(x)) * x).sum()), torch.ones(4, 4))
    assert torch.equal(got, seeded(fill, torch.empty(4, 4)))


@each_fill
def test_jit_trace_records_the_fill(fill):
    traced = torch.jit.trace(
        lambda x: fill(torch.empty_like(x)), torch.zeros(4, 4), check_trace=False
    )
    for _ in range(3):  # it is compiled anew after the first runs
        assert torch.equal(seeded(traced, torch.zeros(4, 4)), seeded(fill, torch.empty(4, 4)))
    if fill in RANDOM.values():
        assert not torch.equal(traced(torch.zeros(4, 4)), traced(torch.zeros(4, 4)))


@each_fill
def test_tangents_become_zero(fill):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(4, 4), torch.ones(4, 4))
        seeded(fill, dual)
        primal, tangent = forward_ad.unpack_dual(dual)
        assert not tangent.any()
        assert torch.equal(primal, seeded(fill, torch.empty(4, 4)))


@each_fill
def test_jvp(fill):
    _, tangent = torch.func.jvp(
        lambda x: fill(x.clone()) * 2, (torch.ones(4, 4),), (torch.ones(4, 4),)
    )
    assert not tangent.any()


@each_fill
def test_fake_tensors_outside_their_mode(fill):
    with FakeTensorMode():
        fake = torch.empty(4, 4)
    state = torch.get_rng_state()
    assert fill(fake) is fake
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dispatch_mode_sees_the_operator():
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    tensor = torch.empty(5)
    with Record():
        seeded(torchinit.normal_, tensor)
    assert "torchinit.normal_.default" in seen
    assert torch.equal(tensor, seeded(torchinit.normal_, torch.empty(5)))


def test_zeros_without_memory():
    for fill in (torchinit.normal_, torchinit.zeros_, torchinit.orthogonal_):
        with pytest.raises(RuntimeError, match="immutable"):
            fill(torch._efficientzerotensor(5, 5))


@each_random
@pytest.mark.parametrize("captured", [True, False])
def test_vmap_over_a_tensor_that_is_one_for_all(fill, captured):
    """It cannot have different values for every example: torch refuses too."""
    outside = torch.empty(4, 4)

    def noisy(x):
        return fill(outside if captured else torch.empty(4, 4)) + x

    for randomness, message in (("different", "not batched"), ("error", "randomness error mode")):
        with pytest.raises(RuntimeError, match=message):
            torch.vmap(noisy, randomness=randomness)(torch.zeros(3, 4, 4))
    same = torch.vmap(noisy, randomness="same")(torch.zeros(3, 4, 4))
    assert torch.equal(same[0], same[2])


def test_vmap_within_a_compiled_graph():
    compiled = torch.compile(
        lambda x: torch.vmap(
            lambda y: torchinit.normal_(torch.empty(2)) + y, randomness="different"
        )(x),
        backend="aot_eager",
    )
    with pytest.raises(RuntimeError, match="not batched"):
        compiled(torch.zeros(4, 2))


def test_vmap_with_a_generator():
    generator = torch.Generator().manual_seed(3)
    x = torch.vmap(lambda x: torchinit.normal_(x, generator=generator), randomness="different")(
        torch.zeros(5, 3)
    )
    expected = torchinit.normal_(torch.empty(5, 3), generator=generator.manual_seed(3))
    assert torch.equal(x, expected)
