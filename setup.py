"""Builds the native modules where it can, and leaves a record of what it built and why not more.

The CPU module needs a C++ compiler and pybind11 (or torch's copy), the CUDA module torch and nvcc
too. Each is built by itself, and loaded before it is called built. docs/installing.md tells more.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CHOICE = os.environ.get("TORCHINIT_BUILD", "").lower() or "auto"
JOBS = os.environ.get("MAX_JOBS") or "0"  # as many as there are processors

CPU, CUDA = "_native", "_cuda"
PACKAGE, FOLDER = "torchinit.native", "torchinit/native"
CXX = ("cxx", "-Werror", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra")
SHARED = ("python/older_libraries.cpp", "job/*.cpp")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
LINES, short = 20, partial(shorten, width=200, placeholder="...")  # kept of what compilers say


class NotBuiltError(Exception):
    """Why a module cannot be built, and what would help."""


def flags(compiler: str, warnings_as_errors: str, *others: str) -> list[str]:
    """The flags for a compiler, cxx or nvcc: those of csrc/flags.txt, and others."""
    strict = [warnings_as_errors] * (os.environ.get("TORCHINIT_WERROR", "") not in ("", "0"))
    lines = Path("csrc", "flags.txt").read_text().splitlines()
    bits = [line.split()[1] for line in lines if line.startswith(f"{compiler} ")]
    return ["-O3", *bits, *others, *strict]


def files(*patterns: str) -> list[str]:
    """The files of csrc that match."""
    return [str(path) for each in patterns for path in sorted(Path("csrc").glob(each))]


def output(*command: str) -> str:
    """What a command says; empty if it fails."""
    status, said = subprocess.getstatusoutput(shlex.join(command))
    return "" if status else said


def find_compiler() -> str:
    """The C++ compiler: CXX if it is set, else the first that is installed."""
    asked = os.environ.get("CXX", "")
    usual = ["c++", "g++", sysconfig.get_config_var("CXX") or "", "clang++"]
    for command in [asked] if asked else usual:
        if (words := shlex.split(command)) and shutil.which(words[0]):
            return command
    reason = f"no C++ compiler ({f'CXX={asked}' if asked else 'c++'} not found)"
    raise NotBuiltError(reason, "install a C++ compiler such as g++")


def find_pybind11() -> tuple[str, str, Any]:
    """The folder of pybind11's headers, whose they are, and a context of parallel compilation."""
    with contextlib.suppress(ImportError):
        import pybind11
        from pybind11.setup_helpers import ParallelCompile

        whose = f"pybind11 {pybind11.__version__}"
        return pybind11.get_include(), whose, ParallelCompile(default=int(JOBS))
    with contextlib.suppress(Exception):
        import torch

        headers = Path(torch.__file__).parent / "include"
        if (headers / "pybind11" / "pybind11.h").is_file():
            return str(headers), f"pybind11 of torch {torch.__version__}", contextlib.nullcontext()
    raise NotBuiltError("no pybind11, and no torch, which has a copy", "pip install pybind11")


def find_cuda_home() -> str:
    """The folder of the CUDA toolkit: the one above nvcc, or the one that nvcc names."""
    asked = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = f"{asked}/bin/nvcc" if asked else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    # --dryrun reads no file and says what would be run. TOP is the toolkit.
    dryrun = output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    named = re.findall(r"^#\$ TOP=(.+\S)", dryrun, re.MULTILINE)
    for home in map(Path, [Path(nvcc).parent.parent, *named]):
        if Path(nvcc).is_file() and (home / "include" / "cuda_runtime.h").is_file():
            return str(home.resolve())
    reason = f"no CUDA toolkit: {nvcc} is not there, or has no include/cuda_runtime.h"
    raise NotBuiltError(reason, "install all of the CUDA toolkit, or set CUDA_HOME to it")


def architecture_flags(torch: Any, nvcc: str) -> list[str]:
    """What torch was built for, and the GPUs here, as far as nvcc knows; the newest as PTX too."""
    # torch reads the list itself where there is one. Without, it fails where there is no GPU.
    gpus = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if asked and (asked != "native" or gpus):
        return []
    listed = torch.cuda.get_arch_list() or (torch._C._cuda_getArchFlags() or "").split()
    wanted = set(re.findall(r"\bsm_(\d+)\b", " ".join(listed))) | {f"{a}{b}" for a, b in gpus}
    known = set(re.findall(r"compute_(\d+)\b", output(nvcc, "--list-gpu-arch")))
    chosen = sorted((each for each in wanted & known if int(each) >= 75), key=int)
    if not chosen:
        reason = f"nvcc compiles for none of the architectures of torch ({', '.join(listed)})"
        raise NotBuiltError(reason, "set TORCH_CUDA_ARCH_LIST, such as to 9.0+PTX")
    codes = [f"sm_{each}" for each in chosen] + [f"compute_{chosen[-1]}"]
    return [f"-gencode=arch=compute_{code.split('_')[1]},code={code}" for code in codes]


@contextlib.contextmanager
def last_words() -> Iterator[list[str]]:
    """Lets through what this process and its children say, and keeps it, less the commands."""
    kept: list[str] = []
    saved, (read, write) = (os.dup(1), os.dup(2)), os.pipe()

    def listen() -> None:
        with os.fdopen(read, errors="replace") as said:
            for line in said:
                os.write(saved[1], line.encode())
                if not re.search(r"\s-(c|shared)\s.*\s-o\s", line):
                    kept.append(short(line))

    os.dup2(write, 1)
    os.dup2(write, 2)
    os.close(write)
    (listener := threading.Thread(target=listen, daemon=True)).start()
    try:
        yield kept
    finally:
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        listener.join(timeout=10)  # a server that a compiler started may hold the pipe for ever


def not_built(reason: str, remedy: str = "", words: list[str] | None = None) -> dict[str, Any]:
    """What the record says of a module that there is not; without a remedy, nobody wanted it."""
    words, asked = (words or [])[-LINES:], not remedy
    return {"built": False, "asked": asked, "reason": reason, "remedy": remedy, "words": words}


def write_record(folder: str, tools: dict[str, str], modules: dict[str, dict[str, Any]]) -> None:
    """Writes the record into the package's folder, and removes what an earlier build left there."""
    record = {"choice": CHOICE, "python": sys.version.split()[0], "suffix": SUFFIX, "tools": tools}
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps({**record, "modules": modules}, indent=1)
    Path(folder, "_build.json").write_text(f"{text}\n")
    for name, state in modules.items():
        if not state["built"]:
            Path(folder, f"{name}{SUFFIX}").unlink(missing_ok=True)


class Build(build_ext):  # type: ignore[misc]
    """Builds each module by itself and keeps the record."""

    def run(self) -> None:
        """Builds what can be built."""
        self.tools: dict[str, str] = {}
        self.made: list[Extension] = []
        alone = not_built(f"TORCHINIT_BUILD={CHOICE} asked for the CPU module alone")
        self.modules: dict[str, Any] = {CPU: alone, CUDA: alone}
        self.attempt(CPU, self.build_cpu)
        if not self.modules[CPU]["built"]:
            self.modules[CUDA] = not_built("it needs the CPU module", self.modules[CPU]["remedy"])
        elif CHOICE != "cpu":
            self.attempt(CUDA, self.build_cuda)
        self.extensions = self.made
        for folder in self.folders():
            write_record(folder, self.tools, self.modules)

    def attempt(self, name: str, build: Callable[[], Extension]) -> None:
        """Builds a module; a failure is recorded, or an error where the module was asked for."""
        try:
            with last_words() as words:
                extension = build()
            # Loads it in a process of its own; the CUDA module takes libraries that torch loads.
            folder = str(Path(self.get_ext_fullpath(f"{PACKAGE}.{name}")).resolve().parent)
            names = f"torch, {name}" if name == CUDA else name
            program = f"import sys; sys.path.append({folder!r}); import {names}"
            status, said = subprocess.getstatusoutput(shlex.join([sys.executable, "-c", program]))
            if status and "_PYTHON_HOST_PLATFORM" not in os.environ:
                reason = f"it cannot be loaded: {short(said.rpartition(chr(10))[2]) or status}"
                raise NotBuiltError(reason, "set CXX to another compiler")
            self.made.append(extension)
            self.modules[name] = {"built": True}
            return
        except NotBuiltError as error:
            (reason, remedy), words = error.args, []
        except Exception as error:
            first = (line for line in words if re.search(r"\b(error|fatal)\s*:", line))
            reason = f"the build failed: {short(next(first, '') or str(error) or repr(error))}"
            remedy = "mend what the build complains of"
        if CHOICE != "auto":
            raise SystemExit(f"TORCHINIT_BUILD={CHOICE}: {name} cannot be built: {reason}")
        self.modules[name] = not_built(reason, f"{remedy}, then install torchinit again", words)
        means = "the CPU module is there" if name == CUDA else "torch.nn.init serves everything"
        said = f"{name} was NOT built, {means} ({reason}). `python -m torchinit info` says more."
        self.warn(f"torchinit: {said}")

    def build_cpu(self) -> Extension:
        """Builds the CPU module, without torch."""
        compiler = find_compiler()
        said = output(*shlex.split(compiler), "--version") or compiler
        self.tools["compiler"] = said.partition("\n")[0]
        folder, self.tools["pybind11"], parallel = find_pybind11()
        os.environ["CXX"] = compiler  # what setuptools compiles and links C++ with
        (module,) = self.extensions
        module.include_dirs.append(folder)
        with parallel:
            super().run()
        return module

    def build_cuda(self) -> Extension:
        """Builds the CUDA module as torch builds extensions: it knows nvcc, hosts and versions."""
        beside = "turn off pip's build isolation (--no-build-isolation)"
        try:
            import torch
            from torch.utils import cpp_extension
        except Exception as error:
            reason = f"no torch to build with, whose CUDA it has to match ({short(str(error))})"
            raise NotBuiltError(reason, beside) from error
        self.tools["torch"] = f"torch {torch.__version__}"
        if not torch.version.cuda:
            reason = f"torch {torch.__version__}, which it was built beside, has no CUDA"
            raise NotBuiltError(reason, f"install a torch that has CUDA, {beside}")
        home = cpp_extension.CUDA_HOME = find_cuda_home()
        nvcc = f"{home}/bin/nvcc"
        release = re.search(r"release ([\d.]+).*", output(nvcc, "--version"))
        self.tools["nvcc"] = f"nvcc {release[0]}" if release else "nvcc of unknown version"
        if release and int(float(release[1])) != int(float(torch.version.cuda)):
            reason = f"nvcc ({nvcc}) is of CUDA {release[1]}, torch of {torch.version.cuda}"
            raise NotBuiltError(reason, "set CUDA_HOME to a toolkit of the same major version")
        codes = architecture_flags(torch, nvcc)
        nvcc_flags = flags("nvcc", "-Werror=all-warnings", "-Xcompiler=-fvisibility=hidden", *codes)
        extension = cpp_extension.CUDAExtension(
            f"{PACKAGE}.{CUDA}",
            files("python/cuda_module.cpp", "cuda/*.cpp", "cuda/*.cu", *SHARED),
            extra_compile_args={"cxx": flags(*CXX), "nvcc": nvcc_flags},
        )
        # Nothing of libtorch is used, so that one build serves every torch.
        extension.libraries, extension.runtime_library_dirs = ["cudart"], []
        command = cpp_extension.BuildExtension(self.distribution)
        for name in ("build_lib", "build_temp", "inplace", "editable_mode", "debug", "verbose"):
            setattr(command, name, getattr(self, name))
        self.distribution.ext_modules = [extension]
        command.ensure_finalized()
        command.run()
        return extension

    def folders(self) -> list[str]:
        """Where the package is put together, and its source where that is installed."""
        source = self.get_finalized_command("build_py").get_package_dir(PACKAGE)
        return [f"{self.build_lib}/{FOLDER}", *([source] * self.inplace)]

    def get_output_mapping(self) -> dict[str, str]:
        """The files built, and where those that belong in the source are."""
        records = [f"{folder}/_build.json" for folder in self.folders()]
        return {**super().get_output_mapping(), **dict([records] if self.inplace else [])}


class BuildPure(build_py):  # type: ignore[misc]
    """Keeps the record where there is no module to build."""

    def run(self) -> None:
        """Copies the Python files and writes the record."""
        super().run()
        source = self.get_package_dir(PACKAGE)
        folder = source if self.editable_mode else f"{self.build_lib}/{FOLDER}"
        state = not_built(f"TORCHINIT_BUILD={CHOICE} asked for pure Python")
        write_record(folder, {}, {CPU: state, CUDA: state})


if __name__ == "__main__":
    if CHOICE not in (choices := ("auto", "none", "0", "cpu", "cuda")):
        raise SystemExit(f"TORCHINIT_BUILD={CHOICE!r} is unknown, choose one of {choices}")
    if not JOBS.isdecimal():
        raise SystemExit(f"MAX_JOBS={JOBS!r} must be a number: how many compilers run at once")
    cpu = Extension(
        f"{PACKAGE}.{CPU}",
        files("python/native_module.cpp", "python/quick_fill.cpp", "cpu/*.cpp", *SHARED),
        depends=[*files("**/*.h", "**/*.inc"), "csrc/flags.txt", "setup.py"],
        extra_compile_args=flags(*CXX),
        language="c++",
    )
    pure = CHOICE in ("none", "0")
    commands = {"build_py": BuildPure} if pure else {"build_ext": Build}
    setup(ext_modules=[] if pure else [cpu], cmdclass=commands)
