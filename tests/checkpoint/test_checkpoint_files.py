"""The files of a checkpoint: how they are written, what stays of a run that fails, and resuming."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from written import PIECE, RULES, SHAPES, assert_equal, contents, read, small, tmpfs, write

import torchinit
from made import model_of
from torchinit.checkpoint import folder, safetensors, writer
from torchinit.checkpoint.folder import RECORD
from torchinit.errors import ArgumentError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint that nothing disturbed."""
    return contents(write(small, tmp_path_factory.mktemp("whole") / "a", RULES))


def refuse_direct(monkeypatch, error=errno.EINVAL):
    """Has files not be opened past the page cache."""
    opened = os.open

    def refuse(path, flags, *rest, **named):
        if flags & os.O_DIRECT:
            raise OSError(error, os.strerror(error))
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)


def test_one_file_has_no_index(tmp_path):
    path = write(small, tmp_path / "a", RULES, shard_size="5GB")
    assert sorted(contents(path)) == ["model.safetensors", RECORD]
    model = torchinit.init_model_(small(), RULES, seed=0, device="cpu")
    assert_equal(read(path), model.state_dict())


def test_through_the_page_cache(tmp_path, monkeypatch, whole):
    refuse_direct(monkeypatch)
    assert contents(write(small, tmp_path / "a", RULES)) == whole


def test_where_only_the_write_is_refused(tmp_path, monkeypatch, whole):
    wrote = os.pwrite
    told = []

    def refuse(number, data, begin):
        import fcntl

        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_DIRECT and begin >= 2 * PIECE:
            told.append(begin)
            raise OSError(errno.EINVAL, "no")
        return wrote(number, data, begin)

    monkeypatch.setattr(os, "pwrite", refuse)
    assert contents(write(small, tmp_path / "a", RULES)) == whole
    assert told or not writer._DIRECT


@pytest.mark.parametrize("size", [PIECE, 100])
def test_writes_that_are_cut_short(size, tmp_path, monkeypatch, whole):
    wrote = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, data, begin: wrote(number, data[:size], begin))
    assert contents(write(small, tmp_path / "a", RULES, piece_size=4 * PIECE)) == whole


def test_a_tmpfs_or_any_other_file_system(whole):
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("there is no /dev/shm")
    path = shared / f"torchinit-test-{os.getpid()}"
    try:
        assert contents(write(small, path, RULES)) == whole
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = write(small, tmp_path / "a", RULES)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


@pytest.mark.parametrize("form", ["{}/", "../b/a", "link", "empty"])
def test_paths(form, tmp_path, monkeypatch, whole):
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    if form == "link":
        (tmp_path / "elsewhere").mkdir()
        Path("link").symlink_to(tmp_path / "elsewhere")
    if form == "empty":
        Path("empty").mkdir()
    path = write(small, form.format(tmp_path / "new" / "a"), RULES)
    assert contents(path) == whole
    assert contents(Path(form.format(tmp_path / "new" / "a"))) == whole


def test_a_folder_with_files_in_it(tmp_path, whole):
    path = tmp_path / "a"
    path.mkdir()
    (path / "mine").write_text("mine")
    with pytest.raises(ArgumentError, match=r"a is not empty \(mine\)"):
        write(small, path, RULES)
    with pytest.raises(ArgumentError, match=r"a has files in it \(mine\), and no torchinit.json"):
        write(small, path, RULES, resume=True)
    assert contents(path) == {"mine": b"mine"}
    written = write(small, tmp_path / "b", RULES)
    with pytest.raises(ArgumentError, match=r"b holds a finished checkpoint \(model"):
        write(small, written, RULES)
    assert contents(written) == whole


class Named(torch.nn.Module):
    """Holds one tensor under any name."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.weight = torch.nn.Parameter(torch.empty(5, 3, device="meta"))

    def state_dict(self, *_, **__):
        return {self.name: self.weight}


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", "a.\udcff", 3, None, ("a",)])
@pytest.mark.parametrize("shard_size", [1, "5GB"])
def test_names_that_nobody_could_read(name, shard_size, tmp_path):
    with pytest.raises(ArgumentError, match="cannot name a tensor: "):
        write(lambda: Named(name), tmp_path / "a", {"**": "ones"}, shard_size=shard_size)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "name", ["a.__metadata__", "", "\0", "\x1b[31m\n", '"', "é\U0001f600", "a" * 5000]
)
def test_names_that_look_odd(name, tmp_path):
    path = write(lambda: Named(name), tmp_path / "a", {"**": "ones"})
    assert_equal(read(path), {name: torch.ones(5, 3)})


def test_a_header_longer_than_readers_take(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "_MOST_HEADER", 10_000)
    with pytest.raises(
        ArgumentError, match=r"4,\d* bytes: readers take 10,000|would have 1 tensors"
    ):
        write(lambda: Named("a" * 10_000), tmp_path / "a", {"**": "ones"})
    assert not (tmp_path / "a").exists()
    write(lambda: Named("a" * 1000), tmp_path / "a", {"**": "ones"})


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ArgumentError, match="a is a file"):
        write(small, tmp_path / "a", RULES)


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(
        folder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10_000)
    )
    with pytest.raises(ArgumentError, match=r"a needs .* bytes, and its disk has 10,000 free"):
        write(small, tmp_path / "a", RULES)
    assert not (tmp_path / "a").exists()


def test_room_is_asked_for_what_is_left(tmp_path, monkeypatch, whole):
    path = write(small, tmp_path / "a", RULES)
    (path / "model-00002-of-00003.safetensors").unlink()
    monkeypatch.setattr(
        folder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 50_000)
    )
    assert contents(write(small, path, RULES, resume=True)) == whole


def test_a_disk_that_fills_up_meanwhile(tmp_path, monkeypatch, whole):
    """A tmpfs of 64 KiB, of which it is said that there is room for all."""
    with tmpfs(tmp_path / "disk", "size=64k") as disk:
        with pytest.raises(ArgumentError, match=r"bytes free|free: nothing was written"):
            write(small, disk / "a", RULES)
        assert not (disk / "a").exists()
        monkeypatch.setattr(folder, "_check_room", lambda *_: None)
        with pytest.raises(OSError, match="No space left") as raised:
            write(small, disk / "a", RULES)
        assert raised.value.errno == errno.ENOSPC
        assert "safetensors" in str(raised.value.filename)
        assert_not_whole(disk / "a", whole)


@pytest.mark.parametrize("piece", [0, 3, 7])
def test_a_write_that_fails(piece, tmp_path, monkeypatch, whole):
    path = tmp_path / "a"
    left = [piece]
    wrote = os.pwrite

    def fail(number, data, begin):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return wrote(number, data, begin)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match=r"No space left on device: .*safetensors"):
            write(small, path, RULES)
    assert_not_whole(path, whole)
    assert contents(write(small, path, RULES, resume=True)) == whole


def test_an_error_of_a_callable(tmp_path):
    def fail(_tensor):
        raise KeyError("mine")

    with pytest.raises(ArgumentError, match=r"raised KeyError for parameter 'layers\.2\.weight'"):
        write(small, tmp_path / "a", {"layers.2.*": fail, **RULES})
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    made = Path.mkdir

    def refuse(self, *arguments, **named):
        if self.name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        made(self, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: .*a'"):
        write(small, tmp_path / "a", RULES)


def test_a_read_only_disk(tmp_path):
    with tmpfs(tmp_path / "disk", "ro") as disk:
        for path in (disk, disk / "a"):
            with pytest.raises(OSError, match="Read-only file system"):
                write(small, path, RULES)
        assert not list(disk.iterdir())


def assert_not_whole(path, whole):
    """Whatever has a name is right, and no index, or single file, says that all of it is there."""
    if path.exists():
        found = contents(path)
        assert "model.safetensors.index.json" not in found
        named = {name: data for name, data in found.items() if name.endswith(".safetensors")}
        assert named.items() <= whole.items()
        assert not [name for name in found if name.endswith(".tmp")]


def test_bytes_are_on_the_disk_before_their_name_and_names_after_all(tmp_path, monkeypatch):
    """What a machine that goes down leaves, and no other process sees."""
    happened = []
    sync, rename = os.fsync, Path.replace

    def synced(number):
        happened.append(("synced", os.fstat(number).st_ino))
        sync(number)

    def renamed(self, target):
        happened.append(("named", self.stat().st_ino))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    path = write(small, tmp_path / "a", RULES)
    named = [number for number, (what, _) in enumerate(happened) if what == "named"]
    files = [happened[number][1] for number in named]
    assert sorted(files) == sorted(one.stat().st_ino for one in path.iterdir())
    for number, file in zip(named, files, strict=True):
        assert ("synced", file) in happened[:number]
        assert ("synced", path.stat().st_ino) in happened[number:]
    assert happened[0] == ("synced", tmp_path.stat().st_ino)


# Resuming.


def test_what_is_whole_stays(tmp_path, whole):
    path = write(small, tmp_path / "a", RULES)
    kept = path / "model-00001-of-00003.safetensors"
    before = kept.stat()
    for name in ("model-00002-of-00003.safetensors", "model.safetensors.index.json"):
        (path / name).unlink()
    third = path / "model-00003-of-00003.safetensors"
    third.write_bytes(third.read_bytes()[:-1])
    assert contents(write(small, path, RULES, resume=True)) == whole
    assert kept.stat().st_ino == before.st_ino
    assert kept.stat().st_mtime_ns == before.st_mtime_ns
    assert contents(write(small, path, RULES, resume=True)) == whole


def test_resume_mends_an_index(tmp_path, whole):
    path = write(small, tmp_path / "a", RULES)
    (path / "model.safetensors.index.json").write_text("{")
    with pytest.warns(UserWarning, match=r"index\.json had other contents, and is written again"):
        write(small, path, RULES, resume=True)
    assert contents(path) == whole


def test_resume_begins_what_is_not_there(tmp_path, whole):
    assert contents(write(small, tmp_path / "a", RULES, resume=True)) == whole


def double(tensor):
    return torch.nn.init.normal_(tensor, std=2.0)


def triple(tensor):
    return torch.nn.init.normal_(tensor, std=3.0)


OTHERS = {
    "seed": ({"seed": 1}, r"the seed \(0 there, 1 asked for\)"),
    "dtype": ({"dtype": torch.bfloat16}, r"the dtype \(None there, bfloat16 asked for\)"),
    "shards": ({"shard_size": 40_000}, r"the shard size \(30000 there, 40000 asked for\)"),
    "rules": ({"rules": {"norm.weight": "ones", "**": torchinit.Normal(0.03)}}, "the rules"),
    "callable": ({"rules": {"norm.weight": "ones", "**": double}}, "the rules"),
    "model": (
        {"build": lambda: model_of(SHAPES | {"layers.0.weight": (41, 70)})},
        "the names, shapes or dtypes of the tensors differ",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_resume_refuses_what_was_begun_otherwise(name, tmp_path, whole):
    path = write(small, tmp_path / "a", RULES)
    (path / "model.safetensors.index.json").unlink()
    changed, said = OTHERS[name]
    arguments = {"build": small, "rules": RULES} | changed
    with pytest.raises(ArgumentError, match=f"a was begun with other arguments: .*{said}"):
        write(arguments.pop("build"), path, arguments.pop("rules"), resume=True, **arguments)
    assert contents(path) == {n: d for n, d in whole.items() if not n.endswith("index.json")}


def test_resume_refuses_other_rows_of_padding(tmp_path):
    def padded(row):
        return lambda: torch.nn.Embedding(90, 40, padding_idx=row, device="meta")

    path = write(padded(3), tmp_path / "a", {"**": torchinit.Normal(0.02)})
    with pytest.raises(ArgumentError, match="the rules"):
        write(padded(4), path, {"**": torchinit.Normal(0.02)}, resume=True)


def test_callables_are_told_apart_by_their_text(tmp_path):
    path = write(small, tmp_path / "a", {"**": double})
    write(small, path, {"**": double}, resume=True)
    with pytest.raises(ArgumentError, match="the rules"):
        write(small, path, {"**": triple}, resume=True)


def test_resume_refuses_another_version(tmp_path):
    path = write(small, tmp_path / "a", RULES)
    record = json.loads((path / RECORD).read_text())
    (path / RECORD).write_text(json.dumps(record | {"torchinit": "0.0.1"}))
    with pytest.raises(ArgumentError, match=r"torchinit's version \(0.0.1 there, "):
        write(small, path, RULES, resume=True)
    (path / RECORD).write_text("{")
    with pytest.raises(ArgumentError, match=r"torchinit\.json cannot be read"):
        write(small, path, RULES, resume=True)


def test_two_writers_at_once(tmp_path, monkeypatch, whole):
    path = tmp_path / "a"
    second = []
    replace = Path.replace

    def intrude(self, target):
        if not second:
            second.append(None)
            with pytest.raises(ArgumentError, match="another process is writing to"):
                write(small, path, RULES, resume=True)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", intrude)
    assert contents(write(small, path, RULES)) == whole
    assert second


# Killed.


def die_at(call):
    """Has this process be killed at the call of that number of any that changes the disk."""
    made = itertools.count()

    def counted(function):
        def wrapper(*arguments, **named):
            if next(made) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return wrapper

    for name in ("pwrite", "fsync", "ftruncate", "open"):
        setattr(os, name, counted(getattr(os, name)))
    for name in ("replace", "unlink", "mkdir", "rmdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    return made


def run_child(path, call):
    """A run that is killed at a call; returns how many it made, or -1 if it was killed."""
    child = os.fork()
    if not child:
        try:
            made = die_at(call)
            write(small, path, RULES, resume=True)
            os._exit(next(made))
        finally:
            os._exit(255)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return -1
    assert os.WEXITSTATUS(status) != 255
    return os.WEXITSTATUS(status)


def test_killed_at_random_moments(tmp_path, whole, monkeypatch):
    """What has its last file is whole and right; resumed, killed, and resumed, it is the same."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # waits for a disk, which outlives a process
    chosen = random.Random(0)
    last = "model.safetensors.index.json"
    calls = run_child(tmp_path / "all", -1)
    assert calls > 40
    partly = 0
    for number in range(20):
        path = tmp_path / str(number)
        assert run_child(path, chosen.randrange(calls)) == -1
        for _ in range(2):
            found = contents(path) if path.exists() else {}
            named = {n: data for n, data in found.items() if not n.endswith(".tmp")}
            assert named.items() <= whole.items()
            assert last not in named or named == whole
            partly += 0 < len(named) < len(whole)
            run_child(path, chosen.randrange(calls))
        assert contents(write(small, path, RULES, resume=True)) == whole
    assert partly > 10


class _Own(nn.Linear):
    """A model with a state_dict of its own."""

    def __init__(self, state):
        super().__init__(2, 2, device="meta")
        self.state = state

    def state_dict(self, *args, **kwargs):
        return self.state(self, *args, **kwargs)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda _, **__: [], r"_Own\.state_dict\(\) must return tensors by name, not list"),
        (lambda _, **__: None, "not NoneType"),
        (lambda _: {}, r"_Own\.state_dict\(keep_vars=True\) raised TypeError"),
        (lambda _, **__: 1 / 0, "raised ZeroDivisionError"),
        (lambda _, **__: {"a": 3}, r"state_dict\(\)\['a'\] is a int"),
        (lambda _, **__: {"a": torch.zeros(2)}, "is not a parameter or buffer"),
        (lambda model, **__: {"a\ud800": model.weight}, "it is not Unicode"),
        (lambda model, **__: {3: model.weight}, "it is not a string"),
    ],
)
def test_a_state_dict_that_cannot_be_stored(state, said, tmp_path):
    with pytest.raises(ArgumentError, match=said):
        torchinit.write_checkpoint(
            lambda: _Own(state), tmp_path / "out", {"**": torchinit.Normal(1.0)}, seed=0
        )
    assert not (tmp_path / "out").exists()
