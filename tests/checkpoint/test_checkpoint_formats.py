"""Low-precision weights in checkpoints: the bytes of init_shard_, which Transformers loads."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from written import PIECE, bits, contents, on_meta, read, write

import torchinit
from conftest import long
from torchinit import MXFP8, NVFP4, FP8Blocks
from torchinit.checkpoint import block_ranges
from torchinit.checkpoint.block_ranges import RangeFiller, range_of
from torchinit.checkpoint.write import plan_checkpoint
from torchinit.checkpoint.writer import write_shards
from torchinit.errors import ArgumentError
from torchinit.native import load

pytestmark = [
    pytest.mark.skipif(load.module is None, reason="needs the native module"),
    pytest.mark.filterwarnings("ignore:.* do not consist of whole blocks"),
]
transformers = pytest.importorskip("transformers")

CT = "compressed-tensors"
# (layout, format, dtype of the scales)
CASES = {
    "fp8": ("fp8", FP8Blocks(), torch.float32),
    "fp8-small": ("fp8", FP8Blocks(16, 32), torch.float32),
    "fp8-ue8m0": ("fp8", FP8Blocks(scale="ue8m0"), torch.float8_e8m0fnu),
    "mxfp8": ("mxfp8", MXFP8(), torch.uint8),
    "ct-mxfp8": (CT, MXFP8("floor"), torch.uint8),
    "ct-nvfp4": (CT, NVFP4(), torch.float8_e4m3fn),
    "ct-nvfp4-measured": (CT, NVFP4(amax="measured"), torch.float8_e4m3fn),
    "ct-bf16": (CT, NVFP4(source=torch.bfloat16), torch.float8_e4m3fn),
}
LLAMA = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
NORMAL = torchinit.Normal(0.02)
ALL = {"**": NORMAL}
RULES = {"**norm*.weight": "ones"} | ALL
PROJECTIONS = "**_proj.weight"
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def llama(**changed):
    config = transformers.LlamaConfig(**LLAMA | changed)
    return on_meta(transformers.LlamaForCausalLM, config)


def linears(shapes):
    """A function that gives a model of these layers, without biases."""

    def build():
        with torch.device("meta"):
            layers = {n: nn.Linear(shape[1], shape[0], bias=False) for n, shape in shapes.items()}
            return nn.ModuleDict(layers)

    return build


def quantised_of(form, shape, name, scales_dtype, scheme=NORMAL, seed=0):
    """Payload, scales of blocks and the factor of the whole, by init_shard_."""
    dtype = torch.uint8 if form.packed else torch.float8_e4m3fn
    payload = torch.empty(form.payload_shape(shape), dtype=dtype)
    blocks = torch.empty(form.scales_shape(shape), dtype=scales_dtype)
    factor = torch.empty(())
    scales = (blocks, factor) if form.has_whole else blocks
    torchinit.init_shard_(
        payload, scheme, global_shape=shape, offset=(0,) * len(shape), seed=seed, name=name,
        format=form, scales=scales,
    )  # fmt: skip
    return payload, blocks, factor


def dequantised(form, payload, blocks, factor):
    """The values of a matrix."""
    if form.packed:
        values = torch.stack((E2M1[(payload & 15).int()], E2M1[(payload >> 4).int()]), -1).flatten(
            1
        )
    else:
        values, factor = payload.float(), torch.ones(())
    scales = torch.exp2(blocks.float() - 127) if blocks.dtype == torch.uint8 else blocks.float()
    spread = scales.repeat_interleave(form.rows, 0).repeat_interleave(form.columns, 1)
    return values * (spread[: values.shape[0], : values.shape[1]] * factor)


def names_of(layout, form, name):
    """The stored names of payload, scales and factor."""
    if layout != CT:
        return name, f"{name}_scale_inv", None
    packed = form.packed
    return f"{name}_packed" if packed else name, f"{name}_scale", packed and f"{name}_global_scale"


def assert_stored(found, case, name, shape, scheme=NORMAL, seed=0):
    """Compares what a checkpoint has of a weight with init_shard_, and takes it out."""
    layout, form, dtype = CASES[case]
    payload, blocks, factor = quantised_of(form, shape, name, dtype, scheme, seed)
    of_payload, of_scales, of_factor = names_of(layout, form, name)
    for stored, wanted in ((of_payload, payload), (of_scales, blocks)):
        one = found.pop(stored)
        assert (one.dtype, one.shape) == (wanted.dtype, wanted.shape)
        assert bits(one) == bits(wanted), stored
    if of_factor:
        assert found.pop(of_factor).tolist() == [pytest.approx(1 / factor.item(), rel=2e-7)]
    return payload, blocks, factor


# What is stored, in pieces and shards of any size.


@pytest.mark.parametrize("shard_size", [1, 10_000, "1GB"])
@pytest.mark.parametrize("piece_size", [PIECE, 3 * PIECE, 1 << 22])
@pytest.mark.parametrize("case", CASES)
def test_neither_pieces_nor_shards_change_a_byte(case, piece_size, shard_size, tmp_path):
    layout, form, _ = CASES[case]
    shapes = {"a": (300, 430), "b": (1, 32), "c": (33, 62), "d": (7, 2), "e": (256, 256)}
    path = write(
        linears(shapes), tmp_path / "a", ALL, seed=3, formats={"**": form}, layout=layout,
        piece_size=piece_size, shard_size=shard_size,
    )  # fmt: skip
    found = read(path)
    for name, shape in shapes.items():
        assert_stored(found, case, f"{name}.weight", shape, seed=3)
    assert not found


def orthogonal_or_given(p):
    return {
        "a.weight": torchinit.Orthogonal(),
        "b.weight": torchinit.VarianceScaling(),
        "c.weight": torch.linspace(-3, 2, p.shape[0] * p.shape[1]).view(p.shape),
        "d.weight": partial(nn.init.sparse_, sparsity=0.5),
        "e.weight": torchinit.Blocks({"eq": 60, "ek": 30}, torchinit.Normal(0.1), groups=3),
        "f.weight": torchinit.Blocks({"fq": 50, "fk": 40}, torchinit.Orthogonal()),
    }[p.name]


@pytest.mark.parametrize("piece_size", [PIECE, 1 << 22])
@pytest.mark.parametrize("case", ["fp8", "mxfp8", "ct-nvfp4", "ct-bf16"])
def test_values_of_every_kind(case, piece_size, tmp_path):
    layout, form, _ = CASES[case]
    shapes = {"a": (70, 64), "b": (40, 96), "c": (130, 32), "d": (50, 62)}
    shapes |= {"e": (90, 34), "f": (90, 34)}
    rules = {"**": torchinit.by(orthogonal_or_given)}
    path = write(
        linears(shapes), tmp_path / "a", rules, formats={"**": form}, layout=layout,
        piece_size=piece_size,
    )  # fmt: skip
    found = read(path)
    for name, shape in shapes.items():
        assert_stored(found, case, f"{name}.weight", shape, rules["**"])


def test_each_value_is_drawn_once(tmp_path, monkeypatch):
    """But for the rows of blocks at the ends of pieces."""
    made = []
    plain = block_ranges.fill_box

    def counted(weight, box, size, payload, scales, largest):
        made.append((size[0] * size[1], payload is not None))
        plain(weight, box, size, payload, scales, largest)

    monkeypatch.setattr(block_ranges, "fill_box", counted)
    shapes = dict.fromkeys("abcdef", (512, 512))
    for form, edge in ((MXFP8(), 512), (FP8Blocks(scale="ue8m0"), 128 * 512)):
        made.clear()
        plan = plan_checkpoint(
            linears(shapes), ALL, seed=0, dtype=None, shard_size="1MB", formats={"**": form},
            layout="mxfp8" if isinstance(form, MXFP8) else "fp8",
        )  # fmt: skip
        pieces = sum(-(-shard.size // 2**18) for shard in plan.layout.shards)
        write_shards(tmp_path, plan.layout.shards, int, piece_size=2**18, threads=1)
        assert all(has_payload for _, has_payload in made)
        assert 6 * 2**18 <= sum(n for n, _ in made) <= 6 * 2**18 + pieces * edge


def test_scales_wait_for_the_thread_that_makes_them(tmp_path, monkeypatch):
    """The second piece has the rest of the payload, and the scales of all of it."""
    calls, begun, asked = [], threading.Event(), threading.Event()
    fill_box, fill_scales = block_ranges.fill_box, RangeFiller.fill_scales

    def slow_first(weight, box, size, payload, scales, largest):
        calls.append(box.offset[0])
        if box.offset[0] == 0:
            begun.set()
            asked.wait(30)
            time.sleep(0.3)  # in which the other thread would take what is not there yet
        begun.wait(30)
        fill_box(weight, box, size, payload, scales, largest)

    def ask(self, memory, first):
        asked.set()
        fill_scales(self, memory, first)

    monkeypatch.setattr(block_ranges, "fill_box", slow_first)
    monkeypatch.setattr(RangeFiller, "fill_scales", ask)
    plan = plan_checkpoint(
        linears({"a": (96, 1024)}), ALL, seed=0, dtype=None, shard_size="1GB",
        formats={"**": MXFP8()}, layout="mxfp8",
    )  # fmt: skip
    write_shards(tmp_path, plan.layout.shards, int, piece_size=1 << 16, threads=2)
    monkeypatch.undo()
    assert_stored(read(tmp_path), "mxfp8", "a.weight", (96, 1024))
    assert calls.count(0) == 1


def test_an_error_while_a_weight_is_made(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("enough")

    monkeypatch.setattr(block_ranges, "fill_box", fails)
    for scheme in (NORMAL, torchinit.Orthogonal()):
        with pytest.raises(RuntimeError, match="enough"):
            write(
                linears({"a": (512, 512)}), tmp_path / "a", {"**": scheme},
                formats={"**": MXFP8()}, layout="mxfp8",
            )  # fmt: skip
        assert not (tmp_path / "a").exists()


def test_scales_are_beside_their_payload_and_aligned(tmp_path):
    shapes = {"a": (300, 430), "b": (3, 5), "c": (128, 128), "d": (5, 3)}
    path = write(
        linears(shapes), tmp_path / "a", ALL, formats={"**": FP8Blocks()}, layout="fp8",
        shard_size="1GB",
    )  # fmt: skip
    data = (path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begins = {name: one["data_offsets"][0] for name, one in header.items() if name[0] != "_"}
    assert all(
        begin % (4 if name.endswith("_scale_inv") else 1) == 0 for name, begin in begins.items()
    )
    order = sorted(begins, key=begins.get)
    for name in ("a", "c"):  # the others have no multiple of four bytes
        place = order.index(f"{name}.weight")
        assert order[place + 1] == f"{name}.weight_scale_inv"


# Loaded by Transformers.


def loaded(kind, path, layout):
    """A model that Transformers loads on the CPU, with no key missing or unexpected."""
    pytest.importorskip("accelerate")
    options = {}
    if layout == CT:
        pytest.importorskip("compressed_tensors")
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    model, said = kind.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not any(said.values()), said
    return model


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("rules", [RULES, None], ids=["rules", "own"])
@pytest.mark.parametrize("case", CASES)
def test_from_pretrained(case, rules, tmp_path):
    layout, form, _ = CASES[case]
    path = write(
        llama(), tmp_path / "a", rules, seed=2, dtype=torch.bfloat16, shard_size=200_000,
        formats={PROJECTIONS: form}, layout=layout,
    )  # fmt: skip
    found = read(path)
    model = loaded(transformers.LlamaForCausalLM, path, layout)
    own = torchinit.init_model_(llama()(), rules, seed=2, dtype=torch.bfloat16, device="cpu")
    for name, parameter in model.named_parameters():
        if not name.endswith("_proj.weight"):
            assert bits(found.pop(name)) == bits(own.get_parameter(name))
            continue
        parts = assert_stored(found, case, name, tuple(parameter.shape), seed=2)
        wanted = dequantised(form, *parts)
        # compressed-tensors multiplies NVFP4 by scales in bfloat16
        tolerance = 2**-8 if form.packed else 0
        torch.testing.assert_close(parameter.detach(), wanted, rtol=tolerance, atol=0)
    assert not found
    assert model(torch.arange(8)[None]).logits.isfinite().all()
    said = json.loads((path / "config.json").read_text())
    plain = llama()().config.to_diff_dict()
    entry = said.pop("quantization_config")
    assert entry["quant_method"] == layout
    assert entry["ignore" if layout == CT else "modules_to_not_convert"] == ["lm_head"]
    assert plain.items() <= (said | {"dtype": plain.get("dtype")}).items()


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_without_dequantising(tmp_path):
    """compressed-tensors keeps the weights compressed until the first call."""
    pytest.importorskip("compressed_tensors")
    path = write(
        llama(), tmp_path / "a", RULES, dtype=torch.bfloat16, formats={PROJECTIONS: MXFP8()},
        layout=CT,
    )  # fmt: skip
    model, said = transformers.LlamaForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(said.values()), said
    weight = model.model.layers[1].mlp.up_proj.weight
    assert weight.dtype == torch.float8_e4m3fn
    assert bits(weight) == bits(read(path)["model.layers.1.mlp.up_proj.weight"])
    assert model(torch.arange(8)[None]).logits.isfinite().all()


@pytest.mark.parametrize("case", ["fp8", "mxfp8"])
def test_experts(case, tmp_path):
    """Stored one by one, and quantised as the fused parameter is."""
    layout, form, dtype = CASES[case]
    config = transformers.MixtralConfig(
        **LLAMA | {"num_hidden_layers": 1, "num_local_experts": 3, "intermediate_size": 384}
    )
    build = on_meta(transformers.MixtralForCausalLM, config)
    formats = {"**.experts.*": form}
    path = write(build, tmp_path / "a", RULES, formats=formats, layout=layout)
    stored = read(path)
    assert sum(name.endswith("_scale_inv") for name in stored) == 9
    model = loaded(transformers.MixtralForCausalLM, path, layout)
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            payload, blocks, factor = quantised_of(form, tuple(parameter.shape), name, dtype)
            for found, *parts in zip(parameter.detach(), payload, blocks, strict=True):
                assert torch.equal(found, dequantised(form, *parts, factor))
    alone = json.loads((path / "config.json").read_text())["quantization_config"]
    assert alone["modules_to_not_convert"] == [
        "lm_head", *(f"model.layers.0.self_attn.{one}_proj" for one in "koqv")
    ]  # fmt: skip
    with pytest.raises(ArgumentError, match="has the weights of experts, which Transformers"):
        write(build, tmp_path / "b", RULES, formats={"**.experts.*": MXFP8()}, layout=CT)
    cut = transformers.MixtralConfig(**config.to_diff_dict() | {"intermediate_size": 200})
    build = on_meta(transformers.MixtralForCausalLM, cut)
    with pytest.raises(ArgumentError, match=r"which cuts blocks of FP8Blocks"):
        write(build, tmp_path / "b", RULES, formats={"**.experts.*": FP8Blocks()}, layout="fp8")


# Ranges of rows.


@pytest.mark.parametrize(
    ("held", "first", "wanted"),
    [
        ((2, 300, 40), 0, (0, 600, 0, 6)),
        ((300, 40), 12_000, (300, 300, 3, 3)),
        ((1, 300, 40), 12_000, (300, 300, 3, 3)),
        ((128, 40), 0, (0, 128, 0, 1)),
        ((172, 40), 128 * 40, (128, 172, 1, 2)),
        ((44, 40), (300 + 256) * 40, (556, 44, 5, 1)),
    ],
)
def test_views_of_whole_blocks(held, first, wanted):
    found = range_of(FP8Blocks(), (2, 300, 40), held, first, "w")
    assert (found.first, found.rows, found.begin, found.block_rows) == wanted


@pytest.mark.parametrize(
    ("held", "first"),
    [
        ((127, 40), 0), ((128, 40), 40), ((300, 40), 40), ((300, 20), 0), ((300, 40), 20),
        ((600, 40), 0), ((44, 40), 0),
    ],
)  # fmt: skip
def test_views_that_cut_blocks(held, first):
    with pytest.raises(ArgumentError, match="'w' is stored as values"):
        range_of(FP8Blocks(), (2, 300, 40), held, first, "w")


# Interrupted runs.


def test_resume(tmp_path):
    """From whatever shards are left: payload without its scales, and scales without payload."""
    for case in ("fp8", "ct-nvfp4"):
        layout, form, _ = CASES[case]
        shapes = dict.fromkeys("abc", (40, 64))
        shapes |= {"d": (9, 34)}
        rules = {"c.weight": torchinit.Orthogonal(), "**": NORMAL}
        arguments = {"formats": {"**": form}, "layout": layout, "shard_size": 1}
        whole = contents(write(linears(shapes), tmp_path / f"{case}-whole", rules, **arguments))
        shards = [name for name in whole if re.fullmatch("model-.*tensors", name)]
        assert len(shards) == 4 * (3 if form.has_whole else 2)
        for lost in [*([one] for one in shards), shards[::2], shards[1::2]]:
            path = tmp_path / case
            if not path.exists():
                write(linears(shapes), path, rules, **arguments)
            for name in lost:
                (path / name).unlink()
            write(linears(shapes), path, rules, resume=True, **arguments)
            assert contents(path) == whole


def test_a_killed_run_resumes(tmp_path):
    shapes = dict.fromkeys("abcdefgh", (64, 64))
    arguments = {"formats": {"**": MXFP8()}, "layout": "mxfp8", "shard_size": 5000}
    whole = contents(write(linears(shapes), tmp_path / "whole", ALL, **arguments))
    path = tmp_path / "killed"
    child = os.fork()
    if not child:
        made = 0
        plain = block_ranges.fill_box

        def counted(*args):
            nonlocal made
            made += 1
            if made > 6:
                os.kill(os.getpid(), signal.SIGKILL)
            plain(*args)

        block_ranges.fill_box = counted
        try:
            write(linears(shapes), path, ALL, **arguments)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    named = {n: data for n, data in contents(path).items() if not n.endswith(".tmp")}
    assert named.items() < whole.items()
    assert contents(write(linears(shapes), path, ALL, resume=True, **arguments)) == whole


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"formats": {"*.weight": MXFP8("floor")}}, r"the formats \(.*MXFP8\(\).* there, .*floor"),
        ({"formats": {"**": MXFP8()}}, r"the formats"),
        ({"layout": CT}, r"the layout \(mxfp8 there, compressed-tensors asked"),
        ({"formats": None, "layout": None}, r"the layout \(mxfp8 there, None asked for\)"),
    ],
)
def test_resume_refuses_other_formats(changed, said, tmp_path):
    arguments = {"formats": {"*.weight": MXFP8()}, "layout": "mxfp8"}
    path = write(linears({"a": (64, 64)}), tmp_path / "a", ALL, **arguments)
    write(linears({"a": (64, 64)}), path, ALL, resume=True, **arguments)
    with pytest.raises(ArgumentError, match=f"of other arguments: .*{said}"):
        write(linears({"a": (64, 64)}), path, ALL, resume=True, **arguments | changed)


# A large model.


@long
@pytest.mark.parametrize("case", ["fp8", "mxfp8", "ct-mxfp8", "ct-nvfp4"])
def test_a_shard_of_a_large_model_in_little_memory(case, tmp_path):
    """In a process of its own, whose peak counts."""
    layout, form, _ = CASES[case]
    large = {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    }  # fmt: skip
    plan = plan_checkpoint(
        llama(**large), RULES, seed=0, dtype=torch.bfloat16, shard_size="1GB",
        formats={PROJECTIONS: form}, layout=layout,
    )  # fmt: skip
    assert plan.parameters == 70_553_706_496
    projections = 80 * 8192 * (2 * 8192 + 2 * 1024 + 3 * 28672)
    rest = 2 * (plan.parameters - projections)
    a_value = {"fp8": 1 + 4 / 128**2, "mxfp8": 1 + 1 / 32, "nvfp4": 9 / 16}[case.split("-")[-1]]
    assert plan.layout.nbytes == pytest.approx(rest + a_value * projections, rel=1e-4)
    name = "model.layers.40.mlp.gate_proj.weight"
    (shard,) = [
        shard for shard in plan.layout.shards
        if any(one.tensor.name == names_of(layout, form, name)[0] for one in shard.placed)
    ]  # fmt: skip
    assert any(one.tensor.name == names_of(layout, form, name)[1] for one in shard.placed)
    child = os.fork()
    if not child:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _kib("VmRSS")
            write_shards(tmp_path, [shard], int)
            os._exit(int(_kib("VmHWM") - before > 400 * 1024))
        finally:
            os._exit(255)
    assert os.waitpid(child, 0)[1] == 0
    with safe_open(tmp_path / shard.filename, "pt") as file:
        found = {one: file.get_tensor(one) for one in names_of(layout, form, name) if one}
    assert_stored(found, case, name, (28672, 8192))


def _kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


# Errors.


class _Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(32, 32, device="meta")
        self.odd = nn.Linear(31, 32, bias=False, device="meta")
        self.linear = nn.Linear(32, 32, device="meta")


MX, NV, FP = MXFP8(), NVFP4(), FP8Blocks()


@pytest.mark.parametrize(
    ("formats", "layout", "said"),
    [
        ({"linear.weight": MX}, None, r"layout=None: formats need a layout of the files, 'fp8'"),
        ({"linear.weight": MX}, "modelopt", "layout='modelopt': formats need a layout"),
        (None, "fp8", "layout='fp8' is for weights with formats, and formats=None"),
        ({}, "fp8", "layout='fp8' is for weights with formats"),
        ({"linear.weight": FP}, "mxfp8", r"layout='mxfp8' does not hold FP8Blocks\(\)"),
        ({"linear.weight": MX}, "fp8", r"'fp8' does not hold MXFP8\(\)\. There is 'fp8' for"),
        ({"linear.weight": NVFP4(rows=16)}, CT, r"does not hold NVFP4\(rows=16\)"),
        ({"odd.weight": MX, "linear.weight": NV}, CT, "says once how all weights"),
        ({"odd.weight": FP8Blocks(9, 9), "linear.weight": FP}, "fp8", "says once how all"),
        ({"table.*": MX}, "mxfp8", "'table.weight' is a parameter of Embedding"),
        ({"linear.bias": MX}, "mxfp8", "'linear.bias' is a parameter of Linear"),
        ({"odd.weight": NV}, CT, "odd number of columns"),
        ({"liner.weight": MX}, "mxfp8", "formats: 'liner.weight' matches no parameter"),
    ],
)
def test_what_is_refused(formats, layout, said, tmp_path):
    with pytest.raises(ArgumentError, match=said):
        torchinit.write_checkpoint(
            _Both, tmp_path / "a", ALL, seed=0, formats=formats, layout=layout
        )
    assert not (tmp_path / "a").exists()


def test_a_model_with_scales_in_it(tmp_path):
    def build():
        model = linears({"a": (32, 32)})()
        model["a"].register_buffer("weight_scale_inv", torch.ones(1, 1))
        return model

    with pytest.raises(ArgumentError, match=r"'a.weight_scale_inv' would be the name of two"):
        write(build, tmp_path / "a", ALL, formats={"a.weight": FP}, layout="fp8")
    assert not (tmp_path / "a").exists()


def test_a_warning_of_blocks_at_the_edges(tmp_path, recwarn):
    shapes = {"a": (128, 96), "b": (128, 32), "c": (129, 32)}
    write(linears(shapes), tmp_path / "a", ALL, formats={"**": MXFP8()}, layout="mxfp8")
    assert not recwarn.list
    said = r"3 weights .*, such as 'a.weight' of shape \(128, 96\), in blocks of 128 x 128: "
    with pytest.warns(UserWarning, match=said):
        write(linears(shapes), tmp_path / "b", ALL, formats={"**": FP8Blocks()}, layout="fp8")


def test_a_format_that_is_none(tmp_path):
    with pytest.raises(TypeError, match=r"the format for '\*\*' must be MXFP8\(\)"):
        torchinit.write_checkpoint(
            _Both, tmp_path / "a", ALL, seed=0, formats={"**": "mxfp8"}, layout="mxfp8"
        )
