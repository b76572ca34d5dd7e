"""Data flows one way: the contracts on imports in pyproject.toml hold, and can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="comes with the extra lint")

ROOT = Path(__file__).parents[2]


def lint(config: Path) -> subprocess.CompletedProcess:
    program = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, config],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_import_runs_upward():
    count = (ROOT / "pyproject.toml").read_text().count("[[tool.importlinter.contracts]]")
    run = lint(ROOT / "pyproject.toml")
    assert run.returncode == 0, run.stdout
    assert f"{count} kept, 0 broken" in run.stdout


def test_the_contracts_can_break(tmp_path):
    """With the door above what is called."""
    text = (ROOT / "pyproject.toml").read_text()
    assert '"functional",' in text
    changed = text.replace('  "functional",\n', "").replace(
        '  "fill",\n', '  "fill",\n  "functional",\n', 1
    )
    (tmp_path / "pyproject.toml").write_text(changed)
    run = lint(tmp_path / "pyproject.toml")
    assert run.returncode != 0
    assert "BROKEN" in run.stdout
