"""DTensors under modes of torch, compilers, patch_nn_init, in threads and in forked children."""

# ruff: noqa: SIM117
from __future__ import annotations

import threading

import pytest
import torch
from layouts import (
    FUNCTIONS,
    GUARD,
    assert_gathers,
    assert_holds,
    cut,
    fits,
    generator_of,
    guarded,
    mesh_of,
    placement,
    read_layout,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import in_worlds

import torchinit
from forked import in_child
from torchinit.errors import ArgumentError
from torchinit.native import load

NATIVE = load.module is not None
LAYOUTS = ["2 S0", "2 S1", "2 R", "2 Z0:2"]
NAMES = [name for name in FUNCTIONS if fits(name, (6, 4))]


@in_worlds(2)
def test_grad_modes():
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            for name in NAMES:
                torch.manual_seed(5)
                plain = FUNCTIONS[name](torch.full((6, 4), GUARD))
                for layout in LAYOUTS:
                    tensor = guarded((6, 4), torch.float32, layout)
                    torch.manual_seed(5)
                    FUNCTIONS[name](tensor)
                    assert_holds(tensor, plain, layout)
    kept = torch.nn.Parameter(guarded((6, 4), torch.float32, "2 S0"))
    with torch.inference_mode():
        torch.manual_seed(5)
        torchinit.normal_(kept)
    torch.manual_seed(5)
    assert_holds(kept, torchinit.normal_(torch.empty(6, 4)), "2 S0")


class Skips(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return keywords["tensor"] if "tensor" in keywords else arguments[0]
        return function(*arguments, **keywords)


class Passes(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


@in_worlds(2)
def test_function_modes():
    for name in NAMES:
        for layout in LAYOUTS:
            tensor = guarded((6, 4), torch.float32, layout)
            with Skips():
                assert FUNCTIONS[name](tensor) is tensor
            assert (tensor.to_local() == GUARD).all()
            torch.manual_seed(5)
            plain = FUNCTIONS[name](torch.empty(6, 4))
            for context in (Passes(), torch.device("cpu"), torch.device("meta")):
                tensor = guarded((6, 4), torch.float32, layout)
                torch.manual_seed(5)
                with context:
                    assert FUNCTIONS[name](tensor) is tensor
                assert_holds(tensor, plain, layout)


@in_worlds(2)
def test_dispatch_modes():
    for name in NAMES:
        for layout in LAYOUTS:
            torch.manual_seed(5)
            plain = FUNCTIONS[name](torch.empty(6, 4))
            tensor = guarded((6, 4), torch.float32, layout)
            torch.manual_seed(5)
            with Dispatches():
                assert FUNCTIONS[name](tensor) is tensor
            assert_holds(tensor, plain, layout)


@in_worlds(2)
def test_fake_tensors():
    """Nothing to write; keys are drawn as for plain ones, so that a program keeps its course."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed.tensor import DTensor

    mesh = mesh_of(2)
    for name in NAMES:
        if name == "sparse_" or (name == "trunc_normal_" and not NATIVE):
            continue  # of torch, which looks at values
        states = []
        for sharded in (False, True):
            torch.manual_seed(5)
            with FakeTensorMode():
                tensor = torch.empty(3 if sharded else 6, 4)
                if sharded:
                    tensor = DTensor.from_local(tensor, mesh, [placement("S0")])
                assert FUNCTIONS[name](tensor) is tensor
                assert tensor.shape == (6, 4)
            states.append(torch.get_rng_state())
        assert torch.equal(*states), name


@in_worlds(2)
def test_other_dtypes():
    """What torch fills alone: every rank makes the whole, and keeps its own part."""
    from torch.distributed.tensor import distribute_tensor

    for dtype in (torch.complex64, torch.int64, torch.bool):
        for name in ("normal_", "constant_", "ones_", "zeros_", "eye_"):
            if name == "normal_" and dtype != torch.complex64:
                continue
            torch.manual_seed(5)
            plain = FUNCTIONS[name](torch.empty(6, 4, dtype=dtype))
            for layout in LAYOUTS:
                mesh, placements = read_layout(layout)
                expected = distribute_tensor(plain, mesh, placements, src_data_rank=None).to_local()
                tensor = distribute_tensor(
                    torch.full_like(plain, GUARD), mesh, placements, src_data_rank=None
                )
                torch.manual_seed(5)
                FUNCTIONS[name](tensor)
                assert torch.equal(tensor.to_local(), expected), (name, dtype, layout)
    tensor = distribute_tensor(torch.full((6, 4), 7), mesh_of(2), [placement("S0")])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torchinit.normal_(tensor)
    assert (tensor.to_local() == 7).all()


@in_worlds(2)
def test_which():
    tensor = guarded((6, 4), torch.float32, "2 S0")
    for scheme in ("normal_", "trunc_normal", "xavier_uniform", "zeros", "eye", "dirac"):
        route = torchinit.which(tensor, scheme)
        kind = "native" if NATIVE or scheme in ("eye", "dirac") else "torch"
        assert route.kind == kind, (scheme, route)
        assert "of a DTensor" in route.reason or "full tensor" in route.reason
    assert torchinit.which(tensor, "sparse").kind == "torch"
    assert "by way of the full tensor" in torchinit.which(tensor, "sparse").reason
    with pytest.raises(ValueError, match="no"):
        torchinit.which(tensor, "nothing")


@in_worlds(2)
def test_subclasses_of_dtensors():
    from torch.distributed.tensor import DTensor

    class Mine(DTensor):
        pass

    tensor = guarded((6, 4), torch.float32, "2 S0")
    mine = Mine(tensor._local_tensor, tensor._spec, requires_grad=False)
    torch.manual_seed(5)
    plain = torchinit.normal_(torch.empty(6, 4))
    torch.manual_seed(5)
    torchinit.normal_(mine)
    assert_holds(tensor, plain, "2 S0")


@in_worlds(2)
def test_threads():
    """Each with its own generator, at the same time."""
    wrong = []

    def work(number):
        try:
            generator = generator_of(number)
            plain = torchinit.normal_(torch.empty(600, 40), generator=generator)
            for _ in range(5):
                generator.manual_seed(number)
                tensor = guarded((600, 40), torch.float32, "2 S0")
                with torchinit.batch():
                    torchinit.normal_(tensor, generator=generator)
                assert_holds(tensor, plain, "2 S0")
        except BaseException as error:
            wrong.append(error)

    mesh_of(2)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


@in_worlds(2)
def test_forked_children():
    plain = torchinit.normal_(torch.empty(600, 40), generator=generator_of(1))
    tensor = guarded((600, 40), torch.float32, "2 S0")
    expected = cut(plain, "2 S0").to_local()

    def work():
        torchinit.normal_(tensor, generator=generator_of(1))
        assert torch.equal(tensor.to_local(), expected)

    assert in_child(work) == 0
    assert (tensor.to_local() == GUARD).all()


# patch_nn_init

PATCHED = {
    "uniform_": lambda init, t: init.uniform_(t, -0.5, 2.0),
    "normal_": lambda init, t: init.normal_(t, 0.5, 2.0),
    "trunc_normal_": lambda init, t: init.trunc_normal_(t, 0.1, 1.0, -1.5, 2.0),
    "constant_": lambda init, t: init.constant_(t, 0.3),
    "ones_": lambda init, t: init.ones_(t),
    "zeros_": lambda init, t: init.zeros_(t),
    "xavier_uniform_": lambda init, t: init.xavier_uniform_(t, 1.5),
    "xavier_normal_": lambda init, t: init.xavier_normal_(t),
    "kaiming_uniform_": lambda init, t: init.kaiming_uniform_(t, 0.2, "fan_out"),
    "kaiming_normal_": lambda init, t: init.kaiming_normal_(t, nonlinearity="relu"),
    "eye_": lambda init, t: init.eye_(t),
    "sparse_": lambda init, t: init.sparse_(t, 0.3),
}  # fmt: skip


@in_worlds(2, each=PATCHED)
def test_patched_functions(call):
    """What ``torch.nn.init`` does to DTensors inside: as torchinit's functions do it."""
    for layout in LAYOUTS:
        torch.manual_seed(5)
        plain = call(torchinit, torch.empty(6, 4))
        tensor = torch.nn.Parameter(guarded((6, 4), torch.float32, layout))
        torch.manual_seed(5)
        with torchinit.patch_nn_init():
            call(torch.nn.init, tensor)
        assert_holds(tensor, plain, layout)


@in_worlds(2)
def test_patched_dirac():
    torch.manual_seed(5)
    plain = torchinit.dirac_(torch.empty(6, 4, 3), 2)
    for layout in LAYOUTS:
        tensor = guarded((6, 4, 3), torch.float32, layout)
        with torchinit.patch_nn_init():
            torch.nn.init.dirac_(tensor, 2)
        assert_holds(tensor, plain, layout)


@in_worlds(2)
def test_patched_functions_refuse_partial_placements():
    """Small constants too, which torch would write on every rank: their sum is another value."""
    from torch.distributed.tensor import DTensor

    tensor = DTensor.from_local(torch.full((6, 4), GUARD), mesh_of(2), [placement("P")])
    for name, call in PATCHED.items():
        with pytest.raises(ArgumentError, match="is partial"), torchinit.patch_nn_init():
            call(torch.nn.init, tensor)
        assert (tensor.to_local() == GUARD).all(), name


@in_worlds(2)
def test_patched_methods_and_modules():
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(5)
    plain = torchinit.normal_(torch.empty(6, 4), 0.5, 2.0)
    with torchinit.patch_nn_init():
        linear = torch.nn.Linear(4, 6)
    tensor = guarded((6, 4), torch.float32, "2 S0")
    torch.manual_seed(5)
    with torchinit.patch_nn_init():
        tensor.normal_(0.5, 2.0)
    assert_holds(tensor, plain, "2 S0")
    torch.manual_seed(5)
    with torchinit.patch_nn_init():
        linear.reset_parameters()
    with torch.device("meta"):
        sharded = torch.nn.Linear(4, 6)
    fully_shard(sharded, mesh=mesh_of(2))
    sharded.to_empty(device="cpu")
    torch.manual_seed(5)
    with torchinit.patch_nn_init():
        sharded.reset_parameters()
    assert_gathers(sharded.weight, linear.weight.detach())
    assert_gathers(sharded.bias, linear.bias.detach())


@in_worlds(2)
def test_patched_fills_by_name():
    from torch.distributed.fsdp import fully_shard

    def fill(model, layers):
        with torchinit.patch_nn_init(seed=3, names_from=model):
            for layer in layers:
                layer.reset_parameters()
            torch.nn.init.eye_(model[1].weight)
            torch.nn.init.zeros_(model[1].bias)

    if not NATIVE:
        return  # plain tensors have no keys of names then
    plain = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
    fill(plain, plain)
    with torch.device("meta"):
        sharded = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
    fully_shard(sharded, mesh=mesh_of(2))
    sharded.to_empty(device="cpu")
    fill(sharded, reversed(sharded))
    for got, wanted in zip(sharded.parameters(), plain.parameters(), strict=True):
        assert_gathers(got, wanted.detach())
    with pytest.warns(UserWarning, match="1 random fill inside"):
        with torchinit.patch_nn_init(seed=3, names_from=sharded):
            torch.nn.init.sparse_(sharded[0].weight, 0.5)


# torch.compile


def several_fills(weight, bias):
    torchinit.trunc_normal_(weight, std=0.02)
    torchinit.constant_(bias, 3.0)
    torchinit.uniform_(bias)
    return weight * 2, bias + 1


def compiled(function, backend, **options):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


@in_worlds(
    2, each=[f"{backend} {each}" for backend in ("aot_eager", "inductor") for each in LAYOUTS[:3]],
    where=lambda size, what: NATIVE and what != "inductor 2 R",  # noqa: ARG005
    seconds=240, long=lambda size, what: what.startswith("inductor"),  # noqa: ARG005
)  # fmt: skip
def test_full_graphs(what):
    backend, layout = what.split(maxsplit=1)
    bias_layout = "2 R" if "S1" in layout else layout
    for wrap in (lambda t: t, torch.nn.Parameter)[backend == "inductor" :]:
        torch.manual_seed(4)
        plain, plain_bias = torch.empty(6, 4), torch.empty(6)
        several_fills(plain, plain_bias)
        function = compiled(several_fills, backend)
        for _ in range(2):
            weight = wrap(guarded((6, 4), torch.float32, layout))
            bias = wrap(guarded((6,), torch.float32, bias_layout))
            torch.manual_seed(4)
            with torch.no_grad():
                doubled, more = function(weight, bias)
            assert_holds(weight, plain, layout)
            assert_holds(bias, plain_bias, bias_layout)
            assert torch.equal(doubled.to_local(), weight.detach().to_local() * 2)
            assert torch.equal(more.to_local(), bias.detach().to_local() + 1)


@in_worlds(2, where=lambda size, _: NATIVE, seconds=120)  # noqa: ARG005
def test_full_graphs_of_other_functions():
    """Those that the other tests have not."""
    for name in ("normal_", "ones_", "xavier_uniform_", "kaiming_normal_", "eye_"):
        torch.manual_seed(4)
        plain = FUNCTIONS[name](torch.empty(6, 4))
        tensor = guarded((6, 4), torch.float32, "2 S0")
        function = compiled(FUNCTIONS[name], "aot_eager")
        torch.manual_seed(4)
        function(tensor)
        assert_holds(tensor, plain, "2 S0")


@in_worlds(2, where=lambda size, _: NATIVE, seconds=120)  # noqa: ARG005
def test_full_graphs_of_strided_shards():
    for layout in ("2 Z0:2", "2x1 Z0:1 S0", "1x2 Z0:2 S0"):
        torch.manual_seed(4)
        plain = torchinit.normal_(torch.empty(8, 4))
        tensor = guarded((8, 4), torch.float32, layout)
        function = compiled(lambda t: torchinit.normal_(t), "aot_eager")
        torch.manual_seed(4)
        function(tensor)
        assert_holds(tensor, plain, layout)


@in_worlds(2, where=lambda size, _: NATIVE, seconds=120)  # noqa: ARG005
def test_dynamic_shapes():
    """Uneven ones too, and those of which a rank holds several boxes."""
    for layout in ("2 S0", "2 Z0:2"):
        function = compiled(lambda t: torchinit.normal_(t), "aot_eager", dynamic=True)
        for rows in (8, 7, 8):
            torch.manual_seed(4)
            plain = torchinit.normal_(torch.empty(rows, 4))
            tensor = guarded((rows, 4), torch.float32, layout)
            torch.manual_seed(4)
            function(tensor)
            assert_holds(tensor, plain, layout)


@in_worlds(2, where=lambda size, _: NATIVE, seconds=120)  # noqa: ARG005
def test_training_graphs():
    """Each fill its own key, with gradients besides."""

    def noisy(x, first, second):
        return (x * torchinit.normal_(first) * torchinit.normal_(second)).sum()

    outcomes = []
    for function in (noisy, compiled(noisy, "aot_eager")):
        x = cut(torch.ones(6, 4), "2 S0").requires_grad_()
        first, second = (guarded((6, 4), torch.float32, "2 S0") for _ in range(2))
        torch.manual_seed(4)
        function(x, first, second).backward()
        assert not torch.equal(first.to_local(), second.to_local())
        outcomes.append((first.to_local(), second.to_local(), x.grad.to_local()))
    assert all(torch.equal(*each) for each in zip(*outcomes, strict=True))
    torch.manual_seed(4)
    assert_holds(first, torchinit.normal_(torch.empty(6, 4)), "2 S0")
