"""The fast part of the quality checks: the streams, the distributions, the elementary functions.

benchmarks/quality.py, battery.py and accuracy.py do the same at length; their results are in
benchmarks/results and docs/accuracy.md. Every check is shown to fail on something that is wrong.

Keys and seeds are fixed, so a run never flakes. Had they been drawn, the distributions' 616
p-values at level 1e-6 would raise a false alarm in 6e-4 of all runs, and the streams' in 1e-5.
"""

from __future__ import annotations

import math
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import accuracy
import quality
import torchinit  # noqa: F401  # defines the operators
from conftest import native_only

ops = torch.ops.torchinit

INF = math.inf
ALPHA = 1e-6
pytestmark = pytest.mark.usefixtures("one_thread")

CHUNKS, SIZE = 4, 2**17


def examined(law, dtype, values=None, keys=None):
    values = values or quality.stream(law, dtype, SIZE)
    keys = keys or quality.successive_keys(law, dtype, SIZE)
    return quality.examine(law, dtype, CHUNKS, values, keys, SIZE)


@native_only
@pytest.mark.parametrize("dtype", quality.DTYPES, ids=str)
@pytest.mark.parametrize("law", quality.LAWS, ids=lambda law: law.title)
def test_fills_have_their_distribution(law, dtype):
    p_values = examined(law, dtype)
    assert len(p_values) == 22
    assert all(p >= ALPHA for p in p_values.values()), p_values


NORMAL = next(law for law in quality.LAWS if law.title == "N(0, 1)")


def ideal(chunk):
    return torch.from_numpy(np.random.default_rng(chunk).standard_normal(SIZE))


def ideal_keys(chunk):
    return ideal(1000 + chunk)


def echo(chunk, lag, part=0.02):
    x = ideal(chunk)
    return (x + part * x.roll(lag)) / math.sqrt(1 + part**2)


def without(x, above, below=None):
    """The values without a tail, or both: zeros in its place."""
    below = -above if below is None else below
    return x.where((x < above) & (x > below), torch.zeros_like(x))


def equal_magnitudes(chunk):
    """Normal values without correlation, but x and y of a pair are as large as each other."""
    x = ideal(chunk).clone()
    x[1::2] = x[::2].abs() * x[1::2].sign()
    return x


WRONG = {
    "KS": lambda chunk: ideal(chunk) * 1.03,
    "chi-square": lambda chunk: without(ideal(chunk), 3.5),
    "moment 1": lambda chunk: ideal(chunk) + 0.01,
    "moment 2": lambda chunk: ideal(chunk) * 1.01,
    "moment 3": lambda chunk: ideal(chunk) + 0.01 * (ideal(chunk) ** 2 - 1),
    "moment 4": lambda chunk: torch.from_numpy(
        np.random.default_rng(chunk).standard_t(60, SIZE) * math.sqrt(58 / 60)
    ),
    "moment 5": lambda chunk: without(ideal(chunk), 3.2, -INF),
    "moment 6": lambda chunk: without(ideal(chunk), 3.2),
    **{f"lag {lag}": lambda chunk, lag=lag: echo(chunk, lag) for lag in quality.LAGS},
    "halves, values": lambda chunk: echo(chunk, 1),
    "halves, squares": equal_magnitudes,
    "halves, table": equal_magnitudes,
}


def test_ideal_values_pass():
    p_values = examined(NORMAL, torch.float64, ideal, ideal_keys)
    assert all(p >= ALPHA for p in p_values.values()), p_values


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_fail(name):
    assert examined(NORMAL, torch.float64, WRONG[name], ideal_keys)[name] < ALPHA


@pytest.mark.parametrize("wrong", [lambda _: ideal(1000), lambda chunk: -ideal(chunk // 2)])
def test_keys_that_repeat_fail(wrong):
    p_values = examined(NORMAL, torch.float64, ideal, wrong)
    assert all(p_values[f"keys, {name}"] < ALPHA for name in ("values", "squares", "table"))


@native_only
def test_truncation_instead_of_rounding_fails():
    law = quality.LAWS[1]
    exact = quality.stream(law, torch.float64, SIZE)

    def truncated(chunk):
        bits = exact(chunk).float().view(torch.int32)
        return (bits & -65536).view(torch.float32).bfloat16()

    assert examined(law, torch.bfloat16, truncated)["chi-square"] < ALPHA


# The raw words.

WORDS = 2**20


def sequential_words():
    words = torch.empty(WORDS, dtype=torch.int32)
    ops.random_words_(words, torch.tensor(3))
    return words.numpy().view(np.uint32)


def words_of_successive_keys():
    """One block of each key: 0, 1, 2, ..."""
    words = torch.empty((2**14, 64), dtype=torch.int32)
    for key, row in enumerate(words):
        ops.random_words_(row, torch.tensor(key))
    return words.view(-1).numpy().view(np.uint32)


def bits_of(words):
    return np.unpackbits(words.view(np.uint8), bitorder="little").reshape(-1, 32)


def bit_frequencies(words):
    """Ones at each place of a word."""
    n = len(words)
    return (
        stats.binom.cdf(
            np.minimum(ones := bits_of(words).sum(axis=0, dtype=np.int64), n - ones), n, 0.5
        ).min()
        * 64
    )


def byte_pairs(words):
    """All pairs of neighbouring bytes, equally often."""
    return stats.chisquare(np.bincount(words.view(np.uint16), minlength=2**16)).pvalue


def bit_lags(words):
    """Bits against those of the words some way further on."""
    bits = bits_of(words).astype(np.float32) * 2 - 1
    lags = (1, 2, 4, 8, 16)
    z = [np.abs(bits[:-lag].T @ bits[lag:]).max() / math.sqrt(len(bits)) for lag in lags]
    return 2 * stats.norm.sf(max(z)) * len(lags) * 32 * 32


def birthday_spacings(words):
    """Equal spacings of 512 birthdays among 2^24 days (Marsaglia), of either end of the words."""
    p_values = []
    for days in (words >> 8, words & 0xFFFFFF):
        spacings = np.sort(np.diff(np.sort(days.reshape(-1, 512).astype(np.int64), axis=1)), axis=1)
        # 512^3 / (4 * 2^24) = 2 a group.
        equal = int((np.diff(spacings, axis=1) == 0).sum())
        p_values.append(2 * min(stats.poisson.cdf(equal, 2 * len(spacings)),
                                stats.poisson.sf(equal - 1, 2 * len(spacings))))  # fmt: skip
    return min(p_values) * 2


def matrix_ranks(words):
    """Ranks of 32 x 32 matrices of bits: 32, 31 and fewer."""
    rows = words.reshape(-1, 32).copy()
    rank = np.zeros(len(rows), dtype=int)
    for bit in range(32):
        column = (rows >> bit) & 1
        pivot = column.argmax(axis=1)
        has = column.max(axis=1) == 1
        rank += has
        chosen = np.where(has, rows[np.arange(len(rows)), pivot], 0)
        rows = np.where(column == 1, rows ^ chosen[:, None], rows)  # the pivot row becomes zero
    probability = [0.2887880950866, 0.5775761901732]
    expected = np.array([*probability, 1 - sum(probability)]) * len(rank)
    found = [(rank == 32).sum(), (rank == 31).sum(), (rank < 31).sum()]
    return stats.chisquare(found, expected).pvalue


CHECKS = [bit_frequencies, byte_pairs, bit_lags, birthday_spacings, matrix_ranks]


@native_only
@pytest.mark.parametrize("words", [sequential_words, words_of_successive_keys])
@pytest.mark.parametrize("check", CHECKS)
def test_words_are_random(check, words):
    assert check(words()) >= ALPHA


def linear_congruential():
    """A full-period generator modulo 2^32, whose low bits are short cycles."""
    multiplier, increment = 1664525, 1013904223  # of as many steps as there are states
    state = np.zeros(1, dtype=np.uint32)
    for _ in range(20):
        state = np.concatenate([state, state * np.uint32(multiplier) + np.uint32(increment)])
        increment = (multiplier * increment + increment) % 2**32
        multiplier = multiplier**2 % 2**32
    return state


def biased():
    words = np.random.default_rng(5).integers(0, 2**32, WORDS, dtype=np.uint32)
    some = np.random.default_rng(6).random(WORDS) < 0.1
    return np.where(some, words | np.uint32(1 << 9), words)


def tied():
    """Bit 7 of each word is the sum of two others."""
    words = np.random.default_rng(5).integers(0, 2**32, WORDS, dtype=np.uint32)
    return words & ~np.uint32(1 << 7) | ((words >> 3 ^ words >> 5) & 1) << 7


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (bit_frequencies, biased),
        (byte_pairs, biased),
        (bit_lags, linear_congruential),
        (birthday_spacings, linear_congruential),
        (matrix_ranks, tied),
    ],
)
def test_words_that_are_not_random_fail(check, words):
    assert check(words()) < ALPHA


# The elementary functions; the bounds are those of docs/accuracy.md, of all float32 arguments.


def limits():
    """The errors that docs/accuracy.md states."""
    text = (Path(__file__).parents[2] / "docs" / "accuracy.md").read_text()
    table = text[text.index("| function |") :].partition("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines()]
    return {(row[0][2:], row[1].replace("\\|", "|")): float(row[3]) for row in rows[2:]}


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="long double is wider than double on x86 alone"
)
def test_errors_are_those_documented():
    documented = limits()
    errors = accuracy.measure(stride=10_007, threads=2, samples=100_000)
    assert {error[:2] for error in errors} == set(documented)
    for error in errors:
        assert error.ulps <= documented[error[:2]] + 0.005, error
    for error in accuracy.measure(10_007, 2, 100_000, factor=1 + 2**-18):
        assert error.ulps > documented[error[:2]], error
