"""Text tables: aligned, no wider than asked for or than the terminal, every figure whole."""

from __future__ import annotations

import io
import sys

import pytest

from torchinit.text_table import text_table

ROWS = [
    ["name", "shape", "fan_in", "std"],
    ["model.layers.0.self_attn.q_proj.weight", "4096x1024", "1024", "0.02"],
    ["model.layers.0.mlp.down_proj.weight", "1024x4096", "4096", "0.0012345"],
    ["bias", "8", "", "0"],
]
LINES = {
    None: """
name                                    shape      fan_in        std
model.layers.0.self_attn.q_proj.weight  4096x1024    1024       0.02
model.layers.0.mlp.down_proj.weight     1024x4096    4096  0.0012345
bias                                    8                          0""",
    50: """
name                  shape      fan_in        std
model.…q_proj.weight  4096x1024    1024       0.02
model.…n_proj.weight  1024x4096    4096  0.0012345
bias                  8                          0""",
    40: """
name
  shape      fan_in        std
model.layers.0.self_attn.q_proj.weight
  4096x1024    1024       0.02
model.layers.0.mlp.down_proj.weight
  1024x4096    4096  0.0012345
bias
  8                          0""",
}


@pytest.mark.parametrize("most", LINES)
def test_lines(most):
    assert "\n".join(text_table(ROWS, left=2, most=most)) == LINES[most][1:]


@pytest.mark.parametrize("indent", [0, 2])
@pytest.mark.parametrize("most", range(13, 80))
def test_figures_are_whole_and_lines_fit(most, indent):
    found = text_table(ROWS, left=2, most=most, indent=indent)
    for row, text in zip(ROWS, found, strict=True):
        name, *cells = text.split()
        assert cells == [cell for cell in row[1:] if cell]
        lines = text.splitlines()
        assert all(line.startswith(" " * indent) for line in lines)
        if len(lines) > 1:  # the first is the name, which is whole
            assert name == row[0]
        assert all(len(line) <= most for line in lines[len(lines) > 1 :])


@pytest.mark.parametrize("columns", [40, 50, 200])
def test_a_terminal_is_as_wide_as_it_is(monkeypatch, columns):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    expected = LINES[columns if columns < 100 else None][1:]
    assert "\n".join(text_table(ROWS, left=2, most=60)) == expected


@pytest.mark.parametrize("stream", ["written only", "closed"])
def test_standard_output_may_be_any_object_that_writes(stream, monkeypatch):
    if stream == "closed":
        output = io.StringIO()
        output.close()
    else:
        output = object()
    monkeypatch.setattr(sys, "stdout", output)
    assert "\n".join(text_table(ROWS, left=2)) == LINES[None].strip("\n")
