"""The structure that CONTRIBUTING describes: what is decided, or listed, in one place."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from torchinit.errors import ArgumentError
from torchinit.fill.torch_fallback import fill_by_torch
from torchinit.placement.box import Box
from torchinit.schemes.distributions import (
    DISTRIBUTIONS,
    DistributionRow,
    check_draw,
    check_normal,
    draw_from,
    draw_in_words,
    law_of,
)
from torchinit.schemes.law import Law
from torchinit.streams.canonical import _WRAPPERS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "torchinit"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def files_with(pattern):
    """The source files, by path below src/torchinit, that a pattern occurs in."""
    return {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if re.search(pattern, path.read_text())
    }


def test_one_file_decides_the_dispatch_path():
    assert files_with(r"\b(_path_of|_unsupported_reason)\b") == {"fill/route.py"}
    assert files_with(r"\bvia_host_reason\b") == {"fill/route.py", "fill/via_host.py"}


def rows():
    """The rows of the table of what to add: the count and the files of each."""
    found = {}
    for line in CONTRIBUTING.read_text().splitlines():
        if match := re.match(
            r"\| (?P<what>an? [^|]*?) \((?P<count>\d+)\) \| (?P<files>.*) \|$", line
        ):
            always = match["files"].partition(". If ")[0]
            files = re.findall(r"`([\w/.]+\.(?:py|h|cpp|md|csv|toml))`", always)
            found[match["what"]] = int(match["count"]), files
    return found


def test_rows_name_files_that_are_there_and_count_them():
    assert len(rows()) > 12
    for what, (count, files) in rows().items():
        assert [name for name in files if not (ROOT / name).is_file()] == [], what
        assert len(set(files)) == count, what


def python_files(what):
    """The Python files of a row, by path below src/torchinit."""
    prefix = "src/torchinit/"
    return {name.removeprefix(prefix) for name in rows()[what][1] if name.startswith(prefix)}


def test_the_row_for_a_distribution():
    """Seven files, of which two are Python's: no other one lists the distributions."""
    assert rows()["a distribution"][0] == 7
    listing = [
        path
        for path in [
            *SOURCE.rglob("*.py"),
            *SOURCE.rglob("*.pyi"),
            *Path(__file__).parents[1].rglob("*.py"),
        ]
        if re.search(r"\bTRUNCATED_NORMAL\b", path.read_text())
        and re.search(r"\bUNIFORM\b", path.read_text())
        and re.search(r"(?<!_)\bNORMAL\b", path.read_text())
    ]
    assert [path.name for path in listing] == ["distributions.py"]


LAPLACE = 5


@pytest.fixture
def _with_laplace(monkeypatch):
    """One row more, of a distribution that torch.nn.init has no function for."""

    def by_torch(tensor, loc, scale, generator):
        uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
        values = loc - scale * uniform.sign() * torch.log1p(-2 * uniform.abs())
        with torch.no_grad():
            return tensor.copy_(values)

    row = DistributionRow(
        "laplace",
        ("loc", "scale"),
        lambda _, loc, scale, *_rest: check_normal(loc, scale),
        lambda loc, scale: Law(loc, scale * math.sqrt(2), kurtosis=6.0),
        by_torch=by_torch,
    )
    monkeypatch.setitem(DISTRIBUTIONS, LAPLACE, row)


@pytest.mark.usefixtures("_with_laplace")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2])
def test_a_new_distribution_where_torch_fills(dtype):
    draw = draw_from(LAPLACE, [1.0, 2.0])
    assert draw_in_words(draw) == "laplace(loc=1, scale=2)"
    check_draw(draw, torch.float32)
    with pytest.raises(ArgumentError):
        check_draw(draw_from(LAPLACE, [0.0, -1.0]), torch.float32)
    whole, part = torch.empty(64, 64, dtype=dtype), torch.empty(5, 64, dtype=dtype)
    fill_by_torch(draw, whole, 3)
    fill_by_torch(draw, part, 3, Box((64, 64), (7, 0)))
    assert torch.equal(part.float(), whole[7:12].float())
    values = whole.float()
    assert abs(float(values.mean()) - law_of(draw).mean) < 0.3
    assert abs(float(values.std()) - law_of(draw).std) < 0.3


def test_the_row_for_a_dtype():
    listing = files_with(r"float8_e5m2\b|F8_E5M2\b") - {
        "layer.py"
    }  # whose docstring says what it takes
    assert listing == python_files("a dtype")


def test_the_row_for_a_device():
    assert {name for name in files_with('"cuda"') if not name.startswith("cli/")} == python_files(
        "a device with kernels, and a folder of csrc"
    )


def test_the_row_for_a_checkpoint_format():
    pattern = r'"[^"\n]*\.safetensors|import .*\bSUFFIX\b'
    assert files_with(pattern) == python_files("a format of checkpoints in place of safetensors")


def test_wrappers_are_in_the_contract_on_names():
    page = (ROOT / "docs" / "streams.md").read_text()
    section = page[page.index("## 7. Keys of names") :]
    for wrapper in _WRAPPERS:
        assert f"`{wrapper.child}`" in section, wrapper


# Packages in which no class, alias or file has the name of one in another.
OWN_NAMES = ("fill", "native", "placement", "schemes", "streams")


def defined(path):
    """The names of the classes and type aliases of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            yield ast.unparse(node.target)


def test_names_have_one_meaning():
    classes = Counter(name for path in SOURCE.rglob("*.py") for name in {*defined(path)})
    own = [path for package in OWN_NAMES for path in (SOURCE / package).glob("*.py")]
    own.append(SOURCE / "orthogonal.py")
    assert len(own) > 20
    twice = {name for path in own for name in defined(path) if classes[name] > 1}
    assert twice == set()
    assert all(path.stem != path.parent.name for path in own)
