"""``torchinit fingerprint``: one short string for all values of a checkpoint."""

from __future__ import annotations

from torchinit.cli.shell import say
from torchinit.errors import ArgumentError
from torchinit.reporting.fingerprint import fingerprint


def run(path: str) -> tuple[str, int]:
    """The fingerprint of a checkpoint, and the exit code: 2 if it cannot be read."""
    try:
        return fingerprint(path), 0
    except (ArgumentError, OSError) as error:
        say(str(error))
        return "", 2
