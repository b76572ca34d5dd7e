"""Vectors that others test against: what torchinit makes, their schema, the reference."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import native_only

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "docs" / "contract" / "contract.json"
SCHEMA = ROOT / "docs" / "contract" / "contract.schema.json"
REFERENCE = ROOT / "tools" / "contract_reference.py"


@pytest.fixture(scope="module")
def contract():
    return json.loads(CONTRACT.read_text())


@native_only
def test_torchinit_makes_these_vectors():
    import contract_vectors

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


def test_the_reference_is_independent_and_short():
    """It imports the standard library alone, and nothing of the package imports it."""
    text = REFERENCE.read_text()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    assert len([line for line in text.splitlines() if line.strip()]) < 400
    for path in (ROOT / "src").rglob("*.py"):
        assert "contract_reference" not in path.read_text(), path
