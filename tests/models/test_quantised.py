"""Formats in ``init_model_``: weights and their scales are found and filled together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchinit
from conftest import native_only
from torchinit import MXFP8, NVFP4, ArgumentError, FP8Blocks, Normal, init_model_, init_shard_
from torchinit.native import load

pytestmark = native_only


def low(rows, columns, dtype, device="cpu"):
    return nn.Parameter(torch.empty(rows, columns, dtype=dtype, device=device), requires_grad=False)


class FP8Linear(nn.Module):
    def __init__(self, inputs, outputs, device="cpu", *, end="_scale_inv"):
        super().__init__()
        self.weight = low(outputs, inputs, torch.float8_e4m3fn, device)
        scales = low(-(-outputs // 128), -(-inputs // 128), torch.float32, device)
        setattr(self, "weight" + end, scales)


class MXLinear(nn.Module):
    def __init__(self, inputs, outputs, device="cpu"):
        super().__init__()
        self.weight = low(outputs, inputs, torch.float8_e4m3fn, device)
        scales = torch.empty(outputs, -(-inputs // 32), dtype=torch.uint8, device=device)
        self.register_buffer("weight_scale", scales)


class FP4Linear(nn.Module):
    def __init__(self, inputs, outputs, device="cpu", *, whole="_global_scale"):
        super().__init__()
        name = "weight_packed" if whole == "_global_scale" else "weight"
        setattr(self, name, low(outputs, inputs // 2, torch.uint8, device))
        self.weight_scale = low(outputs, inputs // 16, torch.float8_e4m3fn, device)
        self.register_buffer("weight" + whole, torch.empty(1, device=device))


def network(device="cpu"):
    return nn.ModuleDict(
        {
            "fp8": FP8Linear(200, 160, device),
            "mx": MXLinear(96, 48, device),
            "fp4": FP4Linear(96, 48, device),
            "fp4_other": FP4Linear(96, 48, device, whole="_scale_2"),
            "plain": nn.Linear(8, 8, device=device),
        }
    )


FORMATS = {"fp8.weight": FP8Blocks(), "mx.*": MXFP8(), "fp4*.weight": NVFP4()}
RULES = {"**.bias": "zeros", "mx.weight": "orthogonal", "**": Normal(0.02)}


def expected(name, scheme, form, payload, scales):
    """What ``init_shard_`` gives."""
    both = torch.empty_like(payload), torch.empty_like(scales)
    shape = form.values_shape(payload.shape)
    whole = torch.empty(1)
    init_shard_(
        both[0], scheme, global_shape=shape, offset=(0, 0), seed=0, name=name, format=form,
        scales=(both[1], whole) if form.has_whole else both[1],
    )  # fmt: skip
    return *both, whole


def same(one, other):
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model(device):
    model = network(device)
    init_model_(model, RULES, seed=0, formats=FORMATS, device="cpu" if device == "meta" else None)
    for name, scheme, form, payload, scales in (
        ("fp8", Normal(0.02), FP8Blocks(), model.fp8.weight, model.fp8.weight_scale_inv),
        ("mx", "orthogonal", MXFP8(), model.mx.weight, model.mx.weight_scale),
        ("fp4", Normal(0.02), NVFP4(), model.fp4.weight_packed, model.fp4.weight_scale),
        ("fp4_other", Normal(0.02), NVFP4(), model.fp4_other.weight, model.fp4_other.weight_scale),
    ):
        wanted = expected(f"{name}.weight", scheme, form, payload, scales)
        assert same(payload, wanted[0]), name
        assert same(scales, wanted[1]), name
        assert not payload.requires_grad
    largest = torch.tensor(0.02 * 6.5556)
    assert model.fp4.weight_global_scale == torch.div(torch.tensor(2688.0), largest)
    assert model.fp4_other.weight_scale_2 == torch.div(largest, torch.tensor(2688.0))
    alone = nn.ModuleDict({"plain": nn.Linear(8, 8)})
    init_model_(alone, {"**.bias": "zeros", "**": Normal(0.02)}, seed=0)
    assert torch.equal(model.plain.weight, alone.plain.weight)


def test_the_first_format_that_matches_wins():
    model = nn.ModuleDict({"a": FP8Linear(128, 128)})
    formats = {"a.weight": FP8Blocks(), FP8Linear: MXFP8()}
    with pytest.raises(ArgumentError, match="formats: 'FP8Linear' matches no parameter"):
        init_model_(model, {"**": Normal(1.0)}, seed=0, formats=formats)


@pytest.mark.parametrize("end", ["_scale_inv", "_scale"])
def test_names_of_scales(end):
    model = FP8Linear(130, 256, end=end)
    init_model_(model, {"**": Normal(1.0)}, seed=0, formats={FP8Linear: FP8Blocks()})
    assert getattr(model, "weight" + end).min() > 0


def test_defaults_of_a_constructor():
    """What build_model recorded is quantised, after the weights were replaced."""

    def build():
        return nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32))

    model = torchinit.build_model(build, seed=3, device="meta")
    model[0].weight = low(48, 64, torch.float8_e4m3fn, "meta")
    model[0].register_buffer("weight_scale", torch.empty(48, 2, dtype=torch.uint8, device="meta"))
    init_model_(model, seed=3, device="cpu", formats={"0.weight": MXFP8()})
    plain = torchinit.build_model(build, seed=3)
    scales = torch.exp2(model[0].weight_scale.float() - 127)
    values = model[0].weight.float() * scales.repeat_interleave(32, 1)
    assert (values - plain[0].weight).abs().max() < 0.01
    assert torch.equal(model[1].weight, plain[1].weight)
    assert torch.equal(model[0].bias, plain[0].bias)


def test_the_plan_says_the_format():
    rows = {row.name: row for row in torchinit.plan_model(network(), RULES, formats=FORMATS)}
    assert rows["fp4.weight"].values == "normal(mean=0, std=0.02), as NVFP4()"
    assert rows["fp4.weight"].shape == (48, 96)
    assert rows["fp4.weight"].fans == (96, 48)
    assert not [name for name in rows if "scale" in name]


def snapshot(model):
    return {name: tensor.view(torch.uint8).clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("formats", "error", "said"),
    [
        ({"nothing": MXFP8()}, ArgumentError, "'nothing' matches no parameter"),
        ({"plain.weight": MXFP8()}, ArgumentError, "make the quantised model first"),
        ({"fp8.weight": MXFP8()}, ArgumentError, "scales of shape"),
        ({"fp8.weight": NVFP4()}, ArgumentError, "its payload is torch.uint8"),
        ({"fp8.weight": "mxfp8"}, TypeError, "must be MXFP8"),
        ({3: MXFP8()}, TypeError, "key 3"),
        ([MXFP8()], TypeError, "must be a mapping"),
    ],
)
def test_errors_before_anything_is_written(formats, error, said):
    model = network()
    before = snapshot(model)
    with pytest.raises(error, match=said):
        init_model_(model, RULES, seed=0, formats=formats)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())


def test_a_weight_without_scales():
    module = nn.Module()
    module.weight = low(32, 32, torch.float8_e4m3fn)
    with pytest.raises(ArgumentError, match="no 'weight_scale_inv' or 'weight_scale' beside it"):
        init_model_(module, {"**": Normal(1.0)}, seed=0, formats={"**": MXFP8()})
    module = FP4Linear(32, 32)
    del module.weight_global_scale
    with pytest.raises(ArgumentError, match="factor of the whole tensor"):
        init_model_(module, {"**": Normal(1.0)}, seed=0, formats={"**": NVFP4()})


def test_rules_do_not_draw_scales():
    model = nn.ModuleDict({"a": FP8Linear(128, 128), "b": FP4Linear(32, 32)})
    with pytest.raises(ArgumentError, match=r"'a.weight_scale_inv' has the scales of 'a.weight'"):
        init_model_(model, {"b.**": "keep", "**": Normal(0.02)}, seed=0)
    with pytest.raises(ArgumentError, match=r"'b.weight_scale' has the scales"):
        init_model_(model, {"a.**": "keep", "**.weight_packed": "keep", "**": Normal(0.02)}, seed=0)
    rules = {"**.weight_scale*": torchinit.Constant(0.5), "b.**": "keep", "**": Normal(0.02)}
    init_model_(model, rules, seed=0)
    assert (model.a.weight_scale_inv == 0.5).all()
    other = nn.Module()  # a parameter of that name beside a weight of full precision
    other.weight, other.weight_scale = nn.Parameter(torch.empty(8, 8)), nn.Parameter(torch.ones(8))
    init_model_(other, {"**": Normal(0.02)}, seed=0)
    assert (other.weight_scale != 1).all()


def test_values_that_have_no_scales():
    model = FP8Linear(128, 128)
    before = snapshot(model)
    with pytest.raises(ArgumentError, match="values are NaN or, in float32, infinite"):
        init_model_(
            model, {"**": lambda tensor: tensor.fill_(float("inf"))}, seed=0,
            formats={"**": FP8Blocks()},
        )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())


def test_padding_rows_and_ties():
    table = nn.Embedding(40, 64, padding_idx=3)
    table.weight = low(40, 64, torch.float8_e4m3fn)
    table.register_buffer("weight_scale", torch.empty(40, 2, dtype=torch.uint8))
    head = nn.Module()
    head.weight = table.weight
    model = nn.ModuleDict({"table": table, "head": head})
    init_model_(model, {"**": Normal(0.02)}, seed=0, formats={"table.weight": MXFP8()})
    assert (table.weight[3].view(torch.uint8) & 127 == 0).all()
    assert head.weight is table.weight
    wanted = expected("head.weight", Normal(0.02), MXFP8(), table.weight, table.weight_scale)
    assert same(table.weight[4:], wanted[0][4:])


def test_only_some_of_it():
    model = network()
    init_model_(model, RULES, seed=0, formats=FORMATS)
    before = snapshot(model)
    init_model_(
        model, {"**": Normal(1.0)}, seed=1, only="fp8.**", formats={"fp8.weight": FP8Blocks()}
    )
    after = snapshot(model)
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert changed == ["fp8.weight", "fp8.weight_scale_inv"]


def test_callables_run_before_anything_is_written():
    model = network()
    before = snapshot(model)

    def fails(_tensor):
        raise ValueError("no")

    with pytest.raises(ArgumentError, match=r"raised ValueError for parameter 'mx\.weight'"):
        init_model_(model, RULES | {"mx.weight": fails}, seed=0, formats=FORMATS)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())


def test_kept_weights():
    model = network()
    init_model_(model, RULES, seed=0, formats=FORMATS)
    before = snapshot(model)
    init_model_(model, {"fp8.*": "keep"} | RULES, seed=1, formats=FORMATS)
    after = snapshot(model)
    kept = [name for name, value in after.items() if torch.equal(value, before[name])]
    assert kept == ["fp8.weight", "fp8.weight_scale_inv", "fp4.weight_global_scale",
                    "fp4_other.weight_scale_2", "plain.bias"]  # fmt: skip
    parts = torchinit.Blocks({"a": 100, "b": 60}, {"a": "keep", "b": "zeros"})
    with pytest.raises(ArgumentError, match="quantised as a whole"):
        init_model_(model, {"fp8.weight": parts} | RULES, seed=1, formats=FORMATS)


def test_without_kernels_nothing_is_written(monkeypatch):
    model = network()
    before = snapshot(model)
    monkeypatch.setattr(load, "module", None)
    with pytest.raises(RuntimeError, match="need torchinit's native module"):
        init_model_(model, RULES, seed=0, formats=FORMATS)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_scales_of_one_weight_are_not_those_of_another(device):
    """The weight that is filled last would have them, and the other be wrong."""
    for name in ("weight_packed", "weight_scale", "weight_global_scale"):
        one, other = FP4Linear(32, 48, device), FP4Linear(32, 48, device)
        setattr(other, name, getattr(one, name))
        model = nn.ModuleDict({"a": one, "b": other})
        with pytest.raises(ArgumentError, match=r"'a.weight_packed' (and|is one parameter)"):
            init_model_(model, {"**": Normal(1.0)}, seed=0, formats={"**": NVFP4()}, device="cpu")
        other.weight_packed, other.weight_scale = one.weight_packed, one.weight_scale
        other.weight_global_scale = one.weight_global_scale
        init_model_(model, {"**": Normal(1.0)}, seed=0, formats={"**": NVFP4()}, device="cpu")
        assert model.a.weight_scale is model.b.weight_scale


def test_scales_in_one_storage():
    model = nn.ModuleDict({"a": MXLinear(32, 48), "b": MXLinear(32, 48)})
    memory = torch.empty(96, 1, dtype=torch.uint8)
    model.a.weight_scale, model.b.weight_scale = memory[:48], memory[47:95]
    with pytest.raises(ArgumentError, match=r"'a.weight' and 'b.weight' share memory"):
        init_model_(model, {"**": Normal(1.0)}, seed=0, formats={"**": MXFP8()})
    model.b.weight_scale = memory[48:]
    init_model_(model, {"**": Normal(1.0)}, seed=0, formats={"**": MXFP8()})


class Together(torch.Tensor):
    """Payload and scales as one, as torchao has them."""

    @staticmethod
    def __new__(cls, qdata, scale):
        return torch.Tensor._make_wrapper_subclass(
            cls, (*qdata.shape[:-1], 32 * scale.shape[-1]), dtype=torch.float32,
            device=qdata.device,
        )  # fmt: skip

    def __init__(self, qdata, scale):
        self.qdata, self.scale = qdata, scale

    def __tensor_flatten__(self):
        return ["qdata", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, _context, _size, _stride):
        return Together(**inner)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].qdata.detach(), args[0].scale.detach())
        raise NotImplementedError(func)


def together(device="cpu", dtype=torch.float8_e4m3fn, columns=64, scales=torch.float8_e8m0fnu):
    model = nn.Module()
    data = Together(
        torch.empty(48, columns, dtype=dtype, device=device),
        torch.empty(48, 2, dtype=scales, device=device),
    )
    model.weight = nn.Parameter(data, requires_grad=False)
    return model


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensor_subclasses(device):
    model = together(device)
    model.weight.tag = "kept"
    init_model_(model, {"**": Normal(0.02)}, seed=0, formats={"**": MXFP8()}, device="cpu")
    assert isinstance(model.weight, Together)
    assert model.weight.tag == "kept"
    payload, scales = model.weight.qdata, model.weight.scale
    wanted = expected("weight", Normal(0.02), MXFP8(), payload, scales)
    assert same(payload, wanted[0])
    assert same(scales, wanted[1])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensor_subclasses_of_other_formats(device):
    for changed, form, said in (
        ({"dtype": torch.float8_e5m2}, MXFP8(), "not torch.float8_e5m2"),
        ({"dtype": torch.uint8, "columns": 32}, MXFP8(), "has payload of shape"),
        ({}, FP8Blocks(1, 32), "is torch.float32, not torch.float8_e8m0fnu"),
    ):
        model = together(device, **changed)
        with pytest.raises((ArgumentError, TypeError), match=said):
            init_model_(model, {"**": Normal(0.02)}, seed=0, formats={"**": form}, device="cpu")


def test_the_factor_on_the_meta_device():
    for factor in (torch.empty(3, device="meta"), torch.empty(1, device="meta").bfloat16()):
        model = FP4Linear(32, 32, "meta")
        model.weight_global_scale = factor
        with pytest.raises(ArgumentError, match="'weight_global_scale' has"):
            init_model_(model, {"**": Normal(1.0)}, seed=0, formats={"**": NVFP4()}, device="cpu")


def test_rules_do_not_draw_scales_under_other_names():
    model = nn.ModuleDict({"a": FP8Linear(128, 128)})
    with pytest.raises(ArgumentError, match=r"'a.factors' has the scales of 'a.weight'"):
        init_model_(
            model, {"**": Normal(1.0)}, seed=0,
            rename=lambda name: name.replace("weight_scale_inv", "factors"),
        )  # fmt: skip
    with pytest.raises(ArgumentError, match=r"'a.weight_scale_inv' has the scales"):
        init_model_(model, {"**": Normal(1.0)}, seed=0, only="a.weight_scale_inv")


def test_formats_for_other_parts():
    """One mapping is for all stages of a pipeline, and for a part of a model."""
    model = network()
    init_model_(model, RULES, seed=0, formats=FORMATS, only=["fp8.**", "plain.**"])
    found = model.fp8.weight, model.fp8.weight_scale_inv
    wanted = expected("fp8.weight", Normal(0.02), FP8Blocks(), *found)
    assert all(map(same, found, wanted[:2]))
    formats = FORMATS | {"nothing.weight": MXFP8()}
    with pytest.raises(ArgumentError, match=r"formats: 'nothing.weight' matches"):
        init_model_(model, RULES, seed=0, formats=formats)
    init_model_(model, RULES, seed=0, formats=formats, strict=False)
