"""Functions of other libraries that fill by arithmetic: taken whole, with the law they have."""

from __future__ import annotations

import importlib
import math
import sys
import types

import pytest
import torch
from scipy import stats
from test_interception import Seen
from torch import nn
from torch.overrides import TorchFunctionMode

import torchinit
from conftest import native_only
from distribution_checks import ALPHA, as_numpy, assert_distributed, truncated_normal_cdf
from torchinit.patch import functions
from torchinit.patch.swap import intercept

TIMM = "timm.layers.weight_init"
# What timm computes, and what Transformers 4 does in some models.
SOURCE = """
import math
import torch
from torch.nn.init import _calculate_fan_in_and_fan_out

def _fill(tensor, mean, std, a, b):
    low, high = (math.erf((bound - mean) / std / math.sqrt(2)) for bound in (a, b))
    tensor.uniform_(low, high).erfinv_().mul_(std * math.sqrt(2)).add_(mean)
    return tensor.clamp_(min=a, max=b)

def trunc_normal_(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0):
    with torch.no_grad():
        return _fill(tensor, mean, std, a, b)

def trunc_normal_tf_(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0):
    with torch.no_grad():
        _fill(tensor, 0, 1.0, a, b)
        return tensor.mul_(std).add_(mean)

def variance_scaling_(tensor, scale=1.0, mode='fan_in', distribution='normal'):
    fans = dict(zip(('fan_in', 'fan_out'), _calculate_fan_in_and_fan_out(tensor)))
    std = math.sqrt(scale / fans.get(mode, sum(fans.values()) / 2))
    if distribution == "truncated_normal":
        trunc_normal_tf_(tensor, std=std / 0.87962566103423978)
    else:
        with torch.no_grad():
            if distribution == "normal":
                tensor.normal_(std=std)
            else:
                tensor.uniform_(-std * math.sqrt(3), std * math.sqrt(3))

def lecun_normal_(tensor):
    variance_scaling_(tensor, mode='fan_in', distribution='truncated_normal')
"""


def stand_in(monkeypatch, where, source=SOURCE):
    """A module in place of a library's."""
    module = types.ModuleType(where)
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, where, module)
    return module


@pytest.fixture
def timm(monkeypatch):
    return stand_in(monkeypatch, TIMM)


SHAPE = (500, 300)
STD = 300**-0.5 / 0.87962566103423978

# What is called with, the torchinit function that it comes to, and the distribution.
CALLS = {
    "trunc_normal_": [
        ({}, lambda t: torchinit.trunc_normal_(t), truncated_normal_cdf(0, 1, -2, 2)),
        (
            {"mean": 0.5, "std": 0.2, "a": 0, "b": 1},
            lambda t: torchinit.trunc_normal_(t, 0.5, 0.2, 0, 1),
            truncated_normal_cdf(0.5, 0.2, 0, 1),
        ),
        (
            {"std": 0.02},
            lambda t: torchinit.trunc_normal_(t, std=0.02),
            stats.norm(scale=0.02).cdf,
        ),
    ],
    "trunc_normal_tf_": [
        (
            {"std": 0.02},
            lambda t: torchinit.trunc_normal_(t, 0, 0.02, -0.04, 0.04),
            truncated_normal_cdf(0, 0.02, -0.04, 0.04),
        ),
        (
            {"mean": 1.0, "std": 0.5, "a": -1, "b": 3},
            lambda t: torchinit.trunc_normal_(t, 1, 0.5, 0.5, 2.5),
            truncated_normal_cdf(1, 0.5, 0.5, 2.5),
        ),
    ],
    "variance_scaling_": [
        ({}, lambda t: torchinit.normal_(t, 0, 300**-0.5), stats.norm(scale=300**-0.5).cdf),
        (
            {"scale": 3.0, "mode": "fan_out", "distribution": "uniform"},
            lambda t: torchinit.uniform_(
                t, -math.sqrt(3 / 500) * math.sqrt(3), math.sqrt(3 / 500) * math.sqrt(3)
            ),
            stats.uniform(-3 / math.sqrt(500), 6 / math.sqrt(500)).cdf,
        ),
    ],
    "lecun_normal_": [
        (
            {},
            lambda t: torchinit.trunc_normal_(t, 0, STD, -2 * STD, 2 * STD),
            truncated_normal_cdf(0, STD, -2 * STD, 2 * STD),
        )
    ],
}
EVERY = pytest.mark.parametrize(
    ("name", "arguments", "ours", "cdf"),
    [(name, *case) for name, cases in CALLS.items() for case in cases],
)


def check(module, name, arguments, ours, cdf):
    """Ours, the original's values, and the law: each two at level ALPHA."""
    function = getattr(module, name)
    torch.manual_seed(3)
    original, other = torch.empty(SHAPE), torch.empty(SHAPE)
    function(original, **arguments)
    with torchinit.patch_nn_init(), Seen() as seen:
        torch.manual_seed(4)
        found = torch.empty(SHAPE)
        function(found, **arguments)
        state = torch.get_rng_state()
        with torch.device("cpu"):
            torch.manual_seed(4)
            function(other, **arguments)
    assert seen.names == []
    assert torch.equal(found, other)
    torch.manual_seed(4)
    assert torch.equal(found, ours(torch.empty(SHAPE)))
    assert torch.equal(torch.get_rng_state(), state)
    assert_distributed(found, cdf)
    assert_distributed(original, cdf)
    assert stats.ks_2samp(as_numpy(found), as_numpy(original)).pvalue >= ALPHA


@native_only
@EVERY
def test_what_timm_computes_is_taken_whole(timm, name, arguments, ours, cdf):
    check(timm, name, arguments, ours, cdf)


@native_only
@EVERY
def test_timm_itself(name, arguments, ours, cdf):
    check(pytest.importorskip(TIMM), name, arguments, ours, cdf)


@native_only
@pytest.mark.parametrize(
    "where", [where for where in functions.LIBRARIES if where.startswith("transformers.models")]
)
def test_copies_in_models_of_transformers_4(where, monkeypatch):
    module = stand_in(monkeypatch, where)
    check(module, "trunc_normal_tf_", *CALLS["trunc_normal_tf_"][1])
    check(module, "lecun_normal_", *CALLS["lecun_normal_"][0])


@native_only
@pytest.mark.parametrize("name", ["lecun_normal_", "default_flax_embed_init_", "orthogonal_"])
def test_transformers_own_functions(name):
    """Ours and the original's values, at level ALPHA; and in bfloat16 ours rounded."""
    initialization = pytest.importorskip("transformers.initialization")
    function = getattr(initialization, name)
    torch.manual_seed(3)
    original = function(torch.empty(SHAPE))
    with torchinit.patch_nn_init(), Seen() as seen:
        torch.manual_seed(4)
        found = function(torch.empty(SHAPE))
        torch.manual_seed(4)
        narrow = function(torch.empty(SHAPE, dtype=torch.bfloat16))
    assert seen.names == []
    assert torch.equal(narrow, found.bfloat16())
    if name == "orthogonal_":
        assert torch.allclose(found.T @ found, torch.eye(300), atol=1e-5)
    else:
        assert stats.ks_2samp(as_numpy(found), as_numpy(original)).pvalue >= ALPHA


def test_what_transformers_has_loaded_is_left_alone():
    initialization = pytest.importorskip("transformers.initialization")
    loaded = nn.Parameter(torch.full((8, 8), 7.0, dtype=torch.bfloat16))
    loaded._is_hf_initialized = True
    with torchinit.patch_nn_init():
        initialization.orthogonal_(loaded)
    assert (loaded == 7).all()


@native_only
def test_by_name_they_take_the_names_key(timm):
    initialization = pytest.importorskip("transformers.initialization")
    results = []
    for fill in (
        lambda w: timm.trunc_normal_tf_(w, std=0.5),
        lambda w: nn.init.trunc_normal_(w, 0.0, 0.5, -1.0, 1.0),
        initialization.orthogonal_,
        nn.init.orthogonal_,
    ):
        model = nn.Linear(9, 9, bias=False, dtype=torch.bfloat16)
        torch.randn(1)
        with torchinit.patch_nn_init(seed=7, names_from=model):
            fill(model.weight)
        results.append(model.weight.detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])


@native_only
def test_references_taken_earlier_and_imports_inside(timm, monkeypatch):
    earlier, code = timm.trunc_normal_, timm.trunc_normal_.__code__
    copy = "transformers.models.siglip.modeling_siglip"
    monkeypatch.delitem(sys.modules, copy, raising=False)
    with torchinit.patch_nn_init():
        later = stand_in(monkeypatch, copy)
        with Seen() as seen:
            earlier(torch.empty(SHAPE))
            assert seen.names == []
            later.trunc_normal_tf_(torch.empty(SHAPE))
            assert "aten.erfinv_.default" in seen.everything
        with torchinit.patch_nn_init(), Seen() as seen:
            later.trunc_normal_tf_(torch.empty(SHAPE))
        assert "aten.erfinv_.default" not in seen.everything
        assert earlier.__code__ is not code
    assert earlier.__code__ is code
    torch.manual_seed(1)
    plain = earlier(torch.empty(9))
    torch.manual_seed(1)
    assert torch.equal(later.trunc_normal_(torch.empty(9)), plain)
    again = stand_in(monkeypatch, copy)  # loaded anew: other functions
    with torchinit.patch_nn_init(), Seen() as seen:
        again.trunc_normal_tf_(torch.empty(SHAPE))
    assert seen.names == []


def test_libraries_are_never_imported(monkeypatch):
    for where in functions.LIBRARIES:
        monkeypatch.setitem(sys.modules, where, None)
    imported = []
    monkeypatch.setattr(importlib, "import_module", imported.append)
    with torchinit.patch_nn_init():
        pass
    assert imported == []


def test_what_has_no_law_is_computed(timm):
    for fill in (
        lambda t: timm.trunc_normal_tf_(t, std=0.0, mean=3.0),
        lambda t: timm.trunc_normal_tf_(t, std=-1.0, a=0.0, b=1.0),
        lambda t: timm.trunc_normal_tf_(t, std=torch.tensor(0.5)),
    ):
        results = []
        for patched in (False, True):
            generator_state = torch.manual_seed(5).get_state()
            if patched:
                with torchinit.patch_nn_init():
                    results.append(fill(torch.empty(4000)))
            else:
                results.append(fill(torch.empty(4000)))
            assert not torch.equal(torch.get_rng_state(), generator_state)
        plain, ours = (as_numpy(one) for one in results)
        assert stats.ks_2samp(plain, ours).pvalue >= ALPHA
    with torchinit.patch_nn_init():
        with pytest.raises(ZeroDivisionError):
            timm.trunc_normal_(torch.empty(3), std=0.0)
        with pytest.raises(RuntimeError):
            timm.trunc_normal_(torch.empty(3), a=2.0, b=-2.0)


def test_functions_of_other_parameters_are_left_alone(monkeypatch):
    module = stand_in(
        monkeypatch,
        TIMM,
        "import torch\ndef trunc_normal_(tensor, std=1.0): return tensor.fill_(std)",
    )
    with torchinit.patch_nn_init():
        assert torch.equal(module.trunc_normal_(torch.empty(3), std=2.0), torch.full((3,), 2.0))


def test_a_generator_is_passed_on_where_a_version_has_one(monkeypatch):
    source = (
        "import torch\n"
        "def trunc_normal_(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, generator=None):\n"
        "    return tensor.fill_(5)\n"
    )
    module = stand_in(monkeypatch, TIMM, source)
    asked = []

    class Notes:
        def fill(self, call, tensor, generator):  # noqa: ARG002
            asked.append((call.name, call.arguments["b"], generator))
            return False

    given = torch.Generator()
    with intercept(Notes()):
        assert (module.trunc_normal_(torch.empty(3), b=3.0, generator=given) == 5).all()
    assert asked == [("trunc_normal_", 3.0, given)]


def test_modes_see_the_parts_and_subclasses_do(timm):
    seen = []

    class Skips(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return args[0] if func.__name__ == "uniform_" else func(*args, **(kwargs or {}))

    for outside in (True, False):
        tensor = torch.zeros(3)
        if outside:
            with Skips(), torchinit.patch_nn_init():
                timm.trunc_normal_(tensor)
        else:
            with torchinit.patch_nn_init(), Skips():
                timm.trunc_normal_(tensor)
        assert not tensor.any()
    assert "erfinv_" in seen

    class Asked(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    seen.clear()
    with torchinit.patch_nn_init():
        timm.trunc_normal_(torch.zeros(3).as_subclass(Asked))
    assert {"uniform_", "erfinv_"} <= set(seen)


def test_a_compiler_traces_the_original(timm):
    def fill(x):
        return timm.trunc_normal_(x.clone(), std=0.5)

    with torchinit.patch_nn_init():
        found = torch.compile(fill, backend="eager", fullgraph=True)(torch.zeros(500))
    assert 0.3 < found.std() < 0.6


@native_only
def test_another_library_is_one_line(monkeypatch):
    line = {"trunc_normal_": functions.LIBRARIES[TIMM]["trunc_normal_"]}
    monkeypatch.setitem(functions.LIBRARIES, "monai.networks.layers.weight_init", line)
    module = stand_in(monkeypatch, "monai.networks.layers.weight_init")
    check(module, "trunc_normal_", *CALLS["trunc_normal_"][0])
