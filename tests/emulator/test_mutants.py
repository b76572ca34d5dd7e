"""The table of mutants fits csrc, so that `make cuda-mutants` can be run at any time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tomllib", reason="comes with Python 3.11")

import emulate
import mutants


def test_the_table_fits() -> None:
    table = mutants.read_mutants()
    assert mutants.problems(table) == []
    assert len(table) >= 15
    assert {mutant.source for mutant in table} == set(emulate.SOURCES) - {"device"}
    assert sum(mutant.source == "orthogonal" for mutant in table) >= 4


def test_a_table_that_does_not_fit_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one two two")
    fits = mutants.Mutant("fits", "contiguous", "fills", "differ", "file", "one", "1")
    assert mutants.problems([fits], tmp_path) == []
    for wrong in (
        fits._replace(old="three"),
        fits._replace(old="two"),
        fits._replace(file="other"),
        fits._replace(new="one"),
    ):
        (line,) = mutants.problems([wrong], tmp_path)
        assert line.startswith("fits: ")
    assert len(mutants.problems([fits, fits], tmp_path)) == 1


def test_every_source_is_compiled() -> None:
    there = {path.stem for path in (emulate.ROOT / "csrc" / "cuda").glob("*.cu")}
    assert there == set(emulate.SOURCES)


def test_every_architecture_and_device_is_run() -> None:
    for is_full in (False, True):
        found = emulate.parts(is_full)
        architectures = emulate.ALL_ARCHITECTURES if is_full else emulate.ARCHITECTURES
        assert {part.architecture for part in found} == set(architectures)
        assert {part.multiprocessors for part in found if part.name == "fills"} == {1, 3, 132}
        for architecture in architectures:
            names = {part.name for part in found if part.architecture == architecture}
            assert names >= {"fills", "matrices"}
