"""The data of the models."""

from __future__ import annotations

import pytest

from torchinit.commands import models


@pytest.mark.parametrize(
    ("name", "parameters", "values"),
    [
        ("llama-3.2-1b", 146, 1_235_814_400),
        ("gpt2-medium", 292, 354_823_168),
        ("vit-large", 296, 304_326_632),
        ("tiny", 20, 106_816),
    ],
)
def test_published_totals(name, parameters, values):
    model = models.MODELS[name]()
    assert len(model.parameters) == parameters
    assert model.numel == values
    assert len({parameter.name for parameter in model.parameters}) == parameters


def test_models_are_ordered_by_falling_size():
    sizes = [make().numel for make in models.MODELS.values()]
    assert sizes == sorted(sizes, reverse=True)
