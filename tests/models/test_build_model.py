"""``build_model`` makes what a constructor makes: each case against plain builds, by every way."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from build_cases import CASES, FROZEN, LARGE_CONSTANTS, OF_TORCH, Made, built, plain, quiet
from compared import assert_same, differences, tensors, values
from torch import nn

import torchinit
from conftest import native_only
from torchinit import ArgumentError, build_model, init_model_

PLAIN_SEEDS = range(12)


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_constructor_makes(name: str) -> None:
    """Some 250 random tensors, so a right one fails for one set of keys in a million."""
    plains = [plain(name, seed) for seed in PLAIN_SEEDS]
    ours, other = built(name), built(name, seed=1)
    assert differences(plains, ours, other) == []
    assert_same(built(name), ours)


def test_the_comparison_sees_what_differs() -> None:
    plains = [plain("nanoGPT", seed) for seed in PLAIN_SEEDS]
    other = built("nanoGPT", 1)

    def found(change) -> str:
        model = built("nanoGPT")
        with torch.no_grad():
            change(model)
        return " ".join(differences(plains, model, other))

    assert found(lambda model: model.train()) == ""
    assert "law" in found(lambda model: model.wpe.weight.sign_().mul_(0.02))
    assert "variance" in found(lambda model: model.h[0].c_proj.weight.mul_(1.2))
    assert "mean" in found(lambda model: model.wpe.weight.add_(0.01))
    assert "alike in all" in found(lambda model: model.h[0].norm.weight[0].add_(1))
    assert "copies" in found(lambda model: model.h[0].c_attn.weight.copy_(model.h[1].c_attn.weight))
    assert "ties" in found(lambda model: setattr(model.wte, "weight", nn.Parameter(
        model.wte.weight.clone())))  # fmt: skip
    assert "modules" in found(lambda model: model.h.eval())
    assert "wpe.weight" in found(lambda model: model.wpe.requires_grad_(False))
    assert "seed" in found(lambda model: model.wpe.weight.copy_(other.wpe.weight))


def _kinds(model: nn.Module) -> dict[str, tuple[object, ...]]:
    return {
        name: (type(one), one.shape, one.stride(), one.dtype, one.requires_grad)
        for name, one in tensors(model).items()
    }


@pytest.mark.parametrize("name", CASES)
def test_by_way_of_the_meta_device(name: str) -> None:
    """Copied, given memory of NaN, and filled."""
    ours, model = built(name), built(name, device="meta")
    assert all(one.is_meta for one in (*model.parameters(), *model.buffers()))
    assert _kinds(model) == _kinds(ours)
    if name != "parametrizations":  # pruned modules cannot be copied
        model = copy.deepcopy(model)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for one in (*model.parameters(), *model.buffers()):
            if one.is_floating_point():
                one.fill_(float("nan"))
    init_model_(model, seed=0)
    assert_same(model, ours)
    assert_same(init_model_(built(name, device="meta"), seed=0, device="cpu"), ours)


@pytest.mark.parametrize("name", CASES)
def test_another_seed_by_way_of_the_meta_device(name: str) -> None:
    model = built(name, device="meta")
    if name in FROZEN:
        with pytest.raises(ArgumentError, match="under seed=0: build the model again with seed=5"):
            init_model_(model, seed=5, device="cpu")
        assert all(one.is_meta for one in (*model.parameters(), *model.buffers()))
        return
    init_model_(model, seed=5, device="cpu")
    assert_same(model, built(name, seed=5))
    if name not in LARGE_CONSTANTS:
        assert_same(init_model_(model, seed=6), built(name, seed=6))
    if name not in OF_TORCH:
        return
    rows = {row.parameter: row.rule for row in torchinit.plan_model(built(name, device="meta"))}
    assert any("seed has no effect" in rule for rule in rows.values())


@pytest.mark.parametrize("name", CASES)
def test_another_seed_in_memory(name: str) -> None:
    """What has given up a constant, or was read, is an error, and stays as it is."""
    model = built(name)
    objects, before = dict(model.named_parameters()), values(model)
    if name in FROZEN | LARGE_CONSTANTS:
        with pytest.raises(ArgumentError, match="build the model again"):
            init_model_(model, seed=5)
        for key, value in values(model).items():
            assert torch.equal(value, before[key]), key
    else:
        assert_same(init_model_(model, seed=5), built(name, seed=5))
        assert_same(init_model_(model, seed=0), built(name))
    assert all(value is objects[key] for key, value in model.named_parameters())


@native_only
@pytest.mark.parametrize("name", CASES)
def test_in_bfloat16_it_is_rounded(name: str) -> None:
    """And kept within the bounds of its law: a value that rounding takes past them moves back."""
    ours, short = built(name), built(name, dtype=torch.bfloat16)
    for one, other in zip(ours.buffers(), short.buffers(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    for (key, one), other in zip(ours.named_parameters(), short.parameters(), strict=True):
        if not one.is_floating_point():
            assert one.dtype == other.dtype
            continue
        assert other.dtype == torch.bfloat16, key
        if one.dtype == torch.float64:  # drawn of other words
            continue
        steps = (one.detach().bfloat16().view(torch.int16) - other.detach().view(torch.int16)).abs()
        assert int(steps.max() if steps.numel() else 0) <= 1, key
        assert int(steps.count_nonzero()) <= 1 + steps.numel() // 100, key
    model = built(name, device="meta", dtype=torch.bfloat16)
    assert_same(init_model_(model, seed=0, device="cpu"), short)


@pytest.mark.parametrize("name", CASES)
def test_without_the_constructor_it_is_right_or_refused(name: str) -> None:
    """``init_model_`` of plain models: in memory, on the meta device, and given memory."""
    plains = [plain(name, seed) for seed in PLAIN_SEEDS]
    for way in ("memory", "meta", "emptied"):
        models = []
        for seed in range(2):
            model = plain(name, 20 + seed) if way == "memory" else _plain_on_meta(name)
            if model is None:
                return
            if way == "emptied":
                for parameter in model.to_empty(device="cpu").parameters():
                    parameter.data.zero_()  # else it is whatever was there
            with contextlib.suppress(ArgumentError):
                models.append(init_model_(model, seed=seed, device="cpu"))
        assert len(models) in (0, 2)
        assert not models or differences(plains, *models) == []


def _plain_on_meta(name: str) -> nn.Module | None:
    """None of constructors that want values."""
    try:
        with torch.device("meta"):
            return quiet(CASES[name])
    except (RuntimeError, TypeError):
        return None


def test_parameters_whose_elements_overlap() -> None:
    """They are built as plain ones are, and no other values can be given to both."""

    def build() -> nn.Module:
        rows = torch.randn(10, 4)
        return Made(a=nn.Parameter(rows[:6]), b=nn.Parameter(rows[4:]))

    model = build_model(build, seed=0)
    assert torch.equal(model.a[4:], model.b[:2])
    before = values(model)
    with pytest.raises(ArgumentError, match="'a' and 'b' share memory"):
        init_model_(model, seed=0)
    for key, value in values(model).items():
        assert torch.equal(value, before[key]), key

    with pytest.raises(ArgumentError, match="share memory, which they would not on the meta"):
        build_model(build, seed=0, device="meta")


@pytest.mark.parametrize("part", [slice(None), slice(3), None])
def test_a_buffer_in_the_memory_of_a_parameter(part: slice | None) -> None:
    """On the meta device they come apart, which is said."""

    def build() -> nn.Module:
        model = Made(weight=nn.Parameter(torch.randn(8)))
        model.register_buffer("shown", model.weight if part is None else model.weight.data[part])
        return model

    whole = build_model(build, seed=0)
    assert whole.shown.data_ptr() == whole.weight.data_ptr()
    with pytest.warns(UserWarning, match="'weight' and 'shown' share memory") as caught:
        model = build_model(build, seed=0, device="meta")
    assert caught[0].filename == __file__
    assert_same(init_model_(model, seed=0, device="cpu"), whole)


def test_parameters_in_parts_of_one_memory() -> None:
    def build() -> nn.Module:
        rows = torch.randn(10, 4)
        return Made(a=nn.Parameter(rows[:6]), b=nn.Parameter(rows[6:]))

    model = build_model(build, seed=0, device="meta")
    assert_same(init_model_(model, seed=0, device="cpu"), build_model(build, seed=0))


@pytest.mark.parametrize("device", [None, "meta"])
def test_draws_that_are_seen_in_another_dtype(device: str | None) -> None:
    """Their bits are kept, whatever they mean there."""

    def built_as(word: torch.dtype, half: torch.dtype) -> nn.Module:
        def build() -> nn.Module:
            words, halves = torch.empty(64), torch.empty(64, dtype=torch.float16)
            model = Made(halves=nn.Parameter(nn.init.normal_(halves).view(half)))
            model.register_buffer("words", nn.init.normal_(words).view(word))
            return model

        return init_model_(build_model(build, seed=0, device=device), seed=0, device="cpu")

    drawn = built_as(torch.float32, torch.float16)
    seen = built_as(torch.int32, torch.bfloat16)
    assert torch.equal(seen.words.view(torch.float32), drawn.words)
    assert torch.equal(seen.halves.view(torch.float16), drawn.halves)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("device", [None, "meta"])
def test_copies_of_a_draw(device: str | None, dtype: torch.dtype | None) -> None:
    """They have its values whatever becomes of it later, and whatever they held before."""

    def build() -> nn.Module:
        key, query = nn.Linear(8, 8), nn.Linear(8, 8)
        late, matrix = nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.orthogonal_(matrix.weight)
        with torch.no_grad():
            key.weight.copy_(query.weight)
            late.weight.copy_(query.weight)
            late.weight[0].zero_()
            kept = query.weight.clone()
            turned = matrix.weight.t().clone()
            image = query.weight.view(2, 4, 4, 2).clone(memory_format=torch.channels_last)
            part = query.weight[2:4].clone()
            query.weight.mul_(2)
        return Made(
            key=key, query=query, late=late, matrix=matrix, twin=copy.deepcopy(matrix),
            kept=nn.Parameter(kept), turned=nn.Parameter(turned), image=nn.Parameter(image),
            part=nn.Parameter(part),
        )  # fmt: skip

    model = build_model(build, seed=0, device=device, dtype=dtype)
    if device is not None:
        model = init_model_(model, seed=0, device="cpu")
    drawn = model.key.weight
    assert len(drawn.unique()) > 32
    assert torch.equal(model.query.weight, drawn * 2)
    assert torch.equal(model.late.weight[1:], drawn[1:])
    assert not model.late.weight[0].any()
    assert torch.equal(model.kept, drawn)
    assert torch.equal(model.image, drawn.view(2, 4, 4, 2))
    assert model.image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.part, drawn[2:4])
    assert torch.equal(model.twin.weight, model.matrix.weight)
    assert torch.equal(model.turned, model.matrix.weight.t())


def test_a_buffer_that_is_a_parameter() -> None:
    def build() -> nn.Module:
        model = Made(weight=nn.Parameter(torch.randn(8)))
        model.register_buffer("frozen", nn.Parameter(torch.randn(8), requires_grad=False))
        return model

    ours, model = build_model(build, seed=0), build_model(build, seed=0, device="meta")
    for one in (model, init_model_(model, seed=0, device="cpu")):
        assert list(one._parameters) == ["weight"]
        assert type(one.frozen) is nn.Parameter
        assert not one.frozen.requires_grad
    assert_same(model, ours)


def test_devices_and_dtypes() -> None:
    build = CASES["DiT"]
    with torch.device("meta"):
        model = build_model(build, seed=0)
    assert all(one.is_meta for one in model.parameters())
    with torch.device("meta"):
        model = build_model(build, seed=0, device="cpu")
    assert_same(model, built("DiT"))
    for device in ("cpu", torch.device("cpu")):
        assert_same(build_model(build, seed=0, device=device), built("DiT"))
    doubles = build_model(build, seed=0, dtype=torch.float64)
    assert {one.dtype for one in doubles.parameters()} == {torch.float64}
    with pytest.raises(TypeError, match=r"dtype='float16' must be a torch\.dtype"):
        build_model(build, seed=0, dtype="float16")
    with pytest.raises(ArgumentError, match=r"dtype=torch\.int8 must be a floating-point"):
        build_model(build, seed=0, dtype=torch.int8)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, "0", 1.0, None, True])
def test_seeds(seed: object) -> None:
    with pytest.raises((TypeError, ValueError), match="seed="):
        build_model(lambda: nn.Linear(2, 2), seed=seed)
    assert_same(build_model(lambda: nn.Linear(2, 2), seed=-1),
                build_model(lambda: nn.Linear(2, 2), seed=2**64 - 1))  # fmt: skip


def test_what_is_no_constructor() -> None:
    with pytest.raises(TypeError, match=r"build must be a function without arguments .*, not str"):
        build_model("Net", seed=0)
    with pytest.raises(TypeError, match=r"build must be a function .*, not Linear: write build_mo"):
        build_model(nn.Linear(2, 2), seed=0)
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module, not list"):
        build_model(lambda: [nn.Linear(2, 2)], seed=0)
