"""Builds a model of the demo, as people do: by its config, or by calling its class."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from torchinit.commands.models import Model
from torchinit.commands.shell import importing

Build = Callable[[], nn.Module]


def builder(model: Model, dtype: torch.dtype) -> Build:
    """Returns what builds a model, everything that it needs imported.

    It builds on the device of the block that it is called in (``torch.device``).
    """
    if not model.config:
        from torchinit.commands.decoder import Decoder

        def build() -> nn.Module:
            with _default_dtype(dtype):
                return Decoder(**model.shape)

        return build

    with importing():
        import transformers

        config = getattr(transformers, model.config)(**model.shape)
        from_config = getattr(transformers, model.auto).from_config

    def build_by_config() -> nn.Module:
        return from_config(config, dtype=dtype)  # type: ignore[no-any-return]

    return build_by_config


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
