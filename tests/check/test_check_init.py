"""check_init and find_uninitialized: which tensors, under which names, of which models."""

from __future__ import annotations

import functools
import mmap
import operator
import pickle
import random
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

import torchinit
from conftest import long, native_only
from torchinit import (
    ArgumentError,
    Normal,
    UninitializedError,
    check_init,
    find_uninitialized,
    init_model_,
    marked_memory,
)


def nothing(model: object) -> None:
    pass


def rows_of(model, init=nothing, **more):
    try:
        check_init(model, init, **more)
    except UninitializedError as error:
        return error.rows
    return []


def names(rows):
    return [name for row in rows for name in row.names]


def on_meta(make):
    with torch.device("meta"):
        return make()


class Many(nn.Module):
    """A tensor in every place that a module has."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 8))
        self.tied = self.weight
        self.register_buffer("saved", torch.empty(3))
        self.register_buffer("unsaved", torch.empty(3), persistent=False)
        self.plain = torch.empty(3)
        self.some = [torch.empty(2), (torch.empty(2), {"key": torch.empty(2)})]
        self.some.append(self.some)  # a list in itself
        self.text = "no tensor"


def test_every_place_and_its_kind():
    rows = rows_of(Many)
    assert {row.names: row.kind for row in rows} == {
        ("tied", "weight"): "parameter",
        ("saved",): "buffer",
        ("unsaved",): "buffer, not saved",
        ("plain",): "attribute",
        ("some.0",): "attribute",
        ("some.1.0",): "attribute",
        ("some.1.1.key",): "attribute",
    }
    assert all(row.what == "unwritten" and row.count == row.total for row in rows)
    assert rows[0].shape == (6, 8)
    assert rows[0].dtype == torch.float32


def test_views_of_one_memory_are_tensors_of_their_own():
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(4, 4))
    whole = model.weight.detach()
    model.first, model.turned, model.same = whole[:1], whole.t(), whole.view(4, 4)
    rows = rows_of(model, lambda _: whole[1:].zero_())
    assert [(row.names, row.count, row.total) for row in rows] == [
        (("weight", "same"), 4, 16), (("first",), 4, 4), (("turned",), 4, 16),
    ]  # fmt: skip
    assert [row.where for row in rows] == ["[0:1, :]", "", "[:, 0:1]"]


def test_attributes_of_a_model_that_is_there_keep_their_values():
    """They hold what the constructor made of them; those of a function's model are marked."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.table = nn.Parameter(torch.empty(2)), torch.arange(3.0)

    model = Table()
    assert names(rows_of(model)) == ["weight"]
    assert model.table.tolist() == [0, 1, 2]
    assert names(rows_of(Table)) == ["weight"]
    assert [(row.name, row.what) for row in rows_of(on_meta(Table))] == [
        ("weight", "unwritten"), ("table", "on meta"),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_attributes_that_to_empty_moves_are_marked(dtype):
    class Moves(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.table = nn.Parameter(torch.ones(2)), torch.ones(9, dtype=dtype)

        def _apply(self, function, recurse=True):
            self.table = function(self.table)
            return super()._apply(function, recurse)

    assert names(rows_of(lambda: on_meta(Moves))) == ["weight", "table"]


def test_the_error_says_it_in_a_table():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    model[1].weight = model.extra = nn.Parameter(torch.empty(4, 4))

    def init(model):
        model[0].reset_parameters()
        model[1].bias.data[:2] = 0

    with pytest.raises(UninitializedError) as error:
        check_init(model, init)
    assert str(error.value).splitlines() == [
        "2 of 4 tensors are not initialised",
        "  name                kind       what       elements  where",
        "  1.weight (= extra)  parameter  unwritten  16 of 16",
        "  1.bias              parameter  unwritten  2 of 4    [2:4]",
    ]


def test_the_error_keeps_its_text_in_another_process(monkeypatch):
    """Which has another rank, or none."""
    monkeypatch.setattr("torchinit.check.uninitialized.rank_of_world", lambda: 1)
    error = UninitializedError(find_uninitialized(nn.Linear(3, 4, device="meta")), 2)
    monkeypatch.setattr("torchinit.check.uninitialized.rank_of_world", lambda: None)
    again = pickle.loads(pickle.dumps(error))
    assert str(error).startswith("2 of 2 tensors are not initialised (rank 1)\n")
    assert (again.rows, again.of, str(again)) == (error.rows, error.of, str(error))


def test_the_error_of_no_rows():
    assert str(UninitializedError([])) == "0 tensors are not initialised"


def test_names_that_a_terminal_would_obey_are_escaped():
    model = nn.Module()
    model.register_parameter("a\x1b[31m\nb", nn.Parameter(torch.empty(2)))
    with pytest.raises(UninitializedError) as error:
        check_init(model, nothing)
    assert "a\\x1b[31m\\nb" in str(error.value)
    assert "\x1b" not in str(error.value)


def test_many_rows_are_counted():
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(30))
    with pytest.raises(
        UninitializedError, match=r"60 of 60 tensors(.*\n)+.*and 30 more: 15.weight"
    ):
        check_init(model, nothing)


def test_what_wrappers_add_to_names_is_left_out():
    plain = nn.Sequential(nn.Linear(2, 2))
    assert names(rows_of(torch.compile(plain))) == ["0.weight", "0.bias"]
    assert names(rows_of(nn.DataParallel(plain))) == ["0.weight", "0.bias"]
    normed = parametrizations.weight_norm(nn.Linear(2, 2))
    assert "parametrizations.weight.original1" in " ".join(names(rows_of(normed)))


def test_a_model_that_is_initialised_is_returned():
    model = nn.Linear(3, 4)
    versions = [one._version for one in model.parameters()]
    assert check_init(model, nn.Linear.reset_parameters) is model
    made = check_init(lambda: nn.Linear(3, 4, device="meta"), nn.Linear.reset_parameters)
    assert made.weight.device.type == "cpu"
    with pytest.raises(UninitializedError):
        check_init(model, nothing)
    assert [one._version for one in model.parameters()] > versions  # of reset_parameters alone
    assert all(one.requires_grad for one in model.parameters())


WRITES = {
    "data": lambda m: m.weight.data.fill_(1),
    "numpy": lambda m: m.weight.detach().numpy().fill(1),
    "inference mode": torch.inference_mode()(lambda m: m.weight.fill_(1)),
    "new values": lambda m: setattr(m, "weight", nn.Parameter(torch.ones(6, 8))),
    "buffers of Python": lambda m: setattr(
        m, "weight", nn.Parameter(torch.frombuffer(bytearray(192), dtype=torch.float32).view(6, 8))
    ),
    "torchinit": lambda m: torchinit.normal_(m.weight),
    "another memory": lambda m: setattr(m.weight, "data", torch.ones(6, 8)),
    "swap": lambda m: torch.utils.swap_tensors(m.weight, nn.Parameter(torch.ones(6, 8))),
}
LEFT = {
    "through a view": lambda m: m.weight.detach()[:, ::2].fill_(1),
    "arithmetic on garbage": lambda m: m.weight.data.mul_(0.5),
    "a new empty": lambda m: setattr(m, "weight", nn.Parameter(torch.empty(6, 8))),
    "garbage copied": lambda m: m.weight.data.copy_(torch.empty(6, 8)),
    "garbage cloned and moved": lambda m: setattr(
        m, "weight", nn.Parameter(m.weight.detach().clone().t().contiguous().t())
    ),
    "garbage cast": lambda m: setattr(
        m, "weight", nn.Parameter(torch.empty(6, 8, dtype=torch.bfloat16).float())
    ),
    "emptied inside": lambda m: m.to("meta").to_empty(device="cpu"),
    "thrown away": lambda m: nn.init.ones_(m.weight.clone()),
}


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 8))


@pytest.mark.parametrize("way", WRITES)
def test_every_way_to_write(way):
    assert rows_of(One(), WRITES[way]) == []


@pytest.mark.parametrize("way", LEFT)
def test_every_way_not_to(way):
    rows = rows_of(One(), LEFT[way])
    assert names(rows) == ["weight"]
    assert rows[0].what == ("NaN" if way == "garbage cast" else "unwritten")
    assert rows[0].count == (24 if way == "through a view" else 48)


def test_the_values_are_those_of_init_alone():
    torch.manual_seed(0)
    plain = nn.Linear(30, 40)
    torch.manual_seed(0)
    checked = check_init(nn.Linear(30, 40, device="meta"), nn.Linear.reset_parameters)
    assert torch.equal(checked.weight, plain.weight)
    assert torch.equal(checked.bias, plain.bias)


def test_a_loader_that_leaves_what_no_file_has():
    """The complaint: rotary frequencies after to_empty and load_state_dict(strict=True)."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    make = lambda: on_meta(lambda: transformers.LlamaForCausalLM(config))  # noqa: E731
    saved = transformers.LlamaForCausalLM(config).state_dict()
    rows = rows_of(make(), lambda model: model.load_state_dict(saved))
    assert [(row.name, row.kind) for row in rows] == [
        ("model.rotary_emb.inv_freq", "buffer, not saved"),
        ("model.rotary_emb.original_inv_freq", "buffer, not saved"),
    ]
    assert names(rows_of(make(), lambda m: m.load_state_dict(saved, assign=True))) == names(rows)
    assert rows_of(make(), lambda model: model.init_weights()) == []
    gone = "model.layers.0.mlp.up_proj.weight"
    part = {name: value for name, value in saved.items() if name != gone}
    rows = rows_of(make(), lambda model: model.load_state_dict(part, strict=False))
    assert names(rows)[0] == gone


# Two runs.


def test_the_second_run_draws_the_same():
    drawn = []

    def init(model):
        drawn.append((float(torch.rand(())), random.random(), numpy.random.rand()))
        model.x.random_(0, 256)

    model = nn.Module()
    model.register_buffer("x", torch.zeros(4096, dtype=torch.uint8))
    torch.manual_seed(1)
    assert check_init(model, init) is model
    assert len(drawn) == 2
    assert drawn[0] == drawn[1]
    after = float(torch.rand(()))
    torch.manual_seed(1)
    torch.rand(())
    torch.empty(4096, dtype=torch.uint8).random_(0, 256)
    assert after == float(torch.rand(()))


def test_a_second_run_that_fails_says_so():
    model = nn.Module()
    model.register_buffer("x", torch.zeros(8, dtype=torch.uint8))
    runs = []

    def once(model):
        runs.append(model)
        if len(runs) > 1:
            raise ValueError("only once")

    said = r"second time.*raised ValueError: only once"
    with pytest.warns(UserWarning, match=said), pytest.raises(UninitializedError, match="8 of 8"):
        check_init(model, once)


def test_floats_need_one_run():
    runs = []
    rows_of(nn.BatchNorm1d(3), runs.append)
    assert len(runs) == 1


# Subclasses and what has no memory.


def test_the_parts_of_a_subclass():
    model = nn.Module()
    model.weight = nn.Parameter(TwoTensor(torch.empty(4, 2), torch.empty(4, 2)))
    with pytest.raises(UninitializedError, match=r"^2 of 2 tensors are not initialised"):
        check_init(model, nothing)
    assert names(rows_of(model, lambda m: m.weight.a.data.zero_())) == ["weight.b"]


class Wrapper(torch.Tensor):
    """Says that it has memory, at no address."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self, **_):
        return "Wrapper"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} of {types}")


class Abstract(Wrapper):
    def __tensor_flatten__(self):
        raise NotImplementedError


class Deaf(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} of {types}")


def test_subclasses_that_do_little():
    model = nn.Module()
    model.register_buffer("x", torch.zeros(3).as_subclass(Deaf))
    assert names(rows_of(model)) == ["x"]
    for kind in (Wrapper, Abstract):
        model.x = kind(torch.zeros(3))
        with pytest.warns(
            UserWarning, match="it cannot be told whether 1 tensor is initialised .*: x"
        ):
            check_init(model, nothing)


def test_nested_tensors_keep_their_offsets():
    model = nn.Module()
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    model.register_buffer("x", ragged)
    assert names(rows_of(model)) == ["x._values"]
    assert ragged.offsets().tolist() == [0, 2, 5]
    assert rows_of(model, lambda model: model.x.fill_(1)) == []


def test_what_has_no_memory():
    lazy = nn.LazyLinear(3)
    assert {row.what for row in rows_of(lazy)} == {"no memory"}
    assert rows_of(nn.LazyLinear(3), lambda model: model(torch.ones(2, 4))) == []
    with FakeTensorMode():
        fake = nn.Linear(2, 2)
    assert {row.what for row in find_uninitialized(fake)} == {"on meta"}
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3, device="meta"))
    before = model[0].weight
    with pytest.raises(ArgumentError, match=r"'1\.weight' is of a lazy module"):
        check_init(model, nothing)
    assert model[0].weight is before
    freed = nn.Linear(2, 2)
    freed.weight.untyped_storage().resize_(0)
    assert [(row.name, row.what) for row in find_uninitialized(freed)] == [("weight", "no memory")]


@pytest.mark.parametrize("left", [0, 20])
def test_storages_that_are_smaller_than_their_views(left):
    """As those of FullyShardedDataParallel; to read or write there would end the process."""
    flat = torch.ones(8)
    model = nn.Module()
    model.view, model.weight = flat[4:], nn.Parameter(flat[4:])
    flat.untyped_storage().resize_(left)
    assert [(row.names, row.what) for row in rows_of(model)] == [(("weight",), "no memory")]


@pytest.mark.filterwarnings("ignore")  # of torch: these are prototypes
def test_types_that_hide_their_memory():
    for tensor in (
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ):
        model = nn.Module()
        model.register_buffer("x", tensor)
        assert [row.what for row in find_uninitialized(model)] == ["cannot tell"]
        with pytest.warns(
            UserWarning, match="it cannot be told whether 1 tensor is initialised .*: x"
        ):
            check_init(model, nothing)


def test_what_accelerate_offloads_cannot_be_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", ModuleType("accelerate"))
    model = nn.Linear(2, 2, device="meta")
    model._hf_hook = SimpleNamespace(offload=True, place_submodules=False)
    assert {row.what for row in find_uninitialized(model)} == {"cannot tell"}
    with pytest.raises(ArgumentError, match="check_init: Accelerate offloads values"):
        check_init(model, nn.Linear.reset_parameters)
    assert model.weight.is_meta


def test_what_deepspeed_partitions_cannot_be_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    model = nn.Linear(2, 2)
    model.weight.data, model.weight.ds_numel = torch.empty(0), 4
    assert [(r.name, r.what) for r in find_uninitialized(model)] == [("weight", "cannot tell")]
    with pytest.warns(
        UserWarning, match="it cannot be told whether 1 tensor is initialised .*: weight"
    ):
        check_init(model, lambda model: model.bias.data.zero_())


# Arguments and contexts.


def test_bad_arguments():
    with pytest.raises(TypeError, match="init must be a function of the model, not int"):
        check_init(nn.Linear(2, 2), 3)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module or a function .* int"):
        check_init(lambda: 3, nothing)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not list"):
        find_uninitialized([])
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(ArgumentError, match="check_init: device='cpu' is for a model on the meta"):
        check_init(model, nothing, device="cpu")
    assert torch.equal(model.weight, before)


async def later(_model):
    pass


def two(_model, _seed):
    pass


def yields(_model):
    yield


@pytest.mark.parametrize(
    ("init", "said"),
    [
        (nn.Linear(2, 2).reset_parameters, r"lambda model: model\.reset_parameters\(\)\)"),
        (two, r"two\(\) does not take it, or takes more"),
        (later, "returns a coroutine"),
        (yields, "returns a generator"),
    ],
)
def test_functions_that_cannot_initialise_a_model(init, said):
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=said):
        check_init(model, init)
    assert not model.weight.isnan().any()


def test_functions_whose_signature_says_little():
    model = nn.Linear(2, 2)

    @functools.wraps(model.reset_parameters)
    def wrapped(model):
        model.reset_parameters()

    for init in (wrapped, functools.partial(nn.Linear.reset_parameters)):
        check_init(model, init)
    assert rows_of(model, operator.methodcaller("reset_parameters")) == []  # of C


def test_an_init_that_returns_what_it_has_not_run():
    with pytest.raises(TypeError, match="returns a coroutine"):
        check_init(nn.Linear(2, 2), lambda model: later(model))


def test_an_init_that_returns_another_model():
    linear = nn.Linear(2, 2)
    said = "init returned another Sequential than the model it was given"
    with pytest.warns(UserWarning, match=said), pytest.raises(UninitializedError):
        check_init(linear, lambda _: nn.Sequential(nn.Linear(2, 2)))
    assert names(rows_of(linear, lambda model: nn.Sequential(model))) == ["weight", "bias"]

    def init(model):
        model.reset_parameters()
        return nn.Linear(3, 3)

    assert rows_of(linear, init) == []


@pytest.mark.parametrize("device", ["cudaa", 1.5, "cpu:-1", "meta"])
def test_bad_devices(device):
    model = nn.Linear(2, 2, device="meta")
    with pytest.raises(ArgumentError, match=rf"check_init: device={device!r} "):
        check_init(model, nn.Linear.reset_parameters, device=device)
    assert model.weight.is_meta


@long
def test_types(tmp_path, monkeypatch):
    """Of a model, and of a function that makes one, check_init returns the same type."""
    api = pytest.importorskip("mypy.api")
    file = tmp_path / "uses.py"
    file.write_text(
        "from functools import partial\nfrom torch import nn\nfrom torchinit import check_init\n"
        "class Net(nn.Module): ...\ndef f(model: Net) -> None: ...\n"
        + "".join(
            f"reveal_type(check_init({model}, {init}))\n"
            for model in ("Net()", "Net", "lambda: Net()", "partial(Net)")
            for init in ("f", "lambda model: model.train()")
        )
    )
    monkeypatch.setenv("MYPYPATH", str(Path(torchinit.__file__).parents[1]))
    said, errors, _ = api.run(["--cache-dir", str(tmp_path), str(file)])
    assert (said.count('Revealed type is "uses.Net"'), errors) == (8, ""), said


@native_only  # which knows such memory
def test_memory_mapped_read_only_is_refused_before_anything_is_written(tmp_path):
    file = tmp_path / "values"
    file.write_bytes(bytes(4096))
    with file.open("rb") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapped = mmap.mmap(opened.fileno(), 4096, prot=mmap.PROT_READ)
        model = nn.Linear(2, 2)
        model.register_buffer("x", torch.frombuffer(mapped, dtype=torch.float32))
    before = model.weight.clone()
    with pytest.raises(ArgumentError, match=r"'x': .* mapped read-only"):
        check_init(model, nothing)
    assert torch.equal(model.weight, before)


def test_inside_other_contexts():
    model = nn.Linear(2, 2)
    with FakeTensorMode():
        assert len(rows_of(model)) == 2
    with torch.inference_mode():
        assert names(rows_of(model, lambda m: m.weight.zero_())) == ["bias"]
        inferred = nn.Linear(2, 2)
    assert len(rows_of(inferred)) == 2

    def loss(x):
        find_uninitialized(model)
        return x

    with pytest.raises(ArgumentError, match=r"inside a transform of torch\.func"):
        grad(loss)(torch.ones(()))


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_init_raises_comes_through(kind):
    def init(_model):
        raise kind("stop")

    with pytest.raises(kind, match="stop"):
        check_init(nn.Linear(2, 2), init)
    assert find_uninitialized(nn.Linear(2, 2)) == []


def test_torchinit_leaves_nothing():
    make = lambda: nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(3))  # noqa: E731
    assert rows_of(on_meta(make), lambda m: init_model_(m, seed=0)) == []
    rules = {"**.bias": "zeros", "**": Normal(0.02)}
    linear = on_meta(lambda: nn.Linear(9, 9))
    assert rows_of(linear, lambda m: init_model_(m, rules, seed=0)) == []
    with marked_memory():
        model = torchinit.build_model(make, seed=0)
    assert find_uninitialized(model) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's table of mappings")
def test_memory_of_files_is_refused(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(64))
    model = nn.Module()
    mapped = torch.from_file(str(file), shared=True, size=16, dtype=torch.float32)
    model.register_buffer("x", mapped)
    with pytest.raises(ArgumentError, match=r"'x' is memory of the file .*weights, which would be"):
        check_init(model, lambda _: None)
    assert file.read_bytes() == bytes(64)
    model.x = torch.zeros(3).share_memory_()
    check_init(model, lambda model: model.x.fill_(1))


def test_lists_that_are_in_many_lists_are_looked_into_once():
    inner = [torch.empty(3)]
    for _ in range(40):
        inner = [inner, inner]
    model = nn.Module()
    model.lists = inner
    assert find_uninitialized(model) == []


def test_lists_of_any_depth():
    inner = [torch.full((2,), torch.nan)]
    for _ in range(3000):
        inner = [inner]
    model = nn.Module()
    model.lists = inner
    assert names(find_uninitialized(model)) == ["lists" + 3001 * ".0"]
