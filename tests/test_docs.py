"""The docs say what the code does: the table of schemes, the files that exist, the examples."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import get_args

import pytest

import torchinit
from conftest import native_only
from torchinit.schemes.schemes import (
    INIT_SCHEMES,
    SCHEMES,
    InitializationType,
    law,
    markdown_table,
)

ROOT = Path(__file__).parent.parent


def test_the_table_of_schemes():
    assert markdown_table() in (ROOT / "README.md").read_text()


def test_type_checkers_know_the_schemes():
    assert set(get_args(InitializationType)) == set(INIT_SCHEMES)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_has_its_function(name):
    function = SCHEMES[name].function
    assert function is None or callable(getattr(torchinit, function))
    assert name == "biased_normal" or function == f"{name}_"


@pytest.mark.parametrize("name", SCHEMES)
def test_laws(name):
    if name in ("dirac", "eye", "sparse"):
        with pytest.raises(ValueError, match="not drawn from one law"):
            law(name, (8, 4))
    else:
        assert law(name, (8, 4)).low <= law(name, (8, 4)).mean <= law(name, (8, 4)).high


def pages():
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    named = re.findall(r"`((?:csrc|src|tests|tools|benchmarks|docs|examples)/[\w./]+)`", text)
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


def modules():
    return [
        module.name
        for module in pkgutil.walk_packages(torchinit.__path__, "torchinit.")
        if "._" not in module.name
    ]


@native_only
def test_examples_in_docstrings_run():
    tried = 0
    for name in modules():
        module = importlib.import_module(name)
        result = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
        assert result.failed == 0, name
        tried += result.attempted
    assert tried >= 2


@native_only
def test_examples_in_the_readme_run():
    text = (ROOT / "README.md").read_text().replace("```", "")  # a fence would be expected output
    names = {"torch": importlib.import_module("torch"), "torchinit": torchinit}
    example = doctest.DocTestParser().get_doctest(text, names, "README", "README.md", 0)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted
    assert result.failed == 0
