"""What a checkpoint holds: what init_model_ gives, and what save_pretrained of that would store."""

from __future__ import annotations

import json
from functools import partial
from itertools import groupby

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from written import LLAMA, PIECE, assert_equal, bits, contents, on_meta, read, write

import torchinit
from conftest import native_only
from made import model_of
from torchinit.checkpoint.safetensors import FileTensor, lay_out
from torchinit.checkpoint.write import plan_checkpoint
from torchinit.checkpoint.writer import write_shards

transformers = pytest.importorskip("transformers")

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 32,
    "patch_size": 8,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300, "n_positions": 64}
MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", LLAMA | {"num_local_experts": 3}),
    "vit": ("ViTConfig", "ViTForImageClassification", VIT),
}


def orthogonal(p):
    if len(p.shape) < 2:
        return "ones"
    return (
        torchinit.Stack(torchinit.Orthogonal())
        if ".experts." in p.name
        else (torchinit.Orthogonal())
    )


ORTHOGONAL = {"**": torchinit.by(orthogonal)}
ELEMENTWISE = {"**": torchinit.by(lambda p: torchinit.TruncNormal(0.1 / len(p.shape)))}


def model_class(name):
    config, kind, shape = MODELS[name]
    return getattr(transformers, kind), getattr(transformers, config)(**shape)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "rules", [None, ELEMENTWISE, ORTHOGONAL], ids=["own", "elementwise", "orthogonal"]
)
@pytest.mark.parametrize("name", MODELS)
def test_the_values_are_those_of_init_model(name, rules, dtype, tmp_path):
    kind, config = model_class(name)
    build = on_meta(kind, config)
    model = build()
    path = write(build, tmp_path / "ours", rules, seed=5, dtype=dtype)
    torchinit.init_model_(model, rules, seed=5, device="cpu", dtype=dtype)
    model.save_pretrained(tmp_path / "theirs")
    assert_equal(read(path), read(tmp_path / "theirs"))
    for file in ("config.json", "generation_config.json"):
        if (tmp_path / "theirs" / file).exists():
            assert (path / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    loaded = kind.from_pretrained(path, dtype=dtype or torch.float32)
    assert_equal(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("piece_size", [PIECE, 3 * PIECE, 1 << 22])
@pytest.mark.parametrize("shard_size", [1, 10_000, "1GB"])
def test_neither_pieces_nor_shards_change_a_value(piece_size, shard_size, tmp_path):
    shapes = {"a.weight": (70, 60), "b.weight": (3,), "c.weight": (90, 33), "d.weight": (17, 5, 4)}
    rules = {
        "a.weight": torchinit.Normal(1.0),
        "b.weight": torchinit.Uniform(0, 1),
        "c.weight": torchinit.Blocks({"q": 60, "k": 30}, torchinit.VarianceScaling(), groups=3),
        "d.weight": torchinit.Stack(torchinit.Orthogonal()),
    }
    path = write(
        lambda: model_of(shapes),
        tmp_path / "a",
        rules,
        shard_size=shard_size,
        piece_size=piece_size,
    )
    model = torchinit.init_model_(model_of(shapes), rules, seed=0, device="cpu")
    assert_equal(read(path), model.state_dict())
    count = {1: 4, 10_000: 3, "1GB": 1}[shard_size]
    assert len(list(path.glob("*.safetensors"))) == count


def test_a_whole_is_made_once_however_many_pieces_it_crosses(tmp_path):
    calls = []

    def count(tensor):
        calls.append(tuple(tensor.shape))
        torch.nn.init.normal_(tensor)

    shapes = {f"{name}.weight": (50, 60 + i) for i, name in enumerate("abcdef")}
    path = write(lambda: model_of(shapes), tmp_path / "a", {"**": count}, shard_size="1MB")
    assert sorted(calls) == sorted(shapes.values())
    model = torchinit.init_model_(model_of(shapes), {"**": count}, seed=0, device="cpu")
    assert_equal(read(path), model.state_dict())


@pytest.mark.parametrize("order", ["abab", "aabb", "abba"])
def test_tensors_of_one_parameter_that_are_no_neighbours(order, tmp_path):
    """As shards may put them: their parameter is made more than once, and nobody waits for ever."""
    made = []

    def make(name):
        made.append(name)
        return torch.full((3000,), float(ord(name)))

    entries = [
        FileTensor(
            f"{number}", (1500,), torch.float32, name, partial(make, name),
            first=1500 * order[:number].count(name),
        )
        for number, name in enumerate(order)
    ]  # fmt: skip
    layout = lay_out(entries, 10**6, 0)
    write_shards(tmp_path, layout.shards, lambda _: None, piece_size=PIECE, threads=3)
    found = load_file(tmp_path / "model.safetensors")
    assert_equal(
        found, {f"{i}": torch.full((1500,), float(ord(name))) for i, name in enumerate(order)}
    )
    assert made == [name for name, _ in groupby(order)]


class Odd(nn.Module):
    """Ties, padding, buffers of both kinds and of another dtype, a parameter without elements."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(90, 40, padding_idx=3)
        self.norm = nn.BatchNorm1d(40)
        self.empty = nn.Parameter(torch.empty(0, 4, device="meta"))
        self.head = nn.Linear(40, 90, bias=False)
        self.head.weight = self.tokens.weight
        self.scale = nn.Parameter(torch.empty((), device="meta"))
        self.register_buffer("gone", torch.ones(3, device="cpu"), persistent=False)
        self.register_buffer("kept", torch.arange(5, device="cpu"))
        self.register_buffer("flag", torch.ones(3, dtype=torch.bool, device="cpu"))


def odd():
    with torch.device("meta"):
        return Odd()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_odd_models_and_dtypes(dtype, tmp_path):
    rules = {"empty": "zeros", "scale": "ones", "**.bias": "zeros", "**": torchinit.Normal(0.02)}
    path = write(odd, tmp_path / "a", rules, dtype=dtype)
    model = torchinit.init_model_(odd(), rules, seed=0, device="cpu", dtype=dtype)
    wanted = model.state_dict()
    assert bits(wanted["head.weight"]) == bits(wanted["tokens.weight"])
    del wanted["head.weight"]
    found = read(path)
    assert_equal(found, wanted)
    assert "gone" not in found
    assert not found["tokens.weight"][3].float().any()
    assert found["norm.running_var"].dtype == torch.float32


class Computes(nn.Module):
    """Its constructor does arithmetic, copies a tensor, fills views, ties, and has buffers."""

    def __init__(self, std=1.0):
        super().__init__()
        self.computed = nn.Parameter(torch.randn(60, 50) * 2)
        self.copied = nn.Parameter(torch.linspace(0, 1, 3000).view(60, 50))
        self.views = nn.Parameter(torch.empty(60, 50))
        self.zeroed = nn.Parameter(torch.randn(60, 50))
        self.turned = nn.Parameter(torch.empty(50, 60).t())
        self.layer, self.other = nn.Linear(50, 60, bias=False), nn.Linear(50, 60, bias=False)
        self.other.weight = self.layer.weight
        with torch.no_grad():
            self.zeroed[7].zero_()
        nn.init.normal_(self.views[:20], std=std)
        nn.init.uniform_(self.views[20:])
        nn.init.normal_(self.turned)
        self.register_buffer("table", torch.arange(5))
        self.register_buffer("drawn", torch.randperm(40))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_a_constructor_computes(dtype, tmp_path):
    path = write(Computes, tmp_path / "a", seed=2, dtype=dtype)
    model = torchinit.build_model(Computes, seed=2, dtype=dtype)
    wanted = model.state_dict()
    del wanted["other.weight"]
    assert_equal(read(path), wanted)
    sizes = {"shard_size": "1MB", "piece_size": 3 * PIECE}
    again = write(Computes, tmp_path / "b", seed=2, dtype=dtype, **sizes)
    assert_equal(read(again), wanted)


def test_resume_compares_what_each_name_gets(tmp_path):
    """And not the text of what builds the model."""
    path = write(Computes, tmp_path / "a")
    before = contents(path)

    def build():
        torch.randn(3)
        return Computes()

    write(build, path, resume=True)
    assert contents(path) == before
    with pytest.raises(torchinit.ArgumentError, match="what the model's own initialisation does"):
        write(lambda: Computes(2.0), path, resume=True)


def test_a_constructor_is_not_run_with_rules_on_the_tape(tmp_path):
    rules = {"**": torchinit.Normal(0.02)}
    with pytest.raises(torchinit.ArgumentError, match="is on cpu: build the model on the meta"):
        write(Computes, tmp_path / "a", rules)
    assert not (tmp_path / "a").exists()


def wholes(plan):
    """The tensors for which all values of a parameter are made at once."""
    placed = [one for shard in plan.layout.shards for one in shard.placed]
    return [one.tensor.name for one in placed if one.tensor.needs_whole]


@native_only
def test_what_is_drawn_one_by_one_is_never_made_as_a_whole():
    """So memory does not grow with the model."""
    rules = {
        "**.bias": "zeros",
        "c.weight": torchinit.Blocks({"q": 6, "k": 3}, torchinit.VarianceScaling(), groups=3),
        "d.weight": torchinit.Stack(torchinit.Normal(0.1)),
        "**": torchinit.TruncNormal(0.02),
    }
    shapes = {"a.weight": (7, 6), "a.bias": (3,), "c.weight": (9, 3), "d.weight": (2, 5, 4)}
    plan = plan_checkpoint(lambda: model_of(shapes), rules, seed=0, dtype=None, shard_size="5GB")
    assert not wholes(plan)
    for name in MODELS:
        plan = plan_checkpoint(
            on_meta(*model_class(name)), None, seed=0, dtype=None, shard_size="5GB"
        )
        assert not wholes(plan)


@pytest.mark.parametrize(
    ("dtype", "wanted"), [(None, torch.bfloat16), (torch.float32, torch.float32)]
)
def test_a_config_of_json(dtype, wanted, tmp_path):
    said = LLAMA | {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    path = torchinit.write_checkpoint(tmp_path, tmp_path / "out", seed=1, dtype=dtype)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert loaded.dtype == wanted
    model = on_meta(transformers.LlamaForCausalLM, transformers.LlamaConfig(**LLAMA))()
    torchinit.init_model_(model, seed=1, device="cpu", dtype=wanted)
    assert_equal(loaded.state_dict(), model.state_dict())


AUDIO = {"conv_dim": (8, 8), "conv_kernel": (3, 3), "conv_stride": (2, 2), "vocab_size": 30}
AUDIO |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4}
AUDIO |= {"num_conv_pos_embedding_groups": 2}
MAMBA2 = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 99, "state_size": 4}
MAMBA2 |= {"num_heads": 8, "head_dim": 8, "n_groups": 2}


@pytest.mark.parametrize(
    ("config", "kind", "shape"),
    [
        ("Wav2Vec2Config", "Wav2Vec2ForCTC", LLAMA | AUDIO),  # a parameter made by torch.Tensor(n)
        ("Mamba2Config", "Mamba2ForCausalLM", MAMBA2),  # an infinite number in its config
    ],
)
def test_odd_configs_of_json(config, kind, shape, tmp_path):
    made = getattr(transformers, config)(**shape, architectures=[kind])
    made.save_pretrained(tmp_path / "config")
    path = torchinit.write_checkpoint(tmp_path / "config", tmp_path / "ours", seed=3)
    model = on_meta(getattr(transformers, kind), made)()
    torchinit.init_model_(model, seed=3, device="cpu")
    model.save_pretrained(tmp_path / "theirs")
    assert_equal(read(path), read(tmp_path / "theirs"))
    assert (path / "config.json").read_bytes() == (tmp_path / "theirs/config.json").read_bytes()


def test_rules_by_a_function_of_the_config(tmp_path):
    kind, config = model_class("llama")
    build = on_meta(kind, config)
    path = write(build, tmp_path / "a", torchinit.recipes.llama)
    model = torchinit.init_model_(build(), torchinit.recipes.llama(config), seed=0, device="cpu")
    assert_equal(read(path), model.state_dict())


def test_values_begin_at_a_block_and_every_tensor_is_aligned(tmp_path):
    path = write(odd, tmp_path / "a", {"**": "zeros"}, shard_size="1GB", dtype=torch.float64)
    data = (path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert (8 + length) % 4096 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    sizes = {"F64": 8, "F32": 4, "I64": 8, "BOOL": 1}
    assert all(one["data_offsets"][0] % sizes[one["dtype"]] == 0 for one in header.values())


def test_a_partial_of_a_function_of_torch(tmp_path):
    rules = {"**": partial(torch.nn.init.sparse_, sparsity=0.5)}
    shapes = {"a.weight": (70, 60)}
    path = write(lambda: model_of(shapes), tmp_path / "a", rules)
    model = torchinit.init_model_(model_of(shapes), rules, seed=0, device="cpu")
    assert_equal(read(path), model.state_dict())
