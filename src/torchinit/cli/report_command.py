"""``torchinit report``: measures and judges a checkpoint, and draws it."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torchinit.cli.shell import say
from torchinit.cli.user_code import formats_of, read_rules
from torchinit.errors import ArgumentError
from torchinit.frameworks.transformers import config_beside
from torchinit.reporting.report import report_model

OUTLIERS, NOT_JUDGED = 1, 2  # exit codes


def run(arguments: Namespace) -> tuple[str, int]:
    """The table or the JSON object of a checkpoint, and the exit code.

    1 if a parameter has wrong values; else 2 if anything could not be judged, as after any error.
    """
    path, picture = arguments.checkpoint, arguments.output
    try:
        if picture is not None:
            _check_picture(picture)
        rules = None
        if arguments.rules is not None:
            rules = read_rules(arguments.rules, lambda: _config(Path(path)))
        report = report_model(
            path,
            rules,
            against=arguments.against,
            seed=arguments.seed,
            formats=formats_of(arguments.formats),
        )
        if picture is not None:
            report.save(picture, dark=arguments.dark)
    except (ArgumentError, TypeError, ImportError, OSError) as error:
        say(str(error))
        return "", NOT_JUDGED
    if arguments.json:
        said = json.dumps(report.to_dict(), indent=2)
    else:
        said = report.table(full=arguments.full)
    if report.outliers:
        return said, OUTLIERS
    unseen = [*report.unmeasured, *(report.against.unmeasured if report.against else ())]
    return said, NOT_JUDGED if unseen else 0


def _check_picture(picture: str) -> None:
    """Fails early, before minutes of reading, if the picture cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("pictures need matplotlib: pip install 'torchinit[report]'")
    path = Path(picture)
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"no such directory: {path.parent}")
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise ArgumentError(f"{picture} must end in .png, .pdf or .svg")


def _config(path: Path) -> Any:
    """The config of a checkpoint, completed by Transformers if that is installed; None without."""
    fields = config_beside(path)
    if not fields:
        return None
    if importlib.util.find_spec("transformers") is not None and "model_type" in fields:
        from transformers import AutoConfig

        try:
            return AutoConfig.for_model(**fields)
        except ValueError:  # a model type that this version does not know
            pass
        except Exception as error:
            raise ArgumentError(
                f"config.json of {path} is not one that Transformers can use: "
                f"{type(error).__name__}: {error}"
            ) from error
    return SimpleNamespace(**fields)
