"""The table of tools/plant_faults.py fits the tree, so that it can be run at any time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tomllib", reason="comes with Python 3.11")

import plant_faults

PACKAGES = """
    checkpoint cli fill models native patch placement reporting rules schemes
    streams
"""
KERNELS = "base cpu cuda job math python simd"


def test_the_table_fits():
    faults = plant_faults.read_faults()
    assert plant_faults.problems(faults) == []
    assert len(faults) == 30


def test_every_package_has_a_fault():
    folders = [str(Path(fault.file).parent) for fault in plant_faults.read_faults()]
    expected = {f"src/torchinit/{name}" for name in PACKAGES.split()}
    expected |= {f"csrc/{name}" for name in KERNELS.split()} | {"src/torchinit"}
    assert set(folders) == expected
    assert sum(folder.startswith("csrc/") for folder in folders) >= 10


def test_a_table_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "file").write_text("one two two")
    (tmp_path / "test").write_text("")
    fits = plant_faults.Fault("fits", "file", "one", "1", ["test"])
    assert plant_faults.problems([fits], tmp_path) == []
    changes = {
        "gone": {"old": "three"},
        "twice": {"old": "two"},
        "no file": {"file": "other"},
        "no test": {"tests": ["other"]},
        "no tests": {"tests": []},
        "nothing": {"new": "one"},
    }
    for name, change in changes.items():
        (line,) = plant_faults.problems([fits._replace(name=name, **change)], tmp_path)
        assert line.startswith(f"{name}: ")
