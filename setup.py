"""Builds the native modules where it can, and installs pure Python where it cannot.

Environment variables:
    TORCHINIT_BUILD: what to build.
        unset or ``auto``  CPU, and CUDA where torch and nvcc both have it; if that fails, pure
                           Python with a warning.
        ``none`` or ``0``  pure Python.
        ``cpu``            the CPU module; a failure is an error.
        ``cuda``           both modules; a failure is an error.
    TORCHINIT_WERROR: ``1`` makes compiler warnings errors (what CI does).
    TORCH_CUDA_ARCH_LIST: CUDA architectures, as for every torch extension.
    CXX, MAX_JOBS: compiler and parallel jobs, likewise.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CHOICE = os.environ.get("TORCHINIT_BUILD", "").lower() or "auto"
CHOICES = ("auto", "none", "0", "cpu", "cuda")
WERROR = os.environ.get("TORCHINIT_WERROR", "") not in ("", "0")


def bit_flags(compiler: str) -> list[str]:
    """The flags of csrc/flags.txt for a compiler, cxx or nvcc: the bits of fills depend on them."""
    lines = (Path(__file__).parent / "csrc" / "flags.txt").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith(f"{compiler} ")]


WARNING_FLAGS = ["-Wall", "-Wextra", *(["-Werror"] if WERROR else [])]
COMPILE_FLAGS = [
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    *bit_flags("cxx"),
    # OpenMP to compile, but not to link: torch has loaded a runtime, and its symbols are found at
    # import. Linking would bring a second runtime into the process.
    "-fopenmp",
    *WARNING_FLAGS,
]
NVCC_FLAGS = [
    "-O3",
    "-Xcompiler=-fvisibility=hidden",
    *bit_flags("nvcc"),
    *(["-Werror=all-warnings"] if WERROR else []),
]


def sources(*folders: str) -> list[str]:
    """The C++ and CUDA files of folders of csrc, relative to this file."""
    root = Path(__file__).parent
    found = [
        path
        for folder in folders
        for path in sorted((root / "csrc" / folder).iterdir())
        if path.suffix in (".cpp", ".cu")
    ]
    return [path.relative_to(root).as_posix() for path in found]


def native_modules() -> tuple[list[Extension], Any]:
    """The extension modules to build and the command that builds them."""
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    from torch.version import cuda as torch_cuda

    wants_cuda = CHOICE == "cuda" or (CHOICE == "auto" and bool(torch_cuda) and bool(CUDA_HOME))
    cpu = CppExtension(
        "torchinit.native._native",
        ["csrc/python/native_module.cpp", "csrc/python/quick_fill.cpp", *sources("job", "cpu")],
        extra_compile_args={"cxx": COMPILE_FLAGS},
    )
    modules = [cpu]
    if wants_cuda:
        cuda = CUDAExtension(
            "torchinit.native._cuda",
            ["csrc/python/cuda_module.cpp", *sources("job", "cuda")],
            extra_compile_args={"cxx": COMPILE_FLAGS, "nvcc": NVCC_FLAGS},
        )
        modules.append(cuda)
    for module in modules:
        # Nothing of libtorch is used, so that one build serves every torch.
        module.libraries = [name for name in module.libraries if name == "cudart"]
        module.runtime_library_dirs = []

    class Build(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if CHOICE != "auto":
                    raise
                pure_python(f"the native build failed: {error}")
                self.extensions: list[Extension] = []

    return modules, Build


def pure_python(reason: str) -> None:
    """Warns, once, that there will be no native module."""
    message = (
        f"torchinit is installed WITHOUT its native module, so torch.nn.init serves everything "
        f"({reason}). `python -m torchinit info` repeats this; TORCHINIT_BUILD=none silences it."
    )
    print(f"warning: {message}", file=sys.stderr)


def main() -> None:
    """Runs setuptools."""
    if CHOICE not in CHOICES:
        raise SystemExit(f"TORCHINIT_BUILD={CHOICE!r} is unknown, choose one of {CHOICES}")
    modules: list[Extension] = []
    command: Any = build_ext
    if CHOICE not in ("none", "0"):
        try:
            modules, command = native_modules()
        except Exception as error:
            if CHOICE != "auto":
                raise
            pure_python(f"torch cannot be imported to build: {error}")
    setup(ext_modules=modules, cmdclass={"build_ext": command})


if __name__ == "__main__":
    main()
