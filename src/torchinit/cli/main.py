"""The command line: ``torchinit demo`` and the other commands.

Exit codes: 0 success; 1 a parameter has wrong values or none, a checkpoint cannot be written,
memory ran out, or the output could not be written; 2 bad usage, or not everything could be judged;
130 interrupted; 141 the reader of the output is gone.

Each command imports what it needs itself, once its arguments are right. Importing torch takes a
second: ``--help`` does not need it, and Ctrl-C during that second must end the process like any
other.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torchinit
from torchinit.cli import shell
from torchinit.cli.demo_models import MODELS, default_model
from torchinit.errors import counted
from torchinit.version import __version__

if TYPE_CHECKING:
    import torch

_INSTALL = "pip install 'torchinit[demo]'"
# The names of dtypes.FLOATING_DTYPES, without importing torch.
DTYPES = ("float32", "bfloat16", "float16", "float64")
_STORED_DTYPES = (*DTYPES, "float8_e4m3fn", "float8_e5m2")
_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# The names in user_code.FORMATS.
_FORMATS = ("mxfp8", "fp8", "fp8-ue8m0", "nvfp4")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        argv: arguments without the program's name; None for those of the process.
    """
    return shell.run(partial(_run, argv))


def _run(argv: Sequence[str] | None) -> tuple[str, int]:
    printed = io.StringIO()
    try:
        # argparse ignores errors when it prints: shell.run does not.
        with redirect_stdout(printed):
            arguments, others = _parser().parse_known_args(argv)
        # argparse takes CONFIG and OUT only where no option stands between them.
        lacks_out = arguments.command == "checkpoint" and arguments.out is None
        if lacks_out and others and not others[0].startswith("-"):
            arguments.out = others.pop(0)
        if others:
            arguments.refuse(f"unrecognized arguments: {' '.join(others)}")
        if arguments.command == "checkpoint":
            return _checkpoint(arguments)
        if arguments.command == "demo":
            return _demo(arguments)
        if arguments.command == "report":
            return _report(arguments)
        with _importing():
            from torchinit.cli import check_command, fingerprint_command, info
        if arguments.command == "info":
            return info.run(as_json=arguments.json), 0
        if arguments.command == "check-init":
            return check_command.run(arguments.target)
        return fingerprint_command.run(arguments.checkpoint)
    except SystemExit as exit_:  # from argparse, after --help or bad usage
        return printed.getvalue().rstrip(), int(exit_.code or 0)


@contextmanager
def _importing() -> Iterator[None]:
    """For the imports of a command, after those that it has put off."""
    with shell.importing():
        _ = torchinit.__all__
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchinit",
        description="Weight initialisation for PyTorch at memory speed.",
        epilog="torchinit COMMAND --help describes the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"torchinit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    seeded = argparse.ArgumentParser(add_help=False)
    seeded.add_argument(
        "--seed", type=_seed, default=0, help="seed of all random values; default: %(default)s"
    )

    formatted = argparse.ArgumentParser(add_help=False)
    formatted.add_argument(
        "--format",
        dest="formats",
        action="append",
        type=_format,
        metavar="PATTERN=FORMAT",
        help="a low-precision format of the weights that a pattern matches, such as "
        f"'**_proj.weight=mxfp8': {', '.join(_FORMATS)}; may be repeated, the first match wins",
    )

    demo = commands.add_parser(
        "demo",
        parents=[seeded],
        help="build a real model in every way, time each and check every parameter",
        description="Builds a real model by its stock constructor, inside patch_nn_init() and by "
        "build_model(), compares the times with that of zeroing the same memory, and checks every "
        "parameter. If memory is short, a smaller model is built.",
    )
    demo.add_argument(
        "--model",
        choices=MODELS,
        help=f"default: {next(iter(MODELS))}, or decoder if Transformers is not installed; "
        "decoder, decoder-small and tiny need only torch",
    )
    demo.add_argument(
        "--dtype",
        type=_dtype,
        choices=DTYPES,
        default="bfloat16",
        help=f"default: %(default)s; short: {', '.join(_SHORT_DTYPES)}",
    )
    demo.add_argument("--device", help="cpu, cuda or cuda:N; default: cuda if available")
    demo.add_argument("--json", action="store_true", help="print one JSON object")

    checkpoint = commands.add_parser(
        "checkpoint",
        parents=[seeded, formatted],
        help="write an initialised checkpoint of a model of any size",
        description="Writes a checkpoint that from_pretrained loads, with the same values as "
        "init_model_, piece by piece: memory use does not grow with the model.",
    )
    checkpoint.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="a Transformers config.json, or a directory that contains one; not with --build",
    )
    checkpoint.add_argument("out", metavar="OUT", nargs="?", help="the directory to write")
    checkpoint.add_argument(
        "--build",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="instead of CONFIG: a function without arguments that builds the model, initialised "
        "as its constructor says; with --rules, the function builds it on the meta device",
    )
    checkpoint.add_argument(
        "--dtype",
        type=_dtype,
        choices=_STORED_DTYPES,
        help="dtype of floating-point parameters; default: as in the config; short: "
        f"{', '.join(_SHORT_DTYPES)}",
    )
    checkpoint.add_argument(
        "--rules",
        type=Path,
        metavar="FILE.py",
        help="a Python file that defines rules, a mapping or a function of the config; default: "
        "the model's own initialisation",
    )
    checkpoint.add_argument(
        "--layout", help="how formats are stored: fp8, mxfp8 or compressed-tensors"
    )
    checkpoint.add_argument(
        "--shard-size", default="5GB", help="largest file, such as 500MB; default: %(default)s"
    )
    checkpoint.add_argument(
        "--resume", action="store_true", help="keep the complete files of an interrupted run"
    )
    checkpoint.add_argument(
        "--dry-run", action="store_true", help="print what each parameter would get; write nothing"
    )

    report = commands.add_parser(
        "report",
        parents=[formatted],
        help="measure, check and draw every parameter of a checkpoint",
        description="Measures every parameter of a safetensors checkpoint, one at a time, and "
        "lists those with wrong values: by the rules, or without rules, compared with the same "
        "parameter of other layers. Pictures need an extra: pip install 'torchinit[report]'. The "
        "exit code is 1 if a parameter has wrong values, 2 if anything could not be judged.",
    )
    report.add_argument(
        "checkpoint",
        metavar="MODEL_OR_CHECKPOINT",
        help="a directory of safetensors files, their index, or one such file",
    )
    report.add_argument(
        "--rules", metavar="FILE.py", help="a Python file that defines rules, as for checkpoint"
    )
    report.add_argument(
        "--seed",
        type=_seed,
        help="with --rules and --format: that the checkpoint was written with; every byte of its "
        "low-precision weights is compared",
    )
    report.add_argument(
        "--against", metavar="OTHER", help="another checkpoint to draw beside this one"
    )
    report.add_argument(
        "-o", "--output", metavar="report.png", help="the picture to write: .png, .pdf or .svg"
    )
    report.add_argument(
        "--dark", action="store_true", help="draw it bright on a transparent ground"
    )
    report.add_argument(
        "--all",
        dest="full",
        action="store_true",
        help="print a line for every parameter, not one for each role",
    )
    report.add_argument("--json", action="store_true", help="print one JSON object")

    check = commands.add_parser(
        "check-init",
        help="name parameters and buffers that plain code or loading leaves without values",
        description="For a config: builds its model on the meta device, calls to_empty() and the "
        "model's own initialisation, and lists what was not written. For a checkpoint: does the "
        "same for from_pretrained(). The model has to fit into memory. The exit code is 1 if "
        "anything is left, 2 if it could not be judged.",
    )
    check.add_argument(
        "target",
        metavar="CONFIG_OR_CHECKPOINT",
        help="a Transformers config.json, a directory that contains one, with or without "
        "safetensors files, or a model of torchinit demo",
    )

    fingerprint = commands.add_parser(
        "fingerprint",
        help="print one short string for all values of a checkpoint",
        description="Prints 16 hexadecimal digits that differ for checkpoints that differ in any "
        "bit, name, dtype or shape. torchinit.fingerprint(model) has the same for the model, "
        "however it is sharded.",
    )
    fingerprint.add_argument("checkpoint", metavar="CHECKPOINT", help="as for report")

    info_help = "what was built, what is in use, and why"
    info = commands.add_parser("info", help=info_help, description=f"Says {info_help}.")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    for command in commands.choices.values():
        command.set_defaults(refuse=command.error)
    return parser


def _checkpoint(arguments: argparse.Namespace) -> tuple[str, int]:
    if arguments.build is not None:
        if arguments.out is not None:
            arguments.refuse("argument --build: not allowed with argument CONFIG")
        arguments.config, arguments.out = None, arguments.config
    elif arguments.config is None:
        arguments.refuse("the following arguments are required: CONFIG, unless --build is given")
    if arguments.out is None and not arguments.dry_run:
        arguments.refuse("the following arguments are required: OUT")
    with _importing():
        from torchinit.cli import checkpoint_command
    return checkpoint_command.run(arguments)


def _report(arguments: argparse.Namespace) -> tuple[str, int]:
    if (arguments.seed is None) != (not arguments.formats):
        arguments.refuse("--seed and --format go together: give both, or neither")
    if arguments.dark and not arguments.output:
        arguments.refuse("--dark is for the picture: give --output too")
    if arguments.full and arguments.json:
        arguments.refuse("--all is for the table, and --json has every parameter: give one")
    with _importing():
        from torchinit.cli import report_command
    return report_command.run(arguments)


def _demo(arguments: argparse.Namespace) -> tuple[str, int]:
    largest, default = next(iter(MODELS)), default_model()
    model: str = arguments.model or default
    if not MODELS[model].is_usable:
        arguments.refuse(f"argument --model: {model!r} needs Transformers 5: {_INSTALL}")
    if arguments.model is None and default != largest:
        shell.say(f"Transformers 5 is not installed ({_INSTALL}): taking {MODELS[model].title}")
    with _importing():
        import torch

        from torchinit.cli import demo
    try:
        device = _device(arguments.device)
    except ValueError as error:
        arguments.refuse(f"argument --device: {error}")
    return demo.run(
        model,
        dtype=getattr(torch, arguments.dtype),
        device=device,
        seed=arguments.seed,
        as_json=arguments.json,
    )


def _device(text: str | None) -> torch.device:
    import torch

    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ValueError(f"{text!r} is not a device") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{text!r} is neither cpu nor cuda")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        seen = counted(count, "CUDA device") if count else "no CUDA device"
        raise ValueError(f"{text!r} does not exist: torch sees {seen}")
    return device


def _dtype(text: str) -> str:
    return _SHORT_DTYPES.get(text, text)


def _format(text: str) -> tuple[str, str]:
    pattern, _, name = text.rpartition("=")
    if not pattern or name not in _FORMATS:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be PATTERN=FORMAT, with one of {', '.join(_FORMATS)}"
        )
    return pattern, name


def _seed(text: str) -> int:
    is_number = re.fullmatch("[0-9]{1,20}", text) is not None
    if not is_number or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 2**64 - 1")
    return int(text)
