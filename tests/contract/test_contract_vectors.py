"""Vectors that others test against: what torchinit makes, their schema, the reference."""

from __future__ import annotations

import ast
import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

import contract_reference
import contract_vectors
from conftest import native_only
from torchinit import ArgumentError
from torchinit.dtypes import ALL_DTYPES

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "docs" / "contract" / "contract.json"
SCHEMA = ROOT / "docs" / "contract" / "contract.schema.json"
REFERENCE = ROOT / "tools" / "contract_reference.py"


@pytest.fixture(scope="module")
def contract():
    return json.loads(CONTRACT.read_text())


@native_only
def test_torchinit_makes_these_vectors():
    assert contract_vectors.vectors() == CONTRACT.read_text(), (
        "NUMBERS CHANGED, or the tool did: python tools/contract_vectors.py, and CHANGELOG.md"
    )


@native_only
def test_every_transform_has_a_vector(contract):
    from torchinit.native import load

    kinds, dtypes = load.module.Distribution.__members__, load.module.Dtype.__members__
    found = set()
    for case in contract["vectors"]["fills"]:
        numbers = [float.fromhex(one) for one in case["parameters"]] + [0.0] * 4
        kind, dtype = kinds[case["distribution"].upper()], dtypes[case["dtype"].upper()]
        found.add(load.module.transform(int(kind), int(dtype), *numbers[:4]))
    assert len(found) == 12


def test_the_schema(contract):
    jsonschema = pytest.importorskip("jsonschema", reason="comes with the extra lint")
    check = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    check.validate(contract)
    for section, cases in contract["vectors"].items():
        for change in ({"result": ["xyz"]}, {"result": []}, {"more": 1}):
            wrong = copy.copy(contract)
            wrong["vectors"] = contract["vectors"] | {section: [cases[0] | change]}
            with pytest.raises(jsonschema.ValidationError):
                check.validate(wrong)


def run_reference(path):
    """The exit code and what is printed, in a process that sees only the standard library."""
    command = [sys.executable, "-I", "-S", REFERENCE, path]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


def test_the_reference_reproduces_all(contract):
    code, said = run_reference(CONTRACT)
    counts = {name: len(cases) for name, cases in contract["vectors"].items()}
    assert [line.partition(",")[0] for line in said.splitlines()] == [
        f"{name}: {count} of {count}" for name, count in counts.items()
    ]
    assert code == 0


def test_the_page_has_the_counts(contract):
    page = (ROOT / "docs" / "conformance.md").read_text()
    for name, cases in contract["vectors"].items():
        values = sum(len(case["result"] + case.get("scales", [])) for case in cases)
        assert f"| `{name}` | {len(cases)} | {values:,} |" in page
    lines = [line for line in REFERENCE.read_text().splitlines() if line.strip()]
    assert f"{len(lines)} lines that are not" in page
    assert len(lines) < 400


def test_the_reference_sees_a_changed_bit(contract, tmp_path):
    """In every section, and in the scales."""
    changed = copy.deepcopy(contract)
    for name, cases in changed["vectors"].items():
        changed["vectors"][name] = cases = cases[:2]
        wrong = cases[1]["scales" if name == "quantised" else "result"]
        wrong[-1] = f"{int(wrong[-1], 16) ^ 1:0{len(wrong[-1])}x}"
    (tmp_path / "contract.json").write_text(json.dumps(changed))
    code, said = run_reference(tmp_path / "contract.json")
    assert code == 1
    for name in changed["vectors"]:
        assert f"{name}: 1 of 2" in said
        assert f"vectors.{name}[1] differs" in said


@pytest.fixture(scope="module")
def reference(contract):
    """The reference with its coefficients."""
    listed = contract["coefficients"].items()
    contract_reference.C.update({name: [float.fromhex(c) for c in each] for name, each in listed})
    return contract_reference


TELLING = (0.0, -0.0, 1.0, -1.0, 448.0, 65504.0, 1e-45, 3.4e38, -3.4e38, 1e-7)
NUMBERS = st.one_of(
    st.sampled_from(TELLING),
    st.floats(-3, 3),
    st.builds(lambda sign, power: sign * 10**power, st.sampled_from([-1, 1]), st.floats(-44, 40)),
)
SPREADS = NUMBERS.map(abs)


@st.composite
def draws(draw):
    """A distribution and parameters, which a dtype may refuse."""
    kind = draw(st.sampled_from(["uniform", "normal", "truncated_normal"]))
    if kind == "normal":
        return kind, [draw(NUMBERS), draw(SPREADS)]
    if kind == "uniform":
        return kind, sorted([draw(NUMBERS), draw(NUMBERS)])
    mean, std = draw(NUMBERS), draw(SPREADS)
    sigmas = st.floats(-60, 60) | st.floats(-5, 5) | st.sampled_from([-math.inf, math.inf])
    ends = sorted([draw(sigmas), draw(sigmas)])
    bounds = [mean + end * std if std else end for end in ends]
    return kind, [mean, std, *(bounds if draw(st.booleans()) else sorted(map(float, ends)))]


@native_only
@given(draws(), st.sampled_from(ALL_DTYPES), st.sampled_from([0, 1, 2**33 + 1]))
def test_any_fill_follows_the_reference(reference, distribution, dtype, index):
    try:
        case = contract_vectors.fill(*distribution, dtype, [2**40], [index], [4])
    except ArgumentError:
        reject()
    assert reference.fill(case) == case["result"]


@native_only
@given(st.data(), NUMBERS, st.sampled_from(ALL_DTYPES), st.integers(0, 2**64 - 1))
def test_any_orthogonal_matrix_follows_the_reference(reference, data, gain, dtype, key):
    shape = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=3))
    offset = [data.draw(st.integers(0, side - 1)) for side in shape]
    sizes = [data.draw(st.integers(1, n - o)) for n, o in zip(shape, offset, strict=True)]
    case = contract_vectors.matrix(key, gain, dtype, shape, offset, sizes)
    assert reference.orthogonal(case) == case["result"]


def test_the_reference_is_independent():
    """It imports the standard library alone, and nothing of the package imports it."""
    text = REFERENCE.read_text()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    for path in (ROOT / "src").rglob("*.py"):
        assert "contract_reference" not in path.read_text(), path
