"""Builds the native modules where it can, and leaves a record of what it built and why not more.

The CPU module needs a C++ compiler and pybind11's headers (its own package's, else those in torch);
the CUDA module needs torch and nvcc too. Each is built by itself: one that fails costs nothing but
itself. The record, torchinit/native/_build.json, is what `torchinit.native.load` tells users.

Environment variables:
    TORCHINIT_BUILD: what to build.
        unset or ``auto``  CPU, and CUDA where torch and nvcc both have it; what fails is left out
                           with a warning.
        ``none`` or ``0``  pure Python.
        ``cpu``            the CPU module; a failure is an error.
        ``cuda``           both modules; a failure is an error.
    TORCHINIT_WERROR: ``1`` makes compiler warnings errors (what CI does).
    TORCH_CUDA_ARCH_LIST: CUDA architectures, as for every torch extension.
    CXX, MAX_JOBS: compiler and parallel jobs, likewise.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CHOICE = os.environ.get("TORCHINIT_BUILD", "").lower() or "auto"
CHOICES = ("auto", "none", "0", "cpu", "cuda")
PURE = CHOICE in ("none", "0")
WERROR = os.environ.get("TORCHINIT_WERROR", "") not in ("", "0")
JOBS = int(os.environ.get("MAX_JOBS", "") or os.cpu_count() or 1)

PACKAGE = "torchinit.native"
CPU, CUDA = f"{PACKAGE}._native", f"{PACKAGE}._cuda"
RECORD = "_build.json"
# Of what compilers say, so much is kept.
LINES, CHARACTERS, WIDTH = 30, 4096, 400


def bit_flags(compiler: str) -> list[str]:
    """The flags of csrc/flags.txt for a compiler, cxx or nvcc: the bits of fills depend on them."""
    lines = (ROOT / "csrc" / "flags.txt").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith(f"{compiler} ")]


COMPILE_FLAGS = [
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    *bit_flags("cxx"),
    # OpenMP to compile, but not to link: torch has loaded a runtime, and its symbols are found at
    # import. Linking would bring a second runtime into the process.
    "-fopenmp",
    "-Wall",
    "-Wextra",
    *(["-Werror"] if WERROR else []),
]
NVCC_FLAGS = [
    "-O3",
    "-Xcompiler=-fvisibility=hidden",
    *bit_flags("nvcc"),
    *(["-Werror=all-warnings"] if WERROR else []),
]


class NotBuiltError(Exception):
    """Why a module cannot be built, and what would help."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def sources(*folders: str) -> list[str]:
    """The C++ and CUDA files of folders of csrc, relative to this file."""
    found = [
        path
        for folder in folders
        for path in sorted((ROOT / "csrc" / folder).iterdir())
        if path.suffix in (".cpp", ".cu")
    ]
    return [path.relative_to(ROOT).as_posix() for path in found]


def module_sources(*names: str) -> list[str]:
    """The files of csrc/python that a module is made of."""
    return [f"csrc/python/{name}.cpp" for name in (*names, "older_libraries")]


def headers() -> list[str]:
    """What is compiled without being a source: a change of it is a reason to compile again."""
    found = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".inc")]
    return [path.relative_to(ROOT).as_posix() for path in found] + ["csrc/flags.txt", "setup.py"]


def cpu_extension() -> Extension:
    """The CPU module; who builds it adds pybind11's headers."""
    return Extension(
        CPU,
        [*module_sources("native_module", "quick_fill"), *sources("job", "cpu")],
        depends=headers(),
        extra_compile_args=COMPILE_FLAGS,
        language="c++",
    )


def find_compiler() -> str:
    """The C++ compiler: CXX if it is set, else the first that is installed."""
    asked = os.environ.get("CXX", "")
    usual = ["c++", "g++", sysconfig.get_config_var("CXX") or "", "clang++"]
    for command in [asked] if asked else usual:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return command
    raise NotBuiltError(
        f"no C++ compiler ({'CXX=' + asked if asked else 'c++'} not found)",
        "install a C++ compiler such as g++, then torchinit again",
    )


def first_line(*command: str) -> str:
    """The first line that a command says; empty if it fails."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.strip().partition("\n")[0]


def find_pybind11() -> tuple[str, str]:
    """The folder of pybind11's headers, and whose they are: its own package's, or torch's copy."""
    try:
        import pybind11

        return pybind11.get_include(), f"pybind11 {pybind11.__version__}"
    except ImportError:
        pass
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or []:
        if (Path(folder) / "include" / "pybind11" / "pybind11.h").is_file():
            version = importlib.metadata.version("torch")
            return str(Path(folder) / "include"), f"pybind11 of torch {version}"
    raise NotBuiltError(
        "no headers of pybind11, and no torch, which has a copy",
        "pip install pybind11, then torchinit again",
    )


def has_headers(home: str | Path) -> bool:
    """Whether a folder is that of a CUDA toolkit with what compiling needs."""
    return (Path(home) / "include" / "cuda_runtime.h").is_file()


def find_cuda_home(guess: str | None) -> str:
    """The folder of the CUDA toolkit: torch's guess, or else where nvcc itself says it lives.

    torch takes the folder above the nvcc on the PATH, which may be a script that runs another.
    """
    found = shutil.which("nvcc")
    for home in (guess, found and Path(found).parent.parent):
        if home and has_headers(home):
            return str(home)
    beside = [str(Path(guess) / "bin" / "nvcc")] if guess else []
    asked = [nvcc for nvcc in (*beside, found or "") if nvcc and Path(nvcc).exists()]
    if not asked:
        raise NotBuiltError(
            "no nvcc" + (f" in CUDA_HOME={guess}" if guess else ""),
            "install the CUDA toolkit or set CUDA_HOME, then torchinit again",
        )
    for nvcc in asked:
        # No file is read: --dryrun says what would be run, and TOP is the toolkit.
        command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
        try:
            run = subprocess.run(command, capture_output=True, text=True)
        except OSError:
            continue
        top = re.search(r"^#\$ TOP=(.+)$", run.stderr + run.stdout, re.MULTILINE)
        for home in [top[1].strip()] if top else []:
            if has_headers(home):
                return os.path.realpath(home)
    raise NotBuiltError(
        f"nvcc ({asked[0]}) has no include/cuda_runtime.h",
        "install the whole CUDA toolkit or set CUDA_HOME to it, then torchinit again",
    )


class LastWords:
    """Lets through what this process and its children say, and keeps the end of it."""

    def __init__(self) -> None:
        self._kept = b""

    def __enter__(self) -> LastWords:
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(1), os.dup(2)]
        self._read, write = os.pipe()
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(write)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def _listen(self) -> None:
        while some := os.read(self._read, 1 << 16):
            os.write(self._saved[1], some)
            self._kept = (self._kept + some)[-64 * CHARACTERS :]

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(self._saved, start=1):
            os.dup2(saved, number)
        # A server that a compiler started (sccache) may hold the pipe for ever.
        self._listener.join(timeout=10)
        if not self._listener.is_alive():
            for descriptor in (*self._saved, self._read):
                os.close(descriptor)

    def said(self) -> list[str]:
        """What was said, less the commands, each far longer than what its compiler says."""
        lines = self._kept.decode(errors="replace").splitlines()
        return [line for line in lines if not re.search(r"\s-(c|shared)\s.*\s-o\s", line)]

    def first_error(self) -> str:
        """The first line that a compiler calls an error."""
        found = (line for line in self.said() if re.search(r"\b(error|fatal)\s*:", line))
        return next(found, "")

    def lines(self) -> list[str]:
        """The last lines, few and short."""
        kept: list[str] = []
        room = CHARACTERS
        for line in reversed(self.said()[-LINES:]):
            short = line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."
            room -= len(short) + 1
            if room < 0:
                break
            kept.insert(0, short)
        return kept


def not_built(reason: str, remedy: str = "", asked: bool = False, words: Iterable[str] = ()) -> Any:
    """What the record says of a module that there is not; asked: nobody wanted it."""
    return {
        "built": False,
        "asked": asked,
        "reason": reason,
        "remedy": remedy,
        "words": list(words),
    }


class Record:
    """What was built, with what, and why not more."""

    def __init__(self) -> None:
        self.tools: dict[str, str] = {}
        asked = f"TORCHINIT_BUILD={CHOICE} asked for"
        self.modules: dict[str, Any] = {}
        if PURE:
            self.modules = {
                name: not_built(f"{asked} pure Python", asked=True) for name in (CPU, CUDA)
            }
        elif CHOICE == "cpu":
            self.modules = {CUDA: not_built(f"{asked} the CPU module alone", asked=True)}

    def write(self, folder: Path) -> None:
        """Writes the record into a folder that is to be the package's."""
        record = {
            "choice": CHOICE,
            "python": platform.python_version(),
            "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
            "tools": self.tools,
            "modules": {name.rpartition(".")[2]: state for name, state in self.modules.items()},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


class Build(build_ext):  # type: ignore[misc]
    """Builds each module by itself and keeps the record."""

    def run(self) -> None:
        """Builds what can be built."""
        self.record = Record()
        (cpu,) = self.distribution.ext_modules
        self.extensions: list[Extension] = []
        self.attempt(cpu, self.build_cpu)
        if CUDA not in self.record.modules:
            cuda = Extension(CUDA, [])
            if self.record.modules[CPU]["built"]:
                self.attempt(cuda, self.build_cuda)
            else:
                remedy = self.record.modules[CPU]["remedy"]
                self.record.modules[CUDA] = not_built("it needs the CPU module", remedy)
                self.forget(cuda)
        for folder in self.folders():
            self.record.write(folder)

    def attempt(self, module: Extension, build: Callable[[Extension], Extension]) -> None:
        """Builds a module; a failure is recorded, or an error where the module was asked for."""
        words = LastWords()
        try:
            with words:
                built = build(module)
        except NotBuiltError as error:
            state = not_built(str(error), error.remedy)
        except Exception as error:
            if CHOICE != "auto":
                raise
            said = shorten(words.first_error() or say(error))
            remedy = "mend what the build complains of, then install torchinit again"
            state = not_built(f"the build failed: {said}", remedy, words=words.lines())
        else:
            self.extensions.append(built)
            self.record.modules[module.name] = {"built": True}
            return
        self.record.modules[module.name] = state
        if CHOICE != "auto":
            raise SystemExit(
                f"TORCHINIT_BUILD={CHOICE}: {module.name} cannot be built: {state['reason']}"
            )
        self.forget(module)
        warn(module.name, state["reason"])

    def build_cpu(self, module: Extension) -> Extension:
        """Builds the CPU module, without torch."""
        compiler = find_compiler()
        self.record.tools["compiler"] = first_line(*shlex.split(compiler), "--version") or compiler
        folder, self.record.tools["pybind11"] = find_pybind11()
        module.include_dirs.append(folder)
        os.environ["CXX"] = compiler  # what setuptools compiles and links C++ with
        self.extensions = [module]
        try:
            super().run()
        finally:
            self.extensions = []
        return module

    def build_extensions(self) -> None:
        """Builds with as many compilers at once as there are processors."""
        one_by_one = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(JOBS) as pool:
                runs = [pool.submit(one_by_one, [source], **options) for source in sources]
                try:
                    return [name for run in runs for name in run.result()]
                finally:
                    pool.shutdown(cancel_futures=True)

        self.compiler.compile = compile_all
        super().build_extensions()

    def build_cuda(self, _: Extension) -> Extension:
        """Builds the CUDA module as torch builds extensions: it knows nvcc, hosts and versions."""
        try:
            import torch
        except Exception as error:
            raise NotBuiltError(
                f"no torch to build with, whose CUDA it has to match ({shorten(str(error))})",
                "install again with pip's --no-build-isolation",
            ) from error
        self.record.tools["torch"] = f"torch {torch.__version__}"
        if not torch.version.cuda:
            raise NotBuiltError(
                f"torch {torch.__version__}, which it was built beside, has no CUDA",
                "install torchinit again beside the torch that has CUDA, with pip's "
                "--no-build-isolation",
            )
        from torch.utils import cpp_extension

        home = find_cuda_home(cpp_extension.CUDA_HOME)
        cpp_extension.CUDA_HOME = home
        nvcc = str(Path(home) / "bin" / "nvcc")
        self.record.tools["nvcc"] = version_of_nvcc(nvcc)
        extension = cpp_extension.CUDAExtension(
            CUDA,
            [*module_sources("cuda_module"), *sources("job", "cuda")],
            extra_compile_args={"cxx": COMPILE_FLAGS, "nvcc": NVCC_FLAGS},
        )
        # Nothing of libtorch is used, so that one build serves every torch.
        extension.libraries = [name for name in extension.libraries if name == "cudart"]
        extension.runtime_library_dirs = []
        command = cpp_extension.BuildExtension(self.distribution)
        for name in ("build_lib", "build_temp", "inplace", "editable_mode", "debug", "verbose"):
            setattr(command, name, getattr(self, name))
        before = self.distribution.ext_modules
        self.distribution.ext_modules = [extension]
        try:
            command.ensure_finalized()
            command.run()
        finally:
            self.distribution.ext_modules = before
        return extension

    def forget(self, module: Extension) -> None:
        """Removes a module that an earlier build left: it may not suit the Python around it."""
        name = module.name.rpartition(".")[2] + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
        for folder in self.folders():
            (folder / name).unlink(missing_ok=True)

    def folders(self) -> list[Path]:
        """Where the package is put together, and its source where that is installed."""
        return [Path(name).parent for pair in self.record_mapping().items() for name in pair]

    def record_mapping(self) -> dict[str, str]:
        """The record as built, and where it goes."""
        built = Path(self.build_lib, *PACKAGE.split("."), RECORD)
        source = Path(self.get_finalized_command("build_py").get_package_dir(PACKAGE))
        return {str(built): str(source / RECORD) if self.inplace else str(built)}

    def get_outputs(self) -> list[str]:
        """The files built."""
        return [*super().get_outputs(), *self.record_mapping()]

    def get_output_mapping(self) -> dict[str, str]:
        """The files built, and where those that belong in the source are."""
        found: dict[str, str] = super().get_output_mapping()
        return {**found, **self.record_mapping()} if self.inplace else found


class BuildPure(build_py):  # type: ignore[misc]
    """Keeps the record where there is no module to build."""

    def run(self) -> None:
        """Copies the Python files and writes the record."""
        super().run()
        built = Path(self.build_lib, *PACKAGE.split("."))
        source = Path(self.get_package_dir(PACKAGE))
        Record().write(source if self.editable_mode else built)
        if self.editable_mode:
            for module in source.glob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"):
                module.unlink()  # of an earlier build, and pure Python is wanted


def say(error: Exception) -> str:
    """An error in words: a command that failed without its words, a text of torch's filled in."""
    command = re.search(r"Command '?\[?'?([^',\s]+).*((returned|died) .*)", str(error), re.DOTALL)
    if command:
        return f"{command[1]} {command[2]}"
    text, *values = error.args or (type(error).__name__,)
    try:
        return str(text) % tuple(values) if values else str(text)
    except (TypeError, ValueError):
        return str(error)


def version_of_nvcc(nvcc: str) -> str:
    """What nvcc calls itself."""
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ""
    found = re.search(r"release [^\n]+", said)
    return f"nvcc {found[0]}" if found else "nvcc of unknown version"


def shorten(text: str) -> str:
    """The text in one line, and not a long one."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def warn(name: str, reason: str) -> None:
    """Says that a module is missing; pip shows it with -v alone, hence the record."""
    means = (
        "so CUDA tensors are filled without it; the CPU module is there"
        if name == CUDA
        else "so torch.nn.init serves everything"
    )
    print(
        f"warning: torchinit: {name} was NOT built, {means} ({reason}). `python -m torchinit info` "
        f"repeats this; TORCHINIT_BUILD={'cpu' if name == CUDA else 'none'} silences it.",
        file=sys.stderr,
    )


def main() -> None:
    """Runs setuptools."""
    if CHOICE not in CHOICES:
        raise SystemExit(f"TORCHINIT_BUILD={CHOICE!r} is unknown, choose one of {CHOICES}")
    if PURE:
        setup(cmdclass={"build_py": BuildPure})
    else:
        setup(ext_modules=[cpu_extension()], cmdclass={"build_ext": Build})


if __name__ == "__main__":
    main()
