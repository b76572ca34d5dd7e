"""Weight initialisation at memory speed, the same bits anywhere.

``from torchinit import init`` replaces ``from torch.nn import init``; ``torchinit.init_``
initialises a layer by the name of a scheme.
"""

import sys
from importlib import import_module, reload
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit.version import STREAM_VERSION, __version__

if TYPE_CHECKING:
    from torchinit.checkpoint.write import write_checkpoint
    from torchinit.reporting.fingerprint import fingerprint
    from torchinit.reporting.report import ModelReport, report_model
    from torchinit.reporting.rows import ReportRow


# All of it comes with ``import torchinit``, the operators too. Only the process of the command puts
# it off until it has read its arguments: --help does not wait for torch.
_started = sys.orig_argv[-len(sys.argv) :][:1]  # the script, or the module after -m
_is_put_off = "torch" not in sys.modules and [Path(each).stem for each in _started] == [__name__]

if TYPE_CHECKING or not _is_put_off:
    from torchinit import functional, init, recipes
    from torchinit.check.check_init import check_init, find_uninitialized
    from torchinit.check.marked_memory import marked_memory
    from torchinit.check.uninitialized import Uninitialized, UninitializedError
    from torchinit.errors import ArgumentError, RankError, UnknownSchemeError
    from torchinit.fill.batch import batch
    from torchinit.fill.route import Route, which
    from torchinit.fill.same_generator import assert_same_generator
    from torchinit.functional import *  # noqa: F403
    from torchinit.layer import init_
    from torchinit.models.build_model import build_model
    from torchinit.models.init_model import init_model_, plan_model
    from torchinit.models.init_shard import init_shard_
    from torchinit.models.plan import Plan
    from torchinit.patch.patch import patch_nn_init
    from torchinit.quantised.formats import MXFP8, NVFP4, FP8Blocks
    from torchinit.rules.composed import Blocks, Stack, by
    from torchinit.rules.elementwise import Constant, Normal, TruncNormal, Uniform, VarianceScaling
    from torchinit.rules.structured import Orthogonal
    from torchinit.schemes.init_table import InitializationType, cast_init_type

    __all__ = [
        "MXFP8",
        "NVFP4",
        "STREAM_VERSION",
        "ArgumentError",
        "Blocks",
        "Constant",
        "FP8Blocks",
        "InitializationType",
        "ModelReport",
        "Normal",
        "Orthogonal",
        "Plan",
        "RankError",
        "ReportRow",
        "Route",
        "Stack",
        "TruncNormal",
        "Uniform",
        "Uninitialized",
        "UninitializedError",
        "UnknownSchemeError",
        "VarianceScaling",
        "__version__",
        "assert_same_generator",
        "batch",
        "build_model",
        "by",
        "cast_init_type",
        "check_init",
        "find_uninitialized",
        "fingerprint",
        "init",
        "init_",
        "init_model_",
        "init_shard_",
        "marked_memory",
        "patch_nn_init",
        "plan_model",
        "recipes",
        "report_model",
        "which",
        "write_checkpoint",
    ]
    __all__ += functional.__all__

# Imported when first asked for: few programs do, and every one would wait.
_LATER = {
    "ModelReport": "torchinit.reporting.report",
    "ReportRow": "torchinit.reporting.rows",
    "fingerprint": "torchinit.reporting.fingerprint",
    "report_model": "torchinit.reporting.report",
    "write_checkpoint": "torchinit.checkpoint.write",
}


if not TYPE_CHECKING:  # which would take any name then

    def __getattr__(name: str) -> object:
        if _is_put_off:
            import_module("torch")
            return getattr(reload(sys.modules[__name__]), name)
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(import_module(_LATER[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
