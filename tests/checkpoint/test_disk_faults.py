"""Whatever the disk, a signal or another writer does, ``resume`` gives the bytes of a quiet run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest
from disk_faults import LAST, Disk
from written import RULES, contents, small, tmpfs, write

from conftest import long
from torchinit.checkpoint import folder, writer
from torchinit.checkpoint.folder import RECORD

FAULTS = {
    "EIO": (errno.EIO, False),
    "EIO for good": (errno.EIO, True),
    "ENOSPC": (errno.ENOSPC, False),
    "ENOSPC for good": (errno.ENOSPC, True),
    "killed": (-signal.SIGKILL, False),
    "interrupted": (-signal.SIGINT, False),
}
each_fault = pytest.mark.parametrize("fault", FAULTS)
WHOLE: dict[str, bytes] = {}  # a checkpoint that nothing disturbed
CALLS: list[str] = []  # and the calls that wrote it


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Runs writers on a disk that can fail."""
    try:
        disk = Disk(tmp_path_factory.mktemp("library"))
    except FileNotFoundError as why:
        pytest.skip(str(why))
    path = tmp_path_factory.mktemp("whole") / "a"
    (ended,) = disk.write(path)
    assert not ended.kind, ended
    WHOLE.update(contents(path))
    CALLS.extend(ended.calls)
    yield disk
    disk.close()


def check_left(path):
    """What has its final name is right, and the last file is there only if all are."""
    found = contents(path) if path.exists() else {}
    named = {name: data for name, data in found.items() if not name.endswith(".tmp")}
    assert named.items() <= WHOLE.items()
    assert LAST not in named or named == WHOLE
    return found


def check_resumed(disk, path):
    """A run without faults ends right, and removes nothing but what an earlier one left."""
    others = {}
    if path.exists() and RECORD in contents(path):
        others = {"notes.txt": b"mine", "config.json.tmp": b"", "x.0123abcd.tmp": b""}
        for name, data in others.items():
            (path / name).write_bytes(data)
    (ended,) = disk.write(path, resume=True)
    assert not ended.kind, ended
    assert contents(path) == WHOLE | others
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def check_fault(disk, folder, fault, number):
    """A fault, another while resuming, and no more."""
    error, lasting = FAULTS[fault]
    path = folder / str(number) / "a"
    for at in (number, (7 * number + 5) % len(CALLS)):
        path.parent.mkdir(exist_ok=True)
        (ended,) = disk.write(path, at=at, error=error, lasting=lasting, resume=True)
        assert ended.kind in ("", "OSError", "KeyboardInterrupt"), ended
        assert "\n" not in ended.text
        if not ended.kind and not ended.killed:
            assert check_left(path).keys() >= WHOLE.keys()
        check_left(path)
    check_resumed(disk, path)


@each_fault
def test_a_fault_at_some_calls(fault, disk, tmp_path):
    for number in range(list(FAULTS).index(fault), len(CALLS), 12):
        check_fault(disk, tmp_path, fault, number)


@long
@each_fault
def test_a_fault_at_every_call(fault, disk, tmp_path):
    for number in range(len(CALLS) + 3):
        check_fault(disk, tmp_path, fault, number)


def test_every_kind_of_call_is_counted(disk):
    assert disk
    kinds = {name.removesuffix("64") for name in CALLS}
    assert kinds >= {"mkdir", "open", "flock", "write", "pwrite", "ftruncate", "fsync", "rename"}
    assert kinds >= {"close", "rmdir"}


def check_many(disk, folder, numbers, *, locks):
    for number in numbers:
        path = folder / str(number) / "a"
        path.parent.mkdir()
        error = (-signal.SIGKILL, errno.EIO)[number % 2]
        first, *others = disk.write(
            path, at=number, error=error, among=2 + number % 3 // 2, resume=True, locks=locks
        )
        for one in others:
            assert one.kind in ("ArgumentError" if locks else "", ""), one
            assert one.text in ("", f"another process is writing to {path}")
        found = check_left(path)
        if any(not one.kind and not one.killed for one in (first, *others)):
            assert found.keys() >= WHOLE.keys()
        check_resumed(disk, path)


@pytest.mark.parametrize("locks", [True, False])
def test_writers_at_once_of_which_one_fails_or_dies(locks, disk, tmp_path):
    """Where there are locks one writes and the others say so; else all write the same."""
    check_many(disk, tmp_path, range(int(locks), len(CALLS) + 20, 17), locks=locks)


@long
@pytest.mark.parametrize("locks", [True, False])
def test_writers_at_once_of_which_one_fails_or_dies_anywhere(locks, disk, tmp_path):
    check_many(disk, tmp_path, range(len(CALLS) + 20), locks=locks)


# One at a time, in this process.


def fail_once(monkeypatch, owner, name, chosen):
    """Has a function fail at its first call that is chosen by its arguments."""
    real, failed = getattr(owner, name), []

    def fail(*arguments, **named):
        if not failed and chosen(*arguments):
            failed.append(arguments)
            raise OSError(errno.EIO, "EIO")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, fail)
    return failed


@pytest.mark.parametrize(
    "name", [RECORD, "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", LAST]
)
@pytest.mark.parametrize("is_stuck", [False, True])
def test_a_rename_that_fails(name, is_stuck, tmp_path, monkeypatch):
    """And the file cannot be removed either, if it is stuck."""
    path = tmp_path / "a"
    with monkeypatch.context() as patch:
        assert fail_once(patch, Path, "replace", lambda _, to: to.name == name) == []
        if is_stuck:
            fail_once(patch, Path, "unlink", lambda one: name in one.name)
        with pytest.raises(OSError, match="EIO"):
            write(small, path, RULES)
        if not is_stuck:
            assert not list(tmp_path.rglob("*.tmp"))
    whole = contents(write(small, tmp_path / "b", RULES))
    assert contents(write(small, path, RULES, resume=True)) == whole


def test_a_close_that_fails_is_not_repeated(tmp_path, monkeypatch):
    """Its number may be another file's by then."""
    closed = []
    real = os.close

    def close(number):
        closed.append(number)
        real(number)
        if len(closed) > 1 and number not in closed[:-1]:
            raise OSError(errno.EIO, "EIO")

    opened = os.open
    monkeypatch.setattr(
        os, "open", lambda *given, **named: closed.clear() or opened(*given, **named)
    )
    monkeypatch.setattr(os, "close", close)
    with pytest.raises(OSError, match="EIO"):
        write(small, tmp_path / "a", RULES, shard_size="1MB")


def test_an_interrupt_while_a_thread_is_started(tmp_path, monkeypatch):
    """A thread that nobody waits for opens no file any more."""
    begun = []
    real = writer.start_new_thread

    def start(*thread):
        begun.append(thread)
        if len(begun) == 2:
            raise KeyboardInterrupt
        real(*thread)

    monkeypatch.setattr(writer, "start_new_thread", start)
    with pytest.raises(KeyboardInterrupt):
        write(small, tmp_path / "a", RULES)
    function, arguments = begun[1]
    function(*arguments)
    assert not (tmp_path / "a").exists()


def test_a_folder_is_removed_only_by_who_made_it(tmp_path, monkeypatch):
    """And not by a second writer, which finds it locked."""
    path, refused = tmp_path / "a", []
    real = Path.iterdir

    def intrude(self):
        if self == path and not refused:
            refused.append(None)
            with pytest.raises(ValueError, match="another process is writing to"):
                write(small, path, RULES)
            assert path.is_dir()
        return real(self)

    monkeypatch.setattr(Path, "iterdir", intrude)
    whole = contents(write(small, tmp_path / "b", RULES))
    assert contents(write(small, path, RULES)) == whole
    assert refused


def test_a_process_that_was_forked_meanwhile_does_not_keep_the_lock(tmp_path, monkeypatch):
    children = []
    real = writer.write_file

    def fork(*arguments, **named):
        if not children:
            children.append(os.fork())
            if not children[0]:
                signal.pause()
        real(*arguments, **named)

    monkeypatch.setattr(folder, "write_file", fork)
    path = tmp_path / "a"
    try:
        write(small, path, RULES)
        write(small, path, RULES, resume=True)
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


def test_a_finished_checkpoint_on_a_read_only_disk(tmp_path):
    with tmpfs(tmp_path / "disk", "rw") as mounted:
        write(small, mounted / "a", RULES)
        remount = ["mount", "-o", "remount,ro", mounted]
        if subprocess.run(remount, capture_output=True, check=False).returncode:
            pytest.skip("remounting is not permitted here")
        write(small, mounted / "a", RULES, resume=True)
        with pytest.raises(OSError, match="Read-only"):
            write(small, mounted / "b", RULES, resume=True)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", LAST])
@pytest.mark.parametrize("change", [lambda _: b"{}", lambda data: data[:-1], lambda _: b"", None])
def test_small_files_are_compared(name, change, disk, tmp_path):
    path = tmp_path / "a"
    disk.write(path)
    if change is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(change((path / name).read_bytes()))
    before = {file: (path / file).stat().st_mtime_ns for file in WHOLE if file != name}
    check_resumed(disk, path)
    assert before == {file: (path / file).stat().st_mtime_ns for file in before}


def test_without_locks_a_writer_leaves_the_index_that_another_wrote(tmp_path, monkeypatch):
    """It may have finished between this writer's look and its writes."""
    path = write(small, tmp_path / "a", RULES)
    whole = contents(path)
    monkeypatch.setattr(folder, "fcntl", None)
    monkeypatch.setattr(folder, "_is_complete", lambda *_: False)
    monkeypatch.setattr(folder, "write_shards", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(small, path, RULES, resume=True)
    assert contents(path) == whole
