"""Facts about torch's operators that their schemas do not state, and what they return.

What an operator returns is found by running it on the meta device, once: many meta operators are
composed in Python and take a millisecond, and a model calls the same ones for many layers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

_aten = torch.ops.aten

# They return uninitialised memory.
EMPTY = frozenset(
    {
        _aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default,
        _aten.new_empty.default, _aten.new_empty_strided.default,
    }
)  # fmt: skip
# Factories that fill with a number: the number, or (as an int) the position of that argument.
FILLED: dict[Any, float | int] = {
    _aten.zeros.default: 0.0, _aten.zeros_like.default: 0.0, _aten.new_zeros.default: 0.0,
    _aten.ones.default: 1.0, _aten.ones_like.default: 1.0, _aten.new_ones.default: 1.0,
    _aten.full.default: 1, _aten.full_like.default: 1, _aten.new_full.default: 2,
}  # fmt: skip
_WITH_NUMBER = {_aten.full.default, _aten.full_like.default, _aten.new_full.default}
# They overwrite all of their first argument.
OVERWRITES = frozenset(
    {
        "aten::copy_", "aten::fill_", "aten::zero_", "aten::bernoulli_", "aten::random_",
        "aten::exponential_", "aten::normal_", "aten::uniform_", "aten::cauchy_",
        "aten::geometric_", "aten::log_normal_",
    }
)  # fmt: skip
# Written arguments, by position, that schemas omit, of operators whose sixth argument says whether
# they write at all. tests/tape checks the list on torch's samples.
HIDDEN_WRITES = {"aten::native_batch_norm": (3, 4), "aten::cudnn_batch_norm": (3, 4)}
_HIDING = {name.removeprefix("aten::") for name in HIDDEN_WRITES}
# Operators that return views, though their schemas do not say so.
_VIEWS = {
    _aten._unsafe_view.default, _aten.detach.default, _aten.alias.default, _aten.lift_fresh.default,
    _aten.unsafe_split.Tensor, _aten.unsafe_split_with_sizes.default,
}  # fmt: skip
# Operators whose results on the CPU have the sizes, strides and dtypes of their meta results, as
# those do that torch tags as pointwise. Others are executed at once, since theirs may differ.
_KNOWN_RESULTS = frozenset(
    {
        "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "cat", "clone", "copy", "_to_copy",
        "fill", "zero", "sum", "mean", "amax", "amin", "linalg_vector_norm", "cumsum", "cumprod",
        "_softmax", "_log_softmax", "index", "index_select", "index_put", "_index_put_impl",
        "index_copy", "index_fill", "gather", "scatter", "masked_fill", "tril", "triu", "flip",
        "roll", "repeat", "constant_pad_nd", "embedding", "_weight_norm_interface", "convolution",
        "native_batch_norm", "native_layer_norm", "native_group_norm", "max_pool2d_with_indices",
        "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest1d", "upsample_nearest2d",
        "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d",
        "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
        "replication_pad2d", "pixel_shuffle", "channel_shuffle", "im2col", "glu", "stack", "norm",
        "prod", "var", "std", "var_mean", "std_mean", "max", "min", "logsumexp", "trace", "addbmm",
        "linalg_qr", "linalg_matrix_exp", "linalg_solve_triangular",
    }
)  # fmt: skip
# They read indices, and raise for invalid ones.
_INDEXES = frozenset(
    {"index", "index_select", "gather", "embedding", "scatter", "index_put", "index_copy",
     "index_fill"}
)  # fmt: skip
_NUMBERS_OF = ("_local_scalar_dense", "equal", "is_nonzero")
# Operators that are exact, or rounded as IEEE 754 defines: a box of the result is the result of the
# box.
_PINNED = frozenset(
    {
        "add", "sub", "rsub", "mul", "div", "sqrt", "neg", "clamp", "clamp_min", "clamp_max",
        "where", "copy", "_to_copy", "clone", "fill", "zero", "abs",
    }
)  # fmt: skip

# Below single precision, the dtype of their statistics on the CPU depends on the arguments.
_NORMS = {
    _aten.native_batch_norm.default, _aten.native_layer_norm.default,
    _aten.native_group_norm.default,
}  # fmt: skip
_QUANTISED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
_MOST = 1 << 14


class Facts(NamedTuple):
    """The facts about an operator that decide how it is recorded.

    Attributes:
        namespace: such as aten.
        name: its name; the namespace is included unless it is aten.
        kind: ``empty`` returns uninitialised memory; ``filled`` returns memory filled with a
            number; ``view`` returns a view of its argument; ``other`` is any other operator.
        is_random: whether it draws from a generator.
        written: (position, name) of each argument that it writes to.
        overwrites: whether it overwrites all of what it writes to.
        fills: whether it does so with one value.
        indexes: whether it may raise for invalid indices, and writes to nothing.
        copies: whether its result has the values of its last tensor.
        gives_numbers: whether it turns tensor values into numbers or sizes.
        must_be_done: whether it cannot be pending, since what it returns depends on values.
    """

    namespace: str
    name: str
    kind: str
    is_random: bool
    written: tuple[tuple[int, str], ...]
    overwrites: bool
    fills: bool
    indexes: bool
    copies: bool
    gives_numbers: bool
    must_be_done: bool


@functools.cache
def facts_of(function: Any) -> Facts:
    """The facts about an overload."""
    schema, tags = function._schema, function.tags
    written = tuple(
        (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    )
    hidden = HIDDEN_WRITES.get(schema.name, ())
    written += tuple((place, schema.arguments[place].name) for place in hidden)
    aliases = any(result.alias_info is not None for result in schema.returns)
    name = schema.name.removeprefix("aten::")
    gives_numbers = (
        torch.Tag.data_dependent_output in tags
        or torch.Tag.dynamic_output_shape in tags
        or name in _NUMBERS_OF
    )
    kind = "other"
    if function in EMPTY:
        kind = "empty"
    elif function in FILLED:
        kind = "filled"
    elif torch.Tag.inplace_view in tags or function in _VIEWS or (aliases and not written):
        kind = "view"
    return Facts(
        schema.name.partition("::")[0],
        name,
        kind,
        torch.Tag.nondeterministic_seeded in tags
        or any(argument.name == "generator" for argument in schema.arguments),
        written,
        schema.name in OVERWRITES,
        name in ("fill_", "zero_"),
        name in _INDEXES,
        name in ("clone", "copy_"),
        gives_numbers,
        gives_numbers
        or not (torch.Tag.pointwise in tags or name.rstrip("_") in _KNOWN_RESULTS)
        or ":" in name,
    )


def number_of(function: Any, args: tuple[Any, ...]) -> float | None:
    """The number with which an operator of FILLED fills; None if it is not a number."""
    number: Any = FILLED[function]
    if function in _WITH_NUMBER:
        number = args[number] if len(args) > number else None
    return float(number) if isinstance(number, int | float) else None


def fills_with(facts: Facts, args: Sequence[Any]) -> float | None:
    """The number with which ``fill_`` or ``zero_`` fills; None if it is not one."""
    if facts.name == "zero_":
        return 0.0
    return float(args[1]) if isinstance(args[1], int | float) else None


def is_pinned(function: Any, numbers: dict[str, Any]) -> bool:
    """Whether an operator is pointwise, and exact or rounded as IEEE 754 defines.

    ``numbers`` are its non-tensor arguments by name.
    """
    if facts_of(function).name.rstrip("_") not in _PINNED:
        return False
    if not (numbers.get("dtype") or torch.float32).is_floating_point:
        return False
    # A factor or a rounding mode may be fused into it.
    return numbers.get("alpha", 1) == 1 and numbers.get("rounding_mode") is None


class OperatorCall:
    """One call of an operator.

    Attributes:
        function, args, kwargs: the overload and its arguments.
        facts: about the overload.
        tensors: its arguments that are tensors.
        targets: those that it writes to.
    """

    __slots__ = ("args", "facts", "function", "kwargs", "targets", "tensors")

    def __init__(self, function: Any, facts: Facts, args: Any, kwargs: Any) -> None:
        self.function, self.facts, self.args, self.kwargs = function, facts, args, kwargs
        has_containers = any(isinstance(one, list | tuple | dict) for one in args)
        flat = tree_leaves((args, kwargs)) if kwargs or has_containers else args
        self.tensors = [one for one in flat if isinstance(one, Tensor)]
        self.targets: list[Tensor] = []
        if facts.name in _HIDING and not args[5]:  # a batch norm in evaluation
            return
        for place, name in facts.written:
            value = args[place] if place < len(args) else kwargs.get(name)
            values = value if isinstance(value, list | tuple) else (value,)
            self.targets += [one for one in values if isinstance(one, Tensor)]

    def sources(self) -> list[Tensor]:
        """Its arguments that are tensors, but for the places that it writes to.

        A target may be among them, as in ``weight.copy_(weight)``.
        """
        written = list(map(id, self.targets))
        found = []
        for one in self.tensors:
            if id(one) in written:
                written.remove(id(one))
            else:
                found.append(one)
        return found

    def flat(self) -> tuple[list[Any], Any]:
        """The leaves of its arguments, and their structure as ``tree_unflatten`` takes it."""
        return tree_flatten((self.args, self.kwargs))

    def execute(self) -> Any:
        """Calls the operator."""
        return self.function(*self.args, **self.kwargs)


class NewTensor(NamedTuple):
    """A new tensor that an operator returns."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class Given(NamedTuple):
    """An argument that an operator returns, by its index among the leaves."""

    place: int


class Returned(NamedTuple):
    """What an operator returns.

    Attributes:
        leaves: NewTensors, Givens, numbers and None.
        spec: their structure, as ``tree_unflatten`` takes it.
    """

    leaves: Sequence[Any]
    spec: Any


_known: dict[Any, Returned | None] = {}


def results_of(function: Any, flat: Sequence[Any], spec: Any) -> Returned | None:
    """What an operator returns for arguments on the CPU; None if that depends on values."""
    key: Any = None
    try:
        leaves = [_key(one, flat) for one in flat]
        key = (function, torch.get_default_dtype(), spec, *leaves)
        if key in _known:
            return _known[key]
    except TypeError:  # an unhashable argument
        key = None
    found = _ask(function, flat, spec)
    if key is not None and len(_known) < _MOST:
        _known[key] = found
    return found


def _key(one: Any, flat: Sequence[Any]) -> Any:
    if isinstance(one, Tensor):
        first = next(place for place, other in enumerate(flat) if other is one)
        return first, tuple(one.shape), one.stride(), one.dtype
    hash(one)
    return None if isinstance(one, Generator) else (type(one), one)


def _ask(function: Any, flat: Sequence[Any], spec: Any) -> Returned | None:
    metas: dict[int, Tensor] = {}
    if function in _NORMS and any(
        isinstance(one, Tensor) and one.dtype not in (torch.float32, torch.float64) for one in flat
    ):
        return None

    def meta(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return None if isinstance(one, Generator) else one
        if id(one) not in metas:
            metas[id(one)] = torch.empty_strided(
                one.shape, one.stride(), dtype=one.dtype, device="meta"
            )
        return metas[id(one)]

    with _disable_current_modes():
        args, kwargs = tree_unflatten([meta(one) for one in flat], spec)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type != "cpu":
            return None
        takes_device = any(one.name == "device" for one in function._schema.arguments)
        if takes_device and (device is not None or not metas):
            kwargs = {**kwargs, "device": torch.device("meta")}
        try:
            made, made_spec = tree_flatten(function(*args, **kwargs))
        except Exception:  # the operator does not support meta tensors
            return None
    places = {id(metas[id(one)]): i for i, one in enumerate(flat) if isinstance(one, Tensor)}
    leaves: list[Any] = []
    for one in made:
        if id(one) in places:
            leaves.append(Given(places[id(one)]))
        elif isinstance(one, Tensor):
            if one.layout is not torch.strided or one.dtype in _QUANTISED:
                return None
            leaves.append(NewTensor(one.shape, one.stride(), one.dtype))
        elif one is None or isinstance(one, int | float | bool):
            leaves.append(one)
        else:
            return None
    if function is _aten.native_batch_norm.default and not args[5]:
        # In evaluation, the CPU returns empty statistics.
        leaves[1:] = [one._replace(size=torch.Size([0]), stride=(1,)) for one in leaves[1:]]
    return Returned(leaves, made_spec)
