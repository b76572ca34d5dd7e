"""Low-precision weights in a report: dequantised, judged, their codes and scales checked."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import torchinit
from torchinit import MXFP8, NVFP4, FP8Blocks, Normal
from torchinit.cli.main import main
from torchinit.errors import ArgumentError
from torchinit.native import load

pytestmark = [
    pytest.mark.skipif(load.module is None, reason="needs the native module"),
    pytest.mark.filterwarnings("ignore:.* do not consist of whole blocks"),
]
pytest.importorskip("huggingface_hub")

CASES = {
    "fp8": ("fp8", FP8Blocks()),
    "fp8-small": ("fp8", FP8Blocks(24, 40)),
    "fp8-ue8m0": ("fp8", FP8Blocks(scale="ue8m0")),
    "mxfp8": ("mxfp8", MXFP8()),
    "mxfp8-floor": ("mxfp8", MXFP8("floor")),
    "ct-mxfp8": ("compressed-tensors", MXFP8()),
    "ct-nvfp4": ("compressed-tensors", NVFP4()),
    "ct-nvfp4-measured": ("compressed-tensors", NVFP4(amax="measured")),
}
LAYERS, SHAPE = 4, (192, 320)
NORMAL = Normal(0.02)


def build():
    with torch.device("meta"):
        layers = nn.ModuleList(nn.Linear(SHAPE[1], SHAPE[0]) for _ in range(LAYERS))
        return nn.ModuleDict({"layers": layers})


def rules_of(scheme):
    return {"**.bias": "zeros", "**": scheme}


def write(path, case, scheme=NORMAL, seed=0):
    layout, form = CASES[case]
    return torchinit.write_checkpoint(
        build, path, rules_of(scheme), seed=seed, formats={"**.weight": form}, layout=layout
    )


def change(path, name, number, code):
    """Sets one element of the tensor whose name ends so, in the second layer, to a code."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    (one,) = [tensors[key] for key in tensors if key.endswith(f"layers.1.weight{name}")]
    bits = {1: torch.uint8, 4: torch.float32}[one.element_size()]
    one.view(bits).view(-1)[number] = code
    save_file(tensors, file)


SCHEMES = {
    "normal": NORMAL,
    "off-centre": Normal(0.02, mean=0.01),
    "uniform": torchinit.Uniform(-0.1, 0.1),
    "truncated": torchinit.TruncNormal(0.02, cut=2),
    "orthogonal": torchinit.Orthogonal(),
    "zeros": "zeros",
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES)
def test_what_is_right(case, scheme, tmp_path):
    """By the rules, by siblings, and byte for byte; a fixed seed, so that there is no alarm."""
    path = write(tmp_path / "a", case, SCHEMES[scheme], seed=1)
    rules = rules_of(SCHEMES[scheme])
    for options in ({}, {"rules": rules}, {"rules": rules, "seed": 1}):
        if "seed" in options:
            options["formats"] = {"**.weight": CASES[case][1]}
        report = torchinit.report_model(path, **options)
        assert report.outliers == []
        assert report.unmeasured == []
        assert {row.name for row in report} == {
            f"layers.{number}.{one}" for number in range(LAYERS) for one in ("weight", "bias")
        }
        (row,) = [row for row in report if row.name == "layers.2.weight"]
        assert (row.shape, row.dtype) == (SHAPE, torch.float32)
    laws = {"off-centre": "normal", "truncated": "trunc"}
    wanted = laws.get(scheme, scheme)
    assert str(row.law).startswith(wanted) or (wanted == "trunc" and "nvfp4" in case)


def test_the_values_are_dequantised(tmp_path):
    for case in ("fp8-small", "ct-nvfp4"):
        path = write(tmp_path / case, case)
        masters = torchinit.init_model_(build(), rules_of(NORMAL), seed=0, device="cpu")
        report = torchinit.report_model(path)
        for row in report:
            one = masters.get_parameter(row.name).detach()
            assert row.moments.std == pytest.approx(one.std(correction=0).item(), rel=0.005)
            assert row.moments.high == pytest.approx(one.max().item(), rel=0.1)


@pytest.mark.parametrize("times", [0.9, 1.1])
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_std(case, times, tmp_path):
    path = write(tmp_path / "a", case, Normal(0.02 * times))
    report = torchinit.report_model(path, rules_of(NORMAL))
    assert [one.name for one in report.outliers] == [f"layers.{n}.weight" for n in range(LAYERS)]


NUMBER = SHAPE[0] * SHAPE[1]
BLOCK_ROW = NUMBER // 32
FAULTS = [
    ("fp8", "", 0x7F, f"1 of {NUMBER:,} codes of the payload are NaN"),
    ("mxfp8", "", 0xFF, f"1 of {NUMBER:,} codes of the payload are NaN"),
    ("fp8", "_scale_inv", float("nan"), "1 of 6 scales are NaN"),
    ("fp8", "_scale_inv", float("inf"), "1 of 6 scales are infinite"),
    ("fp8", "_scale_inv", -0.01, "1 of 6 scales are negative"),
    ("fp8", "_scale_inv", 0.0, "codes that are not zero have a scale of zero"),
    ("fp8-ue8m0", "_scale_inv", 0xFF, "1 of 6 scales are NaN"),
    ("mxfp8", "_scale_inv", 0xFF, f"1 of {BLOCK_ROW:,} scales are NaN"),
    ("ct-mxfp8", "_scale", 0xFF, f"1 of {BLOCK_ROW:,} scales are NaN"),
    ("ct-nvfp4", "_scale", 0x7F, f"1 of {2 * BLOCK_ROW:,} scales are NaN"),
    ("ct-nvfp4", "_scale", 0x00, "codes that are not zero have a scale of zero"),
    ("ct-nvfp4", "_scale", 0xC0, "scales are negative"),
    ("ct-nvfp4", "_global_scale", 0.0, "the factor of the whole tensor is 0"),
    ("ct-nvfp4", "_global_scale", -3.0, "the factor of the whole tensor is -3"),
    ("ct-nvfp4", "_global_scale", float("inf"), "the factor of the whole tensor is inf"),
    ("ct-nvfp4", "_global_scale", float("nan"), "the factor of the whole tensor is nan"),
    ("ct-nvfp4", "_global_scale", 7.0, "std"),
]


@pytest.mark.parametrize(("case", "name", "code", "said"), FAULTS)
def test_codes_and_scales(case, name, code, said, tmp_path, capsys):
    path = write(tmp_path / "a", case)
    change(path, name, 0, code)
    (tmp_path / "rules.py").write_text(
        "import torchinit\nrules = {'**.bias': 'zeros', '**': torchinit.Normal(0.02)}\n"
    )
    report = torchinit.report_model(path, rules_of(NORMAL))
    (outlier,) = report.outliers
    assert outlier.name == "layers.1.weight"
    assert any(said in problem for problem in outlier.problems), outlier.problems
    assert main(["report", str(path), "--rules", str(tmp_path / "rules.py")]) == 1
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_one_bit_is_found_with_the_seed(case, tmp_path):
    layout, form = CASES[case]
    rules = rules_of(NORMAL)
    known = {"seed": 3, "formats": {"**.weight": form}}
    path = write(tmp_path / "a", case, seed=3)
    changes = {"_packed" if form.packed else "": "the payload"}
    scales = "_scale" if layout == "compressed-tensors" else "_scale_inv"
    for name, what in (changes | {scales: "the scales"}).items():
        tensors = load_file(path / "model.safetensors")
        one = tensors[f"layers.1.weight{name}"]
        before = one.view(torch.uint8).view(-1)[-1].item()
        if one.element_size() == 1:
            change(path, name, -1, before ^ 1)
        else:
            change(path, name, -1, one.view(-1)[-1].nextafter(torch.tensor(1.0)))
        (outlier,) = torchinit.report_model(path, rules, **known).outliers
        assert outlier.problems[0].startswith("1 of ")
        assert outlier.problems[0].endswith(f" bytes of {what} are not those of the seed")
        save_file(tensors, path / "model.safetensors")
    assert len(torchinit.report_model(path, rules, **known | {"seed": 4}).outliers) == LAYERS
    other = FP8Blocks(8, 8) if form.packed else NVFP4()
    found = torchinit.report_model(path, rules, seed=3, formats={"**.weight": other}).outliers
    assert [one.problems for one in found] == [[f"it is not stored as {other}"]] * LAYERS


def test_the_factor_of_the_tensor_is_compared(tmp_path):
    path = write(tmp_path / "a", "ct-nvfp4-measured")
    found = torchinit.report_model(
        path, rules_of(NORMAL), seed=0, formats={"**.weight": NVFP4()}
    ).outliers
    assert len(found) == LAYERS
    assert all("bytes of the factor of the whole tensor are not" in str(one) for one in found)


def test_the_command(tmp_path, capsys):
    path = write(tmp_path / "a", "mxfp8", seed=5)
    rules = tmp_path / "rules.py"
    rules.write_text(
        "import torchinit\nrules = {'**.bias': 'zeros', '**': torchinit.Normal(0.02)}\n"
    )
    command = ["report", str(path), "--rules", str(rules), "--format", "**.weight=mxfp8"]
    assert main([*command, "--seed", "5"]) == 0
    assert "no outliers" in capsys.readouterr().out
    assert main([*command, "--seed", "6"]) == 1
    assert "bytes of the scales are not those of the seed" in capsys.readouterr().out
    assert main(command) == 2
    assert "--seed and --format go together" in capsys.readouterr().err
    command[-1] = "layers.{0,1}.weight=mxfp8"
    assert main([*command, "--seed", "5"]) == 2
    said = capsys.readouterr().out
    assert said.count("its bytes are not compared: no format matches it") == 2


def test_bad_arguments(tmp_path):
    path = write(tmp_path / "a", "mxfp8")
    formats = {"**.weight": MXFP8()}
    for options in ({"seed": 0}, {"formats": formats}):
        with pytest.raises(ArgumentError, match="go together"):
            torchinit.report_model(path, rules_of(NORMAL), **options)
    with pytest.raises(ArgumentError, match="seed and formats are for a checkpoint, with rules"):
        torchinit.report_model(path, seed=0, formats=formats)
    with pytest.raises(ArgumentError, match="seed and formats are for a checkpoint, with rules"):
        torchinit.report_model(nn.Linear(2, 2), {"**": "ones"}, seed=0, formats=formats)
    with pytest.raises(ArgumentError, match=r"'\*\.wait' matches no parameter"):
        torchinit.report_model(path, rules_of("ones"), seed=0, formats={"*.wait": MXFP8()})


# Others' checkpoints.


def stored(path, tensors, config=None):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def e4m3(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)


def test_names_of_modelopt(tmp_path):
    """The factor of the tensor is not a reciprocal there."""
    payload = torch.empty(64, 32, dtype=torch.uint8)
    blocks, factor = torch.empty(64, 4, dtype=torch.float8_e4m3fn), torch.empty(())
    torchinit.init_shard_(
        payload, Normal(0.5), global_shape=(64, 64), offset=(0, 0), seed=0, name="x.weight",
        format=NVFP4(), scales=(blocks, factor),
    )  # fmt: skip
    path = stored(
        tmp_path / "a",
        {"x.weight": payload, "x.weight_scale": blocks, "x.weight_scale_2": factor},
    )
    report = torchinit.report_model(path, {"**": Normal(0.5)})
    assert [(row.name, row.shape) for row in report] == [("x.weight", (64, 64))]
    assert report.outliers == []
    known = {"seed": 0, "formats": {"x.weight": NVFP4()}}
    assert torchinit.report_model(path, {"**": Normal(0.5)}, **known).outliers == []
    for number, other in enumerate((torch.empty(0), torch.ones(3))):
        tensors = load_file(path / "model.safetensors") | {"x.weight_scale_2": other}
        report = torchinit.report_model(stored(tmp_path / f"b{number}", tensors))
        (left,) = report.unmeasured
        assert "'x.weight_scale_2' is not one factor but" in left.reason
    tensors["x.weight_scale_2"] = factor.half()
    path = stored(tmp_path / "c", tensors)
    (found,) = torchinit.report_model(path, {"**": Normal(0.5)}, **known).outliers
    assert "it is not stored as NVFP4()" in found.problems


@pytest.mark.parametrize(
    ("shape", "scales", "config", "wanted"),
    [
        ((60, 40), (), None, 2.0),
        ((60, 40), (1,), None, 2.0),
        ((60, 40), (60, 1), None, 2.0),
        ((300, 40), (3, 1), None, 2.0),
        ((60, 40), (3, 2), None, 2.0),
        ((70, 50), (9, 2), {"weight_block_size": [8, 30]}, 2.0),
        ((70, 50), (9, 2), {"weight_block_size": [8, -30]}, None),
        ((70, 50), (9, 2), {"weight_block_size": "ab"}, None),
        ((70, 50), (9, 2), None, None),
        ((2, 64, 96), (2, 64, 3), None, 2.0),
        ((2, 64, 96), (64, 3), None, None),
    ],
)
def test_blocks_by_shapes(shape, scales, config, wanted, tmp_path):
    values = e4m3(*shape)
    path = stored(
        tmp_path / "a",
        {"x.weight": values, "x.weight_scale_inv": torch.full(scales, 2.0), "y": torch.ones(3)},
        None if config is None else {"quantization_config": config},
    )
    report = torchinit.report_model(path)
    if wanted is None:
        assert [row.name for row in report] == ["y"]
        assert [str(one) for one in report.unmeasured] == [
            f"x.weight: is quantised, and scales of shape {scales} fit no blocks of it"
        ]
        assert main(["report", str(path)]) == 2
    else:
        (row,) = [row for row in report if row.name == "x.weight"]
        assert row.moments.std == pytest.approx(2 * values.float().std(correction=0).item(), 1e-5)


def test_experts_are_not_compared(tmp_path):
    name = "layers.0.experts.0.w1.weight"
    scales = torch.full((64, 2), 127, dtype=torch.uint8)
    path = stored(tmp_path / "a", {name: e4m3(64, 64), f"{name}_scale": scales})
    report = torchinit.report_model(path, {"**": Normal(1.0)}, seed=0, formats={"**": MXFP8()})
    assert report.outliers == []
    assert [one.name for one in report.unmeasured] == [name]
