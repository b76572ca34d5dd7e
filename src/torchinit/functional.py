"""The functions of ``torch.nn.init``: same names, parameters, defaults, returns and warnings.

Each fills its tensor in place, outside autograd, and returns it. Tensors that the operators do not
serve go to the function of the same name in ``torch.nn.init`` (see ``torchinit.which``).

A random fill draws one key (``keys.draw_key``) per call, zero-element tensors included; constant
fills and meta tensors draw none. Stricter than torch, and always before anything is written:

* NaN or infinite ``mean``, ``std``, ``gain`` and bounds of ``uniform_`` are errors, where torch
  fills with NaN. The bounds of ``trunc_normal_`` may be infinite.
* Memory mapped read-only is an error, where torch crashes.

These errors, and those for ``std < 0`` and ``a > b``, are ``ValueError`` and ``RuntimeError`` both.

float8 tensors, which torch refuses, are filled by every function with random values: rounded, and
what exceeds the largest finite value becomes it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import init as torch_init

from torchinit import batching, checks, kernels, ops
from torchinit.dispatch import is_direct, is_native
from torchinit.dtypes import FLOAT8_DTYPES, copy_rounded
from torchinit.errors import ArgumentError
from torchinit.fans import calculate_gain, kaiming_std, xavier_std
from torchinit.keys import draw_key, draw_key_number, draw_keys
from torchinit.orthogonal import fill_orthogonal, orthogonal_by_torch

__all__ = [
    "calculate_gain",
    "constant_",
    "dirac_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "orthogonal_batch_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

_SQRT3 = math.sqrt(3.0)


def _fill(
    distribution: int,
    tensor: Tensor,
    generator: Generator | None,
    p0: float,
    p1: float,
    p2: float = 0.0,
    p3: float = 0.0,
) -> Tensor:
    """Draws a key and fills, outside autograd; leaves meta tensors alone."""
    parameters = (p0, p1, p2, p3)
    if is_direct(tensor):
        if (batch := batching.current()) is not None:
            fill = kernels.make_fill(distribution, tensor.dtype, parameters)
            batch.collect(fill, tensor, generator)
        else:
            kernels.fill_directly(tensor, draw_key_number(generator), distribution, parameters)
    elif not tensor.is_meta:
        batching.settle_keys()
        with torch.no_grad():
            ops.fill(tensor, draw_key(generator), distribution, parameters)
    return tensor


def _by_torch(function: Callable[..., Tensor], tensor: Tensor, *arguments: object) -> Tensor:
    """A function of ``torch.nn.init``; float8, which it does not know, by way of float32."""
    batching.settle_keys()
    if tensor.dtype not in FLOAT8_DTYPES or tensor.is_meta:
        return function(tensor, *arguments)
    single = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
    return copy_rounded(tensor, function(single, *arguments))


def _uniform(tensor: Tensor, a: float, b: float, generator: Generator | None) -> Tensor:
    checks.check_uniform(tensor.dtype, a, b)
    return _fill(kernels.UNIFORM, tensor, generator, a, b)


def _normal(tensor: Tensor, mean: float, std: float, generator: Generator | None) -> Tensor:
    checks.check_normal(mean, std)
    return _fill(kernels.NORMAL, tensor, generator, mean, std)


def _constant(tensor: Tensor, val: float) -> Tensor:
    checks.check_constant(tensor.dtype, val)
    if is_direct(tensor):
        parameters = (val, 0.0, 0.0, 0.0)
        if (batch := batching.current()) is not None:
            batch.collect(
                kernels.make_fill(kernels.CONSTANT, tensor.dtype, parameters), tensor, None
            )
        else:
            kernels.fill_directly(tensor, 0, kernels.CONSTANT, parameters)
    elif not tensor.is_meta:
        with torch.no_grad():
            ops.constant_(tensor, val)
    return tensor


def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fills with U[a, b): never b itself, in any dtype, unless a = b.

    Args:
        tensor: any shape.
        a, b: bounds, finite, a <= b. If the dtype has no value in [a, b), all values are the one
            nearest to a.
        generator: where the key is drawn from; None is torch's default CPU generator.

    Raises:
        ArgumentError: a > b, bounds not finite or out of the dtype's range, overlapping tensor.
    """
    if not is_native(tensor):
        return _by_torch(torch_init.uniform_, tensor, a, b, generator)
    return _uniform(tensor, float(a), float(b), generator)


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fills with N(mean, std^2) by the Box-Muller transform; |z| reaches 6.66 (float64: 8.65).

    Args:
        tensor: any shape.
        mean, std: finite, std >= 0.
        generator: where the key is drawn from; None is torch's default CPU generator.

    Raises:
        ArgumentError: std < 0, mean or std not finite, overlapping tensor.
    """
    if not is_native(tensor):
        return _by_torch(torch_init.normal_, tensor, mean, std, generator)
    return _normal(tensor, float(mean), float(std), generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fills with N(mean, std^2) truncated to [a, b], by inverse CDF, in one pass.

    Exact for any bounds, remote and one-sided ones too, though the warning of torch for a mean more
    than two std outside [a, b] is kept. The bounds are values, not multiples of std: with a
    std of 0.02 the defaults truncate nothing.

    Args:
        tensor: any shape.
        mean, std: of the normal before truncation; finite, std >= 0. A std of 0 gives the mean, or
            the nearer bound (torch: ZeroDivisionError).
        a, b: bounds, a <= b; may be infinite. No value lies outside; if the dtype has no value in
            [a, b], all values are the one nearest to a.
        generator: where the key is drawn from; None is torch's default CPU generator.

    Raises:
        ArgumentError: std < 0, a > b, NaN, mean or std not finite, overlapping tensor.
    """
    if not is_native(tensor):
        return _by_torch(torch_init.trunc_normal_, tensor, mean, std, a, b, generator)
    mean, std, a, b = float(mean), float(std), float(a), float(b)
    checks.check_normal(mean, std)
    checks.check_interval(a, b)
    if tensor.is_meta:
        return tensor
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The distribution of values may be incorrect.",
            stacklevel=2,
        )
    return _fill(kernels.TRUNCATED_NORMAL, tensor, generator, mean, std, a, b)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fills with one value, rounded to the dtype; NaN and infinity are allowed, as in torch.

    Raises:
        ArgumentError: a finite val out of the dtype's range, infinity for float8_e4m3fn, which has
            none, overlapping tensor.
    """
    if not is_native(tensor):
        return torch_init.constant_(tensor, val)
    return _constant(tensor, float(val))


def ones_(tensor: Tensor) -> Tensor:
    """Fills with 1."""
    return _constant(tensor, 1.0) if is_native(tensor) else torch_init.ones_(tensor)


def zeros_(tensor: Tensor) -> Tensor:
    """Fills with 0."""
    return _constant(tensor, 0.0) if is_native(tensor) else torch_init.zeros_(tensor)


def eye_(tensor: Tensor) -> Tensor:
    """Fills a matrix with the identity, as ``torch.nn.init.eye_`` does."""
    return torch_init.eye_(tensor)


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """Fills a convolution's weight with the Dirac delta, as ``torch.nn.init.dirac_`` does."""
    return torch_init.dirac_(tensor, groups)


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fills with U(-r, r), r = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010).

    Args:
        tensor: shape (out, in, *kernel).
        gain: finite, not negative.
        generator: where the key is drawn from; None is torch's default CPU generator.

    Raises:
        ValueError: fewer than two dimensions.
        ArgumentError: gain negative or not finite, overlapping tensor.
    """
    if not is_native(tensor):
        return _by_torch(torch_init.xavier_uniform_, tensor, gain, generator)
    _check_gain(gain)
    bound = _SQRT3 * xavier_std(tensor.shape, gain)
    return _uniform(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fills with N(0, s^2), s = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010).

    Arguments and errors as for ``xavier_uniform_``.
    """
    if not is_native(tensor):
        return _by_torch(torch_init.xavier_normal_, tensor, gain, generator)
    _check_gain(gain)
    return _normal(tensor, 0.0, xavier_std(tensor.shape, gain), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fills with U(-r, r), r = gain sqrt(3 / fan) (He et al. 2015).

    Args:
        tensor: shape (out, in, *kernel).
        a: negative slope of the leaky ReLU, which the gain follows from.
        mode: ``fan_in`` or ``fan_out``.
        nonlinearity: name for ``calculate_gain``.
        generator: where the key is drawn from; None is torch's default CPU generator.

    Raises:
        ValueError: fewer than two dimensions, unknown mode or nonlinearity.
        ArgumentError: a not finite, overlapping tensor.
    """
    if not is_native(tensor):
        return _by_torch(torch_init.kaiming_uniform_, tensor, a, mode, nonlinearity, generator)
    _warn_if_empty(tensor)
    checks.check_finite(a=a)
    bound = _SQRT3 * kaiming_std(tensor.shape, a, mode, nonlinearity)
    return _uniform(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fills with N(0, s^2), s = gain / sqrt(fan) (He et al. 2015).

    Arguments and errors as for ``kaiming_uniform_``.
    """
    if not is_native(tensor):
        return _by_torch(torch_init.kaiming_normal_, tensor, a, mode, nonlinearity, generator)
    _warn_if_empty(tensor)
    checks.check_finite(a=a)
    return _normal(tensor, 0.0, kaiming_std(tensor.shape, a, mode, nonlinearity), generator)


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Generator | None = None) -> Tensor:
    """Makes a (semi-)orthogonal matrix of a tensor, uniformly distributed (Saxe et al. 2014).

    By random Householder reflectors (Stewart 1980), without a factorisation. Beyond the tensor's
    memory it takes at most 15% of a float32 matrix of at least 2^20 elements and 16 columns; 16-bit
    dtypes, and tensors that cannot be viewed as matrices, take a float32 copy besides. The same key
    on the same machine with as many threads gives the same bits; elsewhere values differ by less
    than 1e-5 sqrt(n).

    Args:
        tensor: at least two dimensions; rows are shape[0], columns the rest. 16- and 8-bit floats
            are computed in float32 and rounded (torch: an error).
        gain: factor, finite.
        generator: where the key is drawn from; None is torch's default CPU generator.

    Raises:
        ValueError: fewer than two dimensions.
        ArgumentError: gain not finite, overlapping tensor.
    """
    batching.settle_keys()
    if not is_native(tensor):
        return orthogonal_by_torch(tensor, gain, generator)
    _check_orthogonal(tensor, gain)
    if tensor.is_meta:
        return tensor
    key = draw_key(generator)
    if tensor.numel():
        with torch.no_grad():
            fill_orthogonal([tensor], key.view(1), float(gain))
    return tensor


def orthogonal_batch_(
    tensors: Sequence[Tensor] | Tensor, gain: float = 1, generator: Generator | None = None
) -> Sequence[Tensor] | Tensor:
    """Makes (semi-)orthogonal matrices of many tensors, as ``orthogonal_`` on each in turn.

    Small tensors of one shape, dtype and device share their products, which is several times
    faster; they may come in any order. Values differ from those of single calls by rounding alone.

    Args:
        tensors: any sequence, each as for ``orthogonal_``; or **one tensor of at least three
            dimensions, which is a stack of shape[0] matrices** of shape[1:], such as the weights of
            experts. (``orthogonal_`` makes one matrix of such a tensor.)
        gain: factor, finite.
        generator: where the keys are drawn from, one for each matrix in order; None is torch's
            default CPU generator.

    Returns:
        tensors.

    Raises:
        ValueError: a tensor of fewer than two dimensions, a stack of fewer than three.
        ArgumentError: gain not finite, overlapping tensor. Nothing has been written then.
    """
    if isinstance(tensors, Tensor) and tensors.dim() < 3:
        raise ValueError(
            f"a stack of matrices needs 3 or more dimensions, got shape {tuple(tensors.shape)}"
        )
    batching.settle_keys()
    if isinstance(tensors, Tensor):
        _check_orthogonal(tensors, gain)
        if is_native(tensors) and not tensors.is_meta:
            keys = draw_keys(tensors.shape[0], generator)
            if tensors.numel():
                with torch.no_grad():
                    fill_orthogonal(tensors, keys, float(gain))
            return tensors
    matrices = list(tensors)
    for matrix in matrices:
        _check_orthogonal(matrix, gain)
    groups: dict[tuple[object, ...], list[tuple[int, Tensor]]] = {}
    count = 0
    for matrix in matrices:
        if not is_native(matrix):
            orthogonal_by_torch(matrix, gain, generator)
        elif not matrix.is_meta:
            kind = (matrix.shape, matrix.dtype, matrix.device, type(matrix))
            groups.setdefault(kind, []).append((count, matrix))
            count += 1
    keys = draw_keys(count, generator)
    with torch.no_grad():
        for group in groups.values():
            order, some = zip(*group, strict=True)
            if some[0].numel():
                fill_orthogonal(some, keys[list(order)], float(gain))
    return tensors


def _check_orthogonal(tensor: Tensor, gain: float) -> None:
    if tensor.dim() < 2:
        raise ValueError(
            f"Only tensors with 2 or more dimensions are supported, got shape {tuple(tensor.shape)}"
        )
    checks.check_finite(gain=gain)
    checks.check_target(tensor)


def sparse_(
    tensor: Tensor, sparsity: float, std: float = 0.01, generator: Generator | None = None
) -> Tensor:
    """Fills a matrix with N(0, std^2), a fraction of each column zero (Martens 2010).

    ``torch.nn.init.sparse_`` does it, and draws from torch's streams.
    """
    batching.settle_keys()
    return torch_init.sparse_(tensor, sparsity, std, generator)


def _check_gain(gain: float) -> None:
    checks.check_finite(gain=gain)
    if gain < 0:
        raise ArgumentError(f"gain={gain} must not be negative")


def _warn_if_empty(tensor: Tensor) -> None:
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
