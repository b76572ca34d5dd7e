"""The record that setup.py wrote: which native modules were built, and why others were not."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

_PATH = Path(__file__).with_name("_build.json")


class Missing(NamedTuple):
    """Why a native module is missing."""

    reason: str
    remedy: str
    asked: bool  # whoever built it chose to have none
    words: tuple[str, ...]  # the last lines of the compiler's output


def read() -> dict[str, Any]:
    """Returns the record; empty if there is none or it cannot be read."""
    try:
        found = json.loads(_PATH.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


record = read()


def find_missing(name: str) -> Missing:
    """Returns why there is no file of a module, ``_native`` or ``_cuda``."""
    state = record.get("modules", {}).get(name)
    again = "install torchinit again"
    if state is None:
        return Missing("was not built: no build left a record of itself", again, False, ())
    if not state["built"]:
        words = tuple(state["words"])
        return Missing(f"was not built: {state['reason']}", state["remedy"], state["asked"], words)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if record["suffix"] != suffix:
        reason = f"was built for another Python ({record['suffix']}, this one needs {suffix})"
        return Missing(reason, again, False, ())
    return Missing("was built, but its file is gone", again, False, ())
