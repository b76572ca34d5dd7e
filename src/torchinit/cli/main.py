"""The command line: ``torchinit demo``, ``checkpoint``, ``report`` and ``info``.

Exit codes: 0 success, 1 a parameter failed its check or is an offender, a checkpoint cannot be
written as asked or read, memory ran out or the output could not be written, 2 bad usage,
130 interrupted, 141 whoever read the output went away.

What a command needs is imported by the command: torch takes a second, which ``--help`` should not,
and an interrupt of that second is to end as any other.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit.commands import shell
from torchinit.commands.demo.catalog import MODELS, default_model
from torchinit.version import __version__

if TYPE_CHECKING:
    import torch

_INSTALL = "pip install 'torchinit[demo]'"
# dtypes.FLOATING_DTYPES by name, without torch.
DTYPES = ("float32", "bfloat16", "float16", "float64")
_STORED_DTYPES = (*DTYPES, "float8_e4m3fn", "float8_e5m2")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        argv: arguments without the program's name; None is those of the process.
    """
    return shell.run(partial(_run, argv))


def _run(argv: Sequence[str] | None) -> tuple[str, int]:
    said = io.StringIO()
    try:
        # argparse would not notice that what it prints cannot be written.
        with redirect_stdout(said):
            arguments = _parser().parse_args(argv)
        return _carry_out(arguments)
    except SystemExit as exit_:  # argparse's: after --help or bad usage
        return said.getvalue().rstrip(), int(exit_.code or 0)


def _carry_out(arguments: argparse.Namespace) -> tuple[str, int]:
    if arguments.command == "demo":
        arguments.model = _model(arguments)
    if arguments.command == "checkpoint":
        return _checkpoint(arguments)
    with shell.importing():
        import torch

        from torchinit.commands import info, report_model
        from torchinit.commands.demo import demo

    if arguments.command == "info":
        return info.run(as_json=arguments.json), 0
    if arguments.command == "report":
        return report_model.run(
            arguments.checkpoint,
            rules=arguments.rules,
            against=arguments.against,
            picture=arguments.output,
        )
    try:
        device = _device(arguments.device)
    except ValueError as error:
        arguments.refuse(f"argument --device: {error}")
    return demo.run(
        arguments.model,
        dtype=getattr(torch, arguments.dtype),
        device=device,
        seed=arguments.seed,
        as_json=arguments.json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchinit", description="Weight initialisation for PyTorch at memory speed."
    )
    parser.add_argument("--version", action="version", version=f"torchinit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    demo_parser = commands.add_parser(
        "demo",
        help="build a real model in every way, time them and check every parameter",
        description="Builds a real model as people do, inside patch_nn_init(), and by build_model, "
        "compares the times with that of zeroing the memory, and checks "
        "every parameter. Where memory is short, a smaller model is taken.",
    )
    largest, *_ = MODELS
    demo_parser.add_argument(
        "--model",
        choices=MODELS,
        help=f"default: {largest}, or decoder where Transformers is not installed; decoder, "
        "decoder-small and tiny need torch alone",
    )
    demo_parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s"
    )
    demo_parser.add_argument("--device", help="cpu, cuda or cuda:N; default: cuda if there is one")
    demo_parser.add_argument(
        "--seed", type=_seed, default=0, help="of every random value; default: %(default)s"
    )
    demo_parser.add_argument("--json", action="store_true", help="print one JSON object")

    demo_parser.set_defaults(refuse=demo_parser.error)

    _add_checkpoint(commands.add_parser)
    _add_report(commands.add_parser)

    info_help = "what was built, what is in use, and why"
    info_parser = commands.add_parser("info", help=info_help, description=f"Says {info_help}.")
    info_parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_checkpoint(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "checkpoint",
        help="write an initialised checkpoint of a model of any size",
        description="Writes a checkpoint that from_pretrained loads, with the values that "
        "init_model_ gives, piece by piece: memory does not grow with the model.",
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="a Transformers config.json, or a directory that has one; not with --build",
    )
    parser.add_argument("out", metavar="OUT", nargs="?", help="directory to be written")
    parser.add_argument(
        "--build",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="in place of CONFIG: a function of no arguments that builds the model, whose "
        "constructor says what its values are; with --rules, on the meta device",
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, help="of every random value; default: %(default)s"
    )
    parser.add_argument(
        "--dtype",
        choices=_STORED_DTYPES,
        help="of floating-point parameters; default: the config's",
    )
    parser.add_argument(
        "--rules",
        type=Path,
        metavar="FILE.py",
        help="defines rules: a mapping, or a function of the config; default: the model's own "
        "initialisation",
    )
    parser.add_argument(
        "--shard-size", default="5GB", help="bytes in a file, as 5GB; default: %(default)s"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the whole files of a run broken off"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what each parameter gets, and write nothing"
    )
    parser.set_defaults(refuse=parser.error)


def _add_report(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "report",
        help="measure, judge and draw every parameter of a checkpoint",
        description="Measures every parameter of a checkpoint of safetensors, one at a time, and "
        "says which are not as they should be: by rules, or else by their siblings at other "
        "depths. Needs the extra report: pip install 'torchinit[report]'.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="MODEL_OR_CHECKPOINT",
        help="a directory with safetensors, sharded or not, or one such file",
    )
    parser.add_argument(
        "--rules", metavar="FILE.py", help="defines rules: a mapping, or a function of the config"
    )
    parser.add_argument("--against", metavar="OTHER", help="a checkpoint to draw beside this one")
    parser.add_argument(
        "-o", "--output", metavar="report.png", help="where to draw the picture: .png, .pdf, .svg"
    )


def _checkpoint(arguments: argparse.Namespace) -> tuple[str, int]:
    if arguments.build is not None:
        if arguments.out is not None:
            arguments.refuse("argument --build: not allowed with argument CONFIG")
        arguments.config, arguments.out = None, arguments.config
    elif arguments.config is None:
        arguments.refuse("the following arguments are required: CONFIG, or --build")
    if arguments.out is None and not arguments.dry_run:
        arguments.refuse("the following arguments are required: OUT")
    with shell.importing():
        from torchinit.commands import checkpoint
    return checkpoint.run(arguments)


def _model(arguments: argparse.Namespace) -> str:
    """The model asked for, or the largest there is."""
    largest, default = next(iter(MODELS)), default_model()
    name: str = arguments.model or default
    if not MODELS[name].is_usable:
        arguments.refuse(f"argument --model: {name!r} needs Transformers 5: {_INSTALL}")
    if arguments.model is None and default != largest:
        shell.say(f"taking {MODELS[name].title}, for want of Transformers 5: {_INSTALL}")
    return name


def _device(text: str | None) -> torch.device:
    import torch

    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ValueError(f"{text!r} is no device") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{text!r} is neither cpu nor cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{text!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 2**64 - 1")
    return seed
