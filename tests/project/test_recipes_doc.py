"""docs/recipes.md runs, block by block, and gives the standard deviations that its sources say."""

from __future__ import annotations

import math
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import nano_gpt
import torchinit
from doc_blocks import blocks_of

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
L, D, HIDDEN = 3, 64, 160
TRUNCATED = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))


@cache
def run():
    """All blocks in one namespace, and the rules that each of them made: (heading, line, rules)."""
    namespace, made = {}, []
    sys.modules["model"] = nano_gpt  # the reader's file
    torch.manual_seed(0)
    for heading, line, code in blocks_of(PAGE):
        exec(compile("\n" * line + code, str(PAGE), "exec"), namespace)
        if "rules" in namespace:
            made.append((heading, line, namespace.pop("rules")))
    return namespace, made


def plan_of(heading, number=0):
    """The standard deviations of the layers' parameters by the rules under a heading."""
    namespace, made = run()
    rules = [rules for title, _, rules in made if heading in title][number]
    return {row.name: row.law.std for row in torchinit.plan_model(namespace["Model"](), rules)}


def test_every_block_runs():
    assert len(run()[1]) >= 10


def test_every_set_of_rules_fills_the_model_and_no_rule_is_idle():
    namespace, made = run()
    for heading, line, rules in made:
        with torch.device("meta"):
            model = namespace["Model"]()
        torchinit.init_model_(model, rules, seed=0, device="cpu")
        for name, parameter in model.named_parameters():
            assert parameter.isfinite().all(), (heading, line, name)
        assert model.norm.weight.eq(1).all()


@pytest.mark.parametrize(
    ("heading", "stds"),
    [
        ("GPT-2", {"embed": 0.02, "wq": 0.02, "wo": 0.02 / 6**0.5, "w2": 0.02 / 6**0.5}),
        ("own depth", {"w1": 0.02, "wo": 0.02 / 6**0.5, "w2": 0.02 / 6**0.5}),
        (
            "torchtitan's Llama",
            {"embed": 1.0, "head": TRUNCATED / 8, "wq": 0.02, "w1": 0.02, "w3": 0.02 / 6**0.5},
        ),
        (
            "Mitchell",
            {
                "embed": TRUNCATED / 8, "head": TRUNCATED / 8, "wk": TRUNCATED / 8,
                "wo": TRUNCATED / (6 * D) ** 0.5, "w2": TRUNCATED / (6 * HIDDEN) ** 0.5,
            },
        ),
        ("Small init", {"embed": (2 / 320) ** 0.5, "wo": 2 / 24, "w2": 2 / 24}),
        (
            "DeepNorm",
            {
                "wq": (2 / (64 + 64)) ** 0.5, "wk": (2 / (64 + 16)) ** 0.5,
                "wv": (2 / (64 + 16)) ** 0.5 * 24**-0.25, "w2": (2 / 224) ** 0.5 * 24**-0.25,
            },
        ),
        ("Zero residual", {"wo": 0, "w2": 0, "head": 0, "embed": 1, "w1": 1 / 8}),
        (
            "LeCun",
            {"embed": 1 / 8, "w1": (2 / 64) ** 0.5, "wk": (2 / 80) ** 0.5, "w2": 160**-0.5},
        ),
        ("muP with a tied", {"embed": 0.02, "head": 0.02, "w1": 0.02 / 2**0.5}),
        ("muP", {"embed": 0.02, "head": 0, "wq": 0.02 / 2**0.5, "w2": 0.02 / 12**0.5}),
        (
            "Spectral",
            {"wk": 0.5 / 8, "wq": 1 / 8, "w1": 1 / 8, "w2": (64 / 160) ** 0.5 / 160**0.5},
        ),
        ("torch's own", {"wq": 1 / (8 * 3**0.5), "w2": 1 / (3 * 160) ** 0.5, "embed": 1}),
    ],
)  # fmt: skip
def test_standard_deviations(heading, stds):
    """Of the third layer, whose number is 2; 2 (2 + 1) = 2 L."""
    plan = plan_of(heading)
    for name, std in stds.items():
        (found,) = [
            value
            for parameter, value in plan.items()
            if re.fullmatch(rf"(layers\.2\.\w+\.)?{name}\.weight", parameter)
        ]
        assert found == pytest.approx(std, rel=1e-7), name


def test_by_depth_the_first_layer_is_wider():
    plan = plan_of("own depth")
    assert plan["layers.0.attention.wo.weight"] == pytest.approx(0.02 / 2**0.5)


def test_orthogonal_matrices_have_the_spectral_norm():
    namespace, made = run()
    rules = [rules for title, _, rules in made if title == "Spectral"][1]
    model = torchinit.init_model_(namespace["Model"](), rules, seed=0)
    norm = torch.linalg.matrix_norm(model.layers[0].feed_forward.w2.weight, 2)
    assert norm.item() == pytest.approx((64 / 160) ** 0.5, rel=1e-4)


def test_vectors_of_ngpt_have_length_1():
    namespace, made = run()
    (rules,) = [rules for title, _, rules in made if title == "nGPT"]
    model = torchinit.init_model_(namespace["Model"](), rules, seed=0)
    layer = model.layers[1]
    for matrix, dim in ((layer.attention.wo, 0), (layer.feed_forward.w1, 1), (model.embed, 1)):
        length = matrix.weight.norm(dim=dim)
        assert torch.allclose(length, torch.ones_like(length), atol=1e-5)


def test_parts_of_the_lstm_are_apart_and_orthogonal():
    lstm = run()[0]["lstm"]
    gates = [*lstm.weight_hh_l0.chunk(4), *lstm.weight_hh_l1.chunk(4)]
    assert len({gate[0, 0].item() for gate in gates}) == 8
    for gate in gates:
        assert torch.allclose(gate @ gate.T, torch.eye(D), atol=1e-5)


def test_dt_bias_is_the_inverse_of_softplus():
    dt = torch.nn.functional.softplus(run()[0]["mixer"].dt_bias)
    assert dt.min() >= 0.999e-3
    assert dt.max() <= 0.1001


def test_the_orthogonal_experts_are_orthogonal_each():
    for expert in run()[0]["experts"].down:
        assert torch.allclose(expert @ expert.T, torch.eye(D), atol=1e-5)


def test_nanogpt_is_what_its_own_code_makes():
    """Ties, constants and stds, the last to 6 standard errors (false alarm: 2e-9 a parameter)."""
    namespace, _ = run()
    own, ours = namespace["GPT"](namespace["gptconf"]), namespace["before"]
    assert ours.lm_head.weight is ours.transformer.wte.weight
    found = dict(ours.named_parameters(remove_duplicate=False))
    wanted = dict(own.named_parameters(remove_duplicate=False))
    assert list(found) == list(wanted)
    for name, parameter in wanted.items():
        std = 0.02 / 6**0.5 if name.endswith("c_proj.weight") else 0.02
        if parameter.std() == 0:
            assert torch.equal(found[name], parameter), name
            continue
        for values in (found[name], parameter):
            error = 6 * std / math.sqrt(2 * values.numel())
            assert abs(values.square().mean().sqrt() - std) < error, name


def test_new_rows_are_those_of_a_model_that_had_them():
    embed = run()[0]["embed"].weight.detach()
    whole = torchinit.init_model_(
        torch.nn.ModuleDict({"embed": torch.nn.Embedding(320, D)}),
        {"**": torchinit.Normal(0.02)},
        seed=0,
    )
    assert torch.equal(embed[256:], whole.embed.weight[256:])
    assert not torch.equal(embed[:256], whole.embed.weight[:256])


def test_shrink_and_perturb_adds_noise_of_its_own_to_every_parameter():
    namespace, _ = run()
    after = dict(namespace["gpt"].named_parameters())
    noise = {n: after[n] - 0.4 * p for n, p in namespace["before"].named_parameters()}
    for name, values in noise.items():  # 6 standard errors: false alarm 2e-9 each
        error = 6 * 0.01 / math.sqrt(2 * values.numel())
        assert abs(values.square().mean().sqrt() - 0.01) < error, name
    assert len({values.flatten()[0].item() for values in noise.values()}) == len(noise)


def test_only_the_new_head_is_filled():
    head = run()[0]["pretrained"].head
    assert not head.bias.any()
    assert 0.015 < head.weight.std() < 0.025
