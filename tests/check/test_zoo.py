"""Every config of Transformers that builds here, small, as tools/check_zoo.py recorded it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from check_zoo import examine
from conftest import long
from transformers_configs import read_details

RESULTS = Path(__file__).parents[2] / "benchmarks/results/check-init.json.gz"
RECORDED = {one["key"]: one for one in read_details(RESULTS)["results"]}
AGAIN = "if that is right, run `python tools/check_zoo.py --out benchmarks/results/check-init"


@long
@pytest.mark.parametrize("key", [key for key, one in RECORDED.items() if one["build"] == "ok"])
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore")
def test_what_is_left(key):
    """By `init_weights()`, which is what the judge has too, and by torchinit's ways."""
    found = examine(key, peers=())
    assert (found["build"], found.get("false"), found.get("missed")) == ("ok", [], [])
    recorded = {name: RECORDED[key][name] for name in found}
    assert found == recorded, f"{AGAIN} --only '^{key}$'`"


@long
def test_no_config_is_new():
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    assert RECORDED.keys() == MODEL_MAPPING_NAMES.keys(), f"{AGAIN}`"
