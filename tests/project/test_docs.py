"""The docs say what the code does: the table of schemes, the files that exist, the examples."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
import sys
import types
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

import torchinit
from conftest import native_only
from doc_blocks import blocks_of
from torchinit.schemes.init_table import (
    INIT_SCHEMES,
    SCHEMES,
    InitializationType,
    law,
    markdown_table,
)

ROOT = Path(__file__).parents[2]


def test_the_table_of_schemes():
    assert markdown_table() in (ROOT / "docs" / "drop_in.md").read_text()


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
        with pytest.raises(ValueError, match="do not share one distribution"):
            law(name, (8, 4))
    else:
        assert law(name, (8, 4)).low <= law(name, (8, 4)).mean <= law(name, (8, 4)).high


def pages():
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    named = re.findall(r"`((?:csrc|src|tests|tools|benchmarks|docs|examples)/[\w./]+)`", text)
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)
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
@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name):
    """As ``pytest --doctest-modules --pyargs torchinit`` runs them."""
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


# Pages that need more than names, and the tests that run them.
ELSEWHERE = {
    "checkpoint.md": "tests/checkpoint/test_checkpoint_doc.py",
    "packages.md": "tests/project/test_packages_doc.py",
    "recipes.md": "tests/project/test_recipes_doc.py",
    "sharded.md": "tests/distributed/test_sharded_doc.py",
}


def test_pages_that_run_elsewhere():
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text()


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_code_is_written_so_that_it_would_not_run(page):
    fences = re.findall(r"^ *```(\S*)", page.read_text(), re.MULTILINE)
    assert [name for name in fences if name[:2].lower() == "py" and name != "python"] == []
    assert set(fences[1::2]) <= {""}


class Rules(nn.Module):
    """With a parameter for every rule of docs/models.md."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(16, 8), nn.LayerNorm(8)
        self.layers = nn.ModuleList([nn.ModuleDict()])
        for name, outputs in (("wo", 8), ("w2", 8), ("wqkv", 6144), ("head", 16)):
            self.layers[0][name] = nn.Linear(8, outputs, bias=False)
        self.layers[0]["experts"] = nn.ParameterDict({"w1": torch.empty(2, 8, 8)})


def config():
    """Of a small Llama."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
    return pytest.importorskip("transformers").LlamaConfig(**sizes, vocab_size=100)


def llama():
    return pytest.importorskip("transformers").LlamaForCausalLM(config())


def names_of_pages():
    """What the pages take to be there: a model of the reader's, and its parts."""
    transformers = pytest.importorskip("transformers")
    layers = [nn.Linear(16, 16) for _ in range(3)]
    return {
        "torch": torch,
        "torchinit": torchinit,
        "init_model_": torchinit.init_model_,
        "LlamaModel": transformers.LlamaModel,
        "LlamaForCausalLM": transformers.LlamaForCausalLM,
        "config": config(),
        "fully_shard": lambda module: module,
        "linear": layers[0],
        "layers": layers,
        "model": nn.Sequential(*layers),
        "init_weights": lambda layer: layer,
        "rules": torchinit.recipes.llama(config()),
        "last_stage": nn.ModuleDict({"lm_head": nn.Linear(64, 100, bias=False)}),
    }


# What is made anew under a heading.
UNDER = {
    "Your rules": {"model": Rules},
    "Only some of it": {"model": lambda: nn.ModuleDict({"head": nn.Linear(4, 4)}), "weights": dict},
    "A report of a model": {"model": llama},
}


@native_only
@pytest.mark.parametrize(
    "page",
    [page for page in pages() if page.name not in ELSEWHERE and list(blocks_of(page))],
    ids=lambda page: page.name,
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("lightning") is None:  # what pages use of it
        stub = types.SimpleNamespace(LightningModule=nn.Module)
        monkeypatch.setitem(sys.modules, "lightning", stub)
    names = names_of_pages()
    for heading, line, code in blocks_of(page):
        names |= {name: make() for name, make in UNDER.get(heading, {}).items()}
        if not torch.cuda.is_available():
            code = code.replace('"cuda"', '"cpu"')
        if code.startswith(">>>"):
            example = doctest.DocTestParser().get_doctest(code, names, page.name, page.name, line)
            assert doctest.DocTestRunner().run(example).failed == 0
        else:
            exec(compile("\n" * line + code, str(page), "exec"), names)


def test_a_sharded_init_is_one_click_from_the_readme():
    assert "](docs/sharded.md)" in (ROOT / "README.md").read_text()
    assert "init_model_(" in "".join(code for *_, code in blocks_of(ROOT / "docs" / "sharded.md"))
