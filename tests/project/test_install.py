"""Installing where something is missing: what can be built is, and the true reason is told once.

Each build is one of a copy of the source, by setup.py itself and without a network. Nothing is
compiled: where a compiler is to be found, the copy has the present module as already built.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import warm
from torchinit.native import load

ROOT = Path(__file__).parents[2]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

pytestmark = pytest.mark.skipif(
    load.reason.startswith("turned off"), reason="nothing here depends on what is turned off"
)
has_module = pytest.mark.skipif(load.module is None, reason=f"no module to reuse: {load.reason}")

# A fill, another, what Python warned of, and what `info` says.
PROGRAM = """
import json, sys, warnings
import torch
{before}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torchinit
    from torchinit.cli import info
    from torchinit.native import load
    state, imported = info.collect(), len(caught)
    torchinit.normal_(torch.empty(3, dtype=torch.complex64))  # never native
    torchinit.which(torch.empty(3), "normal")
    early = len(caught)
    torchinit.normal_(torch.empty(3))
    torchinit.normal_(torch.empty(3))
    {after}
text = info._text(state)
ours = [warned for warned in caught if "torchinit" in str(warned.message)]
said = [[warned.category.__name__, str(warned.message), warned.filename] for warned in ours]
print(json.dumps({{"early": [imported, early], "said": said, "state": state, "text": text}}))
"""
# A torch that says it was built for CUDA 13.0.
CUDA_TORCH = "import torch; torch.version.cuda = '13.0'"


@pytest.fixture
def source(tmp_path):
    """A copy of what a build needs, in a path with spaces."""
    copy = tmp_path / "a source with spaces"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy2(ROOT / name, copy)
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    outputs = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "src" / "torchinit", copy / "src" / "torchinit", ignore=outputs)
    return copy


def tools(folder: Path, *names: str) -> str:
    """A PATH with some of this machine's programs alone."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def environment(variables: dict[str, str]) -> dict[str, str]:
    unset = ("TORCHINIT_", "CUDA_", "CXX", "MAX_JOBS")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unset)}
    return {**kept, **variables}


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return warm.run(*arguments, cwd=folder, env=environment(variables))


def build(source: Path, built: bool = False, **variables: str):
    """Builds; returns the folder and what was said. built: the module needs no compiling."""
    lib = source / "lib"
    if built:
        target = lib / "torchinit" / "native" / f"_native{SUFFIX}"
        target.parent.mkdir(parents=True)
        shutil.copy(load.module.__file__, target)
    words = ("setup.py", "build", "--build-base", "base", "--build-lib", "lib")
    done = run(source, *words, **variables)
    return lib, done


def look(lib: Path, before: str = "", after: str = "") -> dict:
    """What somebody sees who uses a build."""
    program = PROGRAM.format(before=before, after=after)
    done = run(lib.parent, "-c", program, PYTHONPATH=str(lib))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["early"] == [0, 0]  # neither at import, nor of what is never native, nor if asked
    return seen


def assert_told_once(seen: dict, reason: str) -> None:
    ((category, message, filename),) = seen["said"]
    assert category == "RuntimeWarning"
    assert filename == "<string>"  # who called the package, not the package
    assert reason in message
    assert "python -m torchinit info" in message
    assert "\n" not in message
    assert reason.partition(". Remedy")[0] in seen["text"]


def test_without_a_compiler(source, tmp_path):
    lib, done = build(source, PATH=tools(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    assert "_native was NOT built" in done.stderr
    seen = look(lib)
    assert not seen["state"]["native"]["loaded"]
    assert seen["state"]["cuda"]["reason"] == seen["state"]["native"]["reason"]
    assert_told_once(seen, "was not built: no C++ compiler (c++ not found)")


@pytest.mark.parametrize("choice", ["none", "0"])
def test_pure_python_is_silent_where_it_was_asked_for(source, choice):
    lib, done = build(source, TORCHINIT_BUILD=choice)
    assert done.returncode == 0, done.stderr
    seen = look(lib)
    assert seen["said"] == []
    reason = f"was not built: TORCHINIT_BUILD={choice} asked for pure Python"
    assert seen["state"]["native"]["reason"] == reason


def test_a_compiler_that_fails(source, tmp_path):
    complaint = "echo 'bad.cpp:1:1: error: nothing compiles today' >&2; exit 1"
    compiler = script(tmp_path / "c++ of mine" / "failing", complaint)
    lib, done = build(source, CXX=f"'{compiler}'", MAX_JOBS="2")
    assert done.returncode == 0, done.stderr
    seen = look(lib)
    assert_told_once(seen, "the build failed: bad.cpp:1:1: error: nothing compiles today. Remedy: ")
    words = seen["state"]["build"]["modules"]["_native"]["words"]
    assert "bad.cpp:1:1: error: nothing compiles today" in words
    assert len(words) <= 30
    assert sum(map(len, words)) <= 4096
    assert "nothing compiles today" in seen["text"]


@pytest.mark.parametrize("choice", ["cpu", "cuda"])
def test_a_failure_is_an_error_where_the_module_was_asked_for(source, tmp_path, choice):
    _, done = build(source, TORCHINIT_BUILD=choice, PATH=tools(tmp_path / "bin"))
    assert done.returncode != 0
    assert "no C++ compiler" in done.stderr


def fake_toolkit(folder: Path, headers: bool) -> Path:
    """A CUDA toolkit of version 12.1."""
    script(folder / "bin" / "nvcc", "echo 'Cuda compilation tools, release 12.1, V12.1.66'")
    if headers:
        (folder / "include").mkdir()
        (folder / "include" / "cuda_runtime.h").touch()
    return folder


@has_module
@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (True, "is of CUDA 12.1, torch of 13.0"),
        (False, "has no include/cuda_runtime.h"),
    ],
)
def test_cuda_that_cannot_be_built_costs_the_cpu_module_nothing(source, tmp_path, headers, reason):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CUDA_TORCH)
    home = fake_toolkit(tmp_path / "cuda", headers)
    path = os.pathsep.join([str(home / "bin"), os.environ["PATH"]])
    lib, done = build(source, built=True, PYTHONPATH=str(tmp_path / "site"), PATH=path)
    assert done.returncode == 0, done.stderr
    assert "_cuda was NOT built" in done.stderr
    assert "the CPU module is there" in done.stderr
    # No tensor of CUDA is to be had here, so the door's question is asked by hand.
    seen = look(lib, CUDA_TORCH, "[load.warn_once('cuda') for _ in range(2)]")
    assert seen["state"]["native"]["loaded"]
    assert seen["state"]["which"]["cpu"]["float32"]["kind"] == "native"
    assert reason in seen["state"]["cuda"]["reason"]
    assert_told_once(seen, reason)
    # Where torch has no CUDA, there is nothing to miss.
    without = "torch.version.cuda = None"
    assert look(lib, without, "load.warn_once('cuda')")["said"] == []


@pytest.mark.parametrize("variable", ["PATH", "CUDA_HOME", "CUDA_PATH"])
def test_the_toolkit_is_found_through_a_script(tmp_path, variable):
    """nvcc may be a script outside the toolkit."""
    home = fake_toolkit(tmp_path / "toolkit", headers=True)
    script(home / "bin" / "nvcc", f'echo "#\\$ TOP={home}/bin/.." >&2')
    wrapper = script(tmp_path / "usr" / "bin" / "nvcc", f'exec {home}/bin/nvcc "$@"')
    value = str(wrapper.parent if variable == "PATH" else wrapper.parent.parent)
    variables = {variable: os.pathsep.join([value, os.environ["PATH"]][: 1 + (variable == "PATH")])}
    done = run(ROOT, "-c", "import setup; print(setup.find_cuda_home())", **variables)
    assert done.stdout.strip() == os.path.realpath(home), done.stderr


def test_a_package_that_nobody_built(source):
    compiled = "torch.compile(fullgraph=True, backend='eager')"
    program = f"{compiled}(lambda: torchinit.normal_(torch.empty(4)))()"
    seen = look(source / "src", after=program)
    assert_told_once(seen, "was not built: no build left a record of itself")


def test_a_warning_as_an_error_does_not_last(source, tmp_path):
    lib, _ = build(source, PATH=tools(tmp_path / "bin"))
    program = (
        "import torch, torchinit\n"
        "try: torchinit.ones_(torch.empty(3))\n"
        "except RuntimeWarning: print(torchinit.ones_(torch.empty(3)).sum().item())\n"
    )
    variables = environment({"PYTHONPATH": str(lib)})
    done = warm.run("-c", program, env=variables, warnings_as_errors="RuntimeWarning")
    assert done.stdout.strip() == "3.0", done.stderr


def test_the_source_distribution_holds_no_record_and_builds(source):
    (source / "src" / "torchinit" / "native" / "_build.json").write_text("{}")
    done = run(source, "setup.py", "--quiet", "sdist")
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(next((source / "dist").glob("*.tar.gz")), source / "unpacked")
    (top,) = (source / "unpacked").iterdir()
    names = {path.relative_to(top).as_posix() for path in top.rglob("*")}
    assert "csrc/python/native_module.cpp" in names
    assert "csrc/flags.txt" in names
    assert not [name for name in names if name.endswith(("_build.json", ".so"))]
    _, done = build(top, built=load.module is not None, TORCHINIT_BUILD="none")
    assert done.returncode == 0, done.stderr


def names_read(file: Path) -> set[str]:
    """The environment variables that a Python file reads."""
    tree = ast.parse(file.read_text())
    strings = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    # Of os.environ and os.getenv, and what asks them for a name that it is given.
    askers = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.args.args
        and re.search(rf"environ\.get\({node.args.args[0].arg}\b", ast.unparse(node))
    }
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=function, args=[first, *_]) if ast.unparse(function) in {
                "os.environ.get",
                "os.getenv",
                *askers,
            }:
                found.append(first)
            case ast.Subscript(value=value, slice=name, ctx=ast.Load()) if (
                ast.unparse(value) == "os.environ"
            ):
                found.append(name)
            case ast.Compare(left=name, comparators=[ast.Attribute(attr="environ")]):
                found.append(name)
    given = {node.value for node in found if isinstance(node, ast.Constant)}
    return given | {
        strings[node.id] for node in found if isinstance(node, ast.Name) if node.id in strings
    }


def test_the_table_of_variables_has_what_the_code_reads():
    section = (ROOT / "docs" / "installing.md").read_text().partition("## Environment variables")[2]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    files = [ROOT / "setup.py", *(ROOT / "src").rglob("*.py")]
    read = set().union(*map(names_read, files))
    assert listed == read
    # And the C++ reads none.
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert not [path for path in sources if "getenv" in path.read_text()]


def test_what_a_file_reads_of_the_environment_is_found(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os\n"
        "NAME = 'A'\n"
        "def is_set(name): return os.environ.get(name, '')\n"
        "os.environ.get(NAME), os.environ['B'], os.getenv('C'), is_set('D'), 'E' in os.environ\n"
        "os.environ['F'] = 'written'\n"
    )
    assert names_read(program) == set("ABCDE")
