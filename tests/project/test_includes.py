"""No include of csrc runs upward (tools/check_includes.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from check_includes import links, violations

ROOT = Path(__file__).parents[2]


def test_csrc_has_no_upward_include():
    assert len(links(ROOT / "csrc")) > 50
    assert violations(ROOT / "csrc") == []


def tree(root: Path, **files: str) -> Path:
    """Files named folder__name, each with one include or none."""
    for name, include in files.items():
        path = root / (name.replace("__", "/") + ".h")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#include "{include}"\n' if include else "#include <vector>\n")
    return root


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"base__a": "../math/b.h", "math__b": ""}, "math lies above base"),
        ({"cpu__a": "../cuda/b.h", "cuda__b": ""}, "cuda lies beside cpu"),
        ({"math__a": "b.h", "math__b": "a.h"}, "a ring: math/a.h -> math/b.h -> math/a.h"),
        ({"math__a": "gone.h"}, "no file of"),
        ({"math__a": "../new/b.h", "new__b": ""}, "new, which has no place"),
    ],
)
def test_the_check_can_fail(tmp_path, files, message):
    found = violations(tree(tmp_path, **files))
    assert len(found) == 1
    assert message in found[0]


def test_downward_includes_pass(tmp_path):
    files = {"python__a": "../cpu/b.h", "cpu__b": "../base/c.h", "base__c": ""}
    assert violations(tree(tmp_path, **files)) == []
