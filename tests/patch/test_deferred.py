"""Deferred fills: every way to look at a tensor finds the values of the fill done at once."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import torchinit
from conftest import native_only
from torchinit.patch import deferred as deferred_module

N = 256


def saved(w):
    file = io.BytesIO()
    torch.save(w, file)
    file.seek(0)
    return torch.load(file)


def from_address(w):
    values = np.ctypeslib.as_array((ctypes.c_float * (N * N)).from_address(w.data_ptr()))
    return torch.from_numpy(values.copy())


def safetensors(w):
    torch_form = pytest.importorskip("safetensors.torch")
    return torch_form.load(torch_form.save({"w": w.detach()}))["w"]


def in_module(change):
    def way(w):
        module = nn.Linear(N, N, bias=False)
        module.weight = w
        result = change(module)
        return result if isinstance(result, torch.Tensor) else module.weight

    return way


def load_state(module):
    module.load_state_dict({"weight": torch.ones(N, N)})
    nn.init.normal_(module.weight[:3])


def new_data(w):
    old, w.data = w.data, torch.ones(N, N)
    nn.init.normal_(w)
    return old


class Double(torch.autograd.Function):
    @staticmethod
    def forward(_context, x):
        return x * 2


class Subclass(torch.Tensor):
    pass


def subclass(w):
    alias = w.detach().as_subclass(Subclass)
    before = (alias + 1).as_subclass(torch.Tensor)
    nn.init.uniform_(w)
    nn.init.normal_(alias)
    return before + w.detach()


def leaf(w):
    with pytest.raises(RuntimeError, match="leaf"):
        w.normal_()
    return w


def not_a_leaf(_w):
    x = torch.ones(N, N, requires_grad=True) * 1
    with torch.no_grad():
        x.normal_()
    return x.uniform_()


def bad_calls(w):
    for call in (
        lambda: nn.init.normal_(w, std=-1),
        lambda: nn.init.trunc_normal_(w, a=1, b=0),
        lambda: nn.init.normal_(w, std="x"),
        lambda: nn.init.normal_(w, generator=3),
        lambda: nn.init.constant_(w, 1e300),
        lambda: nn.init.orthogonal_(w, gain=float("nan")),
        lambda: nn.init.normal_(w[:1].expand(N, N)),
        lambda: w.data.copy_(torch.ones(3)),
        lambda: w.data.fill_("x"),
        lambda: w.zero_(),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            call()
    return w


def batch(w):
    other = torch.empty(N, N)
    with torchinit.batch():
        torchinit.normal_(w)
        nn.init.uniform_(w[:10].detach())
        nn.init.normal_(other)
    nn.init.uniform_(other[:4])
    return w + other


def inner_blocks(w):
    with torchinit.patch_nn_init():
        nn.init.uniform_(w)
    with torchinit.patch_nn_init(defer=True):
        nn.init.normal_(w[:50])
    nn.init.normal_(w[10:20])
    with torchinit.patch_nn_init(defer=True):
        nn.init.trunc_normal_(w[15:200])
        w.data[3].zero_()
    return w


def pieces(w):
    flat = w.view(-1).detach()
    nn.init.uniform_(w.data[:100])
    nn.init.normal_(flat[5000:40000])
    nn.init.uniform_(w.data[20:60])
    nn.init.normal_(w.t())
    nn.init.uniform_(w[:, ::2])
    nn.init.normal_(w.detach().view(torch.bfloat16)[:200])
    return w


@torch.no_grad()
def constants(w):
    w[3].fill_(2)
    w[4] = 7
    w[:, 5].zero_()
    w[::2].mul_(2)
    nn.init.ones_(w[7])
    nn.init.constant_(w[9], 3)
    return w


@torch.no_grad()
def constants_over(w):
    w.zero_()
    nn.init.normal_(w[:200])
    w[3].fill_(2)
    nn.init.normal_(w)
    w.fill_(3)
    w[:200].normal_()
    return w


@torch.no_grad()
def copied_over(w):
    w.copy_(torch.ones(N, N))
    nn.init.normal_(w)
    w[:100].copy_(w[100:200])
    return w


def torchinit_calls(w):
    torchinit.orthogonal_batch_([w, torch.empty(N, N)])
    nn.init.normal_(w)
    torchinit.init_(w[:9], None, "xavier_uniform")
    nn.init.normal_(w)
    torchinit.uniform_(w[9:15])
    return w


def smaller_than_deferred(w):
    nn.init.normal_(w[:2])
    nn.init.orthogonal_(w[:50])
    nn.init.sparse_(w[:50], 0.1)
    nn.init.eye_(w[:20])
    return w


def factories(w):
    found = torch.randn(N, N)
    other = torch.empty(N, N)
    torch.rand(N, N, out=other)
    return torch.rand_like(w) + found + other


def compiled(w):
    result = torch.compile(lambda: w + 1, backend="aot_eager", fullgraph=True)()
    nn.init.normal_(w)  # at once now
    return result + w


def moved_from_meta(_w):
    with torch.device("meta"):
        layer = nn.Linear(N, N)
    nn.init.normal_(layer.weight)
    layer.to_empty(device="cpu")
    nn.init.normal_(layer.weight)
    return layer.weight


def stepped(w):
    optimiser = torch.optim.SGD([w], lr=1.0)
    (w * 2).sum().backward()
    optimiser.step()
    return w


def resized(w):
    return w.data.resize_(N * 2, N)[:N].clone()


def sparse_values(w):
    values = w.data.view(-1)
    sparse = torch.sparse_coo_tensor(torch.arange(N * N)[None], values)
    nn.init.normal_(w)
    return sparse.to_dense().view(N, N) + 0


WAYS = {
    "save": saved,
    "address": from_address,
    "safetensors": safetensors,
    "numpy": lambda w: torch.from_numpy(np.asarray(w.detach()).copy()),
    "dlpack": lambda w: torch.from_dlpack(w.detach()).clone(),
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
    "deepcopy": lambda w: copy.deepcopy({"w": [w]})["w"][0],
    "tolist": lambda w: torch.tensor(w.tolist()),
    "item": lambda w: torch.tensor([w[3, 4].item(), float(w[5, 6])]),
    "storage": lambda w: torch.tensor(w.untyped_storage().tolist()[:64]),
    "typed storage": lambda w: torch.tensor(w.detach().storage().tolist()[:50]),
    "set_": lambda w: torch.empty(0).set_(w.data).clone(),
    "state dict": in_module(lambda module: copy.deepcopy(module.state_dict())["weight"]),
    "load state dict": in_module(load_state),
    "half": in_module(lambda module: module.half()),
    "float64": in_module(lambda module: module.to(torch.float64)),
    "share memory": in_module(lambda module: module.share_memory()),
    "forward": in_module(lambda module: module(torch.ones(2, N))),
    "requires grad": in_module(lambda module: module.requires_grad_(False)),
    "functional call": in_module(
        lambda module: torch.func.functional_call(
            module, {"weight": module.weight * 2}, torch.ones(N)
        )
    ),
    "new data": new_data,
    "vector": lambda w: torch.nn.utils.parameters_to_vector([w]),
    "function": lambda w: Double.apply(w),
    "subclass": subclass,
    "leaf": leaf,
    "not a leaf": not_a_leaf,
    "bad calls": bad_calls,
    "batch": batch,
    "inner blocks": inner_blocks,
    "pieces": pieces,
    "constants": constants,
    "constants over": constants_over,
    "copied over": copied_over,
    "torchinit": torchinit_calls,
    "small": smaller_than_deferred,
    "factories": factories,
    "compiled": compiled,
    "from meta": moved_from_meta,
    "optimiser": stepped,
    "resized": resized,
    "sparse values": sparse_values,
    "vmap": lambda w: torch.vmap(lambda x: x + 1)(w),
    "grad": lambda w: torch.func.grad(lambda x: (w * x).sum())(torch.ones(N, N)),
    "normalize": nn.functional.normalize,
    "weight norm": lambda _: nn.utils.parametrizations.weight_norm(nn.Linear(N, N)).weight,
    "orthogonal": lambda _: nn.utils.parametrizations.orthogonal(nn.Linear(N, N)).weight,
    "complex": lambda w: torch.view_as_complex(w.detach().view(N, N // 2, 2)).abs(),
    "bytes": lambda w: w.detach().view(torch.uint8).clone(),
    "foreach": lambda w: torch._foreach_add([w], 1.0)[0],
    "cat": lambda w: torch.cat([part.detach() for part in w.chunk(3)]),
    "contiguous": lambda w: w.t().contiguous(),
    "checkpoint": lambda w: torch.utils.checkpoint.checkpoint(
        lambda x: x * 2, w, use_reentrant=False
    ),
}


@native_only
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_same_bits_as_at_once(way):
    results = []
    for defer in (False, True):
        torch.manual_seed(1)
        with torchinit.patch_nn_init(defer=defer), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            w = nn.Parameter(torch.full((N, N), 7.0))
            nn.init.normal_(w)
            found = way(w).detach()
        results.append((found, w.detach(), torch.get_rng_state(), torch.tensor(w._version)))
    for at_once, later in zip(*results, strict=True):
        assert torch.equal(at_once, later)


def pending():
    (one,) = deferred_module._of_thread()
    return one.pending


@native_only
def test_what_is_written_over_is_not_done():
    with torchinit.patch_nn_init(defer=True):
        w = nn.Parameter(torch.empty(N, N))
        nn.init.normal_(w)
        nn.init.uniform_(w)
        nn.init.normal_(w[:200])
        nn.init.normal_(w.data)
        assert [len(one.fills) for one in pending()._storages.values()] == [1]
        with torch.no_grad():
            w.copy_(torch.ones(N, N))
        assert not pending()
        nn.init.normal_(w)
        nn.init.orthogonal_(w)
        assert not pending()


@native_only
def test_looking_at_one_does_not_do_the_others():
    with torchinit.patch_nn_init(defer=True):
        v, w = torch.empty(N, N), torch.empty(N, N)
        nn.init.normal_(v)
        nn.init.normal_(w)
        assert w.shape == (N, N)
        assert nn.Parameter(w).requires_grad
        assert w[3:5].t().stride() == (1, N)
        assert len(pending()._storages) == 2
        assert w.sum() != 0
        assert len(pending()._storages) == 1


@native_only
def test_memory_is_not_held():
    with torchinit.patch_nn_init(defer=True):
        w = torch.empty(N, N)
        nn.init.normal_(w)
        held = next(iter(pending()._storages.values()))
        assert held.address() == w.untyped_storage().data_ptr() or not pending()
        w = torch.empty(N, N)
        nn.init.normal_(w)
        held = next(iter(pending()._storages.values()))
        del w
        gc.collect()
        assert held.address() == 0


@native_only
def test_no_alias_of_the_tensor_object_is_needed():
    with torchinit.patch_nn_init(defer=True):
        w = torch.zeros(N, N)
        alias = w.detach()
        nn.init.normal_(w)
        del w
    assert 0.9 < alias.std() < 1.1


@native_only
def test_a_storage_made_smaller_is_an_error_and_one_without_memory_is_none():
    with torchinit.patch_nn_init(defer=True):
        w = torch.empty(N, N)
        storage = w.untyped_storage()
        nn.init.normal_(w)
        storage.resize_(0)
    patch = torchinit.patch_nn_init(defer=True)
    patch.__enter__()
    w = torch.empty(N, N)
    storage = w.untyped_storage()
    nn.init.normal_(w)
    storage.resize_(N)
    with pytest.raises(RuntimeError, match="resized to 256 bytes"):
        patch.__exit__(None, None, None)
    assert torch._C._len_torch_function_stack() == 0


@native_only
def test_another_compilation_in_another_block():
    function = torch.compile(lambda x: x + 1, backend="aot_eager")
    for _ in range(3):
        with torchinit.patch_nn_init(defer=True):
            w = nn.init.normal_(torch.zeros(N, N))
            result = function(w)
            v = nn.init.normal_(torch.zeros(N, N))
            other = function(v)
        assert torch.equal(result, w + 1)
        assert torch.equal(other, v + 1)


@native_only
def test_where_torch_has_moved_what_it_needs_fills_are_done_at_once(monkeypatch):
    monkeypatch.setattr(deferred_module, "storage_of_reference", None)
    with torchinit.patch_nn_init(defer=True):
        w = nn.init.normal_(torch.empty(N, N))
        assert deferred_module._of_thread() == []
    assert 0.9 < w.std() < 1.1


@native_only
def test_what_makes_tensors_may_read_and_write_others():
    w = torch.zeros(N, N)
    v = torch.zeros(N, N)
    with torchinit.patch_nn_init(defer=True):
        nn.init.normal_(w)
        made = torch.full((2,), w[0, 0])
        nn.init.normal_(w)
        new = made.new_full((2,), w[0, 0])
        nn.init.normal_(v)
        torch.zeros((N, N), out=v)
    assert made[0] != 0
    assert new[0] == w[0, 0] != 0
    assert torch.count_nonzero(v) == 0


@native_only
def test_memory_of_numpy_outlives_its_tensor():
    array = np.zeros((N, N), dtype=np.float32)
    with torchinit.patch_nn_init(defer=True):
        nn.init.normal_(torch.from_numpy(array))
    assert np.count_nonzero(array) > N


@native_only
@pytest.mark.parametrize("backward", [torch.Tensor.backward, lambda x: torch.autograd.backward(x)])
def test_gradients_are_added_to_what_was_filled(backward):
    w = torch.zeros(N, N, requires_grad=True)
    with torchinit.patch_nn_init(defer=True):
        loss = (w * 3).sum()
        w.grad = torch.zeros(N, N)
        nn.init.uniform_(w.grad, 1, 2)
        backward(loss)
    assert 4 <= w.grad.min() < w.grad.max() <= 5


@native_only
def test_data_parallel_models_send_what_was_filled(monkeypatch):
    sent = []

    def send(_group, tensors, *_rest):
        with torch._C.DisableTorchFunction():  # as C++ reads them
            sent.extend(tensor.detach().clone() for tensor in tensors)

    monkeypatch.setattr(torch.distributed, "_broadcast_coalesced", send)
    with torchinit.patch_nn_init(defer=True):
        model = nn.Linear(N, N)
        torch.distributed._broadcast_coalesced(None, [model.weight], 0)
    assert torch.equal(sent[0], model.weight)
    assert torch.distributed._broadcast_coalesced is send
