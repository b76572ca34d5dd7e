"""Constructors for tests, each with something that code in the wild does to its weights."""

from __future__ import annotations

import copy
import ctypes
import io
import itertools
import math
import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.parameter import Parameter
from torch.nn.utils import parametrizations, prune

import torchinit

CASES: dict[str, Callable[[], nn.Module]] = {}
# They draw from seeds or generators of their own, so what they get is torch's.
OF_TORCH = {"generator", "seeded", "fork_rng", "default generator"}
# What they read of their draws decides values that nothing else tells.
FROZEN = {
    "saved", "item", "boolean mask", "rejection", "assertion", "text", "branch", "thread",
    "parametrizations", "NumPy and random", "numpy view", "address", "complex",
}  # fmt: skip
# They compute more than a few constants, which are given up when they have been used.
LARGE_CONSTANTS = {"part of what is there", "boolean mask", "discrete"}


def case(name: str) -> Callable[[Any], Any]:
    """Puts a constructor among the cases."""

    def put(build: Any) -> Any:
        CASES[name] = build
        return build

    return put


class Made(nn.Module):
    """Tensors, modules and attributes of any names."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


# Models that are known.


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("bias", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))


@case("nanoGPT")
class NanoGPT(nn.Module):
    """Its loop over ``c_proj`` comes after all methods."""

    def __init__(self, layers: int = 3, width: int = 32, std: float = 0.02) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(96, width), nn.Embedding(16, width)
        self.h = nn.ModuleList([Block(width) for _ in range(layers)])
        self.lm_head = nn.Linear(width, 96, bias=False)
        self.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                torch.nn.init.normal_(parameter, mean=0.0, std=std / math.sqrt(2 * layers))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)


@case("minGPT")
class MinGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok = nn.Embedding(96, 32, padding_idx=0)
        self.pos = Parameter(torch.zeros(1, 16, 32))
        self.blocks = nn.Sequential(*[Block(32) for _ in range(2)])
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.data.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.bias.data.zero_()
            module.weight.data.fill_(1.0)


def _sines(width: int, count: int) -> np.ndarray:
    omega = 1 / 10000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = np.einsum("m,d->md", np.arange(count), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


@case("DiT")
class DiT(nn.Module):
    """Gates and head of zeros, sines by NumPy, a convolution filled as a matrix."""

    def __init__(self, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.x = nn.Conv2d(4, width, 2, 2)
        self.pos_embed = Parameter(torch.zeros(1, 16, width), requires_grad=False)
        self.ada = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)) for _ in range(blocks)
        )
        self.mlp, self.out = nn.Linear(width, 2 * width), nn.Linear(width, 16)
        self.apply(self._basic)
        self.pos_embed.data.copy_(torch.from_numpy(_sines(width, 16)).float().unsqueeze(0))
        weight = self.x.weight.data
        init.xavier_uniform_(weight.view([weight.shape[0], -1]))
        init.constant_(self.x.bias, 0)
        for one in (*(block[-1] for block in self.ada), self.out):
            init.constant_(one.weight, 0)
            init.constant_(one.bias, 0)

    @staticmethod
    def _basic(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.constant_(module.bias, 0)


@case("forget gate")
class ForgetGate(nn.Module):
    """A part of a bias is one, recurrent weights are orthogonal block by block."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, 2)
        for name, parameter in self.lstm.named_parameters():
            if "bias" in name:
                quarter = parameter.size(0) // 4
                parameter.data[quarter : 2 * quarter].fill_(1.0)
            elif "weight_hh" in name:
                for gate in range(4):
                    init.orthogonal_(parameter.data[gate * 16 : (gate + 1) * 16])


class Adapted(nn.Module):
    """LoRA, as libraries wrap a layer that is there."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        init.zeros_(self.lora_B.weight)


@case("LoRA")
def lora() -> nn.Module:
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    for number in (0, 2):
        model[number] = Adapted(model[number], 4)
    return model


@case("LoRA by QR")
def lora_by_qr() -> nn.Module:
    """OLoRA: what is left of the weight, and its factors."""
    layer = Adapted(nn.Linear(24, 24), 4)
    weight = layer.base_layer.weight.data
    q, r = torch.linalg.qr(weight)
    layer.lora_A.weight.data, layer.lora_B.weight.data = r[:4].contiguous(), q[:, :4].contiguous()
    layer.base_layer.weight.data = weight - 2 * layer.lora_B.weight.data @ layer.lora_A.weight.data
    return layer


@case("LoRA of magnitudes")
def dora() -> nn.Module:
    layer = Adapted(nn.Linear(24, 24), 4)
    layer.magnitude = Parameter(layer.base_layer.weight.detach().norm(dim=1))
    return layer


@case("clones")
def clones() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3)


@case("recurrent")
def recurrent() -> nn.Module:
    """Its attributes hold the parameters too."""
    return nn.GRU(8, 16, 2, bidirectional=True)


class ConvNet(nn.Module):
    """Its loop over all layers knows other laws than theirs, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.classes = nn.Linear(16, 10)
        for one in self.modules():
            if isinstance(one, nn.Conv2d):
                init.kaiming_normal_(one.weight, mode="fan_out", nonlinearity="relu")
                init.zeros_(one.bias)
        init.zeros_(self.features[1].weight)


@case("loops and priors")
class Detector(nn.Module):
    """A prior of a bias, and a method that nobody knows, with another argument than its default."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes = ConvNet(), nn.Linear(32, 16)
        self.scores = nn.Linear(32, 10)
        self.scores.bias.data = torch.ones(10) * -math.log(99)
        self.weight_init("narrow")

    def weight_init(self, mode: str = "wide") -> None:
        init.normal_(self.boxes.weight, std=1.0 if mode == "wide" else 0.01)


@case("Mamba")
class Mamba(nn.Module):
    """Steps by an inverse softplus, and a ramp of logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.dt_proj, self.ramp = nn.Linear(8, 64), Parameter(torch.log(torch.arange(1.0, 17)))
        low, high = math.log(0.001), math.log(0.1)
        dt = torch.exp(torch.rand(64) * (high - low) + low).clamp(min=1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.dt_proj.bias._no_reinit = True


@case("tied layers")
class TiedLayers(nn.Module):
    """The law of an embedding, for a head that initialises itself otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(96, 32), nn.Linear(32, 96)
        self.head.weight = self.embed.weight


@case("prompts")
class Prompted(nn.Module):
    """Parameters beside a base model."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = MinGPT().requires_grad_(False)
        self.prompt = nn.ParameterDict({"default": torch.empty(8, 32).uniform_(-0.5, 0.5)})
        self.reparametrised = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 32))


# Copies.


@case("twin")
def twin() -> nn.Module:
    teacher = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32))
    student = copy.deepcopy(teacher)
    for parameter in student.parameters():
        parameter.requires_grad = False
    return Made(b=teacher, a_twin=student)


@case("loaded")
def loaded() -> nn.Module:
    made = Made(q=nn.Linear(32, 48), t=nn.Linear(32, 48), e=nn.Linear(32, 48))
    made.t.load_state_dict(made.q.state_dict())
    made.e.weight.data.copy_(made.q.weight.data * 0.5 + 1)
    return made


@case("saved")
def saved() -> nn.Module:
    made = Made(first=nn.Linear(8, 8), second=nn.Linear(8, 8))
    stream = io.BytesIO()
    torch.save(made.first.state_dict(), stream)
    stream.seek(0)
    made.second.load_state_dict(torch.load(stream))
    made.copied = copy.copy(made.first.weight)
    return made


@case("two draws into one tensor")
def two_draws() -> nn.Module:
    w = Parameter(torch.empty(48, 48))
    init.normal_(w)
    before = Parameter(w.detach().clone())
    init.normal_(w)
    w.data.add_(torch.randn_like(w))
    return Made(w=w, before=before)


# Expressions.


@case("scaled")
def scaled(width: int = 48) -> nn.Module:
    made = Made(
        w=Parameter(torch.randn(width) * width**-0.5),
        b=Parameter(torch.empty(width, width).normal_() / width),
        c=Parameter((torch.rand(width, 4) - 0.5) * 2),
        sum=Parameter(torch.randn(32, 32) + torch.randn(32, 32)),
        joined=Parameter(torch.cat([torch.randn(32, 8), torch.rand(32, 8)])),
        attribute=torch.randn(64) + 3,
        listed=[torch.randn(64), torch.randn(64) * 2],
    )
    made.register_buffer("product", torch.randn(16, 16) @ torch.randn(16, 16))
    return made


@case("views of one draw")
def views() -> nn.Module:
    q, k = torch.randn(3, 48, 8), torch.randn(3, 48, 8)
    made = Made(**{f"q{i}": Parameter(q[i]) for i in range(3)})
    made.k0, made.k1 = Parameter(k[0].clone()), Parameter(k[1].clone())
    return made


@case("slices")
def slices() -> nn.Module:
    layer = nn.Linear(32, 64)
    with torch.no_grad():
        layer.weight[:, :1].mul_(2)
        layer.weight[:4] = 0
        layer.bias.uniform_(-1, 1).abs_()
        layer.weight.view(-1)[200:300].normal_(5, 0.1)
    scratch = torch.empty(64, 32)
    init.normal_(scratch, std=0.3)
    second = nn.Linear(32, 64)
    second.weight.data.copy_(scratch)
    stacked = torch.empty(3, 64, 8)
    init.xavier_normal_(stacked)
    flat = Parameter(torch.empty(3 * 64, 8))
    flat.data.copy_(stacked.reshape(-1, 8))
    return Made(layer=layer, second=second, flat=flat)


@case("other data")
def other_data() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.weight.data = torch.randn(8, 8) * 3
    layer.weight = Parameter(layer.weight.data.t().contiguous())
    old = Parameter(torch.Tensor(64, 4))
    old.data.uniform_(-0.1, 0.1)
    return Made(layer=layer, old=old, older=Parameter(torch.FloatTensor(64).normal_()))


@case("part of what is there")
def part() -> nn.Module:
    w = torch.zeros(64, 64)
    w[:32].normal_()
    w[40:, :8] = torch.rand(24, 8)
    mask, large = torch.ones(64, 64), torch.ones(300, 300)
    x, y = torch.randn(64, 64) * mask, torch.randn(300, 300) * large
    mask.zero_()
    large.zero_()
    return Made(w=Parameter(w), x=Parameter(x), y=Parameter(y))


@case("truncated by hand")
def truncated_by_hand() -> nn.Module:
    """As timm has it."""

    def fill(tensor: Tensor, mean: float, std: float, a: float, b: float) -> None:
        with torch.no_grad():
            low, high = (math.erf((x - mean) / std / math.sqrt(2)) for x in (a, b))
            tensor.uniform_(low, high)
            tensor.erfinv_()
            tensor.mul_(std * math.sqrt(2.0))
            tensor.add_(mean)
            tensor.clamp_(min=a, max=b)

    made = Made(**{name: Parameter(torch.empty(64, 48)) for name in "abc"})
    fill(made.a, 0.0, 0.02, -2.0, 2.0)
    fill(made.b, 0.1, 0.5, -0.3, 0.4)
    fill(made.c, 0.0, 1.0, -2.0, 2.0)
    with torch.no_grad():
        made.c.mul_(0.02).add_(0.1)
    return made


@case("turned in place")
def turned_in_place() -> nn.Module:
    """Views that change the tensor itself."""
    a, b, c, d = (torch.randn(1, 48, 16) for _ in range(4))
    a.squeeze_(0)
    b.transpose_(1, 2)
    c.unsqueeze_(-1)
    d.as_strided_((16, 48), (1, 16))
    vector = torch.randn(48) @ torch.randn(48, 24)  # torch squeezes it
    vector.mul_(2).resize_(4, 6)
    return Made(a=Parameter(a), b=Parameter(b), c=Parameter(c), d=Parameter(d), v=Parameter(vector))


@case("complex")
def complex_numbers() -> nn.Module:
    """Conjugates are views that only say so."""
    z = torch.complex(torch.randn(64), torch.randn(64) * 2)
    conjugate = torch.zeros(64, dtype=torch.complex64)
    conjugate.copy_(z.conj() * 2)
    real = torch.view_as_real((z.conj() + 1j).resolve_conj())
    negative = z.conj().imag.clone()
    return Made(z=Parameter(z), twice=Parameter(conjugate), pairs=Parameter(real),
                negative=Parameter(negative))  # fmt: skip


# Values that are read.


@case("svd")
def svd() -> nn.Module:
    layer = nn.Linear(32, 32, bias=False)
    u, s, v = torch.linalg.svd(layer.weight.data, full_matrices=False)
    a = Parameter((u[:, :4] * s[:4].sqrt()).contiguous())
    b = Parameter(s[:4].sqrt()[:, None] * v[:4])
    layer.weight.data = layer.weight.data - a.data @ b.data
    return Made(layer=layer, a=a, b=b)


@case("item")
def item() -> nn.Module:
    layer = nn.Linear(32, 64)
    return Made(layer=layer, norms=Parameter(torch.ones(8) * layer.weight.norm().item()))


@case("boolean mask")
def boolean_mask() -> nn.Module:
    layer, gate = nn.Linear(32, 64), Parameter(torch.zeros(64, 32))
    with torch.no_grad():
        gate[layer.weight > 0] = 1.0
    ordered = Parameter(torch.from_numpy(np.sort(layer.bias.detach().numpy())))
    return Made(layer=layer, gate=gate, ordered=ordered)


@case("rejection")
def rejection() -> nn.Module:
    w = Parameter(torch.empty(64))
    with torch.no_grad():
        while True:
            w.normal_()
            if w.abs().max() < 2.3:
                break
    return Made(w=w)


@case("assertion")
def assertion() -> nn.Module:
    made = Made(first=nn.Linear(16, 16))
    assert torch.isfinite(made.first.weight).all()
    made.second = nn.Linear(16, 16)
    return made


@case("text")
def text() -> nn.Module:
    made = Made(first=nn.Linear(16, 16))
    made.said = str(made.first.weight)
    made.second = nn.Linear(16, 16)
    return made


@case("branch")
def branch() -> nn.Module:
    wide = 4 + int(torch.randint(0, 3, (1,)).item())
    made = nn.Linear(16, 16)
    if torch.rand(()) < 2:
        init.zeros_(made.bias)
    return Made(layer=made, ladder=nn.Linear(8, wide - wide + 8))


@case("dummy forward")
def dummy_forward() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    features = body(torch.randn(2, 3, 16, 16)).flatten(1).shape[1]
    return Made(body=body, head=nn.Linear(features, 4))


@case("trained")
def trained() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer(torch.randn(4, 8)).sum().backward()
    layer.weight.data -= 0.1 * layer.weight.grad
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    optimizer.step()
    layer.zero_grad()
    return layer


@case("thread")
def thread() -> nn.Module:
    made, found = Made(layer=nn.Linear(40, 40)), []
    reader = threading.Thread(target=lambda: found.append(made.layer.weight.detach().clone()))
    reader.start()
    reader.join()
    made.copied = Parameter(found[0])
    return made


# Draws of other kinds.


@case("NumPy and random")
def numpy_and_random() -> nn.Module:
    return Made(
        a=Parameter(torch.from_numpy(np.random.randn(64, 8)).float()),
        p=Parameter(torch.tensor([random.random() for _ in range(64)])),
    )


@case("discrete")
def discrete() -> nn.Module:
    made = Made()
    made.register_buffer("order", torch.randperm(64))
    made.register_buffer("mask", torch.bernoulli(torch.full((64, 64), 0.3)))
    made.register_buffer("numbers", torch.randint(0, 9, (64,)))
    made.picked = Parameter(torch.randn(64, 8)[made.order])
    made.waits = Parameter(torch.empty(64).exponential_())
    made.sampled = Parameter(torch.distributions.Normal(0.0, 2.0).sample((64,)))
    return made


@case("functions of torch.nn.init")
def functions() -> nn.Module:
    made = Made(**{name: Parameter(torch.empty(32, 32)) for name in "abcdefgh"})
    init.sparse_(made.a, 0.25)
    init.eye_(made.b)
    init.orthogonal_(made.c, gain=2)
    init.kaiming_normal_(made.d, nonlinearity="relu")
    init.trunc_normal_(made.e, std=0.5)
    init.xavier_uniform_(made.f.data[:16])
    init.ones_(made.f.data[16:])
    init.constant_(made.g, 3)
    init.kaiming_uniform_(made.h, mode="fan_out")
    made.kernel = Parameter(torch.empty(8, 4, 3, 3))
    init.dirac_(made.kernel)
    return made


@case("kinds")
def kinds() -> nn.Module:
    """Shapes, strides and dtypes."""
    return Made(
        z=Parameter(torch.randn(())),
        d=Parameter(torch.randn(48, 48, dtype=torch.float64)),
        h=Parameter(torch.randn(48, 48).half()),
        b=Parameter(torch.randn(48, 48).to(torch.bfloat16)),
        e=Parameter(torch.randn(0, 4)),
        c=Parameter(torch.randn(48, 48, dtype=torch.complex64)),
        t=Parameter(torch.randn(48, 32).t()),
        cl=nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last),
        i=Parameter(torch.arange(4), requires_grad=False),
        norm=nn.BatchNorm2d(8),
        halves=nn.Linear(16, 16).half(),
        doubles=nn.Linear(16, 16, dtype=torch.float64),
    )


@case("default dtype")
def default_dtype() -> nn.Module:
    torch.set_default_dtype(torch.bfloat16)
    try:
        return nn.Linear(32, 32)
    finally:
        torch.set_default_dtype(torch.float32)


@case("parametrizations")
def parametrized() -> nn.Module:
    return Made(
        spectral=parametrizations.spectral_norm(nn.Linear(8, 8)),
        weight=parametrizations.weight_norm(nn.Linear(8, 8)),
        orthogonal=parametrizations.orthogonal(nn.Linear(8, 8)),
        pruned=prune.random_unstructured(nn.Linear(16, 16), "weight", 0.3),
        least=prune.l1_unstructured(nn.Linear(16, 16), "weight", 0.3),
    )


# Generators of their own.


@case("generator")
def generator() -> nn.Module:
    own = torch.Generator().manual_seed(3)
    b = Parameter(torch.empty(32, 32))
    init.normal_(b, generator=own)
    return Made(a=Parameter(torch.randn(32, 32, generator=own)), b=b, c=nn.Linear(16, 16))


@case("seeded")
def seeded() -> nn.Module:
    made = Made()
    for name in "ab":
        torch.manual_seed(7)
        setattr(made, name, nn.Linear(16, 16))
    return made


@case("fork_rng")
def fork_rng() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        inside = nn.Linear(16, 16)
    return Made(inside=inside, after=nn.Linear(16, 16))


@case("default generator")
def default_generator() -> nn.Module:
    before = Parameter(torch.randn(16, 16, generator=torch.default_generator))
    torch.default_generator.manual_seed(5)
    return Made(before=before, after=nn.Linear(16, 16))


# Memory.


@case("numpy view")
def numpy_view() -> nn.Module:
    """Memory of NumPy's, and an array that looks at a parameter before it is filled."""
    array = np.zeros((64, 8), dtype=np.float32)
    tensor = torch.from_numpy(array)
    tensor.normal_()
    w = Parameter(torch.empty(64, 8))
    view = w.detach().numpy()
    init.normal_(w)
    doubled = Parameter(torch.from_numpy(view * 2))
    return Made(a=Parameter(tensor), w=w, doubled=doubled)


@case("address")
def address() -> nn.Module:
    w = Parameter(torch.empty(64, 8))
    pointer = w.data_ptr()
    init.normal_(w)
    if not pointer:
        raise RuntimeError("nothing is there")
    read = ctypes.c_float.from_address(pointer).value
    return Made(w=w, first=Parameter(torch.full((4,), read)))


@case("lists and closures")
def lists_and_closures() -> nn.Module:
    hidden, kept = torch.randn(64), {"a": [torch.randn(64), torch.ones(3)]}
    made = nn.Linear(8, 8)
    made.kept, made.listed = kept, [torch.randn(64)]
    made.register_forward_hook(lambda *_: hidden)
    made.closed = lambda: hidden
    return made


@case("meta inside")
def meta_inside() -> nn.Module:
    with torch.device("meta"):
        layer = nn.Linear(16, 16)
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    return layer


@case("lazy")
def lazy() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4))
    model(torch.zeros(2, 8))
    return model


@case("names without modules")
def bare() -> nn.Module:
    return nn.ParameterDict({"a": torch.randn(32, 8), "b": nn.Parameter(torch.rand(32))})


@case("many")
def many() -> nn.Module:
    return nn.ModuleList(nn.Linear(width, 8) for width in itertools.chain(range(1, 9), [64, 256]))


def quiet(build: Callable[[], Any]) -> Any:
    """Builds without the warnings of torch's, or of draws that are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


def built(name: str, seed: int = 0, **options: Any) -> nn.Module:
    """A case by ``build_model``."""
    return quiet(lambda: torchinit.build_model(CASES[name], seed=seed, **options))


def plain(name: str, seed: int) -> nn.Module:
    """A case as it is without torchinit; all generators are put back."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        return quiet(CASES[name])
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])
        random.setstate(state[2])
