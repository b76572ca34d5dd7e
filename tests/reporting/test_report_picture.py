"""The picture is written, shows what it should, and leaves the caller's matplotlib alone."""

from __future__ import annotations

import sys

import pytest
import torch
from report_models import RULES, break_four, llama
from torch import nn

import torchinit
import warm
from torchinit.reporting.picture import depth_axis, draw

matplotlib_text = pytest.importorskip("matplotlib.text", reason="comes with the extra report")
figure = pytest.importorskip("matplotlib.figure", reason="comes with the extra report")


def drawn(report):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    made = figure.Figure(figsize=(7.2, 4.3))
    FigureCanvasAgg(made)
    draw(report._results, made)
    return made, {axes.get_label(): axes for axes in made.axes}


def marked(axes, gid):
    return sum(len(line.get_xdata()) for line in axes.lines if line.get_gid() == gid)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"report.{suffix}"
    torchinit.report_model(llama(3, width=16)).save(path)
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert path.read_bytes().startswith(starts[suffix])


def test_names_that_look_like_formulae(tmp_path):
    model = nn.Sequential()
    model.add_module("$\\frac$", nn.Linear(4, 4))
    report = torchinit.report_model(model, {"**": "zeros"})
    report.save(tmp_path / "report.png")
    _, axes = drawn(report)
    said = [text.get_text() for text in axes["gain"].texts]
    assert sum(text.startswith("$\\frac$") for text in said) == 2


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
    assert set(axes) == {"gain", "foot", "survival"}
    gain, foot = axes["gain"], axes["foot"]
    assert gain.get_yscale() == axes["survival"].get_yscale() == "log"
    assert any(list(line.get_ydata()) == [1, 1] for line in gain.lines)
    # Of 57 matrices in layers and the embedding, all but the constant one have a spread.
    assert marked(gain, "offender") == 3
    assert marked(foot, "offender") == 1
    assert marked(gain, "q") == 7
    assert marked(gain, "intended") == 8 * 7 + 1 - 1
    assert marked(foot, "norm") == 17
    said = [text.get_text() for text in gain.texts + foot.texts]
    for name in names:
        layer, _, last = name.split(".")[2], *name.split(".")[3:5]
        assert any(text.startswith(f"{layer} {last}") for text in said)
    red = {line.get_color() for line in axes["survival"].lines}
    assert "#C1121F" in red
    titles = [text.get_text() for text in made.legends[0].get_texts()]
    assert {"embedding", "q", "norm", "intended", "offender", "normal"} <= set(titles)


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
    boxes = [text_alone(text, renderer) for text in axes["gain"].texts]
    assert len(boxes) == 9
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_many_offenders_are_not_all_named():
    _, axes = drawn(torchinit.report_model(llama(10), {"**": torchinit.Normal(5.0)}))
    said = [text.get_text() for text in axes["gain"].texts + axes["foot"].texts]
    assert len(said) == 13
    assert "and 80 more" in said


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
    assert any("encoder" in label for _, label in layout.ticks)


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
