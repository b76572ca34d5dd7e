"""Draws the picture of README.md from the JSON of models.py. Measures nothing.

    python benchmarks/picture.py [benchmarks/results/models.json] [-o docs/pictures/models.png]

The picture shows times of whole models relative to zeroing their memory, best against best: as
torch builds them, inside patch_nn_init(), and by build_model. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "models.json"
PICTURE = ROOT / "docs" / "pictures" / "models.png"
WAYS = {
    "plain": ("built plainly", "#b8bec6"),
    "patch": ("the same code in patch_nn_init()", "#6aa5d9"),
    "build_model": ("build_model()", "#1f4e79"),
    "init_model_": ("init_model_(), from the meta device", "#1f4e79"),  # for older results
}


def times_zeroing(model: dict[str, Any], way: str) -> float:
    """The best time of a way over the best of zeroing the same memory."""
    best: dict[str, float] = {}
    for mode in (way, "zero"):
        best[mode] = min(each["seconds"] for each in model["modes"][mode])
    return best[way] / best["zero"]


def name_of(model: dict[str, Any]) -> str:
    """A model's title and dtype, in two lines."""
    title, _, rest = f"{model['title']}, {model['dtype']}".replace("`", "").partition(", ")
    return f"{title}\n{rest}"


def digest(path: Path) -> str:
    """A digest of the shown results, stored in the picture."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def draw(results: Path, picture: Path) -> None:
    """Draws the results of a file to another."""
    data = json.loads(results.read_text())
    models = data["models"]
    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    ways = [way for way in WAYS if way in models[0]["modes"]]
    height = 0.8 / len(ways)
    for number, way in enumerate(ways):
        label, colour = WAYS[way]
        at = [row + (number - 1) * height for row in range(len(models))]
        values = [times_zeroing(model, way) for model in models]
        bars = axis.barh(at, values, height * 0.92, label=label, color=colour)
        axis.bar_label(
            bars,
            [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in values],
            padding=4,
            fontsize=8,
        )
    axis.axvline(1, color="0.75", linewidth=1, zorder=0)
    axis.set_xticks([1, 5, 10, 15, 20, 25])
    axis.set_yticks(range(len(models)), [name_of(model) for model in models])
    axis.invert_yaxis()
    machine = data["machine"]
    axis.set_xlabel(
        f"time over that of zeroing the same memory ({machine['cpu']}, {machine['cores']} cores, "
        f"{machine['date']}); shorter is faster"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False, fontsize=9)
    figure.savefig(picture, dpi=120, metadata={"Source": digest(results)})


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    draw(options.results, options.output)


if __name__ == "__main__":
    main()
