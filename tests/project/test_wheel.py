"""The wheel: what is in it, and that it runs anywhere with the bits of the source build.

It is the one that `make wheel` made, where that is newer than the source; else one packed here from
the present module, for compiling takes minutes. `make wheel-check` makes a wheel and another torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import torchinit
from conftest import native_only
from torchinit.native import load

ROOT = Path(__file__).parents[2]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
OTHER = Path(os.environ.get("TORCHINIT_OTHER_PYTHON", ROOT / "build/torch-2.14.1/bin/python"))

pytestmark = native_only

# Fills of every kind; which package made them, with which torch, and a hash of their bits.
PROGRAM = """
import hashlib, json, sys
import torch
import torchinit
from torchinit.native import load
torch.manual_seed(7)
digest = hashlib.sha256()
kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
for dtype in (*kinds, torch.float8_e4m3fn, torch.float8_e5m2):
    for size in ((5,), (1 << 15,), (100, 33)):
        for fill in (torchinit.uniform_, torchinit.normal_, torchinit.trunc_normal_):
            filled = fill(torch.empty(size, dtype=dtype))
            digest.update(bytes(filled.view(torch.uint8).flatten().tolist()))
with torchinit.batch():
    several = [torchinit.kaiming_uniform_(torch.empty(8, 8)) for _ in range(9)]
digest.update(bytes(torch.stack(several).view(torch.uint8).flatten().tolist()))
try:  # an exception of C++ comes through
    load.module.fill_list((), (1,), (), (), (), 1)
except Exception as error:
    caught = type(error).__name__
print(json.dumps({
    "module": load.module and load.module.__file__,
    "reason": load.reason,
    "torch": torch.__version__,
    "caught": caught,
    "bits": digest.hexdigest(),
}))
"""


def run(python: Path | str, *words: str, **variables: str) -> subprocess.CompletedProcess:
    unset = ("TORCHINIT_", "PYTHONPATH")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unset)}
    return subprocess.run(
        [str(python), *words],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def newest(*folders: str) -> float:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix in (".py", ".pyi", ".cpp", ".cu", ".h", ".inc")]
    return max(path.stat().st_mtime for path in [*kept, ROOT / "setup.py"])


def pack(folder: Path) -> Path:
    """Packs a wheel from a copy of the source in which the module is built already."""
    copy = folder / "source"
    outputs = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    shutil.copytree(ROOT / "src" / "torchinit", copy / "src" / "torchinit", ignore=outputs)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy2(ROOT / name, copy)
    built = copy / "lib" / "torchinit" / "native" / f"_native{SUFFIX}"
    built.parent.mkdir(parents=True)
    shutil.copy(load.module.__file__, built)
    words = ("setup.py", "--quiet", "build", "--build-lib", "lib", "bdist_wheel")
    done = subprocess.run(
        [sys.executable, *words, "--dist-dir", str(folder)],
        cwd=copy,
        env={**os.environ, "TORCHINIT_BUILD": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for made in (ROOT / "dist").glob(f"torchinit-{torchinit.__version__}-{tag}-{tag}-*.whl"):
        if made.stat().st_mtime > newest("csrc", "src"):
            return made
    return pack(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """The wheel installed into a folder with spaces and an accent in its name."""
    target = tmp_path_factory.mktemp("install") / "a folder nommé ça"
    words = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target))
    done = run(sys.executable, *words, str(wheel))
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="session")
def here():
    """What the source build says."""
    source = str(Path(load.__file__).parents[2])
    done = run(sys.executable, "-c", PROGRAM, PYTHONPATH=source)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def look(python: Path | str, installed: Path, folder: Path) -> dict:
    """What the installed wheel says, where there is no compiler on the PATH."""
    done = run(python, "-c", PROGRAM, PYTHONPATH=str(installed), PATH=str(folder))
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)


def test_what_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    libraries = [name for name in files if ".so" in name]
    assert libraries == [f"torchinit/native/_native{SUFFIX}"]  # no second OpenMP runtime
    assert {"torchinit/py.typed", "torchinit/native/_native.pyi"} <= set(files)
    record = json.loads(files["torchinit/native/_build.json"])
    assert record["modules"]["_native"] == {"built": True}
    for name, content in files.items():
        assert str(ROOT).encode() not in content, name
        assert str(Path.home()).encode() + b"/" not in content, name


def test_it_runs_without_a_compiler(installed, here, tmp_path):
    seen = look(sys.executable, installed, tmp_path)
    assert Path(seen["module"]).is_relative_to(installed)
    assert seen["bits"] == here["bits"]
    assert seen["caught"] == here["caught"]


def test_the_bits_of_a_module_without_torch(installed, tmp_path):
    """tools/check_wheel.py, with some rows of the table, and one that is wrong."""
    data = tmp_path / "tests" / "data"
    shutil.copytree(ROOT / "tests" / "data", data)
    (tmp_path / "tools").mkdir()
    tool = shutil.copy(ROOT / "tools" / "check_wheel.py", tmp_path / "tools")
    head, *rows = (data / "golden.csv").read_text().splitlines()
    some = [*rows[:60], *rows[-99::20]]  # the last are of orthogonal matrices
    assert {row.partition(",")[0] for row in some} == {"stream-version", "uniform", "orthogonal"}
    (data / "golden.csv").write_text("\n".join([head, *some]))
    done = run(sys.executable, tool, str(installed))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(some)} rows on each of " in done.stdout
    case, dtype, box, transform, _, values = some[7].split(",")
    some[7] = ",".join([case, dtype, box, transform, "0" * 16, values])
    (data / "golden.csv").write_text("\n".join([head, *some]))
    done = run(sys.executable, tool, str(installed))
    assert done.returncode == 1
    sets = load.module.instruction_sets()
    assert done.stdout.count(f"{case}, {dtype}, {box}: ") == len(sets)
    assert f": {len(sets)} wrong" in done.stdout


@pytest.mark.skipif(
    not OTHER.exists() or OTHER.parents[1] == Path(sys.prefix),
    reason="no other torch: `make wheel-check` gets one",
)
def test_it_runs_on_another_torch(installed, here, tmp_path):
    seen = look(OTHER, installed, tmp_path)
    assert Path(seen["module"]).is_relative_to(installed)
    assert seen["torch"] != here["torch"]
    assert seen["bits"] == here["bits"]
