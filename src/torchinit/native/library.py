"""Defines operators in torch's registry, in libraries named ``torchinit``."""

from __future__ import annotations

import torch
from torch.library import Library

_NAMESPACE = "torchinit"


def operator_library(part: str) -> Library:
    """A library for the operators of one module of this package.

    When a module is imported again (``importlib.reload``, or after ``del sys.modules[...]``), what
    it defined before is removed: torch refuses to define a name twice.
    """
    # Kept in the registry and not in this package, which may itself be imported again.
    libraries = vars(getattr(torch.ops, _NAMESPACE)).setdefault("libraries_by_part", {})
    if part in libraries:
        libraries[part]._destroy()
    libraries[part] = Library(_NAMESPACE, "FRAGMENT")
    return libraries[part]  # type: ignore[no-any-return]
