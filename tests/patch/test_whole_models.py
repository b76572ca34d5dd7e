"""Whole models built inside: nothing random by torch, the laws of the plain build, equal bits."""

from __future__ import annotations

import warnings

import pytest
import torch
from test_interception import Seen
from torch import nn

import torchinit
from conftest import native_only

pytestmark = native_only
SIZES = {
    "vocab_size": 900,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def transformers():
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    return module


def from_config(model, config, **arguments):
    def make():
        library = transformers()
        return getattr(library, model)(getattr(library, config)(**arguments))

    return make


def clip():
    library = transformers()
    vision = {**SIZES, "image_size": 64, "patch_size": 16}
    return library.CLIPModel(library.CLIPConfig(text_config=SIZES, vision_config=vision))


def narrow_llama():
    library = transformers()
    config = library.LlamaConfig(**SIZES)
    return library.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def x_transformer():
    library = pytest.importorskip("x_transformers")
    layers = library.Decoder(dim=96, depth=2, heads=4)
    return library.TransformerWrapper(num_tokens=900, max_seq_len=64, attn_layers=layers)


def encoder():
    layer = nn.TransformerEncoderLayer(96, 4, 192, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


WITHOUT_VOCABULARY = {name: size for name, size in SIZES.items() if name != "vocab_size"}
MODELS = {
    "llama": from_config("LlamaForCausalLM", "LlamaConfig", **SIZES),
    "llama in bfloat16": narrow_llama,
    "gpt2": from_config(
        "GPT2LMHeadModel", "GPT2Config", vocab_size=900, n_embd=96, n_layer=2, n_head=4
    ),
    "bert": from_config("BertForMaskedLM", "BertConfig", **SIZES),
    "t5": from_config(
        "T5ForConditionalGeneration",
        "T5Config",
        vocab_size=900,
        d_model=96,
        d_kv=24,
        d_ff=192,
        num_layers=2,
        num_heads=4,
    ),
    "vit": from_config(
        "ViTForImageClassification", "ViTConfig", image_size=64, **WITHOUT_VOCABULARY
    ),
    "clip": clip,
    "mixtral": from_config(
        "MixtralForCausalLM",
        "MixtralConfig",
        num_key_value_heads=2,
        num_local_experts=4,
        **SIZES,
    ),
    "whisper": from_config(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        vocab_size=900,
        d_model=96,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "x-transformers": x_transformer,
    "encoder": encoder,
    "lstm": lambda: nn.LSTM(96, 128, 2),
}
EVERY = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(make, **arguments):
    torch.manual_seed(1)
    if arguments.pop("plain", False):
        return make()
    with torchinit.patch_nn_init(**arguments):
        return make()


def everything(model):
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


@EVERY
def test_no_random_fill_reaches_torch(make):
    with Seen() as seen:
        build(make)
    assert seen.names == []


@EVERY
def test_the_laws_are_those_of_the_plain_build(make):
    """Mean and std within 6 standard errors of both builds: 1e-8 a parameter, one seed."""
    plain, ours = build(make, plain=True), build(make)
    torch.manual_seed(2)
    other = make()
    assert dict(plain.named_buffers()).keys() == dict(ours.named_buffers()).keys()
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, ours.get_buffer(name)), name
    seen = {}  # the first values of each, as the plain build and ours have them
    for name, expected in plain.named_parameters():
        found = ours.get_parameter(name)
        assert found.dtype == expected.dtype
        assert found.requires_grad == expected.requires_grad
        expected, found = expected.detach().double().flatten(), found.detach().double().flatten()
        assert found.isfinite().all(), name
        if torch.equal(plain.get_parameter(name), other.get_parameter(name)):  # not random
            assert torch.equal(found, expected), name
            continue
        assert not torch.equal(found, expected), name
        count = found.numel()
        error = expected.std() * (2 / count) ** 0.5
        assert (found.mean() - expected.mean()).abs() <= 6 * error, name
        # Of a normal the std's error is std / sqrt(2 n), of narrower laws less.
        assert (found.std() - expected.std()).abs() <= 6 * error / 2**0.5 + 1e-12, name
        # A uniform's largest value is within 30 / n of its bound but with 1e-13.
        kurtosis = ((expected - expected.mean()) / expected.std()).pow(4).mean()
        if count > 300 and kurtosis < 2:
            bound = expected.abs().max() * (1 + 30 / count)
            assert found.abs().max() <= bound, name
        # TransformerEncoder copies its layers: with torch too they share their values.
        first = tuple(found[:8].tolist())
        assert seen.setdefault(first, tuple(expected[:8].tolist())) == tuple(expected[:8].tolist())


@EVERY
def test_names_decide_whatever_was_drawn_before(make):
    model = build(make)
    layers = [one for one in model.modules() if hasattr(one, "reset_parameters")]
    results = []
    for draws in (1, 2):
        torch.randn(draws)
        with torchinit.patch_nn_init(seed=5, names_from=model):
            for layer in layers:
                torch.bernoulli(torch.tensor(0.5))
                layer.reset_parameters()
        results.append({name: one.clone() for name, one in model.named_parameters()})
    for name, one in results[0].items():
        assert torch.equal(one, results[1][name]), name
