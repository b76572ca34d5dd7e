"""Draws the pictures of docs/report.md: a correct Llama, and one broken in four places.

    python benchmarks/pictures.py                    # into docs/pictures
    python benchmarks/pictures.py --folder /tmp

Prints the table of each. Needs the extras demo and report.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchinit

_FOLDER = Path(__file__).parent.parent / "docs" / "pictures"


def llama() -> tuple[nn.Module, dict[str, Any]]:
    """A Llama of 12 layers on the CPU, by torchinit's recipe, and the recipe."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=12,
        num_attention_heads=8, num_key_value_heads=4,
    )  # fmt: skip
    rules = torchinit.recipes.llama(config)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return torchinit.init_model_(model, rules, seed=0, device="cpu"), rules


def break_it(model: nn.Module) -> None:
    """Doubles one parameter's std, clips one at 1 std, makes one constant, puts a NaN into one."""
    weight = {
        name: model.get_parameter(f"model.layers.{name}.weight")
        for name in ("2.self_attn.q_proj", "5.mlp.up_proj", "7.self_attn.o_proj", "9.mlp.down_proj")
    }
    double, clipped, constant, nan = weight.values()
    with torch.no_grad():
        double.mul_(2)
        clipped.clamp_(-0.02, 0.02)
        constant.fill_(0.01)
        nan[3, 4] = torch.nan


def main() -> None:
    """Draws both, each for light and for dark pages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=_FOLDER)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    model, rules = llama()
    for name in ("report_llama", "report_broken"):
        report = torchinit.report_model(model, rules)
        report.save(folder / f"{name}.png")
        report.save(folder / f"{name}-dark.png", dark=True)
        print(report)
        break_it(model)


if __name__ == "__main__":
    main()
