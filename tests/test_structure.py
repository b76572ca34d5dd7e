"""The structure that CONTRIBUTING describes: what is decided, or listed, in one place."""

from __future__ import annotations

import re
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "torchinit"


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
