"""Weight initialisation at memory speed, the same bits anywhere.

``from torchinit import init`` replaces ``from torch.nn import init``; ``torchinit.init_``
initialises a layer by the name of a scheme.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from torchinit import init
from torchinit.errors import ArgumentError, UnknownSchemeError
from torchinit.fill.batch import batch
from torchinit.fill.route import Route, which
from torchinit.fill.same_generator import assert_same_generator
from torchinit.functional import (
    calculate_gain,
    constant_,
    dirac_,
    eye_,
    kaiming_normal_,
    kaiming_uniform_,
    normal_,
    ones_,
    orthogonal_,
    orthogonal_batch_,
    sparse_,
    trunc_normal_,
    uniform_,
    xavier_normal_,
    xavier_uniform_,
    zeros_,
)
from torchinit.layer import init_
from torchinit.models import recipes
from torchinit.models.build_model import build_model
from torchinit.models.init_model import init_model_, plan_model
from torchinit.models.init_shard import init_shard_
from torchinit.models.plan import Plan
from torchinit.patch.patch import patch_nn_init
from torchinit.rules.composed import Blocks, Stack, by
from torchinit.rules.elementwise import Constant, Normal, TruncNormal, Uniform, VarianceScaling
from torchinit.rules.structured import Orthogonal
from torchinit.schemes.schemes import InitializationType, cast_init_type
from torchinit.version import STREAM_VERSION, __version__

if TYPE_CHECKING:
    from torchinit.checkpoint.write import write_checkpoint
    from torchinit.reporting.report import ModelReport, report_model
    from torchinit.reporting.rows import ReportRow

__all__ = [
    "STREAM_VERSION",
    "ArgumentError",
    "Blocks",
    "Constant",
    "InitializationType",
    "ModelReport",
    "Normal",
    "Orthogonal",
    "Plan",
    "ReportRow",
    "Route",
    "Stack",
    "TruncNormal",
    "Uniform",
    "UnknownSchemeError",
    "VarianceScaling",
    "__version__",
    "assert_same_generator",
    "batch",
    "build_model",
    "by",
    "calculate_gain",
    "cast_init_type",
    "constant_",
    "dirac_",
    "eye_",
    "init",
    "init_",
    "init_model_",
    "init_shard_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "orthogonal_batch_",
    "patch_nn_init",
    "plan_model",
    "recipes",
    "report_model",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "which",
    "write_checkpoint",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

# Imported when first asked for: few programs do, and every one would wait.
_LATER = {
    "ModelReport": "torchinit.reporting.report",
    "ReportRow": "torchinit.reporting.rows",
    "report_model": "torchinit.reporting.report",
    "write_checkpoint": "torchinit.checkpoint.write",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_LATER[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
