"""A hook of mkdocs: adds files from outside docs/ to the site, and adapts links.

README.md is the first page; the change log, CONTRIBUTING.md, the tables of results and the examples
are pages too. Pages link as they do in the repository; this turns links to files that the site
shows into links to their pages. Broken links stay, so that mkdocs reports them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)")


def places() -> dict[str, str]:
    """The places of files on the site, by their paths in the repository."""
    found = {"README.md": "index.md"}
    for pattern in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/results/*.md"):
        found |= {path: path for path in names(pattern)}
    for pattern in ("examples/*.py", "examples/*.ipynb"):
        found |= {path: str(Path(path).with_suffix(".md")) for path in names(pattern)}
    found["tools/contract_reference.py"] = "contract_reference.md"
    return found


def names(pattern: str) -> list[str]:
    """Paths in the repository that match a pattern, in order."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages from outside docs/, and the pictures of notebooks."""
    for path, place in places().items():
        content, pictures = as_page(ROOT / path)
        files.append(File.generated(config, place, content=content))
        for name, picture in pictures.items():
            files.append(
                File.generated(config, f"{posixpath.dirname(place)}/{name}", content=picture)
            )
    return files


def as_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A file as Markdown, and its pictures."""
    if path.suffix == ".ipynb":
        text, resources = MarkdownExporter().from_filename(str(path))
        return text, resources["outputs"]
    text = path.read_text()
    return (f"# {path.name}\n\n```python\n{text}```\n" if path.suffix == ".py" else text), {}


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository into links to their pages."""
    del config, files
    on_site = places()
    at = page.file.src_uri
    source = next((path for path, place in on_site.items() if place == at), f"docs/{at}")

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        place = on_site.get(path) or (path[5:] if path.startswith("docs/") else None)
        return posixpath.relpath(place, posixpath.dirname(at) or ".") if place else match[1]

    return LINK.sub(link, markdown)
