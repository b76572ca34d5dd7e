"""Weight initialisation at memory speed, the same bits anywhere.

``import torchinit as init`` replaces ``torch.nn.init``; ``torchinit.init_`` initialises a layer by
the name of a scheme.
"""

from torchinit.batching import batch
from torchinit.dispatch import Path, which
from torchinit.errors import ArgumentError, UnknownSchemeError
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
from torchinit.init import InitializationType, cast_init_type, init_
from torchinit.version import __version__

__all__ = [
    "ArgumentError",
    "InitializationType",
    "Path",
    "UnknownSchemeError",
    "__version__",
    "batch",
    "calculate_gain",
    "cast_init_type",
    "constant_",
    "dirac_",
    "eye_",
    "init_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "orthogonal_batch_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "which",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]
