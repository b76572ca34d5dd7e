"""The Python blocks of a page of the docs."""

from __future__ import annotations

import re


def blocks_of(page):
    """(heading, line, code), in order."""
    text = page.read_text()
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: found.start()]
        headings = re.findall(r"^#+ (.*)$", before, re.MULTILINE)
        yield headings[-1], before.count("\n") + 1, found[1]
