"""All that torchinit knows of Transformers: its models, configs, ties and stored names.

The library is imported only where a config is built or a model of its own is saved. Nothing is
downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit.dtypes import FLOATING_DTYPES
from torchinit.errors import ArgumentError
from torchinit.frameworks.conventions import attribute
from torchinit.native.torch_private import storage_number
from torchinit.streams.canonical import ModuleAt, places_of
from torchinit.untrusted import check_inside, parse_json, printable

# The attribute of modules and parameters that Transformers has initialised.
INITIALIZED_FLAG = "_is_hf_initialized"
# Models whose linear layers are Conv1D, and the weights of those layers.
_CONV1D_MODELS = {"gpt2", "imagegpt", "openai-gpt", "decision_transformer", "gpt2-double-heads"}
_CONV1D_WEIGHTS = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "q_attn.weight")


def is_transformers_model(module: nn.Module) -> bool:
    """Whether a module is a ``PreTrainedModel``, told without importing Transformers."""
    return all(
        callable(attribute(module, name))
        for name in ("initialize_weights", "_initialize_weights", "_init_weights")
    ) and has_config(module)


def has_config(module: nn.Module) -> bool:
    """Whether a module has a config, as all models of Transformers do."""
    return attribute(module, "config") is not None


# Configs.


def read_config(file: Path) -> dict[str, Any]:
    """What a ``config.json`` says.

    Raises:
        ArgumentError: unless it is a JSON object.
        OSError: if it cannot be read.
    """
    config = parse_json(file.read_bytes(), file, strict=False)
    if not isinstance(config, dict):
        raise ArgumentError(
            f"{printable(file)} must hold a JSON object, not {type(config).__name__}"
        )
    return config


def config_beside(checkpoint: Path) -> dict[str, Any]:
    """What ``config.json`` in or beside a checkpoint says; empty if there is none."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    file = folder / "config.json"
    if not file.is_file():
        return {}
    check_inside(file, folder)
    return read_config(file)


def model_of_config(file: Path) -> nn.Module:
    """The model of a ``config.json``, with all parameters on the meta device.

    Raises:
        ArgumentError: if Transformers cannot build a model of it.
        OSError: if it cannot be read.
        ImportError: without Transformers.
    """
    kind = class_of_config(file)
    try:
        config = kind.config_class.from_pretrained(file, local_files_only=True)
        with torch.device("meta"):
            model: nn.Module = kind._from_config(config)
        _move_to_meta(model)
    except Exception as error:
        why = " ".join(str(error).split())
        raise ArgumentError(
            f"{file}: {kind.__name__} cannot be built of it: {type(error).__name__}: {why}"
        ) from error
    return model


def class_of_config(file: Path) -> Any:
    """The class of the model that a ``config.json`` names first.

    Raises:
        ArgumentError: if it names none that Transformers has, or says what has no initialisation.
        OSError, ImportError: as ``model_of_config``.
    """
    said = read_config(file)
    architectures = said.get("architectures")
    if (
        not isinstance(architectures, list)
        or not architectures
        or not isinstance(architectures[0], str)
    ):
        raise ArgumentError(
            f"{file} has architectures={architectures!r}: its first name must be the class of the "
            'model, as in "architectures": ["LlamaForCausalLM"]'
        )
    if said.get("quantization_config"):
        raise ArgumentError(
            f"{file} has a quantization_config: take it out. (write_checkpoint makes another, of "
            "formats and a layout.)"
        )
    kind = _model_class(architectures[0], file)
    _check_model_type(said, kind, file)
    for where, part in {"": said, **_inner_configs(said)}.items():
        _check_config_dtype(part, where, file)
    return kind


def _inner_configs(said: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configs in a config, as a model of text and images has them."""
    return {f"{key}.": inner for key, inner in said.items() if isinstance(inner, dict)}


def _check_model_type(said: Mapping[str, Any], kind: Any, file: Path) -> None:
    """Raises ArgumentError for a config of another family than the class that it names."""
    from transformers.models.auto import modeling_auto

    declared, expected = said.get("model_type"), kind.config_class.model_type
    types = [part.get("model_type") for part in (said, *_inner_configs(said).values())]
    if declared is None or expected in types:
        return
    for table, classes in vars(modeling_auto).items():  # a few families have another's classes
        if table.endswith("_MAPPING_NAMES") and isinstance(declared, str):
            named = classes.get(declared, ())
            if kind.__name__ in ((named,) if isinstance(named, str) else named):
                return
    raise ArgumentError(
        f"{file} says model_type={declared!r} and architectures[0]={kind.__name__!r}, whose "
        f"model_type is {expected!r}: correct one of them, or take model_type out"
    )


def _check_config_dtype(said: Mapping[str, Any], where: str, file: Path) -> None:
    """Raises ArgumentError for a dtype that no model can be built in."""
    for key in ("dtype", "torch_dtype"):
        name = said.get(key)
        dtype = getattr(torch, name, None) if isinstance(name, str) else None
        if name is not None and dtype not in FLOATING_DTYPES:
            known = ", ".join(str(one).removeprefix("torch.") for one in FLOATING_DTYPES)
            raise ArgumentError(
                f"{file} says {where}{key}={name!r}: it must be one of {known}. Other dtypes are "
                "arguments, beside a config without one"
            )


def _model_class(name: str, file: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"a config needs Transformers: pip install 'torchinit[checkpoint]' ({error})"
        ) from None
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ArgumentError(
            f"{file} says architectures[0]={name!r}, which Transformers {transformers.__version__} "
            "has no model of: give a function that builds it on the meta device"
        )
    return kind


def _move_to_meta(model: nn.Module) -> None:
    """Moves what ignores ``torch.device("meta")``, as ``torch.Tensor(n)`` in Wav2Vec2 does."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                twin = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), twin)


def saved_configs(model: Any, dtype: torch.dtype | None) -> dict[str, bytes]:
    """``config.json`` and ``generation_config.json`` as ``save_pretrained`` would write them.

    Args:
        model: of Transformers.
        dtype: of its floating-point parameters; None keeps the model's.
    """
    own = model.config.dtype, model.config.architectures
    model.config.dtype = str(dtype if dtype is not None else model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    try:
        with TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
    finally:
        model.config.dtype, model.config.architectures = own


# Conv1D, GPT-2's linear layer, whose weight is (inputs, outputs).


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is a Conv1D of Transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def conv1d_weights(checkpoint: Path, shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """The names of the Conv1D weights in a checkpoint: by its config, else by their shapes."""
    kind = config_beside(checkpoint).get("model_type")
    if str(kind) not in _CONV1D_MODELS if kind else not _looks_like_gpt2(shapes):
        return set()
    return {name for name in shapes if name.endswith(_CONV1D_WEIGHTS)}


def _looks_like_gpt2(shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether all fused queries, keys and values are wider than high."""
    fused = [shape for name, shape in shapes.items() if name.endswith("c_attn.weight")]
    return bool(fused) and all(len(shape) == 2 and shape[1] > shape[0] for shape in fused)


# Ties.


def declared_ties(model: nn.Module, *, may_be_inside: bool) -> Iterator[tuple[str, str]]:
    """Pairs of parameter names that a model declares to be tied.

    Args:
        model: any module.
        may_be_inside: whether a module without a config may hold one that declares ties.
    """
    if not may_be_inside and not has_config(model):
        return
    places = places_of(model)
    for prefix, module in places:
        if attribute(attribute(module, "config"), "tie_word_embeddings"):
            try:
                ties = list(_ties_of(module, prefix, places))
            except Exception:  # models of other people have such methods too
                continue
            for one, other in ties:
                yield prefix + one, prefix + other


def _ties_of(module: Any, prefix: str, places: Sequence[ModuleAt]) -> Iterator[tuple[str, str]]:
    """The ties of one of the modules at some places, by names within it."""
    keys = getattr(module, "_tied_weights_keys", None)
    expand = getattr(module, "get_expanded_tied_weights_keys", None)
    if callable(expand):
        keys = expand(all_submodels=False)
    if isinstance(keys, dict):
        yield from keys.items()
        return
    embeddings, head = (
        _weight_of(module, f"get_{which}_embeddings", prefix, places)
        for which in ("input", "output")
    )
    if embeddings is not None:
        for name in [*(keys or ()), *([head] if head is not None else [])]:
            if name != embeddings:
                yield name, embeddings


def _weight_of(
    module: nn.Module, getter: str, prefix: str, places: Sequence[ModuleAt]
) -> str | None:
    """The name of the weight of the module that a method returns."""
    get = getattr(module, getter, None)
    try:
        found = get() if callable(get) else None
    except Exception:  # many models have the method, and raise in it
        return None
    if not isinstance(found, nn.Module):
        return None
    names = (at for at, one in places if one is found and at.startswith(prefix))
    return next((f"{at.removeprefix(prefix)}weight" for at in names), None)


# Stored names.


def without_unsaved(model: Any, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ``state_dict`` that ``save_pretrained`` writes: tied ones once."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = model._keys_to_ignore_on_save or ()
    saved = {name: view for name, view in views.items() if name not in ignored}
    return remove_tied_weights_from_state_dict(saved, model)


def as_published(model: Any, views: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names and in the layout that a model is published in.

    Experts, for one, are often fused in memory and stored one by one. A tensor of a file that is no
    view of a single one in memory is not supported: the layout in memory is kept then, with a
    warning.

    Args:
        model: of Transformers.
        views: by their names in memory.
    """
    from transformers import modeling_utils

    revert = getattr(modeling_utils, "revert_weight_conversion", None)
    if revert is None or not all(view.is_contiguous() for view in views.values()):
        return views
    in_memory = {storage_number(view): view.numel() for view in views.values()}
    try:
        with _WithoutCopies():
            stored: dict[str, Tensor] = revert(model, dict(views))
    except Exception as error:
        _warn_of_layout(model, f"{type(error).__name__}: {error}")
        return views
    found = dict.fromkeys(in_memory, 0)
    for name, view in stored.items():
        if storage_number(view) not in in_memory:
            _warn_of_layout(model, f"{name!r} is made of more than one parameter, or computed")
            return views
        found[storage_number(view)] += view.numel()
    if found != in_memory:
        _warn_of_layout(model, "it holds more or less than the model")
        return views
    return stored


def _warn_of_layout(model: nn.Module, why: str) -> None:
    warnings.warn(
        f"{type(model).__name__} is stored under the names and shapes that it has in memory, which "
        f"Transformers loads too, and not those that it is published in: {why}",
        stacklevel=2,
    )


class _WithoutCopies(TorchDispatchMode):
    """Skips copies into another layout, so that their results stay views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, unless it is a copy."""
        if func is torch.ops.aten.clone.default:
            return torch.ops.aten.alias.default(args[0])
        return func(*args, **(kwargs or {}))
