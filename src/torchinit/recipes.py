"""Rules for ``init_model_`` that start Transformers' models as Transformers 5 starts them.

Any object with the named attributes will do as a config; Transformers is not imported. The rules
fit every model of the family, with or without a head: each matches in all of them, as ``strict``
wants, and all names of a tied parameter match one rule. Where only heads have biases, these have no
rule of their own, which would match nothing in a model without a head.

Put your changes first: ``{"lm_head.weight": "zeros", **recipes.llama(config)}``. Recipes that are
in papers, but in no library's code, are in docs/recipes.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torchinit.errors import ArgumentError, shown
from torchinit.functional import trunc_normal_
from torchinit.rules.composed import SchemeLike, by
from torchinit.rules.elementwise import Constant, Normal
from torchinit.rules.scheme import Scheme, Target
from torchinit.schemes.distributions import as_float

__all__ = ["bert", "gpt2", "llama", "mixtral", "t5", "vit"]

Recipe: TypeAlias = "dict[str, SchemeLike]"

_ZERO, _ONE = Constant(0.0), Constant(1.0)


def llama(config: Any) -> Recipe:
    """Rules for Llama, and for what is built like it: Mistral, Qwen 2 and 3, biases or not.

    Norms 1, biases 0, all else N(0, initializer_range^2).

    Args:
        config: with ``initializer_range``, a standard deviation.

    Raises:
        ArgumentError: for a config without it.

    >>> import torchinit
    >>> from types import SimpleNamespace
    >>> list(torchinit.recipes.llama(SimpleNamespace(initializer_range=0.02)))
    ['**norm.weight', '**']
    """
    return _norms_one("llama", config)


def mixtral(config: Any) -> Recipe:
    """Rules for Mixtral: Llama's. Routers and stacked experts are N(0, initializer_range^2) too.

    Args:
        config: with ``initializer_range``, a standard deviation.

    Raises:
        ArgumentError: for a config without it.

    >>> import torchinit
    >>> from types import SimpleNamespace
    >>> list(torchinit.recipes.mixtral(SimpleNamespace(initializer_range=0.02)))
    ['**norm.weight', '**']
    """
    return _norms_one("mixtral", config)


def gpt2(config: Any) -> Recipe:
    """Rules for GPT-2, cross attention included.

    Norms 1, biases 0, all else N(0, initializer_range^2); the std of projections into the residual
    stream is divided by sqrt(2 n_layer) (Radford et al. 2019, section 2.3).

    Args:
        config: with ``initializer_range``, a standard deviation, and ``n_layer``.

    Raises:
        ArgumentError: for a config without one of them.

    >>> import torchinit
    >>> from types import SimpleNamespace
    >>> rules = torchinit.recipes.gpt2(SimpleNamespace(initializer_range=0.02, n_layer=8))
    >>> rules["**.c_proj.weight"]
    Normal(std=0.005, mean=0.0)
    """
    std, layers = _std("gpt2", config), _get("gpt2", config, "n_layer")
    rules: Recipe = {"**.ln_*.weight": _ONE, "**.bias": _ZERO}
    if layers:
        rules["**.c_proj.weight"] = Normal(std / math.sqrt(2 * layers))
    return {**rules, "**": Normal(std)}


def vit(config: Any) -> Recipe:
    """Rules for ViT, with or without a pooler, a mask token and a head.

    Norms 1, biases and the mask token 0, class token and positions N(0, initializer_range^2)
    truncated to **the values** +- 2 (not to two standard deviations), all else the same normal.

    Args:
        config: with ``initializer_range``, a standard deviation.

    Raises:
        ArgumentError: for a config without it.

    >>> import torchinit
    >>> from types import SimpleNamespace
    >>> rules = torchinit.recipes.vit(SimpleNamespace(initializer_range=0.02))
    >>> rules["**"], rules["**layernorm*.weight"]
    (Normal(std=0.02, mean=0.0), Constant(val=1.0))
    """
    std = _std("vit", config)
    return {
        "**layernorm*.weight": _ONE,
        "**.{bias,mask_token}": _ZERO,
        "**.{cls_token,position_embeddings}": partial(trunc_normal_, std=std),
        "**": Normal(std),
    }


def bert(config: Any) -> Recipe:
    """Rules for BERT, with or without a pooler and any of its heads.

    Norms 1, biases 0, all else N(0, initializer_range^2); the row of the padding token is 0.

    Args:
        config: with ``initializer_range``, a standard deviation.

    Raises:
        ArgumentError: for a config without it.

    >>> import torchinit
    >>> from types import SimpleNamespace
    >>> torchinit.recipes.bert(SimpleNamespace(initializer_range=0.02))["**"]
    Normal(std=0.02, mean=0.0)
    """
    return {"**.LayerNorm.weight": _ONE, "**.bias": _ZERO, "**": Normal(_std("bert", config))}


def t5(config: Any) -> Recipe:
    """Rules for T5, plain or gated, tied or not, encoder alone or both.

    With f the ``initializer_factor``: norms f; embeddings and ``lm_head`` N(0, f^2); every other
    matrix N(0, f^2 / fan_in), and of queries N(0, f^2 / (fan_in d_kv)), because T5's attention does
    not scale by sqrt(d_kv) (Raffel et al. 2020, as in Mesh TensorFlow).

    Args:
        config: with ``initializer_factor``, ``d_model``, ``d_kv``, ``d_ff`` and ``num_heads``.

    Raises:
        ArgumentError: for a config without one of them.

    >>> import torchinit
    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(
    ...     initializer_factor=1.0, d_model=64, d_kv=16, d_ff=256, num_heads=4
    ... )
    >>> torchinit.recipes.t5(config)["**.wo.weight"]
    Normal(std=0.0625, mean=0.0)
    """
    factor, model, head, hidden, heads = (
        _get("t5", config, name)
        for name in ("initializer_factor", "d_model", "d_kv", "d_ff", "num_heads")
    )
    return {
        "**layer_norm.weight": Constant(factor),
        "**.{shared,embed_tokens,lm_head,classifier}.weight": Normal(factor),
        "**.q.weight": Normal(factor * (model * head) ** -0.5),
        "**.o.weight": Normal(factor * (heads * head) ** -0.5),
        "**.wo.weight": Normal(factor * hidden**-0.5),
        "**": _biases_zero(Normal(factor * model**-0.5)),
    }


def _norms_one(recipe: str, config: Any) -> Recipe:
    return {"**norm.weight": _ONE, "**": _biases_zero(Normal(_std(recipe, config)))}


def _biases_zero(scheme: Scheme) -> Scheme:
    """A scheme for weights that leaves biases, if there are any, 0."""
    return by(_BiasesZero(scheme))


@dataclass(frozen=True)
class _BiasesZero:  # not a function in a function, which cannot be pickled
    weights: Scheme

    def __call__(self, p: Target) -> Scheme:
        return _ZERO if p.name.rsplit(".", 1)[-1] == "bias" else self.weights


def _std(recipe: str, config: Any) -> float:
    """The standard deviation that Transformers takes: 0.02 where the config says 0 or None."""
    return _get(recipe, config, "initializer_range") or 0.02


def _get(recipe: str, config: Any, name: str) -> float:
    """A number of a config; 0 for None."""
    try:
        value = getattr(config, name)
    except AttributeError:
        raise ArgumentError(
            f"recipes.{recipe} needs config.{name}, which a {type(config).__name__} does not have"
        ) from None
    number = 0.0 if value is None else as_float(f"config.{name}", value)
    if not 0 <= number < math.inf:
        raise ArgumentError(f"config.{name}={shown(value)} must be a finite number, not negative")
    return number
