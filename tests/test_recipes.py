"""Every recipe against Transformers' own code: the laws it records, its values, its buffers."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import torchinit
from conftest import long
from torchinit import ArgumentError, recipes

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"vocab_size": 300, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 40}
VIT = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
BERT = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 40,
}  # fmt: skip
T5 = {
    "vocab_size": 300, "d_model": 48, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 16, "decoder_start_token_id": 0,
}  # fmt: skip

# (recipe, config class, model classes, what each of several configs has besides the smallest one)
DECODER_HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering",
                 "ForTokenClassification")  # fmt: skip
FAMILIES = [
    (
        "llama", "Llama", LLAMA, DECODER_HEADS,
        [
            {},
            {"tie_word_embeddings": True},
            {"attention_bias": True},
            {"mlp_bias": True, "initializer_range": 0.1},
            {"attention_bias": True, "mlp_bias": True, "pad_token_id": 3},
            {"initializer_range": 0.0, "num_labels": 7},
        ],
    ),
    # Relatives of Llama: biases of q, k and v without a word in the config; norms of q and k.
    (
        "llama", "Qwen2", LLAMA, ("ForCausalLM", "ForTokenClassification"),
        [{}, {"tie_word_embeddings": True}],
    ),
    ("llama", "Qwen3", LLAMA | {"head_dim": 16}, ("ForCausalLM",), [{}, {"attention_bias": True}]),
    ("llama", "Mistral", LLAMA, ("ForCausalLM",), [{}]),
    (
        "mixtral", "Mixtral", LLAMA, DECODER_HEADS,
        [
            {},
            {"num_local_experts": 5, "tie_word_embeddings": True},
            {"num_local_experts": 2, "initializer_range": 0.05, "pad_token_id": 0},
        ],
    ),
    (
        "gpt2", "GPT2", GPT2,
        ("Model", "LMHeadModel", "DoubleHeadsModel", "ForSequenceClassification",
         "ForTokenClassification", "ForQuestionAnswering"),
        [
            {},
            {"tie_word_embeddings": False, "n_inner": 64},
            {"add_cross_attention": True},
            {"initializer_range": 0.1, "summary_first_dropout": 0.0, "num_labels": 5},
            {"n_layer": 0},
        ],
    ),
    (
        "vit", "ViT", VIT, ("Model", "ForImageClassification", "ForMaskedImageModeling"),
        [
            {},
            {"qkv_bias": False},
            {"initializer_range": 1.5, "pooler_output_size": 32},
            {"num_labels": 0, "encoder_stride": 8},
        ],
    ),
    (
        "bert", "Bert", BERT,
        ("Model", "ForPreTraining", "LMHeadModel", "ForMaskedLM", "ForNextSentencePrediction",
         "ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification",
         "ForQuestionAnswering"),
        [
            {},
            {"tie_word_embeddings": False, "pad_token_id": 5},
            {"is_decoder": True, "add_cross_attention": True, "initializer_range": 0.1},
            {"pad_token_id": None, "num_labels": 4},
        ],
    ),
    (
        "t5", "T5", T5,
        ("Model", "ForConditionalGeneration", "EncoderModel", "ForSequenceClassification",
         "ForTokenClassification", "ForQuestionAnswering"),
        [
            {},
            {"tie_word_embeddings": False},
            {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
            {"feed_forward_proj": "gated-gelu", "initializer_factor": 0.3, "num_decoder_layers": 1},
        ],
    ),
]  # fmt: skip
# Arguments of the constructor that no config knows of.
BY_ARGUMENT = [
    ("bert", "Bert", BERT, "Model", {"add_pooling_layer": False}),
    ("vit", "ViT", VIT, "Model", {"add_pooling_layer": False}),
    ("vit", "ViT", VIT, "Model", {"use_mask_token": True}),
]


def cases():
    for recipe, family, small, heads, extras in FAMILIES:
        for number, extra in enumerate(extras):
            for head in heads:
                yield pytest.param(
                    *(recipe, family, small | extra, head, {}),
                    id=f"{family}{head}-{number}",
                    marks=[long] if number and head != heads[-1] else [],
                )
    for recipe, family, small, head, arguments in BY_ARGUMENT:
        yield pytest.param(
            recipe, family, small, head, arguments, id=f"{family}{head}-{next(iter(arguments))}"
        )


every_model = pytest.mark.parametrize(
    ("recipe", "family", "values", "head", "arguments"), list(cases())
)


def config_of(family, values):
    return getattr(transformers, f"{family}Config")(**values)


def build(family, values, head, arguments):
    return getattr(transformers, f"{family}{head}")(config_of(family, values), **arguments)


def on_meta(*model):
    with torch.device("meta"):
        return build(*model)


def on_built_meta(*model):
    """As ``on_meta``, for ``init_model_`` without rules, whatever the constructor was given."""
    if not model[-1]:
        return on_meta(*model)
    return torchinit.build_model(lambda: build(*model), seed=0, device="meta")


def rules_of(recipe, family, values):
    return getattr(recipes, recipe)(config_of(family, values))


def names_of(model):
    """Every parameter's names, the one that its key is made of first."""
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(sorted(aliases) for aliases in names.values())


def laws(plan):
    return {row.parameter: (row.law.mean, row.law.std, row.law.low, row.law.high) for row in plan}


def pads_of(model):
    """Names of embeddings' weights, and the row of each that stands for padding."""
    return {
        f"{name}.weight": module.padding_idx
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
    }


def own_laws(model, *how):
    """Of all parameters; of those that the constructor computes, from what it makes."""
    rows = {row.parameter: row for row in torchinit.plan_model(model)}
    computed = {name for name, row in rows.items() if row.law is None}
    found = laws([row for row in rows.values() if row.law is not None])
    parameters = dict(build(*how).named_parameters()) if computed else {}
    for name in computed:
        (number,) = parameters[name].detach().unique().tolist()
        found[name] = (number, 0.0, number, number)
    return found


@every_model
def test_laws_are_those_that_the_model_records(recipe, family, values, head, arguments):
    model = on_built_meta(family, values, head, arguments)
    own = own_laws(model, family, values, head, arguments)
    ours = laws(torchinit.plan_model(model, rules_of(recipe, family, values)))
    assert ours.keys() == own.keys() == {name for name, *_ in names_of(model)}
    for name, law in own.items():
        assert ours[name] == pytest.approx(law, rel=1e-12, abs=0), name


def check_values(name, tensor, law):
    """Mean, std and bounds; 6 standard errors are passed by chance once in 5e8."""
    mean, std, low, high = law
    if std == 0:
        assert torch.equal(tensor, torch.full_like(tensor, mean)), name
        return
    x, n = tensor.double(), tensor.numel()
    assert abs(x.mean() - mean) <= 6 * std / math.sqrt(n), name
    assert abs(x.square().mean().sqrt() - std) <= 6 * std / math.sqrt(2 * n), name
    assert low <= x.min(), name
    assert x.max() <= high, name


@every_model
def test_values_are_as_transformers_makes_them(recipe, family, values, head, arguments):
    torch.manual_seed(1)
    plain = build(family, values, head, arguments)
    ours = on_built_meta(family, values, head, arguments)
    own = own_laws(ours, family, values, head, arguments)
    torchinit.init_model_(ours, rules_of(recipe, family, values), seed=0, device="cpu")
    pads = pads_of(plain)
    assert pads == pads_of(ours)
    assert names_of(plain) == names_of(ours)  # ties are kept
    for model in (plain, ours):
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, *aliases in names_of(model):
            parameter = parameters[name].detach()
            for row in {pads[alias] for alias in (name, *aliases) if alias in pads}:
                assert not parameter[row].any(), name
                parameter = torch.cat([parameter[:row], parameter[row + 1 :]])
            check_values(name, parameter, own[name])
    buffers = dict(ours.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, buffers.pop(name)), name
    assert not buffers


@every_model
def test_bits_are_those_of_the_models_own_init(recipe, family, values, head, arguments):
    rules = rules_of(recipe, family, values)
    models = [on_built_meta(family, values, head, arguments) for _ in range(2)]
    ours, own = (
        torchinit.init_model_(model, r, seed=3, device="cpu")
        for model, r in zip(models, (rules, None), strict=True)
    )
    expected = dict(own.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize(
    ("recipe", "config", "missing"),
    [
        *((name, {}, "initializer_range") for name in ("llama", "mixtral", "gpt2", "vit", "bert")),
        ("gpt2", {"initializer_range": 0.02}, "n_layer"),
        ("t5", {"initializer_factor": 1.0, "d_model": 8, "d_kv": 4, "d_ff": 8}, "num_heads"),
    ],
)
def test_a_config_without_an_attribute_is_named(recipe, config, missing):
    with pytest.raises(
        ArgumentError,
        match=rf"recipes\.{recipe} needs config\.{missing}, which a SimpleNamespace does not have",
    ):
        getattr(recipes, recipe)(SimpleNamespace(**config))


@pytest.mark.parametrize(
    ("value", "error"), [("4", TypeError), (-1, ArgumentError), (math.nan, ArgumentError)]
)
def test_a_config_with_other_than_numbers_is_told_so(value, error):
    with pytest.raises(error, match=rf"config\.n_layer='?{value}'? must be a"):
        recipes.gpt2(SimpleNamespace(initializer_range=0.02, n_layer=value))


@pytest.mark.parametrize("name", recipes.__all__)
def test_other_processes_can_be_sent_a_recipe(name):
    numbers = {"n_layer": 4, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2}
    config = SimpleNamespace(initializer_range=0.02, initializer_factor=1.0, **numbers)
    rules = getattr(recipes, name)(config)
    sent = pickle.loads(pickle.dumps(rules))
    models = [nn.Sequential(nn.Linear(8, 4)) for _ in range(2)]
    for model, chosen in zip(models, (rules, sent), strict=True):
        torchinit.init_model_(model, chosen, seed=0, strict=False)
    assert torchinit.fingerprint(models[0]) == torchinit.fingerprint(models[1])


def test_a_rule_put_first_wins():
    config = config_of("Llama", LLAMA)
    model = on_meta("Llama", LLAMA, "ForCausalLM", {})
    rules = {"lm_head.weight": "zeros", **recipes.llama(config)}
    torchinit.init_model_(model, rules, seed=0, device="cpu")
    assert not model.lm_head.weight.any()
    assert model.model.embed_tokens.weight.all()


def test_recipes_are_dicts_of_their_own():
    config = SimpleNamespace(initializer_range=0.02)
    recipes.bert(config)["**"] = "zeros"
    assert recipes.bert(config)["**"] == torchinit.Normal(0.02)
