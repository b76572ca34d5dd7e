"""`make docs`: the site builds without a network or a warning, and faults of the docs stop it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import torchinit

for module in ("material", "mkdocstrings", "nbconvert"):
    pytest.importorskip(module, reason="comes with the extra docs")

pytestmark = pytest.mark.skipif(
    "TORCHINIT_DISABLE_NATIVE" in os.environ, reason="the same without the native module"
)

ROOT = Path(__file__).parents[2]
# mkdocs, in a process that cannot reach anything.
PROGRAM = """
import socket, sys
def refuse(*_): raise OSError("no network in this test")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(["build", "--strict", "--config-file", sys.argv[1], "--site-dir", sys.argv[2]])
"""


def build(root, site):
    """Builds the site of a tree; returns the exit code and what was said."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, root / "mkdocs.yml", site],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    code, said = build(ROOT, folder)
    assert code == 0, said
    assert "WARNING" not in said
    return folder


class Links(HTMLParser):
    """What a page links to, what it loads, and the anchors in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.add(attributes.get("id"))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        self.loaded += [
            value for name, value in attrs if name == "src" or (tag == "link" and name == "href")
        ]


@pytest.fixture(scope="module")
def read(site):
    """The pages by their paths."""
    return {path: Links(path.read_text()) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(read):
    loaded = [url for page in read.values() for url in page.loaded]
    assert len(loaded) > len(read)
    assert [url for url in loaded if urlsplit(url).netloc] == []


def test_every_link_leads_somewhere(read):
    dead = []
    for path, page in read.items():
        if path.name == "404.html":  # whose links are from the root of a server
            continue
        for url in page.links + page.loaded:
            parts = urlsplit(url)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = parts.scheme or parts.netloc or target.exists()
            if not known or (
                parts.fragment
                and target.suffix == ".html"
                and unquote(parts.fragment) not in read[target].anchors
            ):
                dead.append((path.name, url))
    assert dead == []


def test_a_sharded_init_is_one_click_from_the_start(site, read):
    assert "sharded.html" in read[site / "index.html"].links
    assert "init_model_" in (site / "sharded.html").read_text()


def test_every_page_has_the_version(site):
    assert f"torchinit {torchinit.__version__}" in (site / "sharded.html").read_text()


def test_pictures_of_the_dark_scheme(site):
    for page, name in (("index", "models"), ("performance", "models"), ("report", "report_broken")):
        text = (site / f"{page}.html").read_text()
        assert f"pictures/{name}.png#only-light" in text
        assert f"pictures/{name}-dark.png#only-dark" in text


def test_examples_are_shown_as_code(site):
    page = (site / "api.html").read_text()
    assert page.count('<span class="gp">&gt;&gt;&gt; </span>') > 40
    assert "<blockquote>" not in page


def break_once(root, name, old, new):
    path = root / name
    text = path.read_text()
    assert text.count(old) == 1, (name, old)
    path.write_text(text.replace(old, new))


def test_faults_stop_the_build(tmp_path):
    for name in ("docs", "src", "tools", "examples", "benchmarks/results"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so"))
    for path in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml", ROOT / "LICENSE"):
        shutil.copy(path, tmp_path)
    break_once(
        tmp_path, "docs/words.md", "# Words\n", "# Words\n\n[a](none.md) [b](models.md#no)\n"
    )
    break_once(tmp_path, "README.md", "](docs/installing.md)", "](docs/gone.md)")
    break_once(tmp_path, "docs/gpu.md", "](../examples/meta_to_gpu.py)", "](../examples/gone.py)")
    route = "src/torchinit/fill/route.py"
    text = (tmp_path / route).read_text()
    (tmp_path / route).write_text(
        re.sub(r'(class Route.*?\n)    """.*?"""\n', r"\1", text, flags=re.S)
    )
    code, said = build(tmp_path, tmp_path / "site")
    assert code != 0
    for fault in (
        "'words.md' contains a link 'none.md'",
        "link 'models.md#no'",
        "'index.md' contains a link 'gone.md'",
        "'gpu.md' contains a link '../examples/gone.py'",
        "torchinit.Route has no docstring",
        "Aborted with 5 warnings",
    ):
        assert fault in said, said
