"""Numbers and flags that no argument can be, wherever they are given; errors in other processes."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle
from fractions import Fraction

import pytest
import torch
from torch import nn

import torchinit
from conftest import native_only
from torchinit import ArgumentError
from torchinit.errors import shown
from torchinit.native import load

HUGE = [10**400, -(10**400), 10**5000]


def square():
    return torch.ones(4, 4)


def shard(**arguments):
    arguments = {"global_shape": (8, 4), "offset": (0, 0), "seed": 0, "name": "a"} | arguments
    return torchinit.init_shard_(square(), "zeros", **arguments)


# What takes a number, as a function of it, by what its error begins with.
NUMBERS = {
    # Without kernels torch fills with the integer itself, or raises an error of its own.
    "val": [torchinit.Constant]
    + [lambda n: torchinit.constant_(square(), n)] * (load.module is not None),
    "std": [
        torchinit.Normal,
        torchinit.TruncNormal,
        lambda n: torchinit.normal_(square(), std=n),
        lambda n: torchinit.sparse_(square(), 0.5, n),
        lambda n: torchinit.init_(square(), None, "normal", std=n),
        lambda n: torchinit.init_model_(
            nn.Linear(2, 2), {"**": functools.partial(torchinit.normal_, std=n)}, seed=0
        ),
    ],
    "mean": [
        lambda n: torchinit.Normal(1, mean=n),
        lambda n: torchinit.trunc_normal_(square(), n),
        lambda n: torchinit.normal_(torch.empty(3, device="meta"), n),
    ],
    "cut": [lambda n: torchinit.TruncNormal(1, cut=n)],
    "b": [lambda n: torchinit.uniform_(square(), 0, n), lambda n: torchinit.Uniform(0, n)],
    "a": [
        lambda n: torchinit.kaiming_normal_(square(), n),
        lambda n: torchinit.kaiming_uniform_(square(), n),
    ],
    "gain": [
        torchinit.Orthogonal,
        lambda n: torchinit.orthogonal_(square(), n),
        lambda n: torchinit.orthogonal_batch_([square()], n),
        lambda n: torchinit.xavier_normal_(square(), n),
        lambda n: torchinit.init_(square(), None, "orthogonal", gain=n),
    ],
    "scale": [
        torchinit.VarianceScaling,
        lambda n: torchinit.init_(square(), None, "ones", scale=n),
    ],
    "trunc_clip": [lambda n: torchinit.init_(square(), None, "ones", trunc_clip=(0, n))],
    "groups": [
        lambda n: torchinit.Blocks({"q": 4}, "zeros", groups=n),
        lambda n: torchinit.init_(torch.ones(4, 4, 3), None, "dirac", groups=n),
    ],
    "the (parts|size)": [lambda n: torchinit.Blocks({"q": n}, "zeros")(square())],
    "dim": [lambda n: torchinit.Blocks({"q": 4}, "zeros", dim=n)(square())],
    "axis": [lambda n: torchinit.VarianceScaling(1, in_axes=n, out_axes=0)(square())],
    "(global_shape|a box)": [lambda n: shard(global_shape=(n, 4))],
    ".*offset": [lambda n: shard(offset=(n, 0)), lambda n: shard(offset=n)],
    "seed": [
        lambda n: torchinit.build_model(lambda: nn.Linear(2, 2), seed=n),
        lambda n: torchinit.init_model_(nn.Linear(2, 2), {"**": "zeros"}, seed=n),
        lambda n: torchinit.patch_nn_init(n, nn.Linear(2, 2)),
        lambda n: shard(seed=n),
    ],
}


@pytest.mark.parametrize("number", HUGE, ids=["large", "negative", "thousands of digits"])
@pytest.mark.parametrize(
    ("name", "function"), [(name, one) for name, some in NUMBERS.items() for one in some]
)
def test_a_huge_integer_is_an_error_that_names_the_argument(name, function, number):
    with pytest.raises(ArgumentError, match=rf"^(\w+: |parameter .* its rule \*\*: )*{name}"):
        function(number)


def test_other_huge_numbers():
    with pytest.raises(ArgumentError, match=r"std=Fraction.* beyond the range"):
        torchinit.Normal(Fraction(10**400))
    assert shown([10**5000]) == "<list>"
    assert shown(10**5000) == "<int of 16,610 bits>"
    assert shown("a") == "'a'"


def test_a_shard_of_any_size_is_one_file(tmp_path):
    for number, size in enumerate((10**400, 10**5000)):
        path = tmp_path / str(number)
        torchinit.write_checkpoint(lambda: nn.Linear(2, 2), path, seed=0, shard_size=size)
        assert (path / "model.safetensors").exists()


FLAGS = {
    "corrected": lambda flag: torchinit.TruncNormal(1, corrected=flag),
    "strict": lambda flag: torchinit.plan_model(nn.Linear(2, 2), {"**": "zeros"}, strict=flag),
    "generators": lambda flag: torchinit.patch_nn_init(generators=flag),
    "resume": lambda flag: torchinit.write_checkpoint(
        lambda: nn.Linear(2, 2), "nowhere/at/all", seed=0, resume=flag
    ),
}


@pytest.mark.parametrize("flag", ["no", "False", 0, 1, None, []], ids=str)
@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_true_or_false(name, flag):
    with pytest.raises(TypeError, match=rf"{name}=.* must be True or False"):
        FLAGS[name](flag)
    with pytest.raises(TypeError, match=r"bits> must be True or False, not int"):
        FLAGS[name](10**5000)


def refused():
    torchinit.normal_(torch.empty(3), std=-1)


SAID = "normal_: std=-1.0 must not be negative"


@native_only  # otherwise the error is torch's
def test_an_error_keeps_the_function_s_name_where_its_traceback_is_lost():
    with pytest.raises(ArgumentError) as caught:
        refused()
    caught.value.add_note("a note")
    for other in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert type(other) is ArgumentError
        assert str(other) == SAID
        assert other.__notes__ == ["a note"]


@native_only
@pytest.mark.long
def test_an_error_of_another_process():
    pool = multiprocessing.get_context("spawn").Pool(1)
    with pool, pytest.raises(ArgumentError, match=SAID):
        pool.apply(refused)
