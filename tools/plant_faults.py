"""Plants faults in a copy of this tree, one at a time, and says which tests notice each.

    python tools/plant_faults.py [--only NAME ...] [--tests-from COMMIT] | --list | --check

A test suite that never fails proves nothing. tools/faults.toml has 30 plausible mistakes in every
package and in csrc; each names the files of `make test` that must notice it. A fault in csrc is
compiled into the kernels that these tests load: the files that depend on it are recompiled with
less optimisation and fewer interleaved groups, which do not change the bits. tests/native is built
without the sanitisers, which would only find more.

Only the named files run, and each stops at its first failure. This does not check that they pass
without the fault: `make test` does. An error before a test has run (an import, a fixture's module,
usage) does not count as a failed test.

With --tests-from, tests/ is taken from a commit, to find the faults that only newer tests notice. A
file that did not exist notices nothing.

The working tree does not change; objects without a fault stay in build/planted. Run it by hand, not
in CI.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tomllib

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tools" / "faults.toml"
KEPT = ROOT / "build" / "planted"
MOST_TESTS = 5
SECONDS = 900  # after this a test counts as hung
# Later flags win: these build in a third of the time.
QUICK = ["-O1", "-DTORCHINIT_QUICK_BUILD", "-fPIC", "-MMD", "-w"]


class Fault(NamedTuple):
    """A mistake.

    Attributes:
        name: of it.
        file: the file to change.
        old, new: text that occurs once in the file, and its replacement.
        tests: files, one of which must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str]


class Noticed(NamedTuple):
    """The outcome: the test that failed, or none, and a remark."""

    by: str = ""
    said: str = ""


def read_faults() -> list[Fault]:
    """The table."""
    return [Fault(**row) for row in tomllib.loads(TABLE.read_text())["fault"]]


def problems(faults: Sequence[Fault], root: Path = ROOT) -> list[str]:
    """The problems of a table, one line each."""
    found = []
    names = [fault.name for fault in faults]
    found += [f"{name}: more than one has this name" for name in names if names.count(name) > 1]
    for name, file, old, new, tests in faults:
        path = root / file
        times = path.read_text().count(old) if path.is_file() else 0
        if times != 1:
            found.append(f"{name}: its old text occurs {times} times in {file}, and must once")
        if old == new:
            found.append(f"{name}: changes nothing")
        if not 1 <= len(tests) <= MOST_TESTS:
            found.append(f"{name}: names {len(tests)} files of tests, and must 1 to {MOST_TESTS}")
        found += [f"{name}: there is no {test}" for test in tests if not (root / test).is_file()]
    return found


def copy_tree(tree: Path) -> None:
    """Copies files that git tracks or could track, and the native module built in place."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    built = [*(ROOT / "src").rglob("_native*.so"), *(ROOT / "src").rglob("_build.json")]
    if len(built) < 2:
        raise SystemExit("there is no native module in src: make .venv/.installed builds it")
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    for name in [*names, *(str(path.relative_to(ROOT)) for path in built)]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)


def take_tests(tree: Path, commit: str) -> None:
    """Replaces tests/ by its state at a commit."""
    command = ["git", "archive", commit, "tests"]
    packed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    shutil.rmtree(tree / "tests")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(tree, filter="data")


class Build:
    """Compiles csrc of a tree: unchanged files once, files affected by a fault again."""

    def __init__(self, tree: Path) -> None:
        spec = importlib.util.spec_from_file_location("planted_setup", tree / "setup.py")
        assert spec is not None
        assert spec.loader is not None
        setup: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(setup)
        self._tree = tree
        self._compiler = shlex.split(setup.find_compiler())
        folders = (setup.find_pybind11()[0], sysconfig.get_path("include"))
        includes = [f"-I{folder}" for folder in folders]
        self._flags = [*setup.COMPILE_FLAGS, *QUICK, *includes]
        self._module = setup.cpu_extension().sources
        self._kernels = setup.sources("job", "cpu")
        self._objects(self._module, KEPT)

    def make_module(self, folder: Path) -> None:
        """Links the module into its place, with recompiled objects from a folder."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        module = f"src/torchinit/native/_native{suffix}"
        self._run("-shared", *self._objects(self._module, folder), "-o", module)

    def make_program(self, source: str, folder: Path) -> Path:
        """A program of tests/native."""
        program = folder / Path(source).stem
        objects = self._objects([*self._kernels, source], folder)
        self._run(*objects, "-o", str(program), "-pthread")
        return program

    def _objects(self, sources: Sequence[str], folder: Path) -> list[str]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda source: self._object(source, folder), sources))

    def _object(self, source: str, folder: Path) -> str:
        name = source.replace("/", "-") + ".o"
        if self._is_current(KEPT / name):
            return str(KEPT / name)
        made = folder / name
        if not self._is_current(made):
            folder.mkdir(parents=True, exist_ok=True)
            part, needs = made.with_suffix(".part"), made.with_suffix(".d")
            self._run(*self._flags, "-MF", str(needs), "-c", source, "-o", str(part))
            part.replace(made)  # complete, or absent
        return str(made)

    def _is_current(self, made: Path) -> bool:
        """Whether an object exists and is newer than all its sources."""
        if not made.exists() or not made.with_suffix(".d").exists():
            return False
        _, _, files = made.with_suffix(".d").read_text().replace("\\\n", " ").partition(":")
        needs = (self._tree / name for name in (*files.split(), "setup.py", "csrc/flags.txt"))
        age = made.stat().st_mtime
        return all(file.exists() and file.stat().st_mtime < age for file in needs)

    def _run(self, *words: str) -> None:
        run = subprocess.run(
            [*self._compiler, *words], cwd=self._tree, capture_output=True, text=True
        )
        if run.returncode:
            raise SystemExit(f"{shlex.join(words)}\n{run.stderr[-4000:]}")


@contextlib.contextmanager
def planted(fault: Fault, tree: Path) -> Iterator[None]:
    """A block in which a tree has a fault; afterwards restores the file and its time."""
    path = tree / fault.file
    before, times = path.read_text(), path.stat()
    path.write_text(before.replace(fault.old, fault.new))
    try:
        yield
    finally:
        path.write_text(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def try_fault(fault: Fault, tree: Path, build: Build | None) -> Noticed:
    """Plants a fault, and runs its tests until one fails."""
    said = []
    with tempfile.TemporaryDirectory() as folder, planted(fault, tree):
        if build is not None:
            build.make_module(Path(folder))
        for test in fault.tests:
            if not (tree / test).is_file():
                continue
            if test.endswith(".py"):
                found = run_pytest(test, tree)
            else:
                assert build is not None, f"{fault.name}: only faults of csrc change {test}"
                found = run_program(test, build.make_program(test, Path(folder)), tree)
            if found.by:
                return found
            said.append(found.said)
    return Noticed(said="; ".join(filter(None, said)))


def run_pytest(test: str, tree: Path) -> Noticed:
    """Whether a test of a file fails."""
    # No bytecode: Python detects changes only by size and by the second of writing.
    paths = {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    code, out = run(command, tree, os.environ | paths)
    failed = re.search(r"^FAILED (\S+)", out, re.MULTILINE)
    if code == 1 and failed:
        return Noticed(failed[1])
    return Noticed(said="" if code == 0 else f"{test} ended with {code}: {out.strip()[-300:]}")


def run_program(test: str, program: Path, tree: Path) -> Noticed:
    """Whether a program of tests/native ends with anything but 0."""
    check = ["--check", "tests/data/golden.csv"] if "digest" in test else []
    code, out = run([str(program), "tests/data", *check], tree, os.environ)
    if code in (None, 0):
        return Noticed(said="" if code == 0 else f"{test} {out}")
    return Noticed(f"{test}: {(out.strip().splitlines() or [f'signal {code}'])[-1]}")


def run(command: Sequence[str], tree: Path, environment: Any) -> tuple[int | None, str]:
    """The exit status, None if it takes too long, and the output."""
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, timeout=SECONDS, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"takes more than {SECONDS} s"
    return done.returncode, done.stdout


def main(words: Sequence[str] | None = None) -> int:
    """Tries faults; 1 if one is not noticed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--tests-from", metavar="COMMIT", help="with tests/ as at a commit")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--check", action="store_true", help="only look at the table")
    asked = parser.parse_args(words)
    faults = read_faults()
    if wrong := problems(faults):
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    if unknown := set(asked.only or ()) - {fault.name for fault in faults}:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    faults = [fault for fault in faults if not asked.only or fault.name in asked.only]
    if asked.list:
        print(*(f"{fault.name:40} {fault.file}" for fault in faults), sep="\n")
    if asked.list or asked.check:
        return 0
    unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        if asked.tests_from:
            take_tests(tree, asked.tests_from)
        in_csrc = any(fault.file.startswith("csrc/") for fault in faults)
        build = Build(tree) if in_csrc else None
        # Python's faults come first, with the original module.
        for fault in sorted(faults, key=lambda fault: fault.file.startswith("csrc/")):
            begin = time.monotonic()
            found = try_fault(fault, tree, build if fault.file.startswith("csrc/") else None)
            seconds = time.monotonic() - begin
            unnoticed += not found.by
            outcome = f"{'noticed' if found.by else 'NOT NOTICED':11} {seconds:4.0f} s"
            print(f"{outcome}  {fault.name:40} {found.by or found.said}", flush=True)
    print(f"{len(faults) - unnoticed} of {len(faults)} faults noticed")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
