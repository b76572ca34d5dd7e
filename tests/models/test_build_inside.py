"""What else may be in a constructor, or around ``build_model``: torch's tools, ours, threads."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from build_cases import CASES, Made, NanoGPT, built, item, quiet
from compared import are_same, assert_same, differences, values
from torch import nn
from torch.nn import init
from torch.nn.parameter import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode

import torchinit
from torchinit import ArgumentError, build_model, init_model_
from torchinit.patch.frames import handlers
from torchinit.tape import play


def plainly(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model without torchinit around it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return quiet(build)


# torch's tools in a constructor.


def compiled() -> nn.Module:
    layer = torch.compile(nn.Linear(8, 8), backend="eager")
    scale = torch.compile(lambda x: x * 2 + 1, backend="eager")
    kept = Parameter(layer(torch.randn(16, 8)).detach())
    return Made(layer=layer, kept=kept, scaled=Parameter(scale(torch.randn(64))))


def compiled_init() -> nn.Module:
    fill = torch.compile(lambda w: init.normal_(w, std=0.1), backend="eager")
    return Made(w=Parameter(fill(torch.empty(64))))


def scripted() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    return Made(one=torch.jit.script(nn.Linear(8, 8)), some=torch.jit.script(layers))


def traced() -> nn.Module:
    return Made(one=torch.jit.trace(nn.Linear(8, 8), torch.randn(2, 8)), other=nn.Linear(3, 3))


def inferred() -> nn.Module:
    with torch.inference_mode():
        w, layer = torch.randn(8, 8) * 2, nn.Linear(4, 4)
    return Made(w=Parameter(w.clone(), requires_grad=False), layer=layer)


def mapped() -> nn.Module:
    layer = nn.Linear(8, 8)
    doubled = torch.vmap(lambda x: x * 2)(layer.weight.detach())
    noisy = torch.vmap(lambda x: x + torch.randn(8), randomness="different")(torch.zeros(16, 8))
    return Made(layer=layer, doubled=Parameter(doubled), noisy=Parameter(noisy))


@torch.library.custom_op("torchinit_tests::twice", mutates_args=())
def _twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("torchinit_tests::halve", mutates_args=("x",))
def _halve(x: torch.Tensor) -> None:
    x.div_(2)


def custom() -> nn.Module:
    layer = nn.Linear(8, 8)
    doubled = _twice(layer.weight.detach())
    _halve(layer.bias.data)
    return Made(layer=layer, doubled=Parameter(doubled))


def checkpointed() -> nn.Module:
    layer = nn.Linear(8, 8)
    made = torch.utils.checkpoint.checkpoint(layer, torch.randn(2, 8), use_reentrant=False)
    made.sum().backward()
    gradient = layer.weight.grad.clone()
    layer.zero_grad()
    return Made(layer=layer, gradient=Parameter(gradient))


def stepped() -> nn.Module:
    layer = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(4, 8)).square().sum().backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
    layer.zero_grad()
    return layer


def nested_tensors() -> nn.Module:
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)])
    return Made(padded=Parameter(torch.nested.to_padded_tensor(nested, 0.0)), layer=nn.Linear(3, 3))


def functional() -> nn.Module:
    layer = nn.Linear(8, 8)
    state = {name: value * 2 for name, value in layer.named_parameters()}
    called = torch.func.functional_call(layer, state, torch.randn(8, 8))
    gradient = torch.func.grad(lambda w: (w**3).sum())(layer.weight.detach())
    return Made(layer=layer, called=Parameter(called.detach()), gradient=Parameter(gradient))


def sparse() -> nn.Module:
    dense = torch.randn(8, 8).relu()
    return Made(back=Parameter(dense.to_sparse().to_dense()), layer=nn.Linear(3, 3))


def fft() -> nn.Module:
    return Made(w=Parameter(torch.fft.rfft(torch.randn(4, 16)).abs()), i=Parameter(
        torch.stft(torch.randn(64), 8, window=torch.hann_window(8), return_complex=True).real
    ))  # fmt: skip


TOOLS = [
    compiled, compiled_init, scripted, traced, inferred, mapped, custom, checkpointed, stepped,
    nested_tensors, functional, sparse, fft,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("build", TOOLS, ids=lambda build: build.__name__)
def test_tools_of_torch(build) -> None:
    """As plain; the levels are those of the cases of build_cases.py."""
    ours = build_model(build, seed=0)
    plains = [plainly(build, seed) for seed in range(6)]
    assert differences(plains, ours, build_model(build, seed=1)) == []
    assert_same(build_model(build, seed=0), ours)
    meta = build_model(build, seed=0, device="meta")
    assert_same(init_model_(meta, seed=0, device="cpu"), ours)


def test_quantised_layers() -> None:
    """Their weights are packed: they are made at once, as plain ones are."""

    def build() -> nn.Module:
        layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        return torch.ao.quantization.quantize_dynamic(layers, {nn.Linear}, dtype=torch.qint8)

    model = quiet(lambda: build_model(build, seed=0))
    again = quiet(lambda: build_model(build, seed=0))
    assert torch.equal(model(torch.ones(2, 8)), again(torch.ones(2, 8)))
    weight = model[0].weight().dequantize()
    assert 0 < float(weight.abs().max()) <= 8**-0.5 * 1.01


def test_random_numbers_that_vmap_shares() -> None:
    def build() -> nn.Module:
        shared = torch.vmap(lambda x: x + torch.randn(8), randomness="same")(torch.zeros(4, 8))
        return Made(w=Parameter(shared))

    w = build_model(build, seed=0).w
    assert torch.equal(w, w[:1].expand(4, 8))
    assert not torch.equal(w, build_model(build, seed=1).w)


class Marked(torch.Tensor):
    """A subclass that does nothing."""


def test_tensor_subclasses() -> None:
    def build() -> nn.Module:
        return Made(layer=nn.Linear(4, 4), w=Parameter(torch.randn(64).as_subclass(Marked)))

    model = build_model(build, seed=0)
    assert type(model.w) is Marked or isinstance(model.w, Marked)
    assert float(model.w.detach().std()) == pytest.approx(1, abs=0.5)
    assert_same(build_model(build, seed=0), model)
    with pytest.raises(ArgumentError, match="'w' is a Marked, whose values cannot be remembered"):
        build_model(build, seed=0, device="meta")


# torchinit's own functions in a constructor.


def patched() -> nn.Module:
    with torchinit.patch_nn_init():
        return nn.Sequential(nn.Linear(8, 8), nn.Embedding(16, 8))


def patched_by_names() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(16, 8))
    with torchinit.patch_nn_init(seed=3, names_from=model):
        model[0].reset_parameters()
    return model


def our_functions() -> nn.Module:
    model = Made(**{name: Parameter(torch.empty(64, 8)) for name in "abcd"})
    torchinit.normal_(model.a, std=0.1)
    torchinit.trunc_normal_(model.b)
    with torchinit.batch():
        torchinit.uniform_(model.c)
    torchinit.orthogonal_(model.d)
    model.layer = nn.Linear(4, 4)
    return model


def our_functions_by_generator() -> nn.Module:
    model = Made(a=Parameter(torch.empty(64, 8)), layer=nn.Linear(4, 4))
    torchinit.normal_(model.a, std=0.1, generator=torch.Generator().manual_seed(3))
    return model


def our_rules() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    return init_model_(model, {"**.bias": "zeros", "**": torchinit.Normal(0.02)}, seed=7)


def our_own_init() -> nn.Module:
    with torch.device("meta"):
        part = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    return Made(part=init_model_(part, seed=7, device="cpu"), layer=nn.Linear(8, 8))


def built_inside() -> nn.Module:
    part = build_model(NanoGPT, seed=7)
    return Made(part=part, layer=nn.Linear(8, 8), z=Parameter(torch.randn(64) * 2))


def built_inside_on_meta() -> nn.Module:
    part = build_model(lambda: nn.Linear(8, 8), seed=7, device="meta")
    return Made(part=init_model_(part, seed=8, device="cpu"), layer=nn.Linear(8, 8))


OURS = [
    patched, patched_by_names, our_functions, our_functions_by_generator, our_rules, our_own_init,
    built_inside, built_inside_on_meta,
]  # fmt: skip


@pytest.mark.parametrize("build", OURS, ids=lambda build: build.__name__)
def test_our_own_functions(build) -> None:
    ours = quiet(lambda: build_model(build, seed=0))
    other = quiet(lambda: build_model(build, seed=1))
    assert differences([plainly(build, seed) for seed in range(6)], ours, other) == []
    assert_same(quiet(lambda: build_model(build, seed=0)), ours)
    meta = quiet(lambda: build_model(build, seed=0, device="meta"))
    assert_same(init_model_(meta, seed=0, device="cpu"), ours)


def test_what_is_built_inside_has_its_own_seed() -> None:
    for seed in (0, 1):
        model = build_model(built_inside, seed=seed)
        assert_same(model.part, build_model(NanoGPT, seed=7))


# What is around it.


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "another mode": lambda: FlopCounterMode(display=False),
    "batch": torchinit.batch,
    "patch_nn_init": torchinit.patch_nn_init,
    "patch_nn_init by names": lambda: torchinit.patch_nn_init(seed=4, names_from=NanoGPT()),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", MODES)
def test_modes_around(name: str) -> None:
    expected, state = built("nanoGPT"), torch.get_rng_state()
    with MODES[name]():
        model = build_model(NanoGPT, seed=0)
        meta = build_model(NanoGPT, seed=0, device="meta")
    assert_same(model, expected)
    assert_same(init_model_(meta, seed=0, device="cpu"), expected)
    if "patch" not in name:
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("name", ["nanoGPT", "scaled", "svd", "item"])
def test_threads_of_torch(threads: int, name: str) -> None:
    """Their number changes no value, and is as it was."""
    expected, before = built(name), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(built(name), expected)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_settings_that_a_constructor_makes_stay() -> None:
    before = torch.get_num_threads()

    def build() -> nn.Module:
        torch.set_num_threads(3)
        torch.set_default_dtype(torch.float64)
        return nn.Linear(2, 2)

    try:
        assert build_model(build, seed=0).weight.dtype == torch.float64
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
        torch.set_default_dtype(torch.float32)


def test_a_model_made_before() -> None:
    """It is part of the result, and keeps its values; its copies too."""
    old = nn.Linear(16, 16)
    before = old.weight.detach().clone()
    model = build_model(lambda: Made(old=old, twin=copy.deepcopy(old), new=nn.Linear(16, 16)),
                        seed=0)  # fmt: skip
    assert model.old is old
    assert torch.equal(old.weight, before)
    assert torch.equal(model.twin.weight, before)
    assert torch.equal(model.new.weight, build_model(lambda: Made(new=nn.Linear(16, 16)),
                                                     seed=0).new.weight)  # fmt: skip


# Errors, and what they leave.


@contextlib.contextmanager
def everything_put_back():
    """Generators, modes, handlers, threads of torch, and the start of threads."""
    kind, words, *rest = np.random.get_state()
    before = (torch.get_rng_state().tolist(), kind, words.tolist(), *rest, random.getstate(),
              torch.get_num_threads(), torch.get_default_device(), threading.Thread.start,
              torch.nn.init.normal_, torch.Tensor.normal_)  # fmt: skip
    yield
    kind, words, *rest = np.random.get_state()
    after = (torch.get_rng_state().tolist(), kind, words.tolist(), *rest, random.getstate(),
             torch.get_num_threads(), torch.get_default_device(), threading.Thread.start,
             torch.nn.init.normal_, torch.Tensor.normal_)  # fmt: skip
    assert before == after
    assert _get_current_dispatch_mode() is None
    assert not list(handlers())
    assert bool(torch.randn(64).isfinite().all())
    assert_same(build_model(NanoGPT, seed=0), built("nanoGPT"))


@pytest.mark.parametrize("error", [KeyError, SystemExit, KeyboardInterrupt])
def test_a_constructor_that_raises(error) -> None:
    def build() -> nn.Module:
        layers = nn.Sequential(nn.Linear(300, 300), nn.Linear(8, 8))
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        threading.Thread(target=layers[1].weight.sum).start()
        build_model(lambda: nn.Linear(2, 2), seed=4)
        raise error("on the way")

    with everything_put_back(), pytest.raises(error, match="on the way"):
        build_model(build, seed=0)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises, also in a process that a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(8, 8)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        return layer

    with everything_put_back(), pytest.raises(KeyboardInterrupt):
        build_model(build, seed=0)


def test_a_second_run_that_raises() -> None:
    runs = []

    def build() -> nn.Module:
        runs.append(0)
        layer = nn.Linear(4, 4)
        if len(runs) == 2:
            raise OSError("no network")
        layer.weight.max().item()
        return layer

    with everything_put_back(), pytest.raises(ArgumentError) as caught:
        build_model(build, seed=0)
    assert (
        "was run 2 times, because it reads values that it draws (first those of 'weight')"
        in str(caught.value)
    )
    assert "raised OSError: no network" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_draws_that_are_others_every_time() -> None:
    runs = []

    def build() -> nn.Module:
        runs.append(0)
        torch.randn(len(runs)).max().item()
        return nn.Linear(4, 4)

    with everything_put_back(), pytest.raises(ArgumentError) as caught:
        build_model(build, seed=0)
    assert "reads values that it draws, and its draws differ in every run" in str(caught.value)
    assert "Draw after the model is built" in str(caught.value)
    assert len(runs) == 8


def test_how_often_a_constructor_is_run() -> None:
    runs = []

    def counted(build: Callable[[], nn.Module]) -> int:
        runs.clear()

        def build_and_count() -> nn.Module:
            runs.append(0)
            return build()

        quiet(lambda: build_model(build_and_count, seed=0))
        return len(runs)

    assert counted(NanoGPT) == 1
    assert counted(CASES["scaled"]) == 1
    assert counted(CASES["generator"]) == 1
    assert counted(item) == 2
    assert counted(CASES["svd"]) <= 2


def test_layers_that_threads_make() -> None:
    """Their draws are not seen: an error, for they follow from no name."""

    def build() -> nn.Module:
        with ThreadPoolExecutor(2) as pool:
            return nn.ModuleList(pool.map(lambda wide: nn.Linear(8, wide), [4, 5, 6]))

    with everything_put_back(), pytest.raises(ArgumentError, match="drew from torch's generator"):
        build_model(build, seed=0)


def test_threads_that_read_get_values() -> None:
    def build() -> nn.Module:
        layers, found = nn.ModuleList(nn.Linear(40, 40) for _ in range(3)), []
        with ThreadPoolExecutor(2) as pool:
            found += pool.map(lambda layer: layer.weight.detach().sum().item(), layers)
        return Made(layers=layers, sums=Parameter(torch.tensor(found)))

    model = build_model(build, seed=0)
    sums = [layer.weight.detach().sum().item() for layer in model.layers]
    assert model.sums.tolist() == pytest.approx(sums, rel=1e-6)


def test_builds_in_threads() -> None:
    names = ["nanoGPT", "scaled", "item", "svd", "nanoGPT", "seeded"]
    with everything_put_back():
        expected = [built(name, number % 2) for number, name in enumerate(names)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with ThreadPoolExecutor(3) as pool:
                found = list(pool.map(
                    lambda one: build_model(CASES[one[1]], seed=one[0] % 2), enumerate(names)
                ))  # fmt: skip
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def in_a_fork(function: Callable[[], bytes]) -> bytes:
    """What a function gives in a child, or the error that it raises there."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # OpenMP's others are not in the child
            said = function()
        except BaseException as error:
            said = repr(error).encode()
        os.write(write, said)
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:  # noqa: PTH123
        said = file.read()
    os.waitpid(child, 0)
    return said


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_in_a_constructor() -> None:
    """The parent goes on; the child may read."""

    def build() -> nn.Module:
        layer = nn.Linear(8, 8)
        data = in_a_fork(lambda: layer.weight.detach().numpy().tobytes())
        assert len(data) == 256, data
        there = torch.frombuffer(bytearray(data), dtype=torch.float32).view(8, 8).clone()
        return Made(layer=layer, there=Parameter(there))

    with everything_put_back():
        model = build_model(build, seed=0)
    assert bool(model.there.isfinite().all())
    assert 0 < float(model.there.abs().max()) <= 8**-0.5


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_that_builds() -> None:
    """After a fork, as workers do."""
    expected = values(built("nanoGPT"))

    def same() -> bytes:
        found = values(build_model(NanoGPT, seed=0))
        return str([name for name in found if not are_same(found[name], expected[name])]).encode()

    assert in_a_fork(same) == b"[]"


def _forward(*, training: bool) -> nn.Module:
    """A constructor that finds out sizes by a forward of zeros, as many do."""
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Upsample(scale_factor=2),
        nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(3),
        nn.Flatten(), nn.LayerNorm(72), nn.Linear(72, 8), nn.BatchNorm1d(8),
    )  # fmt: skip
    with torch.no_grad():
        size = layers.train(training)(torch.zeros(2, 3, 16, 16)).shape[1]
    gc.collect()  # torch's first use of some operators leaves cycles that hold frames
    return nn.Sequential(layers, nn.Linear(size, 4))


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_inside_is_not_done_unless_it_is_read(training, monkeypatch) -> None:
    runs, done = [], []
    operate = play._operate
    monkeypatch.setattr(
        play, "_operate", lambda entry, *rest: (done.append(entry), operate(entry, *rest))
    )

    def build() -> nn.Module:
        runs.append(0)
        return _forward(training=training)

    model = build_model(build, seed=0)
    assert len(runs) == 1
    # In training it decides the statistics of the batches, all by one forward.
    assert (len(done) > 0) == training
    assert len(done) == len(set(done))

    def assert_is_what_a_forward_gives(model: nn.Module) -> None:
        fresh = build_model(lambda: _forward(training=False), seed=0)
        if training:
            fresh[0].train()
            with torch.no_grad(), play.one_thread():
                fresh[0](torch.zeros(2, 3, 16, 16))
        for (name, one), other in zip(
            model.state_dict().items(), fresh.state_dict().values(), strict=True
        ):
            assert torch.equal(one, other), name

    assert_is_what_a_forward_gives(model)
    on_meta = build_model(build, seed=0, device="meta")
    assert_is_what_a_forward_gives(init_model_(on_meta, seed=0, device="cpu"))


_MISTAKES = {
    "fill": lambda w: w[0].fill_(1j),
    "matmul": lambda w: w @ torch.ones(7),
    "copy": lambda w: w.copy_(torch.ones(7)),
    "index": lambda w: w[torch.tensor([9])],
    "index_select": lambda w: w.index_select(0, torch.tensor([9])),
    "gather": lambda w: w.gather(0, torch.tensor([[9]])),
    "embedding": lambda w: nn.functional.embedding(torch.tensor([9]), w),
    "scatter": lambda w: w.scatter(0, torch.tensor([[9]]), 1.0),
    "index_copy": lambda w: w.index_copy(0, torch.tensor([9]), torch.ones(1, 4)),
    "index_fill": lambda w: w.index_fill(0, torch.tensor([9]), 1.0),
    "group_norm": lambda w: nn.functional.group_norm(w, 3),
    "expanded": lambda w: w[0].expand(4, 4).add_(1),
}


@pytest.mark.parametrize("name", _MISTAKES)
def test_a_mistake_inside_raises_what_torch_raises_there(name: str) -> None:
    """Also where nobody uses the result."""
    caught: list[Exception] = []

    def build() -> nn.Module:
        layer = nn.Linear(4, 4)
        with torch.no_grad():
            try:
                _MISTAKES[name](layer.weight)
            except Exception as error:
                caught.append(error)
        return layer

    plainly(build, 0)
    assert len(caught) == 1
    build_model(build, seed=0)
    assert len(caught) > 1
    assert len({(type(error), str(error)) for error in caught}) == 1


def _by_shard(tensor: torch.Tensor) -> None:
    torchinit.init_shard_(
        tensor, torchinit.Normal(1.0), global_shape=(16, 8), offset=(8, 0)
    )  # whose key is a number


def _by_groups(tensor: torch.Tensor) -> None:
    torchinit.Blocks({"a": 4, "b": 4}, torchinit.Normal(1.0), groups=2)(tensor)


def _by_groups_of_matrices(tensor: torch.Tensor) -> None:
    torchinit.Blocks({"a": 4, "b": 4}, torchinit.Orthogonal(), groups=2)(tensor)


@pytest.mark.parametrize("fill", [_by_shard, _by_groups, _by_groups_of_matrices])
def test_keys_that_are_drawn_inside_as_numbers(fill: Callable[[torch.Tensor], None]) -> None:
    """They are read past torch, by torchinit itself, and used at once."""

    def build() -> nn.Module:
        model = Made(one=Parameter(torch.empty(8, 8)), other=Parameter(torch.empty(8, 8)))
        with torch.no_grad():
            fill(model.one)
            fill(model.other)
        return model

    torchinit.normal_(torch.empty(3))  # draws keys as numbers, so that there is memory for them
    model = build_model(build, seed=0)
    assert not torch.equal(model.one, model.other)
    assert_same(build_model(build, seed=0), model)
    assert not torch.equal(build_model(build, seed=1).one, model.one)


def test_operators_that_cannot_be_recorded() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(8, 8)
        key = torch.ops.torchinit.draw_key(0, device=torch.device("cpu"))
        with torch.no_grad():
            torch.ops.torchinit.normal_(layer.weight, key, 0.0, 1.0, [16, 8], [8, 0])
        return layer

    with pytest.raises(ArgumentError, match=r"torchinit\.normal_ cannot be recorded"):
        build_model(build, seed=0)
