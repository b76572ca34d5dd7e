"""Draws the picture of README.md from the JSON of models.py. Measures nothing.

    python benchmarks/picture.py [benchmarks/results/models.json] [-o docs/pictures/models.png]

The picture shows times of whole models relative to zeroing their memory, best against best: as
torch builds them, inside patch_nn_init(), and by build_model. A second file, models-dark.png, is
for dark pages. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
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
    "plain": ("stock constructor", "#b8bec6", "#6e7681"),
    "patch": ("the same code in patch_nn_init()", "#6aa5d9", "#3f7fb8"),
    "build_model": ("build_model()", "#1f4e79", "#a5d0ff"),
    "init_model_": ("init_model_(), from the meta device", "#1f4e79", "#a5d0ff"),  # older results
}
INKS = {"light": "#1f2328", "dark": "#e6e6e6"}


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


def two_digits(value: float) -> str:
    """A number with two significant digits."""
    return f"{value:.{max(1 - math.floor(math.log10(value)), 0)}f}"


def draw(results: Path, picture: Path, theme: str = "light") -> None:
    """Draws the results of a file to another; for dark pages on a transparent ground."""
    data = json.loads(results.read_text())
    models = data["models"]
    names = ("text", "axes.label", "axes.edge", "xtick", "ytick")
    colours: Any = {f"{name}{'' if '.' in name else '.'}color": INKS[theme] for name in names}
    with plt.rc_context({**colours, "axes.facecolor": "none"}):
        figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    ways = [way for way in WAYS if way in models[0]["modes"]]
    height = 0.8 / len(ways)
    for number, way in enumerate(ways):
        label, *shades = WAYS[way]
        at = [row + (number - 1) * height for row in range(len(models))]
        values = [times_zeroing(model, way) for model in models]
        colour = shades[list(INKS).index(theme)]
        axis.barh(at, values, height * 0.92, label=label, color=colour)
        for y, value in zip(at, values, strict=True):  # beyond the line at 1, which it would cross
            axis.annotate(
                two_digits(value), (max(value, 1), y), (4, 0), textcoords="offset points",
                va="center_baseline", fontsize=8, color=INKS[theme],
            )  # fmt: skip
    axis.axvline(1, color=INKS[theme], alpha=0.4, linewidth=1, zorder=0)
    axis.set_xticks([0, 1, 5, 10, 15, 20, 25])
    axis.set_yticks(range(len(models)), [name_of(model) for model in models])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(models) - 0.4, -0.6)
    machine = data["machine"]
    axis.set_title(
        "Time to initialise a model, relative to zeroing the same memory (shorter is faster)",
        loc="left", fontsize=11, color=INKS[theme], pad=24,
    )  # fmt: skip
    axis.set_xlabel(
        f"1 is the time of zeroing; {machine['cpu']}, {machine['cores']} cores, {machine['date']}"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.008, 0.995), ncols=len(ways), frameon=False,
        fontsize=9, handlelength=1.2, labelcolor=INKS[theme],
    )  # fmt: skip
    ground = "none" if theme == "dark" else "white"
    figure.savefig(picture, dpi=160, metadata={"Source": digest(results)}, facecolor=ground)


def main() -> None:
    """Draws both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    draw(options.results, options.output)
    dark = options.output.with_stem(f"{options.output.stem}-dark")
    draw(options.results, dark, "dark")


if __name__ == "__main__":
    main()
