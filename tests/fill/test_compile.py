"""torch.compile, export and activation checkpoints: every fill its own key, and eager's bits."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import torchinit
from conftest import long, native_only

pytestmark = native_only

BACKENDS = ["aot_eager", "inductor"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def layer_like(weight, bias):
    torchinit.init_(weight, bias, "kaiming_uniform")
    torchinit.trunc_normal_(bias, std=0.02)
    torchinit.constant_(bias[:2], 3.0)
    return weight * 2, bias + 1


@pytest.mark.parametrize(
    ("backend", "wrap"),
    [
        ("aot_eager", torch.Tensor),
        ("inductor", torch.nn.Parameter),
        pytest.param("aot_eager", torch.nn.Parameter, marks=long),
        pytest.param("inductor", torch.Tensor, marks=long),
    ],
)
def test_full_graph(backend, wrap):
    compiled = torch.compile(layer_like, fullgraph=True, backend=backend)
    outcomes = []
    for function in (layer_like, compiled, compiled):
        torch.manual_seed(4)
        with torch.no_grad():
            outcomes.append(function(wrap(torch.empty(6, 5)), wrap(torch.empty(6))))
    for outcome in outcomes[1:]:
        assert torch.equal(outcome[0], outcomes[0][0])
        assert torch.equal(outcome[1], outcomes[0][1])


def test_a_graph_draws_anew_at_every_run():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def two_fills(x, y):
        return torchinit.normal_(x) + 0, torchinit.normal_(y) + 0

    first, second = two_fills(torch.empty(9), torch.empty(9))
    third, _ = two_fills(torch.empty(9), torch.empty(9))
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)


def noisy(x):
    """Three layers of noise, as a training step has them."""
    drawn = []
    for _ in range(3):
        noise = torchinit.normal_(torch.empty(4))
        x = x * noise
        drawn.append(noise)
    weight, bias = torchinit.init_(torch.empty(4), torch.empty(4), "biased_normal")
    return x.sum() + 0 * weight.sum() + 0 * bias.sum(), (*drawn, weight, bias)


@pytest.mark.parametrize(
    ("backend", "fullgraph"),
    [
        ("aot_eager", False),
        ("inductor", True),
        pytest.param("aot_eager", True, marks=long),
        pytest.param("inductor", False, marks=long),
    ],
)
def test_training_graphs_merge_no_draws(backend, fullgraph):
    """functorch's common subexpressions would take two draws of a key for one (torch 2.13)."""
    outcomes = []
    for function in (noisy, torch.compile(noisy, backend=backend, fullgraph=fullgraph)):
        x = torch.ones(4, requires_grad=True)
        torch.manual_seed(3)
        loss, drawn = function(x)
        loss.backward()
        assert torch.allclose(x.grad, drawn[0] * drawn[1] * drawn[2])
        assert len({tuple(noise.tolist()) for noise in drawn}) == 5
        outcomes.append(drawn)
    assert all(map(torch.equal, *outcomes))


@each_backend
def test_activation_checkpoints(backend):
    """The fill is done again in the backward pass, from the same key."""

    def inner(x):
        noise = torchinit.normal_(torch.empty(4))
        return (x * noise).sin() * noise

    def loss(x):
        return checkpoint(inner, x, use_reentrant=False).sum()

    results = []
    for function in (loss, torch.compile(loss, backend=backend)):
        x = torch.ones(4, requires_grad=True)
        torch.manual_seed(5)
        value = function(x)
        value.backward()
        results.append((value.detach(), x.grad))
    assert torch.allclose(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=long)])
@pytest.mark.parametrize(
    "shape", [(6, 6), (129, 128), (200, 150), (256, 256), (3000, 20), (20, 3000), (2, 3, 4)]
)
def test_orthogonal(backend, shape):
    compiled = torch.compile(
        lambda w: torchinit.orthogonal_(w) + 0, fullgraph=True, backend=backend
    )
    torch.manual_seed(1)
    expected = torchinit.orthogonal_(torch.empty(shape))
    torch.manual_seed(1)
    assert torch.equal(compiled(torch.empty(shape)), expected)


def test_orthogonal_by_init_and_in_a_batch():
    def fills(w, stack):
        torchinit.init_(w, None, "orthogonal")
        torchinit.orthogonal_batch_(stack)
        return w + 0, stack + 0

    compiled = torch.compile(fills, fullgraph=True, backend="aot_eager")
    for function in (fills, compiled):
        w, stack = function(torch.empty(5, 5), torch.empty(3, 4, 4))
        for q in (w, *stack):
            assert torch.allclose(q @ q.t(), torch.eye(len(q)), atol=1e-5)


@each_backend
def test_what_was_read_between_two_fills(backend):
    """inductor loses such values of operators that write (a bug of torch's)."""

    def snapshots(x):
        torchinit.ones_(x)
        first = x.clone()
        torchinit.normal_(x)
        second = x.clone()
        torchinit.constant_(x, 5.0)
        return first, second

    compiled = torch.compile(snapshots, backend=backend)
    for function in (snapshots, compiled):
        x = torch.empty(4)
        torch.manual_seed(0)
        first, second = function(x)
        torch.manual_seed(0)
        assert torch.equal(first, torch.ones(4))
        assert torch.equal(second, torchinit.normal_(torch.empty(4)))
        assert torch.equal(x, torch.full((4,), 5.0))


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    class Noise(torch.nn.Module):
        def forward(self, x):
            noise = torchinit.trunc_normal_(torch.empty_like(x), std=0.5)
            return x + noise, torchinit.orthogonal_(torch.empty(3, 3))

    module = Noise()
    exported = torch.export.export(module, (torch.zeros(5),), strict=strict).module()
    torch.manual_seed(2)
    expected = module(torch.zeros(5))
    torch.manual_seed(2)
    assert all(map(torch.equal, exported(torch.zeros(5)), expected))


def test_a_device_context_around_a_graph():
    compiled = torch.compile(
        lambda x: torchinit.normal_(x) + 0, fullgraph=True, backend="aot_eager"
    )
    torch.manual_seed(6)
    expected = torchinit.normal_(torch.empty(7))
    torch.manual_seed(6)
    with torch.device("cpu"):
        assert torch.equal(compiled(torch.empty(7)), expected)
