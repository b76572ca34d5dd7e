"""The examples are short and run; the notebook gives what it shows."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import pytest

import warm
from conftest import native_only

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "same_model_anywhere.ipynb"
PNG = b"\x89PNG\r\n\x1a\n"


def run(name, *arguments):
    """What an example prints, on one thread: they are small."""
    environment = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = warm.run(EXAMPLES / name, *arguments, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["drop_in.py", "meta_to_gpu.py", "train_tiny.py"])
def test_they_are_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 40


@native_only
def test_drop_in():
    out = run("drop_in.py")
    assert "up.weight: [-0.0281, -0.0071, -0.0113]" in out
    assert "Route(kind='native'" in out


def test_meta_to_gpu():
    out = run("meta_to_gpu.py")
    assert re.search(r"out_proj\.weight\n .* 0\.005774$", out, re.MULTILINE)
    assert "linear2: std 0.0058, torch.bfloat16 on c" in out


def test_train_tiny(tmp_path):
    """From a std of 0.02 the model hardly moves; from orthogonal matrices it does."""
    pytest.importorskip("matplotlib")
    out = run("train_tiny.py", tmp_path / "curves.png")
    curves = {line[:16].strip(): [*map(float, line[16:].split())] for line in out.splitlines()}
    assert list(curves) == ["N(0, 0.02²)", "LeCun", "He", "orthogonal, √2"]
    assert all(len(curve) == 10 for curve in curves.values())
    assert curves["N(0, 0.02²)"][-1] > 2.2
    assert curves["orthogonal, √2"][-1] < 1.7
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def outputs(notebook):
    """The text that its cells give, in order."""
    return [
        output["text"] if "text" in output else output["data"]["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


@native_only
def test_the_notebook_gives_what_it_shows(tmp_path, monkeypatch):
    for folder in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(folder, str(tmp_path / folder))  # no kernels of the user's
    nbclient = pytest.importorskip("nbclient", reason="comes with the extra test")
    nbformat = pytest.importorskip("nbformat", reason="comes with the extra test")
    shown = nbformat.read(NOTEBOOK, as_version=4)
    again = nbformat.read(NOTEBOOK, as_version=4)
    for cell in again.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(again, timeout=300).execute(cwd=str(tmp_path))
    assert outputs(again) == outputs(shown)
    assert len(set(re.findall(r"[0-9a-f]{16}", "".join(outputs(again))))) == 1
    pictures = [
        output["data"]["image/png"]
        for cell in shown.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1
    assert base64.b64decode(pictures[0]).startswith(PNG)
