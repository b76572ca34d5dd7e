"""The picture is written, shows what it should, and leaves the caller's matplotlib alone."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from report_models import RULES, break_four, llama
from torch import nn

import torchinit
import warm
from torchinit.reporting.depth_axis import depth_axis
from torchinit.reporting.picture import draw
from torchinit.reporting.roles import ROLES
from torchinit.reporting.style import DARK, LIGHT

matplotlib_text = pytest.importorskip("matplotlib.text", reason="comes with the extra report")
figure = pytest.importorskip("matplotlib.figure", reason="comes with the extra report")


def drawn(report):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    made = figure.Figure(figsize=(7.2, 4.3))
    FigureCanvasAgg(made)
    draw(report._results, made)
    return made, {axes.get_label(): axes for axes in made.axes}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def marked(axes, gid):
    return sum(len(line.get_xdata()) for line in axes.lines if line.get_gid() == gid)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"report.{suffix}"
    report = torchinit.report_model(llama(3, width=16))
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for dark in (False, True):
        report.save(path, dark=dark)
        assert path.read_bytes().startswith(starts[suffix])


def test_light_and_dark(tmp_path):
    image = pytest.importorskip("PIL.Image")
    report = torchinit.report_model(llama(3, width=16))
    corners, lightest = [], []
    for dark in (False, True):
        report.save(tmp_path / "report.png", dark=dark)
        with image.open(tmp_path / "report.png") as picture:
            pixels = picture.convert("RGBA")
        corners.append(pixels.getpixel((0, 0)))
        shown = [pixels.getpixel((x, 20)) for x in range(pixels.width)]  # the title
        lightest.append(min(sum(one[:3]) for one in shown if one[3] == 255))
    assert corners == [(255, 255, 255, 255), (255, 255, 255, 0)]
    assert lightest[0] < 100 < 500 < lightest[1]


@pytest.mark.parametrize("style", [LIGHT, DARK])
def test_every_role_has_its_own_marker_and_colour(style):
    marks = {role: style.marker(role, 1.0) for role in ROLES}
    same = {("qkv", "q"), ("gate_up", "gate")}  # no layer has both
    found = {
        (a, b)
        for a in marks
        for b in marks
        if ROLES.index(a) > ROLES.index(b)
        and (marks[a]["marker"], marks[a]["mfc"]) == (marks[b]["marker"], marks[b]["mfc"])
    }
    assert found == same


def test_names_that_look_like_formulae(tmp_path):
    model = nn.Sequential()
    model.add_module("$\\frac$", nn.Linear(4, 4))
    report = torchinit.report_model(model, {"**": "zeros"})
    report.save(tmp_path / "report.png")
    _, axes = drawn(report)
    assert [text.split()[1] for text in texts(axes["key"])] == ["$\\frac$", "$\\frac$.bias"]


@pytest.mark.parametrize("size", [1.7e308, 1e-310])
def test_gains_at_the_end_of_the_axis(tmp_path, size):
    model = nn.Module()
    signs = torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)
    model.weight = nn.Parameter(torch.full((16, 16), size, dtype=torch.float64) * signs)
    report = torchinit.report_model(model, {"**": torchinit.Normal(0.02)}, against=model)
    report.save(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_what_is_on_it():
    model = llama(8)
    names = break_four(model)
    made, axes = drawn(torchinit.report_model(model, RULES))
    assert set(axes) == {"gain", "foot", "survival", "legend", "key"}
    gain, foot = axes["gain"], axes["foot"]
    assert gain.get_yscale() == axes["survival"].get_yscale() == "log"
    assert any(list(line.get_ydata()) == [1, 1] for line in gain.lines)
    # Of 57 matrices in layers and the embedding, all but the constant one have a spread.
    assert marked(gain, "outlier") == 3
    assert marked(foot, "outlier") == 1
    assert marked(gain, "q") == 7
    intended = [lines for lines in gain.collections if lines.get_gid() == "intended"]
    assert sum(len(lines.get_segments()) for lines in intended) == 8 * 7 + 1 - 1
    assert marked(foot, "norm") == 17
    assert sorted(texts(gain) + texts(foot)) == ["1", "2", "3", "4"]
    assert len(texts(axes["key"])) == 4
    for number, (name, said) in enumerate(zip(names, texts(axes["key"]), strict=True), 1):
        assert said.startswith(f"{number}  {name.removesuffix('.weight')}  ")
    red = {line.get_color() for line in axes["survival"].lines}
    assert "#C1121F" in red
    titles = texts(axes["legend"])
    assert {"embedding", "q", "norm", "intended", "outlier", "normal"} <= set(titles)
    assert made.texts[0].get_text() == "Module"
    assert gain.get_ylim() == (0.1, 2.0)
    assert [y for y in gain.get_yticks() if 0.1 <= y <= 2] == pytest.approx([0.1, 0.2, 0.5, 1, 2])


def test_labels_do_not_overlap():
    model = llama(10)
    with torch.no_grad():
        for layer in range(4, 7):
            for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"):
                model.get_parameter(f"model.layers.{layer}.{name}.weight").mul_(3)
    made, axes = drawn(torchinit.report_model(model, RULES))
    made.canvas.draw()  # until then texts do not know where they are
    renderer = made.canvas.get_renderer()
    text_alone = matplotlib_text.Text.get_window_extent  # without the line to the point
    for label, count in (("gain", 9), ("key", 9), ("legend", 13)):
        boxes = [text_alone(text, renderer) for text in axes[label].texts]
        assert len(boxes) == count
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_many_outliers_are_not_all_named():
    _, axes = drawn(torchinit.report_model(llama(10), {"**": torchinit.Normal(5.0)}))
    assert len(texts(axes["gain"]) + texts(axes["foot"])) == 12
    assert texts(axes["key"])[12:] == ["and 80 more"]


def test_the_longest_names_lie_within_the_picture():
    model = nn.Module()
    for number in range(3):
        model.add_module(f"{'a_long_name' * 20}_{number}", nn.Linear(4, 4))
    made, axes = drawn(torchinit.report_model(model, {"**": "zeros"}))
    made.canvas.draw()
    renderer = made.canvas.get_renderer()
    assert len(axes["key"].texts) == 6
    for text in axes["key"].texts:
        assert text.get_window_extent(renderer).x1 <= made.bbox.width
        assert re.fullmatch(r"\d  a_long….*_\d(\.bias)?  not 0", text.get_text())


@pytest.mark.parametrize("length", [5, 40, 70, 400])
def test_titles_lie_within_the_picture(length):
    made, _ = drawn(torchinit.report_model(type("M" * length, (nn.Linear,), {})(4, 4)))
    made.canvas.draw()
    title = made.texts[0]
    box = title.get_window_extent(made.canvas.get_renderer())
    assert 0 < box.x0 < box.x1 <= made.bbox.width
    assert title.get_text() == "M" * length or (length > 70 and title.get_text().endswith("M…"))


def test_a_head_and_its_bias_stand_on_the_right(tmp_path):
    """In a file that is sorted by name, too."""
    safetensors = pytest.importorskip("safetensors.torch", reason="comes with the extra test")
    names = ("fc.bias", "fc.weight", "layer1.0.conv.weight", "stem.weight", "wte.weight")
    tensors = {name: torch.randn(4, 4) for name in names}
    safetensors.save_file(tensors | {"fc.bias": torch.randn(4)}, tmp_path / "a.safetensors")
    report = torchinit.report_model(tmp_path / "a.safetensors")
    at = dict(zip([row.name for row in report], depth_axis(report).x, strict=True))
    assert at["fc.bias"] == at["fc.weight"] > at["layer1.0.conv.weight"] > at["wte.weight"]


def test_convolutions_of_a_block_stand_apart():
    model = nn.Module()
    for layer in (1, 2):
        block = nn.Module()
        for number in (1, 2):
            block.add_module(f"conv{number}", nn.Conv2d(4, 4, 3, bias=False))
        block.downsample = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False))
        model.add_module(f"layer{layer}", nn.Sequential(block))
    report = torchinit.report_model(model)
    assert [row.role for row in report] == ["conv1", "conv2", "downsample"] * 2
    assert len(set(depth_axis(report).x)) == 6
    layer = torchinit.report_model(nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2))
    at = dict(zip([row.name for row in layer], depth_axis(layer).x, strict=True))
    names = ("self_attn.in_proj_weight", "multihead_attn.in_proj_weight", "linear1.weight")
    assert len({at[f"layers.0.{name}"] for name in names}) == 3


def test_many_layers_are_lines():
    _, axes = drawn(torchinit.report_model(llama(100, width=8), RULES))
    gain = axes["gain"]
    assert 10 <= marked(gain, "q") <= 11
    assert sum(len(line.get_xdata()) == 100 for line in gain.lines) == 2 * 7
    assert len(gain.collections) >= 7


def test_another_model_beside():
    other = llama(3, width=16)
    with torch.no_grad():
        other.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(2)
    report = torchinit.report_model(llama(3, width=16), against=other)
    assert report.against is not None
    assert len(report.against) == len(report)
    made, axes = drawn(report)
    assert marked(axes["gain"], "against") == 3 * 7 + 1
    assert "(hollow)" in made.texts[0].get_text()


def test_depths_follow_one_another():
    shapes = {
        "shared.weight": 0, "encoder.block.0.q.weight": 0, "encoder.block.1.q.weight": 0,
        "decoder.block.0.q.weight": 0, "decoder.block.1.q.weight": 0, "lm_head.weight": 0,
    }  # fmt: skip
    model = nn.Module()
    for name in shapes:
        module = model
        for atom in name.split(".")[:-1]:
            if atom not in module._modules:
                module.add_module(atom, nn.Module())
            module = module._modules[atom]
        module.weight = nn.Parameter(torch.randn(8, 8))
    report = torchinit.report_model(model)
    layout = depth_axis(report)
    order = sorted(zip(layout.x, [row.name for row in report], strict=True))
    assert [name for _, name in order] == [
        "shared.weight",
        *(f"{stack}.block.{n}.q.weight" for stack in ("encoder", "decoder") for n in (0, 1)),
        "lm_head.weight",
    ]  # fmt: skip
    assert layout.layers == 4
    assert len(layout.edges) == 1
    assert [name for *_, name in layout.stacks] == ["encoder.block", "decoder.block"]


@pytest.mark.parametrize("model", [
    nn.Module(),
    nn.ParameterList([torch.randn(3, 3)]),
    nn.ParameterDict({"alone": torch.zeros(4, 4)}),
    nn.ParameterDict({"nan": torch.full((4, 4), torch.nan)}),
    nn.ParameterDict({"inf": torch.full((4,), torch.inf), "none": torch.empty(0, 4)}),
    nn.ParameterDict({"scalar": torch.tensor(2.5), "complex": torch.randn(5, 5) * 1j}),
    nn.Sequential(*(nn.Linear(2, 2) for _ in range(5))),
])  # fmt: skip
def test_odd_models(tmp_path, model):
    report = torchinit.report_model(model)
    assert isinstance(str(report), str)
    path = tmp_path / "report.png"
    report.save(path)
    assert path.stat().st_size > 5000


def test_the_callers_matplotlib_is_as_it_was(tmp_path):
    """Its backend, its settings and its figures; pyplot is not even imported."""
    program = f"""
import sys, matplotlib, torch, torchinit
matplotlib.rcParams["font.size"] = 17.0
matplotlib.rcParams["axes.facecolor"] = "pink"
before = dict(matplotlib.rcParams.copy())
torchinit.report_model(torch.nn.Linear(4, 4)).save({str(tmp_path / "a.png")!r})
after = dict(matplotlib.rcParams.copy())
assert {{key for key in before if before[key] != after[key]}} == set(), "settings"
assert "matplotlib.pyplot" not in sys.modules
"""
    run = warm.run("-c", program)
    assert run.returncode == 0, run.stderr


def test_without_matplotlib(tmp_path, monkeypatch):
    report = torchinit.report_model(nn.Linear(4, 4))
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'torchinit\[report\]'"):
        report.save(tmp_path / "a.png")
    assert str(report)
