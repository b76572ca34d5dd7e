"""docs/packages.md: the code for packages of the test extra runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import try_packages
from conftest import native_only

pytestmark = native_only

# The others are run by tools/try_packages.py, by hand in a venv.
INSTALLED = ("accelerate", "transformers", "x-transformers")


@pytest.mark.parametrize("name", INSTALLED)
def test_the_code_of_a_package_runs(name):
    if missing := try_packages.missing(name):
        pytest.skip(f"needs {', '.join(missing)}")
    model = try_packages.run(name)["model"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_package_that_is_missing_is_told_from_one_that_fails(monkeypatch):
    codes = {"a": "import absent_package.of_it", "b": "from torch import nn, absent"}
    monkeypatch.setattr(try_packages, "sections", lambda: codes)
    assert try_packages.missing("a") == ["absent_package"]
    assert try_packages.missing("b") == []
    with pytest.raises(ImportError):
        try_packages.run("b")


def test_twenty_packages_are_shown_and_all_but_one_have_a_version():
    text = try_packages.PAGE.read_text()
    headings = [line for line in re.findall("^### (.*)$", text, re.MULTILINE) if line != "nanoGPT"]
    assert len(headings) >= 20
    assert [one for one in headings if not re.fullmatch(r"[\w-]+ [\d.]+", one)] == ["vllm"]
    assert "packages.md" in (Path(__file__).parents[2] / "mkdocs.yml").read_text()
