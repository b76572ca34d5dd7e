"""Whatever a checkpoint's files hold, a report ends in a table or one plain sentence."""

from __future__ import annotations

import copy
import io
import json
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import long
from torchinit.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")

INDEX = "model.safetensors.index.json"
TEXT = st.text(st.characters(exclude_categories=()), max_size=6)  # lone surrogates too
NAMES = st.one_of(
    st.sampled_from([
        "layers.0.w", "layers.1.q_proj.weight", "layers." + "9" * 5000 + ".w", "layers.٣.w", "",
        ".", "a..b", "__metadata__", "embed" * 10_000 + "!", "x" * 70_000, "\x1b[2J", "\ud800",
        "encoder.0", "decoder.0", "weight", "bias", "h.0.attn.c_attn.weight", "0", "expert.0",
    ]),
    TEXT,
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**62, 2**63, 2**64, 2**200, -(2**63), 10**4000]),
    st.floats(),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
DTYPES = ("F32", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "C64", "F8_E8M0", "F4", "X\x1b")
SIZES = {"F32": 4, "BF16": 2, "F64": 8, "I64": 8, "C64": 8}
FILES = (
    "a.safetensors", "b.safetensors", "../outside.safetensors", "sub/c.safetensors",
    "./a.safetensors", "a.safetensors/", "link.safetensors", "loop.safetensors", "fifo.safetensors",
    "sub.safetensors", "", ".", "..", "\0", "\ud800", "x" * 300 + ".safetensors", "config.json",
    "/etc/passwd",
)  # fmt: skip

_opened: list[str] | None = None


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str):
        _opened.append(arguments[0])


sys.addaudithook(_hear)


def check(*arguments: str | Path, inside: Path) -> None:
    """Runs the command: a table or one line, and only files of a folder are opened."""
    global _opened
    out, err, _opened = io.StringIO(), io.StringIO(), []
    try:
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(["report", *map(str, arguments)])
    finally:
        opened, _opened = _opened, None
    said = err.getvalue() if not out.getvalue() else out.getvalue()
    assert code in ((2,) if said == err.getvalue() else (0, 1, 2)), said
    assert all(line.isprintable() for line in said.split("\n")), repr(said)
    said.encode()
    if not out.getvalue():
        assert said.count("\n") == 1, said
        assert said.startswith("torchinit: "), said
    there = str(inside.parent)
    for file in opened:
        if file.startswith((there, "/etc/passwd")):
            assert os.path.realpath(file).startswith(str(inside)), file


def valid_header(dtypes: list[str], names: list[str]) -> tuple[dict[str, object], int]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype in zip(names, dtypes, strict=False):
        begin, end = end, end + 4 * SIZES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": [2, 2], "data_offsets": [begin, end]}
    return header, end


def places(tree: object) -> list[tuple[object, object]]:
    """Every container in a tree with each of its keys."""
    keys = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found: list[tuple[object, object]] = []
    for key, value in keys:
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


@st.composite
def mutated(draw: st.DrawFn, tree: object, values: st.SearchStrategy[object] = JSON) -> bytes:
    """The text of a tree, with parts replaced, and perhaps bytes of the text."""
    root = [copy.deepcopy(tree)]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3]))):
        where, key = draw(st.sampled_from(places(root)))
        how = draw(st.sampled_from(["value", "value", "delete", "name"]))
        if how == "value" or where is root:
            where[key] = draw(values)
        elif how == "delete":
            del where[key]
        elif isinstance(where, dict):
            where[draw(NAMES)] = where.pop(key)
    text = bytearray(json.dumps(root[0]).encode()) if root else bytearray()
    for _ in range(draw(st.sampled_from([0] * 8 + [1, 2]))):
        begin = draw(st.integers(0, len(text)))
        end = min(len(text), begin + draw(st.integers(0, 8)))
        text[begin:end] = draw(st.one_of(
            st.binary(max_size=8), st.sampled_from([b"[" * 5000, b'"a":1,"a":1,', b"NaN", b"\0"])
        ))  # fmt: skip
    return bytes(text)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A safetensors file, nearly."""
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4))
    names = draw(st.lists(NAMES, min_size=len(dtypes), max_size=len(dtypes), unique=True))
    header, size = valid_header(dtypes, names)
    text = draw(mutated(header))
    length = draw(st.sampled_from([len(text)] * 30 + [0, 1, len(text) + 8, 2**63, 100_000_001]))
    values = draw(st.binary(min_size=size, max_size=size)) + draw(
        st.sampled_from([b""] * 20 + [b"x"])
    )
    whole = length.to_bytes(8, "little") + text + values
    return whole[: draw(st.sampled_from([len(whole)] * 30 + [0, 4, 8, len(whole) // 2]))]


@st.composite
def indices(draw: st.DrawFn) -> bytes:
    """An index, nearly."""
    shards = draw(st.dictionaries(NAMES, st.sampled_from(FILES[:1] * 20 + FILES), max_size=4))
    tree = {"metadata": {"total_size": 3}, "weight_map": {"layers.0.w": "a.safetensors", **shards}}
    return draw(mutated(tree, st.one_of(JSON, st.sampled_from(FILES))))


CONFIG = {"model_type": "gpt2", "hidden_size": 4, "architectures": ["GPT2Model"], "x": [1, {}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder beside a file that no report of it may read, with things that are no files."""
    root = tmp_path_factory.mktemp("fuzz").resolve()
    whole, _ = valid_header(["BF16"], ["layers.0.w"])
    text = json.dumps(whole).encode()
    (root / "outside.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    found = root / "folder"
    (found / "sub.safetensors").mkdir(parents=True)
    (found / "sub").mkdir()
    os.mkfifo(found / "fifo.safetensors")
    (found / "link.safetensors").symlink_to(root / "outside.safetensors")
    (found / "loop.safetensors").symlink_to("loop.safetensors")
    return found


@pytest.fixture(scope="module")
def rules(folder: Path) -> Path:
    file = folder / "rules.py"
    file.write_text("import torchinit\nrules = {'**': torchinit.Normal(0.02)}\n")
    return file


def run_one(
    folder: Path, rules: Path, first: bytes, second: bytes | None, index: bytes | None,
    config: bytes | None, how: int,
) -> None:  # fmt: skip
    """Writes the files of a checkpoint, and reports it."""
    contents = {"a.safetensors": first, "b.safetensors": second, INDEX: index,
                "config.json": config}  # fmt: skip
    for name, content in contents.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    path = (folder, folder / INDEX, folder / "a.safetensors")[how % 3 if index is not None else 2]
    if how >= 6:
        rules = folder / "function.py"
        rules.write_text("def rules(config): return {'**': 'zeros'}\n")
    check(path, *(["--rules", rules] if how >= 3 else []), inside=folder)


CASES = {
    "first": files(),
    "second": st.one_of(st.none(), files()),
    "index": st.one_of(st.none(), indices()),
    "config": st.one_of(st.none(), mutated(CONFIG)),
    "how": st.integers(0, 5),
}


@given(**CASES)
@example(b"", None, b'{"weight_map": {"a": "../outside.safetensors"}}', None, 0)
@example(b"", None, b'{"weight_map": {"a": "link.safetensors"}}', None, 0)
@example(b"", None, b'{"weight_map": {"a": "fifo.safetensors"}}', None, 0)
@example(b"", None, b"[" * 100_000, b"[" * 100_000, 0)
def test_checkpoints(folder, rules, first, second, index, config, how):
    run_one(folder, rules, first, second, index, config, how)


@long
@settings(max_examples=2000)
@given(**{**CASES, "how": st.integers(0, 8)})  # from 6 on, Transformers makes the config
def test_many_checkpoints(folder, rules, first, second, index, config, how):
    run_one(folder, rules, first, second, index, config, how)


GOOD = json.dumps(valid_header(["F32"], ["layers.0.w"])[0]).encode()
GOOD = len(GOOD).to_bytes(8, "little") + GOOD + bytes(16)
TOKENS = [
    "rules", " = ", "{", "}", "'**'", ": ", "'zeros'", "1", "None", "def rules(config):\n  return ",
    "\n", "(", ")", "[", "]", "\0", "lambda config: ", "'\\x1b'", "torchinit.Normal(0.02)", ", ",
    "import torchinit\n", "rules = {'**': ", "'{*,*}'", "raise ", "config", "'own'", "'keep'",
    "é", "\\", "'[' * 9000", "ValueError('\\x1b\\n')", "SystemExit", "9" * 5000, "(" * 300, "...",
    "-" * 300,
]  # fmt: skip


@given(st.lists(st.sampled_from(TOKENS), max_size=8).map("".join), st.booleans())
@example("rules = {'**': None}", False)
@example("rules = {None: 'zeros'}", True)
@example("rules = {'**': 'own'}", False)
@example("rules = {'**': lambda tensor: 1 / 0}", False)
@example("raise ValueError('\\x1b\\n')", False)
def test_rules_files(folder, text, is_binary):
    for name in ("b.safetensors", INDEX):
        (folder / name).unlink(missing_ok=True)
    (folder / "a.safetensors").write_bytes(GOOD)
    file = folder / "hostile.py"
    file.write_bytes(text.encode("utf-16" if is_binary else "utf-8"))
    check(folder / "a.safetensors", "--rules", file, inside=folder)


PARTS = ["snapshots", "models--a--b", "blobs", "refs", "c0ffee", "main", "\x1b[2J"]
ENTRIES = st.dictionaries(
    st.tuples(
        st.lists(st.sampled_from(PARTS), max_size=3).map(tuple),
        st.sampled_from(["model.safetensors", "b.safetensors", INDEX, "config.json", "4d7a"]),
    ),
    st.sampled_from([
        GOOD, b"", b"version https://git-lfs.github.com/spec/v1\n", b'{"weight_map": {"w": "b"}}',
        "4d7a", "../../blobs/4d7a", "../outside.safetensors", "model.safetensors", "/etc/passwd",
    ]),
    max_size=5,
)  # fmt: skip


@given(ENTRIES, st.lists(st.sampled_from(PARTS), max_size=3))
def test_caches(tmp_path_factory, entries, path):
    root = tmp_path_factory.mktemp("cache").resolve() / "hub"
    root.mkdir()
    (root.parent / "outside.safetensors").write_bytes(GOOD)
    for (parts, name), content in entries.items():
        file = root.joinpath(*parts, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.symlink_to(content)
    check(root.joinpath(*path), inside=root)
