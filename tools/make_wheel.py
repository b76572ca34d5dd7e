"""Makes a wheel of the CPU module for many Linux distributions, and checks that it is one.

    python tools/make_wheel.py [--dist dist] [--newest 2_28]

Needs setuptools, pybind11, wheel and auditwheel in this interpreter, a C++ compiler, and no torch.
The wheel gets the oldest manylinux tag that auditwheel grants; one newer than --newest, a library
besides those of the tag, a path of this machine or a missing module is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, **variables: str) -> str:
    """Runs a command in the repository and returns what it said; an error ends this."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder: Path) -> Path:
    """Builds the wheel from scratch: a build folder of old may hold files that are no more."""
    run(
        sys.executable,
        "setup.py",
        "--quiet",
        *("build", "--build-base", folder / "build"),
        *("egg_info", "--egg-base", folder),
        *("bdist_wheel", "--dist-dir", folder, "--bdist-dir", folder / "tree"),
        TORCHINIT_BUILD="cpu",
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def platform_tag(wheel: Path) -> str:
    """The oldest manylinux tag that auditwheel grants."""
    said = run(sys.executable, "-m", "auditwheel", "show", wheel)
    print(said.strip())
    granted = re.search(r'following platform tag:\s+"(manylinux\w+)"', said)
    if not granted:
        raise SystemExit("auditwheel grants no manylinux tag")
    return granted[1]


def glibc(tag: str) -> tuple[int, int]:
    """The version of glibc that a tag promises to be enough."""
    major, minor = re.findall(r"\d+", tag)[:2]
    return int(major), int(minor)


def faults(wheel: Path) -> list[str]:
    """What a wheel holds that it must not, or lacks."""
    found = []
    names = re.compile(re.escape(str(ROOT)).encode() + rb"|" + re.escape(sys.prefix).encode())
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    found += [f"{name} holds a path of this machine" for name in files if names.search(files[name])]
    libraries = [name for name in files if re.search(r"\.so(\.|$)", name)]
    if len(libraries) != 1 or "/native/_native." not in libraries[0]:
        found.append(f"one module is to be in it, not {libraries}")
    record = json.loads(files["torchinit/native/_build.json"])
    if not record["modules"]["_native"]["built"]:
        found.append("its record says that the module was not built")
    return found


def main() -> int:
    """Builds, checks, tags and returns the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--newest", default="2_28", help="the newest glibc allowed")
    options = parser.parse_args()
    dist = options.dist.resolve()
    with tempfile.TemporaryDirectory() as name:
        wheel = build(Path(name))
        wrong = faults(wheel)
        tag = platform_tag(wheel)
        if glibc(tag) > glibc(options.newest):
            wrong.append(f"{tag} is newer than manylinux_{options.newest}")
        if wrong:
            raise SystemExit("\n".join(wrong))
        # No repair: nothing is to be bundled, least of all a second OpenMP runtime.
        run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, wheel)
        (made,) = Path(name).glob("*.whl")
        dist.mkdir(parents=True, exist_ok=True)
        for old in dist.glob("*.whl"):
            old.unlink()
        (dist / made.name).write_bytes(made.read_bytes())
    print(f"{dist.name}/{made.name}: {(dist / made.name).stat().st_size / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
