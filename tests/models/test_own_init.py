"""``init_model_(model, seed=...)`` without rules: what a model's own code does, by names' keys."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import torchinit
from torchinit import ArgumentError, init_model_, plan_model


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    return init_model_(on_meta(build), seed=seed, device="cpu")


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_alike(build: Callable[[], nn.Module]) -> None:
    """What does not depend on a seed is equal; random values are of one mean and one std."""
    torch.manual_seed(0)
    plain, again, ours = build(), build(), made(build)
    before, after, twice = values(plain), values(ours), values(again)
    assert before.keys() == after.keys()
    for name, x in before.items():
        y = after[name]
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        assert bool(y.isfinite().all()), name
        if torch.equal(x, twice[name]):
            assert torch.equal(x, y), name
            continue
        error = 6 / math.sqrt(x.numel())
        assert float(y.double().std() / x.double().std()) == pytest.approx(1, abs=error), name
        shift = float((y.double().mean() - x.double().mean()).abs())
        assert shift <= error * 1.5 * float(x.double().std()), name
        assert not torch.equal(x, y), name


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(64, 48),
    "Linear without bias": lambda: nn.Linear(64, 48, bias=False),
    "Bilinear": lambda: nn.Bilinear(16, 12, 32),
    "Conv1d": lambda: nn.Conv1d(16, 32, 3),
    "Conv2d of groups": lambda: nn.Conv2d(16, 32, 3, groups=4),
    "Conv3d": lambda: nn.Conv3d(8, 16, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(16, 32, 3),
    "Embedding": lambda: nn.Embedding(64, 32),
    "Embedding with padding": lambda: nn.Embedding(64, 32, padding_idx=3),
    "EmbeddingBag": lambda: nn.EmbeddingBag(64, 32),
    "LayerNorm": lambda: nn.LayerNorm(32),
    "RMSNorm": lambda: nn.RMSNorm(32),
    "GroupNorm": lambda: nn.GroupNorm(4, 32),
    "BatchNorm2d": lambda: nn.BatchNorm2d(32),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(32, affine=True, track_running_stats=True),
    "PReLU": lambda: nn.PReLU(8),
    "MultiheadAttention": lambda: nn.MultiheadAttention(32, 4),
    "MultiheadAttention with bias_kv": lambda: nn.MultiheadAttention(32, 4, add_bias_kv=True),
    "MultiheadAttention of kdim": lambda: nn.MultiheadAttention(32, 4, kdim=16, vdim=24),
    "LSTM": lambda: nn.LSTM(32, 48, num_layers=2, bidirectional=True),
    "LSTM with proj_size": lambda: nn.LSTM(32, 48, proj_size=16),
    "GRU": lambda: nn.GRU(32, 48),
    "RNN": lambda: nn.RNN(32, 48),
    "LSTMCell": lambda: nn.LSTMCell(32, 48),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(32, 4, 64),
    "TransformerDecoderLayer": lambda: nn.TransformerDecoderLayer(32, 4, 64),
    "Transformer": lambda: nn.Transformer(32, 4, 1, 1, 64),
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(64, 100, [20, 50]),
    "weight_norm": lambda: weight_norm(nn.Conv1d(16, 32, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_torch(name: str) -> None:
    assert_alike(LAYERS[name])


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "weight_norm"])
def test_plan_says_what_constructors_do(name: str) -> None:
    torch.manual_seed(0)
    plain = dict(LAYERS[name]().named_parameters())
    for row in plan_model(on_meta(LAYERS[name])):
        assert row.law is not None or row.name != row.parameter or "padding" in name, row
        if row.law is None:
            continue
        found = plain[row.parameter].detach()
        assert float(found.min()) >= row.law.low - 1e-6, row
        assert float(found.max()) <= row.law.high + 1e-6, row
        if row.law.std == 0:
            assert float(found.std(correction=0)) == 0, row
        elif found.numel() > 30 and row.shape == tuple(found.shape):
            error = 6 / math.sqrt(found.numel())
            assert float(found.std()) == pytest.approx(row.law.std, rel=error), row


def test_padding_row_stays_zero() -> None:
    model = made(lambda: nn.Embedding(10, 4, padding_idx=3))
    assert torch.count_nonzero(model.weight[3]) == 0
    assert torch.count_nonzero(model.weight) == 36
    whole = made(lambda: nn.Embedding(10, 4))
    others = [row for row in range(10) if row != 3]
    assert torch.equal(model.weight[others], whole.weight[others])


def test_cloned_layers_differ() -> None:
    model = made(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2))
    assert not torch.equal(model.layers[0].linear1.weight, model.layers[1].linear1.weight)


# Transformers.


def _tiny(kind: str) -> Callable[[], nn.Module]:
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "intermediate_size": 64}
    numbers = {
        "Llama": {**common, **heads},
        "Mixtral": {**common, **heads, "num_key_value_heads": 2, "num_local_experts": 4},
        "Bert": {**common, **heads},
        "GPT2": {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "T5": {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
               "num_heads": 4},
        "ViT": {**heads, "hidden_size": 32, "num_hidden_layers": 2, "image_size": 32,
                "patch_size": 8},
        "Whisper": {"vocab_size": 128, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
                    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0,
                    "max_source_positions": 32, "max_target_positions": 32},
        "Mamba": {**common, "state_size": 8},
    }[kind]  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**numbers)
    return lambda: getattr(transformers, f"{kind}Model")(config)


TRANSFORMERS = ["Llama", "Mixtral", "Bert", "GPT2", "T5", "ViT", "Whisper", "Mamba"]


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers_models(kind: str) -> None:
    build = _tiny(kind)
    assert_alike(build)
    plain, ours = build(), made(build)
    for (name, x), (other, y) in zip(
        plain.named_buffers(), ours.named_buffers(), strict=True
    ):  # those that a state_dict leaves out too
        assert name == other
        assert torch.equal(x, y), name


def test_transformers_flags_are_dropped() -> None:
    """Nothing marked as loaded keeps its values: they are not there."""
    model = on_meta(_tiny("Llama"))
    for module in model.modules():
        module._is_hf_initialized = True
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    init_model_(model, seed=0, device="cpu")
    assert float(model.layers[0].self_attn.q_proj.weight.detach().std()) == pytest.approx(
        0.02, rel=0.2
    )
    assert not any("_is_hf_initialized" in vars(module) for module in model.modules())


def test_defaults_of_parents_come_before_transformers_init() -> None:
    """A constructor that fills what lies below has done so before any ``_init_weights``."""
    transformers = pytest.importorskip("transformers")

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.Linear(16, 16)
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.constant_(self.below.weight, 7.0)

    class Model(transformers.BertPreTrainedModel):
        def __init__(self, config: object) -> None:
            super().__init__(config)
            self.parent = Parent()
            self.post_init()

    def build() -> nn.Module:
        return Model(transformers.BertConfig())

    assert_alike(build)


def test_transformers_init_may_ask_what_is_done() -> None:
    """ViTMAE's embeddings leave themselves alone if what lies below is marked, as it always is."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    with pytest.raises(ArgumentError, match=r"2 of 22 .*: embeddings.cls_token, embeddings.posi"):
        made(lambda: transformers.ViTMAEModel(config))


def test_conv1d_of_transformers() -> None:
    utilities = pytest.importorskip("transformers.pytorch_utils")
    assert_alike(lambda: utilities.Conv1D(48, 32))


# Other conventions.


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


def test_torchtitan() -> None:
    model = made(Titan)
    assert torch.equal(model.freqs, model._freqs())
    for depth in (0, 1):
        std = 0.02 / (2 * (depth + 1)) ** 0.5
        assert float(model.layers[depth].weight.std()) == pytest.approx(std * 0.9866, rel=0.2)
        assert float(model.layers[depth].weight.abs().max()) <= 3 * std


class SelfBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4))
        self.register_buffer("table", torch.empty(4))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def _init_self_buffers(self, *, buffer_device: torch.device) -> None:
        self.table = torch.arange(4.0, device=buffer_device)


class TimmLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.register_buffer("index", torch.zeros(4, dtype=torch.long), persistent=False)

    def init_weights(self, mode: str = "") -> None:
        nn.init.normal_(self.token, std=1e-6)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, -1.0 if mode else -2.0)

    def init_non_persistent_buffers(self) -> None:
        self.index.copy_(torch.arange(4))


def test_buffers_of_timm_and_torchtitan() -> None:
    assert made(SelfBuffers).table.tolist() == [0, 1, 2, 3]
    model = made(TimmLike)
    assert model.index.tolist() == [0, 1, 2, 3]
    assert model.head.bias.tolist() == [-2.0] * 16
    assert float(model.token.abs().max()) < 1e-5


class NanoGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.head = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)
        self.c_proj = nn.Linear(16, 16)
        self.wte.weight = self.head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.05)


def test_nanogpt() -> None:
    model = made(NanoGPT)
    assert model.wte.weight is model.head.weight
    assert_alike(NanoGPT)


# Values that no record of fills can say.


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(16, 16))
        self.b = nn.Parameter(torch.empty(16, 16))
        self.c = nn.Parameter(torch.empty(16, 16))
        self.log = nn.Parameter(torch.empty(16))

    def reset_parameters(self) -> None:
        with torch.no_grad():
            nn.init.normal_(self.a, std=0.5)
            self.a.mul_(4)
            self.b.copy_(self.a.t())
            nn.init.uniform_(self.c, 1, 2)
            self.c[3].zero_()
            self.c[:, 0] = 5
            self.log.copy_(torch.log(torch.arange(1.0, 17, device=self.log.device)))


def test_computed_values() -> None:
    model = made(Computed)
    assert float(model.a.std()) == pytest.approx(2, rel=0.3)
    assert torch.equal(model.b, model.a.t())
    assert torch.count_nonzero(model.c[3, 1:]) == 0
    assert model.c[:, 0].tolist() == [5.0] * 16
    assert torch.equal(model.log, torch.log(torch.arange(1.0, 17)))
    rows = [row for row in range(16) if row != 3]
    low, high = float(model.c[rows, 1:].min()), float(model.c[rows, 1:].max())
    assert 1 <= low < high <= 2


class Replaced(nn.Module):
    """Sets new parameters, and other memory for one."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.empty(16, 16)), nn.Parameter(torch.empty(3))

    def reset_parameters(self) -> None:
        self.w = nn.Parameter(torch.randn(16, 16) * 0.1)
        self.v.data = torch.ones(3) * self.w.detach().norm()


class TurnedBack(nn.Module):
    """A default first, then a parameter in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def init_weights(self) -> None:
        self.linear.weight = nn.Parameter(torch.full((16, 16), 3.0))


def test_parameters_that_are_replaced() -> None:
    model = on_meta(Replaced)
    init_model_(model, seed=0, device="cpu")
    assert float(model.w.std()) == pytest.approx(0.1, rel=0.3)
    assert torch.allclose(model.v, model.w.norm().expand(3))
    assert bool((made(TurnedBack).linear.weight == 3).all())
    real = TurnedBack()
    before = real.linear.weight
    init_model_(real, seed=0)
    assert real.linear.weight is before
    assert bool((before == 3).all())


def test_parameters_replaced_by_none_that_fit() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(4))

        def reset_parameters(self) -> None:
            self.w = nn.Parameter(torch.zeros(5))

    model = on_meta(Odd)
    before = model.w
    with pytest.raises(ArgumentError, match=r"'w' has no value: Odd.reset_parameters\(\) replaced"):
        init_model_(model, seed=0, device="cpu")
    assert model.w is before


class Looks(nn.Module):
    """Code that looks at values, which are not there on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if module.weight.std().item() > 0:
                nn.init.constant_(module.weight, 2.0)
            nn.init.zeros_(module.bias)


def test_code_that_looks_at_values() -> None:
    """It raises on the meta device; what was there before it must not stay."""
    model = made(Looks)
    assert bool((model.linear.weight == 2).all())
    assert torch.count_nonzero(model.linear.bias) == 0
    assert [row.values for row in plan_model(on_meta(Looks))] == ["computed", "computed"]


# Errors.


def test_constructor_values_are_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    model = on_meta(Scale)
    before = dict(model.named_parameters())
    with pytest.raises(ArgumentError, match="leaves 1 of 3 parameters unfilled: logit_scale"):
        init_model_(model, seed=0, device="cpu")
    assert all(value is before[name] for name, value in model.named_parameters())


def test_spectral_norm_is_named() -> None:
    with pytest.raises(ArgumentError, match="nothing of parameter 'weight'"):
        made(lambda: spectral_norm(nn.Linear(4, 4)))


def test_conventions_that_raise_are_named() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def init_weights(self) -> None:
            self.inner.weight.fill_(1)
            raise RuntimeError("no network")

    model = on_meta(Broken)
    before = dict(model.named_parameters())
    with pytest.raises(ArgumentError, match=r"Broken.init_weights\(\) raised .*no network.*'inner"):
        init_model_(model, seed=0, device="cpu")
    assert all(value is before[name] for name, value in model.named_parameters())


def test_conventions_that_fill_nothing_and_raise_are_named() -> None:
    class Activation(nn.Module):
        def reset_parameters(self) -> None:
            raise RuntimeError("never")

    with pytest.raises(ArgumentError, match=r"followed .*Activation.reset_parameters\(\).*never"):
        made(lambda: nn.Sequential(nn.Linear(4, 4), Activation()))


def test_buffers_that_nobody_fills_are_named() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("table", torch.arange(4.0))

    model = on_meta(Table)
    before, table = dict(model.named_parameters()), model.table
    for rules in (None, {"**": torchinit.Normal(0.02)}):
        with pytest.raises(ArgumentError, match=r"1 buffers .*: table"):
            init_model_(model, rules, seed=0, device="cpu")
    assert model.table is table
    assert all(value is before[name] for name, value in model.named_parameters())


def test_buffers_that_are_filled_in_part_are_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(4.0))

        def reset_parameters(self) -> None:
            self.table[:2] = 1

    with pytest.raises(ArgumentError, match=r"1 buffers .*: table"):
        made(Half)


def test_lazy_modules_are_named() -> None:
    with pytest.raises(ArgumentError, match="'weight' is lazy"):
        init_model_(nn.LazyLinear(4), seed=0)


def test_a_real_model_is_unchanged_after_an_error() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.scale = nn.BatchNorm1d(4), nn.Parameter(torch.ones(()))

    model = Late()
    model.norm.running_mean.fill_(3)
    model.norm.weight.data.fill_(5)
    before, state = dict(model.named_parameters()), values(model)
    buffers = dict(model.named_buffers())
    with pytest.raises(ArgumentError, match="scale"):
        init_model_(model, seed=0)
    assert all(value is before[name] for name, value in model.named_parameters())
    assert all(value is buffers[name] for name, value in model.named_buffers())
    assert all(torch.equal(value, state[name]) for name, value in values(model).items())


# Where the model is, and what it is wrapped in.


def _mixed() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(16, 8, padding_idx=0), nn.LSTM(8, 8), nn.BatchNorm1d(8), Computed(),
        weight_norm(nn.Linear(8, 8)), nn.MultiheadAttention(8, 2),
    )  # fmt: skip


def test_a_real_model_gets_the_values_of_one_on_meta() -> None:
    model = _mixed()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    model[2].running_mean.fill_(3)
    init_model_(model, seed=7)
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert all(value is buffers[name] for name, value in model.named_buffers())
    expected = values(made(_mixed, seed=7))
    for name, value in values(model).items():
        assert torch.equal(value, expected[name]), name


def test_attributes_of_recurrent_layers_follow() -> None:
    model = made(lambda: nn.LSTM(8, 8))
    assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=True))
    model(torch.randn(3, 2, 8))


def test_the_meta_device_as_the_default() -> None:
    with torch.device("meta"):
        model = init_model_(_mixed(), seed=7, device="cpu")
    expected = values(made(_mixed, seed=7))
    assert all(torch.equal(value, expected[name]) for name, value in values(model).items())


def test_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    made(_mixed)
    assert torch.equal(torch.rand(4), expected)


def test_wrappers_change_nothing() -> None:
    expected = values(made(lambda: nn.Sequential(nn.Linear(8, 8), NanoGPT())))
    wrapped = [
        torch.compile(on_meta(lambda: nn.Sequential(nn.Linear(8, 8), NanoGPT()))),
        on_meta(lambda: nn.DataParallel(nn.Sequential(nn.Linear(8, 8), NanoGPT()))),
        on_meta(lambda: nn.Sequential(torch.compile(nn.Linear(8, 8)), torch.compile(NanoGPT()))),
    ]
    for model in wrapped:
        init_model_(model, seed=0, device="cpu")
        for name, value in values(model).items():
            plain = name.replace("_orig_mod.", "").removeprefix("module.")
            assert torch.equal(value, expected[plain]), name


def test_dtype_of_meta_parameters() -> None:
    expected = made(Computed)
    model = init_model_(on_meta(Computed), seed=0, device="cpu", dtype=torch.bfloat16)
    assert all(value.dtype == torch.bfloat16 for value in model.parameters())
    assert torch.equal(model.a, expected.a.bfloat16())


def test_other_layers_change_nothing() -> None:
    one = made(lambda: nn.ModuleDict({"a": NanoGPT(), "b": Computed()}))
    two = made(lambda: nn.ModuleDict({"b": Computed(), "x": nn.Linear(3, 3), "a": NanoGPT()}))
    other = values(two)
    assert all(torch.equal(value, other[name]) for name, value in values(one).items())


def test_deep_copies_are_independent() -> None:
    model = on_meta(_mixed)
    twin = copy.deepcopy(model)
    init_model_(model, seed=0, device="cpu")
    assert all(value.is_meta for value in twin.parameters())


class Measured(nn.Module):
    """Remembers in an attribute what its weights come to."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(4, 4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.w)
        self.largest = self.w.detach().abs().max()


def test_the_plan_leaves_attributes_in_memory() -> None:
    model = Measured()
    before = model.largest
    plan_model(model)
    assert model.largest is before
