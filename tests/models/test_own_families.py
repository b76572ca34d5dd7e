"""``init_model_`` without rules: Transformers' models, and torchtitan's protocol."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from compared import assert_alike, assert_same, made, on_meta, refusal, values
from torch import nn

from torchinit import Normal, build_model, init_model_, plan_model

# Models of Transformers: by their class and config.


def _numbers(kind: str) -> dict[str, object]:
    common = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "intermediate_size": 64}
    return {
        "Llama": {**common, **heads},
        "Mixtral": {**common, **heads, "num_key_value_heads": 2, "num_local_experts": 4},
        "Bert": {**common, **heads},
        "GPT2": {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "T5": {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
               "num_heads": 4},
        "ViT": {**heads, "hidden_size": 32, "num_hidden_layers": 2, "image_size": 32,
                "patch_size": 8},
        "ViTMAE": {**heads, "hidden_size": 32, "num_hidden_layers": 1, "image_size": 32,
                   "patch_size": 8},
        "Whisper": {"vocab_size": 128, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
                    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0,
                    "max_source_positions": 32, "max_target_positions": 32},
        "Mamba": {**common, "state_size": 8},
        "ModernBert": {**common, **heads, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                       "cls_token_id": 1, "sep_token_id": 2},
    }[kind]  # fmt: skip


def _transformer(kind: str, head: str = "Model", **more: object) -> Callable[[], nn.Module]:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**{**_numbers(kind), **more})
    return lambda: getattr(transformers, f"{kind}{head}")(copy.deepcopy(config))


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("Llama", "Model"), ("Mixtral", "Model"), ("Bert", "Model"), ("GPT2", "Model"),
        ("T5", "Model"), ("ViT", "Model"), ("Whisper", "Model"), ("Mamba", "Model"),
        ("ViTMAE", "Model"), ("ModernBert", "ForMaskedLM"),
    ],
)  # fmt: skip
def test_transformers_models(kind: str, head: str) -> None:
    build = _transformer(kind, head)
    assert_alike(build)
    emptied = on_meta(build).to_empty(device="cpu")
    for one in (build(), emptied):
        assert_same(init_model_(one, seed=0), build_model(build, seed=0))


def test_transformers_models_again_wrapped_and_in_another_dtype() -> None:
    build = _transformer("Llama", "ForCausalLM", tie_word_embeddings=True)
    model = build().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(1)
    assert_same(init_model_(model, seed=3), build_model(build, seed=3))
    assert_same(init_model_(model, seed=4), build_model(build, seed=4))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for wrap in (torch.compile, nn.DataParallel):
        model = build()
        init_model_(wrap(model), seed=0)
        assert_same(model, build_model(build, seed=0))
    short = init_model_(on_meta(build), seed=0, device="cpu", dtype=torch.bfloat16)
    assert_same(short, build_model(build, seed=0, dtype=torch.bfloat16))
    for name, parameter in init_model_(build().bfloat16(), seed=0).named_parameters():
        assert torch.equal(parameter, short.get_parameter(name)), name


def test_a_stage_of_a_transformers_model() -> None:
    """Layers that are not there change nothing for those that are."""
    build = _transformer("Llama", "ForCausalLM")
    model, whole = on_meta(build), values(build_model(build, seed=0))
    del model.model.layers[0], model.lm_head
    model.model.layers = nn.ModuleDict({"1": model.model.layers[0]})
    init_model_(model, seed=0, device="cpu")
    assert "model.layers.1.mlp.up_proj.weight" in dict(model.named_parameters())
    assert all(torch.equal(value, whole[name]) for name, value in values(model).items())


def test_the_config_of_a_transformers_model_counts() -> None:
    build = _transformer("Llama", "ForCausalLM")
    model = build()
    model.config.initializer_range = 1.0
    init_model_(model, seed=0)
    assert_same(model, build_model(_transformer("Llama", "ForCausalLM", initializer_range=1.0),
                                   seed=0))  # fmt: skip
    model.resize_token_embeddings(140)
    init_model_(model, seed=0)
    assert model.lm_head.weight.shape == (140, 32)
    assert float(model.model.embed_tokens.weight.std()) == pytest.approx(1, abs=0.1)


def test_flags_of_transformers_do_not_matter() -> None:
    """What is marked as loaded is initialised too."""
    build = _transformer("Llama")
    model = on_meta(build)
    for one in (*model.modules(), *model.parameters()):
        one._is_hf_initialized = True
    assert_same(init_model_(model, seed=0, device="cpu"), build_model(build, seed=0))


def _resized(model: nn.Module) -> None:
    model.resize_token_embeddings(140, mean_resizing=False)
    model.config.vocab_size = 128


def _with_a_head(model: nn.Module) -> None:
    model.lm_head = nn.Linear(32, 7)


def _with_a_bias(model: nn.Module) -> None:
    model.lm_head = nn.Linear(32, 128)


def _tied_by_hand(model: nn.Module) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def _of_fewer_layers(model: nn.Module) -> None:
    model.config.num_hidden_layers = 1


def _with_an_adapter(model: nn.Module) -> None:
    layer = model.model.layers[0].self_attn
    layer.q_proj.lora_A, layer.q_proj.lora_B = nn.Linear(32, 2), nn.Linear(2, 32)


CHANGED: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "other sizes": (_resized, r"2 of 21 .*gives it shape \(128, 32\)"),
    "another head": (_with_a_head, r"2 of 22 .*: lm_head.weight, lm_head.bias"),
    "a bias more": (_with_a_bias, r"1 of 22 .*: lm_head.bias \(.* creates no such tensor\)"),
    "ties": (_tied_by_hand, r"1 of 20 .*: lm_head.weight \(.* does not tie its names\)"),
    "layers": (_of_fewer_layers, r"9 of 21 .*model.layers.1"),
    "adapters": (_with_an_adapter, r"4 of 25 .*: .*q_proj.lora_A.weight, .* creates no such"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_transformers_models_that_were_changed_are_refused(name: str) -> None:
    change, why = CHANGED[name]
    model = _transformer("Llama", "ForCausalLM")()
    change(model)
    said = refusal(model)
    assert re.search(why, said), said
    assert "torchinit.build_model(lambda: LlamaForCausalLM(...), seed=0)" in said


def test_broken_ties_of_transformers_models_are_joined_or_refused() -> None:
    """After ``to_empty`` a tie's names are parameters of their own: both get what the tie has."""
    build = _transformer("Llama", "ForCausalLM", tie_word_embeddings=True)
    model = on_meta(build).to_empty(device="cpu")
    with torch.no_grad():
        model.lm_head.weight = nn.Parameter(torch.empty(128, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init_model_(model, seed=0)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert torch.equal(model.lm_head.weight, build_model(build, seed=0).lm_head.weight)
    with pytest.warns(UserWarning, match="are not tied, and get different values: 'lm_head"):
        init_model_(model, {"**": Normal(1.0)}, seed=0)


def test_transformers_classes_of_other_arguments_are_refused() -> None:
    transformers = pytest.importorskip("transformers")

    class TakesMore(transformers.LlamaForCausalLM):
        def __init__(self, config: object, wide: int) -> None:
            super().__init__(config)
            self.wide = nn.Linear(4, wide)

    class HasMore(transformers.LlamaForCausalLM):
        def __init__(self, config: object, wide: int = 1) -> None:
            super().__init__(config)
            self.wide = nn.Linear(4, wide)

    config = transformers.LlamaConfig(**_numbers("Llama"))
    said = refusal(on_meta(lambda: TakesMore(config, 3)))
    assert "TakesMore(config) raised TypeError" in said
    said = refusal(on_meta(lambda: HasMore(config, 3)))
    assert re.search(r"2 of 23 .*: wide.weight, wide.bias \(HasMore\(config\) gives it shape", said)


def test_transformers_models_inside_others_are_refused() -> None:
    """Nobody says that the outer constructor left them as they were."""
    build = _transformer("Llama")
    assert "only the constructor of Llama" in refusal(nn.Sequential(build()))


def test_transformers_layers_alone_are_refused() -> None:
    utilities = pytest.importorskip("transformers.pytorch_utils")
    assert "only the constructor of Conv1D knows" in refusal(utilities.Conv1D(48, 32))


def test_a_transformers_class_of_others() -> None:
    """Its constructor is run as it is, whatever it does besides."""
    transformers = pytest.importorskip("transformers")

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.Linear(16, 16)
            nn.init.constant_(self.below.weight, 7.0)
            self.scale = nn.Parameter(torch.tensor(2.6592))

    class Model(transformers.BertPreTrainedModel):
        def __init__(self, config: object) -> None:
            super().__init__(config)
            self.parent, self.last = Parent(), nn.Linear(16, 16)
            self.post_init()
            nn.init.zeros_(self.last.weight)

    assert_alike(lambda: Model(transformers.BertConfig()))
    assert torch.count_nonzero(made(lambda: Model(transformers.BertConfig())).last.weight) == 0


# torchtitan's protocol.


class Titan(nn.Module):
    """In the manner of torchtitan."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(2))
        self.register_buffer("freqs", self._freqs(), persistent=False)

    def _freqs(self) -> torch.Tensor:
        return 1.0 / 10000 ** (torch.arange(0, 8).float() / 8)

    def init_weights(self, buffer_device: torch.device | None = None) -> None:
        with torch.device(buffer_device or self.freqs.device):
            self.freqs = self._freqs()
        nn.init.normal_(self.embed.weight)
        for depth, layer in enumerate(self.layers):
            std = 0.02 / (2 * (depth + 1)) ** 0.5
            nn.init.trunc_normal_(layer.weight, std=std, a=-3 * std, b=3 * std)


class TitanOfStates(Titan):
    """As newer ones: what ``init_weights`` does is not asked for."""

    def init_states(self, *, buffer_device: torch.device | None = None) -> None:
        super().init_weights(buffer_device)
        with torch.no_grad():
            self.layers[1].weight.mul_(2).add_(1)
        nn.init.zeros_(self.layers[0].weight)

    def init_weights(self, buffer_device: torch.device | None = None) -> None:
        raise AssertionError(buffer_device)


@pytest.mark.parametrize("kind", [Titan, TitanOfStates])
def test_torchtitan(kind: type[Titan]) -> None:
    def build() -> nn.Module:
        model = kind()
        getattr(model, "init_states", model.init_weights)(buffer_device=torch.device("cpu"))
        return model

    for model in (on_meta(kind), kind(), on_meta(kind).to_empty(device="cpu")):
        assert_same(init_model_(model, seed=0, device="cpu"), build_model(build, seed=0))
        assert torch.equal(model.freqs, model._freqs())
    again = init_model_(model, seed=5)
    assert_same(again, build_model(build, seed=5))
    short = init_model_(on_meta(kind), seed=0, device="cpu", dtype=torch.bfloat16)
    assert_same(short, build_model(build, seed=0, dtype=torch.bfloat16))


def test_torchtitan_laws() -> None:
    model = made(Titan)
    for depth in (0, 1):
        std = 0.02 / (2 * (depth + 1)) ** 0.5
        weight = model.layers[depth].weight.detach()
        assert float(weight.std()) == pytest.approx(std * 0.9866, rel=0.2)
        assert float(weight.abs().max()) <= 3 * std
    model = made(TitanOfStates)
    assert torch.count_nonzero(model.layers[0].weight) == 0
    assert float(model.layers[1].weight.mean()) == pytest.approx(1, abs=0.01)
    (row,) = (row for row in plan_model(on_meta(Titan)) if row.name == "layers.1.weight")
    assert row.rule == "Titan.init_weights()"


def test_what_torchtitans_methods_leave_is_refused() -> None:
    class Forgets(Titan):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(4))

    said = refusal(on_meta(Forgets))
    assert re.search(r"1 of 4 .*: gate \(Forgets.init_weights\(\) does not fill it\)", said)

    class Raises(Titan):
        def init_weights(self, buffer_device: torch.device | None = None) -> None:
            super().init_weights(buffer_device)
            raise RuntimeError("no network")

    said = refusal(on_meta(Raises))
    assert "Raises.init_weights() raised RuntimeError: no network" in said


@pytest.mark.parametrize("scale", [True, False])
def test_what_torchtitans_methods_only_change_is_refused(scale: bool) -> None:
    """What was there before is the constructor's, which nobody has run."""

    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(400, 400))

        def init_weights(self, buffer_device: torch.device | None = None) -> None:
            assert buffer_device is not None
            with torch.no_grad():
                if scale:
                    self.w.mul_(2)
                else:
                    self.w[:2] = 3

    for model in (Changes(), on_meta(Changes)):
        assert "w (Changes.init_weights() does not fill it)" in refusal(model)


def test_methods_without_a_device_of_buffers_are_no_protocol() -> None:
    class Timm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 16)

        def init_weights(self, mode: str = "") -> None:
            nn.init.constant_(self.head.bias, -1.0 if mode else -2.0)

    assert "only the constructor of Timm knows" in refusal(Timm())


def test_parameters_that_torchtitans_methods_replace() -> None:
    class Replaces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.empty(16, 16)), nn.Parameter(torch.empty(3))

        def init_weights(self, buffer_device: torch.device | None = None) -> None:
            self.w = nn.Parameter(torch.randn(16, 16, device=buffer_device) * 0.1)
            self.v.data = torch.ones(3, device=buffer_device) * self.w.detach().norm()

    model = Replaces()
    before = dict(model.named_parameters())
    init_model_(model, seed=0)
    assert all(value is before[name] for name, value in model.named_parameters())
    assert float(model.w.std()) == pytest.approx(0.1, rel=0.3)
    assert torch.allclose(model.v, model.w.norm().expand(3))
    assert_same(model, made(Replaces))

    class Odd(Replaces):
        def init_weights(self, buffer_device: torch.device | None = None) -> None:
            super().init_weights(buffer_device)
            self.w = nn.Parameter(torch.zeros(5))

    assert "1 of 2 parameters is not known: w" in refusal(on_meta(Odd))


def test_the_plan_leaves_attributes_and_generators_alone() -> None:
    class Measured(Titan):
        def init_weights(self, buffer_device: torch.device | None = None) -> None:
            super().init_weights(buffer_device)
            self.largest = self.embed.weight.detach().abs().max()

    model = Measured()
    model.init_weights()
    before, state = model.largest, torch.get_rng_state()
    plan_model(model)
    assert model.largest is before
    init_model_(model, seed=0)
    assert model.largest is before
    assert torch.equal(torch.get_rng_state(), state)
