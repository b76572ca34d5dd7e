"""Where operators are defined: libraries of torch's registry under the name ``torchinit``."""

from __future__ import annotations

import torch
from torch.library import Library

_NAMESPACE = "torchinit"


def operator_library(part: str) -> Library:
    """A library for the operators of one module of this package.

    A module that is imported anew (``importlib.reload``, or after ``del sys.modules[...]``) takes
    back what it defined before: torch refuses to define a name twice.
    """
    # Kept with the registry and not in this package, which may be imported anew itself.
    libraries = vars(getattr(torch.ops, _NAMESPACE)).setdefault("libraries_by_part", {})
    if part in libraries:
        libraries[part]._destroy()
    libraries[part] = Library(_NAMESPACE, "FRAGMENT")
    return libraries[part]  # type: ignore[no-any-return]
