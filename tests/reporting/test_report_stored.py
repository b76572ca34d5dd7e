"""Checkpoints as they are found: indices that disagree with files, unknown dtypes, other files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import torchinit
from torchinit.cli.main import main
from torchinit.errors import ArgumentError
from torchinit.reporting.stored import read_checkpoint
from torchinit.untrusted import printable

INDEX = "model.safetensors.index.json"
SIZES = {"F32": 4, "BF16": 2, "U64": 8, "C64": 8}


def write(file: Path, tensors: dict[str, str] | bytes, values: bytes | None = None) -> Path:
    """A safetensors file: four values of each dtype, or the header that is given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(tensors, dict):
        header, end = {}, 0
        for name, dtype in tensors.items():
            begin, end = end, end + 4 * SIZES.get(dtype, 1)
            header[name] = {"dtype": dtype, "shape": [4], "data_offsets": [begin, end]}
        tensors, values = json.dumps(header).encode(), b"\1" * end
    file.write_bytes(len(tensors).to_bytes(8, "little") + tensors + (values or b""))
    return file


def write_index(folder: Path, shards: object) -> Path:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return folder / INDEX


def two_shards(folder: Path, index: dict[str, str]) -> Path:
    write(folder / "a.safetensors", {"one": "F32", "two": "F32"})
    write(folder / "b.safetensors", {"three": "F32"})
    write_index(folder, index)
    return folder


RIGHT = {"one": "a.safetensors", "two": "a.safetensors", "three": "b.safetensors"}


# The index and the files.


def test_an_index_that_is_right(tmp_path):
    report = torchinit.report_model(two_shards(tmp_path, RIGHT))
    assert [row.name for row in report] == ["one", "two", "three"]
    assert report.unmeasured == []
    assert main(["report", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("index", "name", "reason"),
    [
        ({**RIGHT, "four": "b.safetensors"}, "four",
         "is in b.safetensors by the index, and in no file"),
        ({n: f for n, f in RIGHT.items() if n != "two"}, "two",
         "is in a.safetensors, and not in the index"),
        ({**RIGHT, "two": "b.safetensors"}, "two",
         "is in a.safetensors, and in b.safetensors by the index"),
        ({n: f for n, f in RIGHT.items() if n != "three"}, "b.safetensors",
         "is in the folder, and not in the index: give the index to leave it out"),
    ],
    ids=["missing", "unlisted", "elsewhere", "extra"],
)  # fmt: skip
def test_what_is_not_read_is_said_and_fails(tmp_path, index, name, reason, capsys):
    report = torchinit.report_model(two_shards(tmp_path, index))
    assert report.unmeasured == [(name, reason)]
    assert not report.outliers
    assert name not in [row.name for row in report]
    assert f"1 not measured:\n  {name}: {reason}" in str(report)
    assert main(["report", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().out


def test_of_the_other_model_too(tmp_path, capsys):
    right = two_shards(tmp_path / "right", RIGHT)
    wrong = two_shards(tmp_path / "wrong", {**RIGHT, "four": "b.safetensors"})
    assert main(["report", str(right), "--against", str(wrong)]) == 2
    assert "1 of wrong not measured:\n  four: " in capsys.readouterr().out


def test_a_given_index_leaves_other_files_out(tmp_path):
    two_shards(tmp_path, RIGHT)
    write(tmp_path / "consolidated.safetensors", {"one": "F32"})
    assert len(torchinit.report_model(tmp_path).unmeasured) == 1
    assert torchinit.report_model(tmp_path / INDEX).unmeasured == []


def test_outliers_come_before_what_is_not_judged(tmp_path):
    write(tmp_path / "a.safetensors", {f"h.{n}.w": "F32" for n in range(4)} | {"scale": "F4"})
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    data[-8:-4] = b"\2\2\2\2"  # of h.3.w, among constants
    (tmp_path / "a.safetensors").write_bytes(data)
    assert main(["report", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {}}, "names no tensors: its weight_map is empty"),
        ({"weight_map": []}, "is not an index of shards"),
        ({"weight_map": None}, "is not an index of shards"),
        ({"weight_map": {"one": 3}}, "is not an index of shards"),
        ([], "is not an index of shards"),
        ({"weight_map": {"one": "c.safetensors"}}, "not in its folder: 'c.safetensors'"),
        ({"weight_map": {"one": "../a.safetensors"}}, "not in its folder"),
        ({"weight_map": {"one": "/etc/passwd"}}, "not in its folder: '/etc/passwd'"),
        ({"weight_map": {"one": "./a.safetensors"}}, "not in its folder"),
        ({"weight_map": {"one": ""}}, "not in its folder: ''"),
        ({"weight_map": {"one": "config.json"}}, "not in its folder: 'config.json'"),
        ({"weight_map": {"one": "a\0b"}}, "not in its folder: 'a\\x00b'"),
        ({"weight_map": {"one": "\ud800"}}, "not in its folder: '\\ud800'"),
    ],
)  # fmt: skip
def test_indices_that_are_none(tmp_path, index, said):
    folder = tmp_path / "folder"
    two_shards(folder, RIGHT)
    write(tmp_path / "a.safetensors", {"one": "F32"})
    (folder / "config.json").write_text("{}")
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ArgumentError, match=re.escape(said)):
        torchinit.report_model(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "too deeply nested"),
        ('{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}', "'a' is given twice"),
        (r'{"weight_map": {"\ud800": "a.safetensors"}}', r"'\\ud800' is not Unicode text"),
        ('{"weight_map": NaN}', "NaN is not a number"),
        ('{"weight_map": -Infinity}', "-Infinity is not a number"),
        ('{"weight_map": ' + "9" * 5000 + "}", "is not JSON"),
        ("", "is not JSON"),
        ("\ufeff{}", "is not JSON"),
    ],
)  # fmt: skip
def test_indices_that_are_no_json(tmp_path, text, said):
    two_shards(tmp_path, RIGHT)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ArgumentError, match=said):
        torchinit.report_model(tmp_path)


# Dtypes.


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F2_OF_THE_FUTURE"])
def test_unknown_dtypes_are_listed_and_the_rest_is_measured(tmp_path, dtype):
    write(tmp_path / "a.safetensors", {"a": "F32", "scale": dtype, "b": "BF16"})
    report = torchinit.report_model(tmp_path, {"**": torchinit.Normal(0.02)})
    assert [row.name for row in report] == ["a", "b"]
    assert report.unmeasured == [("scale", f"has dtype {dtype}, which is not measured")]
    assert main(["report", str(tmp_path)]) == 2


@pytest.mark.parametrize("dtype", [
    "F8_E4M3", "F8_E8M0", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U64", "C64", "BOOL", "I8",
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:1 of 1 rule matches nothing")
def test_what_torch_can_read_is_measured(tmp_path, dtype):
    write(tmp_path / "a.safetensors", {"a.weight": dtype})
    report = torchinit.report_model(tmp_path, {"**": torchinit.Normal(0.02)})
    assert len(report) == 1
    assert report[0].moments.finite == report[0].moments.numel
    assert report.unmeasured == []


# What is not a checkpoint, and what to give instead.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"abc", "it has 3 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
         "a pointer of Git LFS, not the file: run git lfs pull"),
        (b"<!DOCTYPE html><html><head>", "a web page or XML, not the file: download it again"),
        (b"\n<html lang='en'>          ", "a web page"),
        (b"<?xml version='1.0'?><Error>", "a web page or XML"),
        (b"PK\3\4" + bytes(40), "as torch.save writes"),
        (b"\x80\2ctorch._utils\n" + bytes(40), "as torch.save writes"),
        (b"GGUF\3\0\0\0" + bytes(40), "GGUF"),
        (b"{'error': 'not found'}", "not a safetensors file, or cut off"),
        ((100).to_bytes(8, "little") + b"{}", "cut off: its header would have 100 bytes"),
        ((2).to_bytes(8, "little") + b"{}", "is a checkpoint without tensors"),
        ((2).to_bytes(8, "little") + b"[]", "its header is not a JSON object"),
        ((9).to_bytes(8, "little") + b'{"a": [}]', "is not JSON"),
        ((4).to_bytes(8, "little") + b"\xff\xfe\xff\xff", "is not JSON"),
        (bytes(64), "not a safetensors file"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path, content, said):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ArgumentError, match=said):
        torchinit.report_model(tmp_path)


A = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": {**A, "shape": [5]}}, "its header says of 'a'"),
        ({"a": {**A, "shape": [-4]}}, "its header says of 'a'"),
        ({"a": {**A, "shape": [True, 4]}}, "its header says of 'a'"),
        ({"a": {**A, "shape": [4.0]}}, "its header says of 'a'"),
        ({"a": {**A, "shape": 4}}, "its header says of 'a'"),
        ({"a": {**A, "shape": [2**70, 0], "data_offsets": [0, 0]}}, "its header says of 'a'"),
        ({"a": {**A, "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}}, "its header says of"),
        ({"a": {**A, "shape": [1] * 100 + [4]}}, "its header says of 'a'"),
        ({"a": {**A, "data_offsets": [16, 0]}}, "its header says of 'a'"),
        ({"a": {**A, "data_offsets": [0, 16, 32]}}, "its header says of 'a'"),
        ({"a": {**A, "data_offsets": None}}, "its header says of 'a'"),
        ({"a": {**A, "dtype": ["F32"]}}, "its header says of 'a'"),
        ({"a": None}, "its header says of 'a': None"),
        ({"a": {**A, "data_offsets": [4, 20]}}, "'a' begins at 4, and what is before it ends at 0"),
        ({"a": A, "b": A}, "'b' begins at 0, and what is before it ends at 16"),
        ({"a": A, "b": {**A, "data_offsets": [16, 32]}}, "it is cut off"),
        ({}, "it has 16 bytes of values, and its header says 0"),
    ],
)  # fmt: skip
def test_headers_that_are_wrong(tmp_path, header, said):
    write(tmp_path / "a.safetensors", json.dumps(header).encode(), bytes(16))
    with pytest.raises(ArgumentError, match=said):
        torchinit.report_model(tmp_path)


def test_a_name_twice_in_a_header(tmp_path):
    entry = json.dumps(A)
    write(tmp_path / "a.safetensors", f'{{"a": {entry}, "a": {entry}}}'.encode(), bytes(16))
    with pytest.raises(ArgumentError, match="'a' is given twice"):
        torchinit.report_model(tmp_path)


def test_one_name_in_several_files(tmp_path):
    write(tmp_path / "a.safetensors", {"one": "F32"})
    write(tmp_path / "b.safetensors", {"one": "F32", "two": "F32"})
    write_index(tmp_path, {"one": "a.safetensors", "two": "b.safetensors"})
    with pytest.raises(ArgumentError, match=r"'one' in a\.safetensors and b\.safetensors"):
        torchinit.report_model(tmp_path)


def test_several_files_and_no_index(tmp_path):
    write(tmp_path / "adapter.safetensors", {"one": "F32"})
    write(tmp_path / "model.safetensors", {"one": "F32"})
    said = f"2 files .safetensors and no index: give one, such as {tmp_path / 'model.safetensors'}"
    with pytest.raises(ArgumentError, match=re.escape(said)):
        torchinit.report_model(tmp_path)


def test_several_indices(tmp_path):
    two_shards(tmp_path, RIGHT)
    (tmp_path / "model.fp16.safetensors.index.json").write_text((tmp_path / INDEX).read_text())
    with pytest.raises(ArgumentError, match="has 2 indices of shards: give one, such as"):
        torchinit.report_model(tmp_path)
    assert len(torchinit.report_model(tmp_path / INDEX)) == 3


def cached(root: Path) -> Path:
    """A snapshot in a cache of the hub, whose files are links to blobs."""
    repository = root / "models--org--name"
    blob = write(repository / "blobs" / "4d7a", {"one": "F32"})
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@pytest.mark.parametrize("levels", [1, 2, 3], ids=["snapshots", "repository", "hub"])
def test_folders_above_a_checkpoint_say_where_it_is(tmp_path, levels):
    snapshot = cached(tmp_path)
    assert len(torchinit.report_model(snapshot)) == 1
    with pytest.raises(ArgumentError, match=re.escape(f"give {snapshot}")):
        torchinit.report_model(snapshot.parents[levels - 1])


# Links.


def test_links_out_of_the_folder(tmp_path):
    outside = write(tmp_path / "outside.safetensors", {"one": "F32"})
    folder = tmp_path / "folder"
    folder.mkdir()
    link = folder / "model.safetensors"
    link.symlink_to(outside)
    with pytest.raises(ArgumentError, match="outside its folder: give that file"):
        torchinit.report_model(folder)
    write_index(folder, {"one": "model.safetensors"})
    with pytest.raises(ArgumentError, match="outside its folder"):
        torchinit.report_model(folder)
    (folder / INDEX).rename(tmp_path / INDEX)
    (folder / INDEX).symlink_to(tmp_path / INDEX)
    with pytest.raises(ArgumentError, match=f"{INDEX} is a link"):
        torchinit.report_model(folder)
    (folder / INDEX).unlink()
    assert len(torchinit.report_model(link)) == 1  # the caller named it
    link.unlink()
    outside.rename(link)
    (tmp_path / "secret.json").write_text('{"model_type": "gpt2"}')
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ArgumentError, match=r"config\.json is a link"):
        torchinit.report_model(folder)


def test_links_in_the_folder_and_to_it(tmp_path):
    write(tmp_path / "folder" / "real" / "x", {"one": "F32"})
    (tmp_path / "folder" / "model.safetensors").symlink_to("real/x")
    (tmp_path / "alias").symlink_to("folder")
    assert len(torchinit.report_model(tmp_path / "alias")) == 1
    (tmp_path / "folder" / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "folder" / "gone.safetensors").symlink_to("gone")
    assert len(torchinit.report_model(tmp_path / "folder")) == 1


# Order.


def order(path):
    return [tensor.name for tensor in read_checkpoint(path)[0]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # As a model has them: kept.
        (["emb", "h.0.q", "h.0.k", "h.1.q", "h.1.k", "norm", "head"], None),
        # As the safetensors library sorts them: by numbers.
        (["h.0.w", "h.10.w", "h.2.w", "wte"], ["h.0.w", "h.2.w", "h.10.w", "wte"]),
        (["decoder.1.w", "encoder.1.w", "head"], ["encoder.1.w", "decoder.1.w", "head"]),
        (["shared", "decoder.1.w", "encoder.1.encoder_attn", "lm_head"],
         ["shared", "encoder.1.encoder_attn", "decoder.1.w", "lm_head"]),
        (["encoder.0.w", "decoder.0.encoder_attn.w"], None),
    ],
)  # fmt: skip
def test_the_order_of_the_model(tmp_path, names, expected):
    write(tmp_path / "a.safetensors", dict.fromkeys(names, "F32"))
    assert order(tmp_path) == (expected or names)


def test_shards_follow_their_numbers(tmp_path):
    files = {"h.0.w": "m-2-of-10.safetensors", "h.1.w": "m-10-of-10.safetensors"}
    for name, file in files.items():
        write(tmp_path / file, {name: "F32"})
    write_index(tmp_path, files)
    assert order(tmp_path) == ["h.0.w", "h.1.w"]


# Text that is not to be trusted.

HOSTILE = [
    "bad\x1b[31mred\nname", "\x9b2J", "a\rb", "a\u202eb", "a\u2028b", "tab\tb", "\x00", "\x7f",
    "a\u200bb", "$\\frac$\x1b",
]  # fmt: skip


def assert_safe(text: str, lines: int | None = None) -> None:
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    assert lines is None or text.count("\n") + 1 == lines, repr(text)


def assert_safe_picture(file: Path) -> None:
    assert_safe(file.read_text(encoding="utf-8").replace("\xa0", " "))  # matplotlib's own spaces


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names(tmp_path, name, capsys):
    pytest.importorskip("matplotlib", reason="comes with the extra report")
    names = [f"layers.{n}.{name}" for n in range(3)] + [name, f"{name}.1.w", f"{name}s.1.w"]
    write(tmp_path / "a.safetensors", dict.fromkeys(names, "F32") | {f"{name}!": f"F0{name}"})
    rules = {"**": torchinit.Normal(0.02)}
    report = torchinit.report_model(tmp_path, rules)
    assert len(report) == 6
    assert len(report.outliers) == 6
    assert_safe(str(report))
    report.save(tmp_path / "report.svg")
    assert_safe_picture(tmp_path / "report.svg")
    with pytest.raises(ArgumentError) as caught:
        torchinit.report_model(tmp_path, {"nothing": "zeros"})
    assert_safe(str(caught.value), lines=1)
    write_index(tmp_path, {name: f"{name}.safetensors"})
    assert main(["report", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert_safe(err.removesuffix("\n"), lines=1)


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\0" not in name and name.isascii()])
def test_hostile_names_of_files(tmp_path, name, capsys):
    folder = tmp_path / name
    write(folder / f"{name}.safetensors", {"one": "F32"})
    report = torchinit.report_model(folder, against=folder)
    report.save(tmp_path / "report.svg")
    assert_safe_picture(tmp_path / "report.svg")
    write_index(folder, {"two": f"{name}.safetensors"})
    assert main(["report", str(folder), "--against", str(folder)]) == 2
    assert_safe(capsys.readouterr().out)
    (folder / INDEX).write_text("{")
    assert main(["report", str(folder)]) == 2
    assert_safe(capsys.readouterr().err.removesuffix("\n"), lines=1)


def test_hostile_names_in_memory():
    model = nn.ParameterDict({name: torch.randn(4, 4) for name in HOSTILE})
    assert_safe(str(torchinit.report_model(model)))
    assert_safe(str(torchinit.plan_model(model, {"**": "zeros"})))


def test_printable_keeps_what_can_be_read():
    for text in ("model.layers.0.weight", "Ωμέγα", "層", "a b", "\\frac"):
        assert printable(text) == text
