"""tools/conformance.py: sees each kind of dependence, and none in torchinit's fills by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import conformance
from conftest import native_only

pytestmark = native_only  # the same without, but for torchinit's own values

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "conformance.py"
BY_NAME = ROOT / "tools" / "conformance_by_name.py"

# A function without a fault, and one for each fault.
PLANTED = """
import hashlib, itertools, os
import torch
from torch.distributed.tensor import DTensor, distribute_tensor

def values(shape, name, seed):
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "little")
    return torch.rand(shape, generator=torch.Generator().manual_seed(key))

def good_(tensor, *, seed, name, global_shape=None, offset=None):
    if isinstance(tensor, DTensor):
        full = values(tensor.shape, name, seed)
        full = distribute_tensor(full, tensor.device_mesh, tensor.placements)
        return tensor.copy_(full)
    full = values(global_shape or tensor.shape, name, seed)
    place = zip(offset or [0] * tensor.dim(), tensor.shape)
    return tensor.copy_(full[tuple(slice(o, o + n) for o, n in place)])

def threads_(tensor, *, seed, name):
    good_(tensor, seed=seed, name=name).mul_(torch.get_num_threads())

def previous_draws_(tensor, *, seed, name):
    good_(tensor, seed=seed, name=name).mul_(2.0 ** int(10 * torch.rand(())))

sizes = []

def previous_sizes_(tensor, *, seed, name):
    # A layer of 1240 elements before counts; a first layer is told from the state of torch.
    first = torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(seed).get_state())
    sizes[:] = [] if first else sizes
    torch.rand(())
    good_(tensor, seed=seed, name=name).add_(float(1240 in sizes))
    sizes.append(tensor.numel())

def layout_(tensor, *, seed, name):
    good_(tensor, seed=seed, name=name)
    if not isinstance(tensor, DTensor) and not tensor.is_contiguous():
        tensor.neg_()

def offset_(tensor, *, seed, name):
    good_(tensor, seed=seed, name=name).add_(float(tensor.storage_offset() == 1))

def beside_(tensor, *, seed, name):
    if not isinstance(tensor, DTensor):
        whole = tensor.untyped_storage().nbytes() // tensor.element_size()
        tensor.as_strided((whole,), (1,), 0).zero_()
    good_(tensor, seed=seed, name=name)

def dtype_(tensor, *, seed, name):
    good_(tensor, seed=seed, name=name)
    if tensor.dtype == torch.bfloat16:
        tensor.mul_(1.01)

calls = itertools.count()

def again_(tensor, *, seed, name):
    good_(tensor, seed=seed, name=name).add_(float(next(calls)))

def process_(tensor, *, seed, name):
    good_(tensor, seed=seed, name=name).mul_(2.0 ** (hash("a") % 8))

def processor_(tensor, *, seed, name):
    scalar = "DEFAULT" in torch.backends.cpu.get_cpu_capability()
    good_(tensor, seed=seed, name=name).add_(float(scalar))

def boxes_(tensor, *, seed, name, global_shape=None, offset=None):
    good_(tensor, seed=seed, name=name)

def local_(tensor, *, seed, name):
    good_(tensor.to_local() if isinstance(tensor, DTensor) else tensor, seed=seed, name=name)

def on_rank_1_(tensor, *, seed, name):
    if not isinstance(tensor, DTensor):
        good_(tensor, seed=seed, name=name)
    elif tensor.device_mesh.get_rank() == 1:
        raise ValueError("a rank fails alone")

def ends_(tensor, *, seed, name):
    if isinstance(tensor, DTensor) and tensor.device_mesh.get_rank() == 1:
        os._exit(3)
    good_(tensor, seed=seed, name=name)
"""
# The rows in which each must differ; it must not in any other.
SEEN = {
    "good_": set(),
    "threads_": {"number of threads"},
    "previous_draws_": {"order of layers"},
    "previous_sizes_": {"sizes of other layers"},
    "layout_": {"memory layout"},
    "offset_": {"memory layout"},
    "beside_": {"memory beside the tensor"},
    "dtype_": {"narrow dtype = rounded float32"},
    "process_": {conformance.PROCESS},
    "processor_": {conformance.PROCESSOR},
    "boxes_": {"shards, by global_shape and offset"},
    "local_": {conformance.DTENSOR},
    "on_rank_1_": {conformance.DTENSOR},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("planted") / "planted.py"
    path.write_text(PLANTED)
    return path


@pytest.fixture(scope="module")
def columns(path):
    """The cells of each function by the names of their rows; one run, for it starts processes."""
    functions = {name: f"{path}:{name}" for name in [*SEEN, "again_"]}
    functions |= {name: f"{BY_NAME}:{name}" for name in ("normal_", "orthogonal_")}
    functions["by position"] = "torchinit.init:normal_"
    command = [
        sys.executable,
        TOOL,
        *functions.values(),
        "--ranks",
        "2",
        "--env",
        "TORCHINIT_ISA=portable",
    ]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert not run.stderr
    _, _, *lines = (re.split(r" *\| *", line)[1:-1] for line in run.stdout.splitlines())
    return {
        name: {line[0]: line[number] for line in lines} for number, name in enumerate(functions, 1)
    }


def differing(column):
    return {row for row, cell in column.items() if cell not in ("same", "no such arguments")}


@pytest.mark.parametrize("name", SEEN)
def test_a_planted_fault_is_seen_where_it_is(columns, name):
    assert differing(columns[name]) == SEEN[name]


def test_values_of_each_call_are_seen(columns):
    assert "the same call again" in differing(columns["again_"])


@pytest.mark.long
def test_a_function_that_ends_a_rank(path):
    """It does not stop the checks of others."""
    cells = conformance.in_world([f"{path}:{name}" for name in ("ends_", "good_")], 2)
    assert cells[0].endswith("exit code 3")
    assert cells[1] == "same"


@pytest.mark.parametrize("name", ["normal_", "orthogonal_"])
def test_fills_by_name_depend_on_nothing(columns, name):
    assert set(columns[name].values()) == {"same"}


def test_fills_by_position_depend_on_the_order_alone(columns):
    assert differing(columns["by position"]) == {"order of layers"}


@pytest.mark.parametrize(
    ("cells", "code"),
    [(["same", "same"], 0), (["same", "no such arguments"], 0), (["same", "S(0): 3 %"], 1),
     (["ValueError", "same"], 1)],
)  # fmt: skip
def test_exit_codes(cells, code, monkeypatch, capsys):
    monkeypatch.setattr(conformance, "table", lambda *_: {"a": cells})
    assert conformance.main(["torch.nn.init:normal_", "torch.nn.init:uniform_"]) == code
    assert "| a " in capsys.readouterr().out


@pytest.mark.parametrize(
    "spec", ["torch.nn.init", "no_module:f", "torch.nn.init:f", "no.py:f", "torch:nn"]
)
def test_functions_that_cannot_be_loaded(spec, capsys):
    assert conformance.main([spec]) == 2
    assert capsys.readouterr().err


def test_functions_that_cannot_be_run(tmp_path, capsys):
    path = tmp_path / "torch.py"
    path.write_text("""
from __future__ import annotations
import dataclasses

@dataclasses.dataclass
class Half:
    share: int = 2

def half_(tensor):
    tensor[: len(tensor) // Half().share].normal_()

def other(tensor):
    return tensor.clone().normal_()
""")
    for name, left in (("half_", 759), ("other", 1518)):
        assert conformance.main([f"{path}:{name}"]) == 2
        assert f"{name} leaves {left} of 1518 values unwritten" in capsys.readouterr().err
    path.write_text("def half_(")
    assert conformance.main([f"{path}:half_"]) == 2
    assert "SyntaxError" in capsys.readouterr().err


def test_no_ranks():
    with pytest.raises(SystemExit, match="2"):
        conformance.main(["torch.nn.init:normal_", "--ranks=0"])


def test_variables_without_a_value(capsys):
    assert conformance.main(["torch.nn.init:normal_", "--env", "A"]) == 2
    assert "ValueError" in capsys.readouterr().err


def test_the_page_has_every_row():
    text = (ROOT / "docs" / "conformance.md").read_text()
    for row in (
        *conformance.CHECKS,
        conformance.PROCESS,
        conformance.PROCESSOR,
        conformance.DTENSOR,
    ):
        assert f"| {row} |" in text
