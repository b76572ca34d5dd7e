"""``torchinit report``: a checkpoint as a table and a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torchinit.commands.rules_file import read_rules
from torchinit.commands.shell import say
from torchinit.errors import ArgumentError
from torchinit.frameworks.transformers import config_beside
from torchinit.reporting.report import report_model


def run(
    path: str, *, rules: str | None, against: str | None, picture: str | None
) -> tuple[str, int]:
    """Reports a checkpoint.

    Args:
        path, against: of checkpoints.
        rules: path of a file that defines them.
        picture: where it is to be written.

    Returns:
        The table, and the exit code: 1 if there are offenders, or if anything was wrong.
    """
    try:
        if picture is not None:
            _check_picture(picture)
        chosen = None if rules is None else read_rules(rules, _config(Path(path)))
        report = report_model(path, chosen, against=against)
        if picture is not None:
            report.save(picture)
    except (ArgumentError, TypeError, ImportError, OSError) as error:
        say(str(error))
        return "", 1
    return str(report), int(bool(report.offenders))


def _check_picture(picture: str) -> None:
    """Raises before minutes of reading if the picture could not be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("pictures need matplotlib: pip install 'torchinit[report]'")
    path = Path(picture)
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"no such directory: {path.parent}")
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise ArgumentError(f"{picture} must end in .png, .pdf or .svg")


def _config(path: Path) -> Any:
    """The config of a checkpoint, with Transformers' defaults where it is installed; else None."""
    said = config_beside(path)
    if not said:
        return None
    if importlib.util.find_spec("transformers") is not None and "model_type" in said:
        from transformers import AutoConfig

        try:
            return AutoConfig.for_model(**said)
        except ValueError:  # of a model that it does not know
            pass
    return SimpleNamespace(**said)
