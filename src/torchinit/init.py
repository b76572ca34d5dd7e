"""``from torchinit import init``: everything that ``from torch.nn import init`` gives.

The functions of ``torchinit.functional``, and torch's others: the functions for fans with a leading
underscore, which layers use, and the deprecated names without a trailing underscore.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import init as torch_init

from torchinit import functional
from torchinit.functional import *  # noqa: F403
from torchinit.functional import __all__ as _current
from torchinit.schemes.fans import calculate_fan, calculate_fans

# torch warns when they are called, and so do these.
_DEPRECATED = [name for name in torch_init.__all__ if f"{name}_" in _current]

__all__ = [*_current, *_DEPRECATED]


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """Used by ``torch.nn.Linear``'s own initialisation, LoRA and timm."""
    return calculate_fans(tensor.shape)


def _calculate_correct_fan(tensor: Tensor, mode: str) -> int:
    """The fan for a mode; used like ``_calculate_fan_in_and_fan_out``."""
    return calculate_fan(tensor.shape, mode)


def _deprecated(name: str) -> Callable[..., Any]:
    function = getattr(functional, f"{name}_")

    @functools.wraps(function)
    def deprecated(*arguments: Any, **keywords: Any) -> Any:
        warnings.warn(
            f"`nn.init.{name}` is now deprecated in favor of `nn.init.{name}_`.",
            FutureWarning,
            stacklevel=2,
        )
        return function(*arguments, **keywords)

    deprecated.__name__ = deprecated.__qualname__ = name
    deprecated.__module__ = __name__
    return deprecated


globals().update({name: _deprecated(name) for name in _DEPRECATED})
