"""The functions of ``torch.nn.init``: same names, parameters, defaults, returns and warnings.

Each fills its tensor in place, outside autograd, and returns it. Tensors that the kernels do not
support go to the function of the same name in ``torch.nn.init`` (see ``torchinit.which``).

A random fill draws one key (``streams/keys.py``) per call, also for a tensor without elements;
constant fills, meta tensors and calls that raise draw none. Some checks are stricter than torch's,
and all are made before anything is written:

* NaN or infinite ``mean``, ``std``, ``gain`` and bounds of ``uniform_`` are errors, where torch
  fills with NaN. The bounds of ``trunc_normal_`` may be infinite.
* Memory mapped read-only is an error, where torch crashes.
* A tensor whose elements share memory (expanded) is an error for constants too.

These errors, and those for ``std < 0`` and ``a > b``, are both ``ValueError`` and ``RuntimeError``.

Every function fills float8 tensors, which torch refuses: values are rounded, and saturate at the
largest finite value.

A ``TorchFunctionMode`` sees each function, as it does torch's, as a twin whose ``__module__`` is
``torch.nn.init``. So device contexts keep our bits, and modes that skip initialisation (Lightning's
``_EmptyInit``) skip ours too.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import init as torch_init
from torch.overrides import handle_torch_function, has_torch_function_unary

from torchinit.errors import ArgumentError
from torchinit.fill import checks
from torchinit.fill.door import fill
from torchinit.fill.positional import fill_dirac, fill_eye
from torchinit.fill.route import is_native_memory
from torchinit.fill.sharded import fill_by_whole, fill_sharded
from torchinit.fill.torch_fallback import call_torch
from torchinit.native.torch_private import function_modes
from torchinit.orthogonal import fill_orthogonal, fill_orthogonal_batch
from torchinit.placement.box import Box
from torchinit.placement.distributed import is_dtensor
from torchinit.schemes import fans
from torchinit.schemes.distributions import (
    as_float,
    constant_draw,
    normal_draw,
    truncated_draw,
    uniform_draw,
)
from torchinit.schemes.fans import calculate_gain
from torchinit.streams.keys import Stream

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

_ZEROS, _ONES = constant_draw(0.0), constant_draw(1.0)


def _hand_over(function: Callable[..., Tensor], tensor: Tensor, **arguments: Any) -> Tensor:
    """Hands a call to the active modes, or to the tensor's own ``__torch_function__``.

    A mode gets a twin of the function that looks like one of ``torch.nn.init``; a subclass, which
    may know torch's own function, gets that.
    """
    name = function.__name__
    if function_modes() == 0 and (torchs := getattr(torch_init, name, None)):
        return torchs(tensor, **arguments)  # type: ignore[no-any-return]
    twin = _twins.get(name)
    if twin is None:
        twin = _twins[name] = types.FunctionType(
            function.__code__, function.__globals__, name, function.__defaults__
        )
        twin.__module__ = torch_init.__name__
    return handle_torch_function(twin, (tensor,), tensor=tensor, **arguments)  # type: ignore[no-any-return]


def check_generator(generator: Generator | None) -> Generator | None:
    """Returns a generator or None; TypeError for anything else."""
    if generator is None or isinstance(generator, Generator):
        return generator
    raise TypeError(f"generator={generator!r} must be a torch.Generator or None")


# Copies, because pickle would take the public functions for torch's.
_twins: dict[str, types.FunctionType] = {}


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

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.uniform_(torch.empty(3), -1, 1)
    tensor([ 0.8426, -0.7979, -0.0877])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(uniform_, tensor, a=a, b=b, generator=generator)
    if type(a) is not float:
        a = as_float("a", a)
    if type(b) is not float:
        b = as_float("b", b)
    return fill(uniform_draw(a, b), tensor, check_generator(generator))


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fills with N(mean, std^2) by the Box-Muller transform; |z| reaches 6.56 (float64: 8.49).

    Args:
        tensor: any shape.
        mean, std: finite, std >= 0.
        generator: where the key is drawn from; None is torch's default CPU generator.

    Raises:
        ArgumentError: std < 0, mean or std not finite, overlapping tensor.

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.normal_(torch.empty(3), std=0.02)
    tensor([ 0.0037,  0.0111, -0.0072])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(normal_, tensor, mean=mean, std=std, generator=generator)
    if type(mean) is not float:
        mean = as_float("mean", mean)
    if type(std) is not float:
        std = as_float("std", std)
    return fill(normal_draw(mean, std), tensor, check_generator(generator))


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fills with a truncated normal: N(mean, std^2) within [a, b], by inverse CDF, in one pass.

    Exact for any bounds, even remote and one-sided ones, but keeps torch's warning for a mean more
    than two std outside [a, b]. The bounds are values, not multiples of std: with a
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

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.trunc_normal_(torch.empty(3), std=0.02, a=-0.04, b=0.04)
    tensor([ 0.0259, -0.0236, -0.0021])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(trunc_normal_, tensor, mean=mean, std=std, a=a, b=b, generator=generator)
    if type(mean) is not float:
        mean = as_float("mean", mean)
    if type(std) is not float:
        std = as_float("std", std)
    if type(a) is not float:
        a = as_float("a", a)
    if type(b) is not float:
        b = as_float("b", b)
    warn_if_remote(tensor, mean, std, a, b)
    return fill(truncated_draw(mean, std, a, b), tensor, check_generator(generator))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fills with one value, rounded to the dtype; NaN and infinity are allowed, as in torch.

    Raises:
        ArgumentError: a finite val out of the dtype's range, infinity for float8_e4m3fn, which has
            none, overlapping tensor.

    >>> import torch, torchinit
    >>> torchinit.constant_(torch.empty(2), 0.5)
    tensor([0.5000, 0.5000])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(constant_, tensor, val=val)
    if type(val) is not float:
        if type(val) is int and abs(val) <= 2**53:
            val = float(val)
        elif isinstance(val, str | bytes | bytearray | None):
            as_float("val", val)
    return fill(constant_draw(val), tensor)


def ones_(tensor: Tensor) -> Tensor:
    """Fills with 1.

    >>> import torch, torchinit
    >>> torchinit.ones_(torch.empty(2))
    tensor([1., 1.])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(ones_, tensor)
    return fill(_ONES, tensor)


def zeros_(tensor: Tensor) -> Tensor:
    """Fills with 0.

    >>> import torch, torchinit
    >>> torchinit.zeros_(torch.empty(2))
    tensor([0., 0.])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(zeros_, tensor)
    return fill(_ZEROS, tensor)


def eye_(tensor: Tensor) -> Tensor:
    """Fills a matrix with the identity, as ``torch.nn.init.eye_`` does.

    >>> import torch, torchinit
    >>> torchinit.eye_(torch.empty(2, 3))
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(eye_, tensor)
    if is_dtensor(tensor):
        if tensor.dim() != 2:
            raise ArgumentError(f"eye_ fills matrices, not a tensor of shape {tuple(tensor.shape)}")
        _fill_by_place(tensor, fill_eye)
        return tensor
    return _fill_at_once(torch_init.eye_, tensor)


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """Fills a convolution's weight with the Dirac delta, as ``torch.nn.init.dirac_`` does.

    >>> import torch, torchinit
    >>> torchinit.dirac_(torch.empty(2, 2, 3))[:, :, 1]
    tensor([[1., 0.],
            [0., 1.]])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(dirac_, tensor, groups=groups)
    if is_dtensor(tensor):
        if tensor.dim() not in (3, 4, 5):
            raise ArgumentError(
                f"dirac_ fills tensors of 3, 4 or 5 dimensions, not of shape {tuple(tensor.shape)}"
            )
        if tensor.shape[0] % groups:
            raise ArgumentError(f"groups={groups} does not divide shape[0], {tensor.shape[0]}")
        _fill_by_place(tensor, lambda piece, box: fill_dirac(piece, box, groups))
        return tensor
    return _fill_at_once(torch_init.dirac_, tensor, groups)


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

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.xavier_uniform_(torch.empty(2, 3))
    tensor([[ 0.9230, -0.8741, -0.0961],
            [ 0.3988, -0.2055, -0.8967]])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(xavier_uniform_, tensor, gain=gain, generator=generator)
    return fill(fans.xavier_uniform(tensor.shape, gain), tensor, check_generator(generator))


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fills with N(0, s^2), s = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010).

    Arguments and errors as for ``xavier_uniform_``.

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.xavier_normal_(torch.empty(2, 3))
    tensor([[ 0.1155,  0.3517, -0.2279],
            [ 0.1467,  0.1146, -0.3913]])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(xavier_normal_, tensor, gain=gain, generator=generator)
    return fill(fans.xavier_normal(tensor.shape, gain), tensor, check_generator(generator))


def kaiming_uniform_(
    tensor: Tensor,
    a: float | None = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fills with U(-r, r), r = gain sqrt(3 / fan) (He et al. 2015).

    Args:
        tensor: shape (out, in, *kernel).
        a: negative slope of the leaky ReLU, which the gain follows from; None is 0.01.
        mode: ``fan_in`` or ``fan_out``.
        nonlinearity: name for ``calculate_gain``.
        generator: where the key is drawn from; None is torch's default CPU generator.

    Raises:
        ValueError: fewer than two dimensions, unknown mode or nonlinearity.
        ArgumentError: a not finite, overlapping tensor.

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.kaiming_uniform_(torch.empty(2, 3), nonlinearity="relu")
    tensor([[ 1.1916, -1.1284, -0.1241],
            [ 0.5149, -0.2653, -1.1576]])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(
            kaiming_uniform_, tensor, a=a, mode=mode, nonlinearity=nonlinearity, generator=generator
        )
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return fill(uniform_draw(0.0, 0.0), tensor, check_generator(generator))
    draw = fans.kaiming_uniform(tensor.shape, a, mode, nonlinearity)
    return fill(draw, tensor, check_generator(generator))


def kaiming_normal_(
    tensor: Tensor,
    a: float | None = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fills with N(0, s^2), s = gain / sqrt(fan) (He et al. 2015).

    Arguments and errors as for ``kaiming_uniform_``.

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.kaiming_normal_(torch.empty(2, 3), mode="fan_out")
    tensor([[ 0.1827,  0.5561, -0.3604],
            [ 0.2319,  0.1812, -0.6186]])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(
            kaiming_normal_, tensor, a=a, mode=mode, nonlinearity=nonlinearity, generator=generator
        )
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return fill(uniform_draw(0.0, 0.0), tensor, check_generator(generator))
    draw = fans.kaiming_normal(tensor.shape, a, mode, nonlinearity)
    return fill(draw, tensor, check_generator(generator))


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Generator | None = None) -> Tensor:
    """Fills with a (semi-)orthogonal matrix, uniformly distributed (Saxe et al. 2014).

    Uses random Householder reflectors (Stewart 1980) and no factorisation. The order of products is
    pinned: the same key gives the same bits everywhere. A matrix of at least 2^20 elements takes
    extra memory of an eighth of its float32 [float64] size and a megabyte a thread; on a GPU a
    quarter. (With less than 256 columns, if rounded to a narrower dtype or a box, it takes its
    float32 size.)

    Args:
        tensor: at least two dimensions; rows are shape[0], columns the rest. 16- and 8-bit floats
            are computed in float32 and rounded (torch: an error).
        gain: factor, finite.
        generator: where the key is drawn from; None is torch's default CPU generator.

    Raises:
        ValueError: fewer than two dimensions.
        ArgumentError: gain not finite, overlapping tensor.

    >>> import torch, torchinit
    >>> weight = torchinit.orthogonal_(torch.empty(64, 16))
    >>> torch.allclose(weight.T @ weight, torch.eye(16), atol=1e-5)
    True
    """
    if has_torch_function_unary(tensor):
        return _hand_over(orthogonal_, tensor, gain=gain, generator=generator)
    if type(gain) is not float:
        gain = as_float("gain", gain)
    fill_orthogonal(tensor, gain, check_generator(generator))
    return tensor


def orthogonal_batch_(
    tensors: Sequence[Tensor] | Tensor, gain: float = 1, generator: Generator | None = None
) -> Sequence[Tensor] | Tensor:
    """Fills many tensors with (semi-)orthogonal matrices, as ``orthogonal_`` on each in turn.

    Threads divide small tensors of one shape, dtype and device among them, which is several times
    faster; the tensors may be in any order. The bits are those of single calls.

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

    >>> import torch, torchinit
    >>> layers = [torch.nn.Linear(16, 16) for _ in range(3)]
    >>> weights = torchinit.orthogonal_batch_([layer.weight for layer in layers])
    >>> experts = torchinit.orthogonal_batch_(torch.empty(8, 32, 16))
    >>> torch.allclose(experts.mT @ experts, torch.eye(16).expand(8, 16, 16), atol=1e-5)
    True
    """
    fill_orthogonal_batch(tensors, as_float("gain", gain), check_generator(generator))
    return tensors


def sparse_(
    tensor: Tensor, sparsity: float, std: float = 0.01, generator: Generator | None = None
) -> Tensor:
    """Fills a matrix with N(0, std^2), a fraction of each column zero (Martens 2010).

    Calls ``torch.nn.init.sparse_``, which draws from torch's streams. For a DTensor every rank
    fills the full tensor and keeps its own shard.

    >>> import torch, torchinit
    >>> torchinit.sparse_(torch.empty(4, 3), sparsity=0.5).eq(0).sum(0)
    tensor([2, 2, 2])
    """
    if has_torch_function_unary(tensor):
        return _hand_over(sparse_, tensor, sparsity=sparsity, std=std, generator=generator)
    std = as_float("std", std)
    if is_dtensor(tensor):
        fill_by_whole(
            tensor, generator, lambda whole, _: torch_init.sparse_(whole, sparsity, std, generator)
        )
        return tensor
    return _fill_at_once(torch_init.sparse_, tensor, sparsity, std, generator)


def warn_if_remote(tensor: Tensor, mean: float, std: float, a: float, b: float) -> None:
    """Warns as ``torch.nn.init.trunc_normal_`` does, on behalf of the caller's caller."""
    if (mean < a - 2 * std or mean > b + 2 * std) and a <= b and not tensor.is_meta:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The distribution of values may be incorrect.",
            stacklevel=3,
        )


def _fill_by_place(tensor: Tensor, fill_box: Callable[[Tensor, Box], None]) -> None:
    """Fills this rank's shard of a DTensor with values that depend only on position."""
    whole = Box(tensor.shape, (0,) * tensor.dim())

    def fill_piece(piece: Tensor, _: Stream, box: Box | None) -> None:
        with torch.no_grad():
            fill_box(piece, box or whole)

    fill_sharded(tensor, None, fill_piece, None, is_random=False)


def _fill_at_once(function: Callable[..., Tensor], tensor: Tensor, *arguments: Any) -> Tensor:
    """Fills by a function of ``torch.nn.init``, even where kernels could."""
    if is_native_memory(tensor):
        checks.check_memory(tensor)  # torch would crash on memory mapped read-only
    return call_torch(function, tensor, *arguments)
