"""Compares measured speeds of fills on a GPU with predicted ones (predicted_cuda.csv). No torch."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CSV = Path(__file__).resolve().parent / "predicted_cuda.csv"  # by tools/predict_cuda.py
# A device's name, as CUDA gives it, and the file's. Others (PCIe, NVL) have other clocks or memory.
DEVICES: Mapping[str, str] = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA H200": "H200"}
ENOUGH = 0.8  # of the prediction; less is a finding


class Prediction(NamedTuple):
    """The speed of a fill as a part of `zero_`'s if issue and units reach 85%, and its bound."""

    share: float
    bound: str


def read_predictions(gpu: str, path: Path = CSV) -> dict[str, Prediction]:
    """Those for a GPU of the file, by the titles of gpu.py's rows; none for another."""
    with path.open(newline="") as file:
        return {
            title_of(row["dtype"], row["fill"], row["layout"]): Prediction(
                float(row["share_85"]), row["bound"]
            )
            for row in csv.DictReader(file)
            if gpu and row["gpu"] == gpu
        }


def title_of(dtype: str, fill: str, layout: str = "contiguous") -> str:
    """A row's title."""
    return f"{dtype} {fill}" + ("" if layout == "contiguous" else f", {layout}")


def is_finding(measured: float, prediction: Prediction | None) -> bool:
    """Whether a measured share is too far below its prediction."""
    return prediction is not None and measured < ENOUGH * prediction.share


def cell(measured: float, prediction: Prediction | None) -> str:
    """The prediction beside a measured share, marked if it is far off; empty if there is none."""
    if prediction is None:
        return ""
    text = f"{prediction.share:.2f} ({prediction.bound})"
    if is_finding(measured, prediction):
        text += f", **only {measured / prediction.share:.2f} of it**"
    return text
