"""Every public name is on the API page, documents its arguments, and has an example."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import torchinit
import torchinit.integrations

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
TORCHS = "calculate_gain"  # torch.nn.init's own, described on the page itself


def test_the_page_has_every_name_and_no_other():
    listed = re.findall(r"^(?:::: torchinit\.|### )(\w+)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(torchinit.__all__)


def documented():
    """The functions and classes: by name, those of modules too."""
    found = {}
    for name in torchinit.__all__:
        thing = getattr(torchinit, name)
        if isinstance(thing, ModuleType):
            found |= {f"{name}.{each}": getattr(thing, each) for each in thing.__all__}
        elif callable(thing) and inspect.getmodule(thing).__name__.startswith("torchinit"):
            found[name] = thing
    return {name: thing for name, thing in found.items() if not name.endswith(TORCHS)}


def test_what_is_documented_is_all_but_a_few():
    others = set(torchinit.__all__) - set(documented())
    assert others == {
        "InitializationType",
        "STREAM_VERSION",
        "__version__",
        "init",
        "recipes",
        TORCHS,
    }


@pytest.mark.parametrize("name", documented())
def test_an_example(name):
    """In which the name comes, or what the name is of (a Plan: ``plan_model``)."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(documented()[name]))
    said = "".join(example.source + example.want for example in examples)
    assert name.rsplit(".", 1)[-1].lower() in said.lower()


def arguments_of(docstring):
    """The names under Args, "a, b: ..." being two."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    lines = re.findall(r"^    (\w+(?:, \w+)*):", section[1] if section else "", re.MULTILINE)
    return [name for line in lines for name in line.split(", ")]


@pytest.mark.parametrize("name", documented())
def test_arguments_are_those_of_the_signature(name):
    """Where arguments are described, all of them are, and nothing else is."""
    thing = documented()[name]
    found = arguments_of(inspect.getdoc(thing))
    if found:
        assert sorted(found) == sorted(inspect.signature(thing).parameters)


def integrations():
    """The public functions of the modules of torchinit.integrations."""
    modules = pkgutil.iter_modules(torchinit.integrations.__path__, "torchinit.integrations.")
    return {
        f"{module.name}.{name}": thing
        for module in modules if not module.name.endswith(".shards")
        for name, thing in vars(importlib.import_module(module.name)).items()
        if inspect.isfunction(thing) and thing.__module__ == module.name and name[0] != "_"
    }  # fmt: skip


def test_integrations_are_on_the_page_and_documented():
    listed = re.findall(r"^::: (torchinit\.integrations\.[\w.]+)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(integrations())
    for name, thing in integrations().items():
        said = inspect.getdoc(thing)
        assert sorted(arguments_of(said)) == sorted(inspect.signature(thing).parameters), name
        assert name.split(".")[-1] in said, name  # in an example


def test_arguments_are_found():
    assert arguments_of(inspect.getdoc(torchinit.trunc_normal_)) == [
        "tensor", "mean", "std", "a", "b", "generator",
    ]  # fmt: skip
