"""Each check accepts the right distribution and rejects a wrong one."""

import numpy as np
import pytest
import torch
from scipy import stats

from distribution_checks import (
    assert_bounded,
    assert_distributed,
    assert_moments,
    assert_tail_count,
    truncated_normal_cdf,
)

NORMAL = torch.from_numpy(np.random.default_rng(1).standard_normal(100_000))


def test_distributed():
    assert_distributed(NORMAL, stats.norm.cdf)
    with pytest.raises(AssertionError, match="KS"):
        assert_distributed(NORMAL * 1.03, stats.norm.cdf)
    with pytest.raises(AssertionError, match="KS"):
        assert_distributed(NORMAL.clamp(-2, 2), truncated_normal_cdf(0, 1, -2, 2))


def test_moments():
    assert_moments(NORMAL, 0, 1)
    with pytest.raises(AssertionError):
        assert_moments(NORMAL + 0.04, 0, 1)
    with pytest.raises(AssertionError):
        assert_moments(NORMAL * 1.04, 0, 1)


def test_tail_count():
    assert_tail_count(NORMAL, 3, 2 * stats.norm.sf(3))
    with pytest.raises(AssertionError, match="beyond"):
        assert_tail_count(NORMAL.clamp(-3, 3), 3, 2 * stats.norm.sf(3))


def test_bounded():
    assert_bounded(torch.tensor([0.0, 1.0]), 0, 1, open_above=False)
    with pytest.raises(AssertionError):
        assert_bounded(torch.tensor([0.0, 1.0]), 0, 1, open_above=True)
    with pytest.raises(AssertionError):
        assert_bounded(torch.tensor([-0.1, 0.5]), 0, 1, open_above=True)
