"""What runs through torchinit inside ``patch_nn_init``, and with which values."""

from __future__ import annotations

import functools
import inspect
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import init as torch_init
from torch.nn.init import kaiming_uniform_, normal_, trunc_normal_
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torchinit
from conftest import native_only

SHAPE = (200, 60)

bound_before = functools.partial(torch.nn.init.normal_, std=0.5)

# What is called inside, on an empty tensor, and what of torchinit's it stands for.
STYLES = {
    "attribute": (
        lambda t: torch.nn.init.uniform_(t, -1, 2),
        lambda t: torchinit.uniform_(t, -1, 2),
    ),
    "early import": (lambda t: normal_(t, 1, 2), lambda t: torchinit.normal_(t, 1, 2)),
    "early trunc": (
        lambda t: trunc_normal_(t, std=3.0),
        lambda t: torchinit.trunc_normal_(t, std=3.0),
    ),
    "early kaiming": (
        lambda t: kaiming_uniform_(t, a=5**0.5),
        lambda t: torchinit.kaiming_uniform_(t, a=5**0.5),
    ),
    "partial": (bound_before, lambda t: torchinit.normal_(t, std=0.5)),
    "keywords": (
        lambda t: torch.nn.init.trunc_normal_(tensor=t, b=1.0, mean=0.5),
        lambda t: torchinit.trunc_normal_(t, mean=0.5, b=1.0),
    ),
    "kaiming_normal": (torch.nn.init.kaiming_normal_, torchinit.kaiming_normal_),
    "xavier_normal": (torch.nn.init.xavier_normal_, torchinit.xavier_normal_),
    "xavier_uniform": (torch.nn.init.xavier_uniform_, torchinit.xavier_uniform_),
    "orthogonal": (torch.nn.init.orthogonal_, torchinit.orthogonal_),
    "sparse": (lambda t: torch_init.sparse_(t, 0.3), lambda t: torchinit.sparse_(t, 0.3)),
    "eye": (torch.nn.init.eye_, torchinit.eye_),
    "constant": (lambda t: torch_init.constant_(t, 3), lambda t: torchinit.constant_(t, 3)),
    "helper": (
        lambda t: torch_init._no_grad_trunc_normal_(t, 0.0, 1.0, -1.0, 1.0),
        lambda t: torchinit.trunc_normal_(t, 0.0, 1.0, -1.0, 1.0),
    ),
    "method": (lambda t: t.normal_(1, std=2), lambda t: torchinit.normal_(t, 1, 2)),
    "data": (lambda t: t.data.uniform_(1, to=2), lambda t: torchinit.uniform_(t, 1, 2)),
    "data of a parameter": (
        lambda t: nn.Parameter(t).data.uniform_(**{"from": -1}),
        lambda t: torchinit.uniform_(t, -1, 1),
    ),
    "randn": (lambda _: torch.randn(*SHAPE), torchinit.normal_),
    "randn of a size": (lambda t: torch.randn(t.shape, requires_grad=True), torchinit.normal_),
    "rand": (lambda _: torch.rand(size=SHAPE, dtype=torch.float32), torchinit.uniform_),
    "randn_like": (lambda t: torch.randn_like(t), torchinit.normal_),
    "rand_like": (lambda t: torch.rand_like(t, device="cpu"), torchinit.uniform_),
    "normal": (
        lambda _: torch.normal(1.0, 2.0, SHAPE),
        lambda t: torchinit.normal_(t, 1.0, 2.0),
    ),
    "normal, names": (
        lambda t: torch.normal(mean=1, std=2, size=t.shape),
        lambda t: torchinit.normal_(t, 1, 2),
    ),
}


@native_only
@pytest.mark.parametrize("context", ["plain", "device"])
@pytest.mark.parametrize("style", STYLES)
def test_every_style_gives_the_values_of_our_own_call(style, context):
    call, ours = STYLES[style]
    results, states = [], []
    for patched in (True, False):
        torch.manual_seed(11)
        tensor = torch.full(SHAPE, 7.0)
        if patched:
            with torchinit.patch_nn_init():
                if context == "device":
                    with torch.device("cpu"):
                        results.append(call(tensor))
                else:
                    results.append(call(tensor))
        else:
            results.append(ours(tensor))
        states.append(torch.get_rng_state())
    assert torch.equal(*results)
    assert torch.equal(*states)
    assert results[0].requires_grad == (style == "randn of a size")


@native_only
def test_deprecated_spellings():
    torch.manual_seed(1)
    with torchinit.patch_nn_init(), pytest.warns(FutureWarning):
        tensor = torch.nn.init.xavier_normal(torch.empty(SHAPE))
    torch.manual_seed(1)
    assert torch.equal(tensor, torchinit.xavier_normal_(torch.empty(SHAPE)))


def given_a_generator(generator=None):
    """What every kind of call gives with one; by default each with a new one of one seed."""

    def get():
        return generator or torch.Generator().manual_seed(5)

    matrix = torch.nn.init.orthogonal_(torch.empty(SHAPE), generator=get())
    return matrix, [
        torch.nn.init.normal_(torch.empty(SHAPE), generator=get()),
        torch.empty(SHAPE).normal_(generator=get()),
        torch.randn(SHAPE, generator=get()),
        torch.normal(0.0, 1.0, SHAPE, generator=get()),
    ]


def test_a_generator_that_is_given_means_torchs_own_values():
    expected, state = given_a_generator(), torch.get_rng_state()
    with torchinit.patch_nn_init():
        found = given_a_generator()
    assert torch.equal(found[0], expected[0])
    assert all(map(torch.equal, found[1], expected[1]))
    assert torch.equal(torch.get_rng_state(), state)


class Projections(nn.Module):
    """In the manner of VeRA: matrices that a checkpoint leaves out, made again from a seed."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        init = torch.nn.init
        for name, fill in {
            "normal": init.normal_,
            "truncated": init.trunc_normal_,
            "he": init.kaiming_uniform_,
            "glorot": init.xavier_normal_,
            "orthogonal": init.orthogonal_,
            "uniform": lambda tensor, generator: tensor.uniform_(generator=generator),
            "copied": lambda tensor, generator: tensor.copy_(
                torch.rand(tensor.shape, generator=generator)
            ),
        }.items():
            self.register_buffer(name, fill(torch.empty(SHAPE), generator=generator))
        self.state = generator.get_state()


WAYS_OF_A_SEED = {
    "patch": lambda: torchinit.patch_nn_init()(partial(Projections, 7))(),
    "names": lambda: torchinit.patch_nn_init(seed=1, names_from=Projections(7))(
        partial(Projections, 7)
    )(),
    "build": lambda: torchinit.build_model(lambda: Projections(7), seed=1),
    "nested": lambda: torchinit.patch_nn_init(generators=True)(
        lambda: torchinit.patch_nn_init()(partial(Projections, 7))()
    )(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS_OF_A_SEED.values(), ids=WAYS_OF_A_SEED)
def test_what_code_makes_from_a_seed_of_its_own_is_the_same_inside(way):
    expected, found = Projections(7), way()
    for name, buffer in expected.named_buffers():
        assert torch.equal(found.get_buffer(name), buffer), name
    assert torch.equal(found.state, expected.state)


@native_only
def test_torchs_default_generator_is_none_that_is_given():
    torch.manual_seed(5)
    expected = [torchinit.orthogonal_(torch.empty(SHAPE))]
    expected += [torchinit.normal_(torch.empty(SHAPE)) for _ in range(4)]
    torch.manual_seed(5)
    with torchinit.patch_nn_init():
        matrix, others = given_a_generator(torch.default_generator)
    assert all(map(torch.equal, [matrix, *others], expected))


@native_only
def test_a_generator_is_drawn_from_where_that_is_asked_for():
    def generator():
        return torch.Generator().manual_seed(5)

    before = torch.get_rng_state()
    with torchinit.patch_nn_init(generators=True):
        matrix, others = given_a_generator()
    assert torch.equal(matrix, torchinit.orthogonal_(torch.empty(SHAPE), generator=generator()))
    expected = torchinit.normal_(torch.empty(SHAPE), generator=generator())
    assert all(torch.equal(one, expected) for one in others)
    assert torch.equal(torch.get_rng_state(), before)

    @torchinit.patch_nn_init(generators=True)
    def decorated():
        return given_a_generator()

    assert torch.equal(decorated()[0], matrix)


class Seen(TorchDispatchMode):
    """Notes the random operators that reach torch, and all."""

    def __init__(self):
        self.names, self.everything = [], []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = str(function)
        self.everything.append(name)
        if name.startswith("aten.") and torch.Tag.nondeterministic_seeded in function.tags:
            self.names.append(name)
        return function(*arguments, **(keywords or {}))


def test_what_counts_random_operators_does():
    with Seen() as seen:
        torch.empty(3).normal_()
        torch.rand(3)
    assert len(seen.names) == 2


MODULES = {
    "linear": lambda: nn.Linear(30, 40),
    "attention": lambda: nn.MultiheadAttention(32, 4),
    "separate attention": lambda: nn.MultiheadAttention(32, 4, kdim=16, vdim=8),
    "lstm": lambda: nn.LSTM(30, 40, 2, bidirectional=True),
    "embedding": lambda: nn.Embedding(50, 20, padding_idx=3),
    "convolution": lambda: nn.ConvTranspose2d(4, 6, 3),
    "transformer": lambda: nn.Transformer(32, 4, 2, 2, 64, batch_first=True),
    "bilinear": lambda: nn.Bilinear(4, 5, 6),
}


@native_only
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_no_random_fill_of_a_module_reaches_torch(make):
    with torchinit.patch_nn_init(), Seen() as seen:
        make()
    assert seen.names == []


@native_only
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_modules_are_the_same_with_the_same_seed(make):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        with torchinit.patch_nn_init():
            states.append(make().state_dict())
    assert all(torch.equal(one, states[1][name]) for name, one in states[0].items())


def test_signature_pickle_and_source_survive():
    before = {name: inspect.signature(getattr(torch_init, name)) for name in torch_init.__all__}
    source = inspect.getsource(torch_init.normal_)
    names = set(vars(torch_init))
    with torchinit.patch_nn_init():
        assert set(vars(torch_init)) == names
        for name, signature in before.items():
            function = getattr(torch_init, name)
            assert inspect.signature(function) == signature
            assert function.__module__ == "torch.nn.init"
        assert pickle.loads(pickle.dumps(normal_)) is normal_
        assert inspect.getsource(torch_init.normal_) == source
        assert torch.Tensor.normal_.__name__ == "normal_"
        assert torch.randn.__module__ == "torch"


ORIGINALS = {
    "integers": lambda: torch.nn.init.zeros_(torch.ones(3, dtype=torch.int64)),
    "complex": lambda: torch.nn.init.normal_(torch.empty(3, dtype=torch.complex64)),
    "complex method": lambda: torch.empty(3, dtype=torch.complex64).normal_(),
    "complex factory": lambda: torch.randn(3, dtype=torch.complex64),
    "out": lambda: torch.randn(3, out=torch.empty(3)),
    "means": lambda: torch.normal(torch.zeros(3), torch.ones(3)),
    "sparse_": lambda: torch.nn.init.sparse_(torch.empty(5, 5), 0.2),
    "sparse layout": lambda: torch.nn.init.zeros_(torch.eye(3).to_sparse()).to_dense(),
    "compressed layout": lambda: torch.nn.init.zeros_(torch.eye(3).to_sparse_csr()).to_dense(),
    "small constant": lambda: torch.nn.init.constant_(torch.empty(5), 0.2),
}


@pytest.mark.parametrize("call", ORIGINALS.values(), ids=ORIGINALS)
def test_what_is_not_served_is_torchs(call):
    torch.manual_seed(2)
    expected = call()
    torch.manual_seed(2)
    with torchinit.patch_nn_init():
        assert torch.equal(call(), expected)


def test_errors_are_torchs_or_ours():
    with torchinit.patch_nn_init():
        with pytest.raises(RuntimeError, match="leaf Variable"):
            torch.ones(3, requires_grad=True).normal_()
        with pytest.raises(RuntimeError, match="leaf Variable"):
            nn.Parameter(torch.ones(SHAPE)).uniform_()
        with pytest.raises(RuntimeError):
            torch.empty(SHAPE).normal_(0, -1)
        with pytest.raises(RuntimeError):
            torch.nn.init.uniform_(torch.empty(SHAPE), 2, 1)
        with pytest.raises(ValueError, match="dimensions"):
            torch.nn.init.xavier_uniform_(torch.empty(9999))
        with pytest.raises(TypeError, match="randn"):
            torch.randn("a")
        with pytest.raises(RuntimeError, match="negative dimension"):
            torch.rand(-1)
        with pytest.raises(TypeError):
            torch.empty(3).normal_(1, 2, 3)
        with pytest.raises(TypeError):
            torch.empty(3).normal_(mean=1, wrong=3)
        with pytest.raises(TypeError):
            torch.empty(3).normal_(1, mean=3)
        with pytest.raises(RuntimeError):
            torch.normal(0.0, -1.0, (3,))
        with pytest.raises((TypeError, AttributeError)):
            torch.nn.init.normal_([1.0])
        with pytest.raises(TypeError):
            torch.nn.init.normal_(torch.empty(SHAPE), 1, 2, 3)
        with pytest.raises(TypeError):
            torch.nn.init.normal_(torch.empty(SHAPE), wrong=3)


def test_a_tensor_on_the_graph_keeps_its_gradient():
    leaf = torch.ones(SHAPE, requires_grad=True)
    with torchinit.patch_nn_init():
        filled = (leaf * 2).normal_()
    filled.sum().backward()
    assert (leaf.grad == 0).all()


@native_only
def test_warnings_are_kept():
    with torchinit.patch_nn_init():
        with pytest.warns(UserWarning, match="mean is more than 2 std"):
            torch.nn.init.trunc_normal_(torch.empty(SHAPE), mean=10.0)
        with pytest.warns(UserWarning, match="no-op"):
            torch.nn.init.kaiming_normal_(torch.empty(0, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.nn.init.trunc_normal_(torch.empty(SHAPE))


def test_meta_fake_and_inference():
    from torch._subclasses.fake_tensor import FakeTensorMode

    state = torch.get_rng_state()
    with torchinit.patch_nn_init():
        assert torch.nn.init.normal_(torch.empty(3, device="meta")).is_meta
        assert torch.randn(3, device="meta").is_meta
        with torch.device("meta"):
            assert nn.Linear(3, 4).weight.is_meta
            assert torch.rand(4).is_meta
    assert torch.equal(torch.get_rng_state(), state)
    with torchinit.patch_nn_init(), FakeTensorMode():
        layer = nn.Linear(300, 400)
        assert torch.randn(2, 300).matmul(layer.weight.t()).shape == (2, 400)
    with torchinit.patch_nn_init(), torch.inference_mode():
        tensor = torch.nn.init.normal_(torch.empty(SHAPE))
        assert 0.5 < tensor.std() < 1.5


def test_transforms_go_to_torch():
    def function(x):
        return torch.nn.init.normal_(x.clone()) + torch.randn(3) + x.clone().uniform_()

    torch.manual_seed(4)
    expected = torch.vmap(function, randomness="different")(torch.zeros(2, 3))
    torch.manual_seed(4)
    with torchinit.patch_nn_init():
        found = torch.vmap(function, randomness="different")(torch.zeros(2, 3))
    assert torch.equal(found, expected)


def test_a_graph_without_breaks():
    def function(x):
        torch.nn.init.normal_(x)
        x.uniform_(1, 2)
        return x + torch.randn(4) * 0 + torch.rand_like(x) * 0

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        with torchinit.patch_nn_init():
            result = compiled(torch.zeros(4))
        assert ((result >= 1) & (result < 2)).all()
        result = compiled(torch.zeros(4))
        assert ((result >= 1) & (result < 2)).all()


def test_subclasses_are_asked_by_torch():
    asked = []

    class Asked(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), keywords=None):
            asked.append(getattr(function, "__name__", ""))
            return super().__torch_function__(function, types, arguments, keywords or {})

    with torchinit.patch_nn_init():
        tensor = torch.zeros(SHAPE).as_subclass(Asked)
        torch.nn.init.normal_(tensor)
        tensor.uniform_()
    assert asked[0] == "normal_"
    assert "uniform_" in asked


def test_modes_that_skip_initialisation():
    class EmptyInit(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            keywords = keywords or {}
            if getattr(function, "__module__", None) == "torch.nn.init":
                return keywords["tensor"] if "tensor" in keywords else arguments[0]
            return function(*arguments, **keywords)

    for outside in (True, False):
        tensor = torch.full(SHAPE, 7.0)
        if outside:
            with EmptyInit(), torchinit.patch_nn_init():
                torch.nn.init.trunc_normal_(tensor)
        else:
            with torchinit.patch_nn_init(), EmptyInit():
                torch.nn.init.trunc_normal_(tensor)
        assert (tensor == 7).all()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_tracing_and_scripting():
    with torchinit.patch_nn_init():
        traced = torch.jit.trace(lambda x: x + torch.randn(3), torch.zeros(3), check_trace=False)
        assert not torch.equal(traced(torch.zeros(3)), traced(torch.zeros(3)))
        scripted = torch.jit.script(nn.Linear(3, 4))
    assert scripted(torch.zeros(1, 3)).shape == (1, 4)
