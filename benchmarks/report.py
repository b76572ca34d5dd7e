"""Markdown tables from the JSON of run.py. Measures nothing.

    python benchmarks/report.py benchmarks/results/NAME.json [--page docs/performance.md]

With --page, the most telling rows also replace the text between the benchmark markers there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

Samples = dict[str, Any]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(header)]
    lines.append(["---"] * len(lines[0]))
    lines += [list(row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio(samples: Samples, numerator: str, denominator: str) -> list[float]:
    """Quotients of times, round by round if both have as many rounds, else of the medians."""
    above, below = samples["seconds"][numerator], samples["seconds"][denominator]
    if len(above) == len(below):
        return [a / b for a, b in zip(above, below, strict=True)]
    return [a / median(below) for a in above]


def spread(values: list[float], digits: int = 2) -> str:
    """The median, and the smallest and largest in brackets."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def times_faster(samples: Samples) -> list[float]:
    """Torch's time per element over torchinit's."""
    scale = samples["elements"] / samples["torch_elements"]
    return [scale * value for value in ratio(samples, "torch", "ours")]


def fills(results: dict[str, Any]) -> str:
    """Every case: its speed, absolute and relative to zero_, and its ratios to torch."""
    by_case: dict[str, dict[int, Samples]] = {}
    for samples in results["fills"]:
        by_case.setdefault(samples["case"], {})[samples["threads"]] = samples
    most, least = max(results["threads"]), min(results["threads"])
    header = [
        "fill",
        f"GB/s, {most} threads",
        f"speed as a part of `zero_`'s, {most} threads",
        f"times faster than torch, {most} threads",
        "times faster, one thread each",
        f"speed-up from {least} to {most} threads",
    ]
    rows = []
    for name, counts in by_case.items():
        all_, one = counts[most], counts[least]
        ours, single = median(all_["seconds"]["ours"]), median(one["seconds"]["ours"])
        rows.append(
            [
                name,
                f"{all_['bytes'] / ours / 1e9:.1f}",
                spread(ratio(all_, "zero", "ours")),
                spread(times_faster(all_), 1),
                spread(times_faster(one), 1),
                f"{single / ours:.2f}",
            ]
        )
    return table(header, rows)


def fresh(results: dict[str, Any]) -> str:
    """Fills of fresh memory."""
    samples = results["fresh"]
    ours, zero = samples["seconds"]["ours"], samples["seconds"]["zero"]
    times = " and ".join(f"{median(values):.2f} s" for values in (ours, zero))
    return (
        f"Freshly allocated, {samples['bytes'] / 1e9:.1f} GB float32: normal and torch's `zero_` "
        f"take {times}; ratio {spread(ratio(samples, 'ours', 'zero'))}."
    )


def small(results: dict[str, Any]) -> str:
    """Calls on small parameters."""
    rows = [
        [
            f"`{s['call']}`, {s['size']}x{s['size']}",
            f"{median(s['seconds']['ours']) * 1e6:.1f}",
            f"{median(s['seconds']['torch']) * 1e6:.1f}",
            spread(ratio(s, "ours", "torch")),
        ]
        for s in results["small"]
    ]
    return table(["call", "µs", "torch's µs", "ours / torch's"], rows)


def instruction_sets(results: dict[str, Any]) -> str:
    """Each set's speed relative to the fastest, on one thread."""
    if not results["instruction_sets"]:
        return "No native module."
    names = list(results["instruction_sets"][0]["seconds"])
    rows = []
    for samples in results["instruction_sets"]:
        rates = [
            f"{samples['elements'] / median(samples['seconds'][name]) / 1e6:.0f}" for name in names
        ]
        parts = [f"{median(ratio(samples, names[0], name)):.2f}" for name in names[1:]]
        rows.append([samples["case"], *rates, *parts])
    header = ["fill", *[f"{name}, M/s" for name in names]]
    header += [f"{name} / {names[0]}" for name in names[1:]]
    return table(header, rows)


def markdown(results: dict[str, Any]) -> str:
    """All tables, with the machine above."""
    about = results["machine"]
    elements = results["fills"][0]["elements"] / 2**20 if results["fills"] else 0
    return f"""\
{about["cpu"]}, {about["cores"]} cores, Linux {about["kernel"]}, torch {about["torch"]}, \
{about["instruction_set"]}, {about["date"]}.

{elements:.0f} Mi elements, resident memory; medians, smallest and largest in brackets. torch's \
trunc_normal is timed on 4 Mi elements, where it is at its best.

{fills(results)}

{fresh(results)}

{small(results)}

One thread, {elements / 8:.0f} Mi elements:

{instruction_sets(results)}
"""


# The most telling rows.
_MAIN = re.compile(r"(float32|bfloat16) (uniform|normal|trunc_normal within 2 std)|float64 normal")


def main() -> None:
    """Prints the tables of a file of results."""
    parser = argparse.ArgumentParser(description="Markdown tables from the JSON of run.py.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    print(markdown(results))
    if options.page:
        results["fills"] = [each for each in results["fills"] if _MAIN.fullmatch(each["case"])]
        text = markdown(results)
        marker = re.compile(r"(<!-- benchmark -->\n).*(\n<!-- /benchmark -->)", re.DOTALL)
        head = text.split("\n\nOne thread", maxsplit=1)[0]
        page = options.page.read_text()
        options.page.write_text(marker.sub(lambda m: m[1] + head + m[2], page))


if __name__ == "__main__":
    main()
