"""``fingerprint``: any bit changes it; layout, sharding and files do not."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchinit
from torchinit.cli.main import main
from torchinit.errors import ArgumentError

SHAPES = [(), (1,), (7, 3), (5, 4, 3, 3), (3, 1, 2000), (20_000,), (9000, 2)]
DTYPES = [
    torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.uint8, torch.bool,
    torch.int64, torch.complex64,
]  # fmt: skip


def of(**tensors):
    """The fingerprint of a module with these buffers."""
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return torchinit.fingerprint(module)


def some(shape, dtype=torch.float32, seed=0):
    """Random bits."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape) * dtype.itemsize
    values = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=generator)
    return values.to(torch.uint8).view(dtype).reshape(shape)


def model(seed=0, dtype=torch.float32):
    built = nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50), nn.Conv1d(50, 6, 3)).to(dtype)
    return torchinit.init_model_(
        built, {"**.weight": torchinit.Normal(1.0), "**": "zeros"}, seed=seed
    )


def test_its_definition_has_not_changed():
    assert of(a=torch.arange(6.0).view(2, 3)) == "fb1eedeaa44f7d94"
    large, small = torch.arange(20_000.0).view(50, 4, 10, 10), torch.arange(3).bfloat16()
    assert of(a=large, b=small) == "f665c4a95bcf0095"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_bit_changes_it(shape, dtype):
    tensor = some(shape, dtype)
    before = of(a=tensor)
    places = torch.linspace(0, tensor.numel() - 1, 5).long().unique().tolist()
    bits = tensor.view(-1).view(torch.uint8)
    for place in places:
        for byte in range(dtype.itemsize):
            for bit in [0] if dtype == torch.bool else [0, 7]:
                bits[place * dtype.itemsize + byte] ^= 1 << bit
                assert of(a=tensor) != before
                bits[place * dtype.itemsize + byte] ^= 1 << bit
    assert of(a=tensor) == before


def test_order_name_dtype_and_shape_change_it():
    a, b = torch.arange(6.0), torch.arange(6.0).flip(0)
    zeros = torch.zeros(6)
    found = [
        of(a=a, b=b), of(a=b, b=a), of(a=a), of(b=a), of(a=b), of(a=a.view(2, 3)),
        of(a=a.view(3, 2)), of(a=zeros), of(a=zeros.bfloat16()), of(a=-zeros),
        of(a=zeros, b=zeros.clone()), of(a=zeros, b=torch.zeros(0)),
    ]  # fmt: skip
    assert len(set(found[:-1])) == len(found) - 1
    assert found[-1] == of(a=zeros)  # nothing to compare in an empty tensor
    assert of(a=a, b=b) == of(b=b, a=a)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not(dtype):
    tensor = some((6, 40, 5, 7), dtype)
    wide = torch.empty(12, 41, 5, 14, dtype=dtype)[::2, 1:, :, ::2]
    for other in (
        tensor.to(memory_format=torch.channels_last),
        tensor.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
        wide.copy_(tensor),
    ):
        assert not other.is_contiguous()
        assert of(a=other) == of(a=tensor)
    assert of(a=tensor[:1].expand(6, 40, 5, 7)) == of(a=tensor[:1].repeat(6, 1, 1, 1))
    if dtype.is_complex:
        assert of(a=tensor.conj()) == of(a=tensor.conj().resolve_conj())


def test_threads_modes_and_gradients_do_not():
    built = model()
    expected, threads = torchinit.fingerprint(built), torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torchinit.fingerprint(built) == expected
    finally:
        torch.set_num_threads(threads)
    built.requires_grad_(False)
    with torch.device("meta"), torch.inference_mode():
        assert torchinit.fingerprint(built) == expected
    assert torchinit.fingerprint(torch.compile(built)) == expected
    assert torchinit.fingerprint(nn.DataParallel(built)) == expected


def test_equal_models_and_others():
    assert torchinit.fingerprint(model()) == torchinit.fingerprint(model())
    assert torchinit.fingerprint(model(1)) != torchinit.fingerprint(model())
    assert torchinit.fingerprint(model(dtype=torch.bfloat16)) != torchinit.fingerprint(model())
    changed = model()
    changed[1].num_batches_tracked += 1
    assert torchinit.fingerprint(changed) != torchinit.fingerprint(model())


def test_what_checkpoints_do_not_have_does_not_count():
    built = model()
    built.register_buffer("cache", torch.ones(3), persistent=False)
    assert torchinit.fingerprint(built) == torchinit.fingerprint(model())


def test_ties_count_under_each_name_so_that_copies_are_the_same():
    built = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    built["b"].load_state_dict(built["a"].state_dict())
    copied = torchinit.fingerprint(built)
    built["b"].weight = built["a"].weight
    assert torchinit.fingerprint(built) == copied


def test_a_checkpoint_has_that_of_its_model(tmp_path):
    built = model(dtype=torch.bfloat16)
    save_file(built.state_dict(), tmp_path / "model.safetensors")
    expected = torchinit.fingerprint(built)
    assert torchinit.fingerprint(tmp_path) == expected
    assert torchinit.fingerprint(str(tmp_path / "model.safetensors")) == expected


def test_the_command(tmp_path, capsys):
    built = model()
    save_file(built.state_dict(), tmp_path / "model.safetensors")
    assert main(["fingerprint", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{torchinit.fingerprint(built)}\n"
    assert main(["fingerprint", str(tmp_path / "nowhere")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "no such checkpoint" in err


def test_a_tied_model_of_transformers_and_its_checkpoint(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, vocab_size=30,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    built = torchinit.build_model(lambda: transformers.LlamaForCausalLM(config), seed=0)
    built.save_pretrained(tmp_path)
    expected = torchinit.fingerprint(tmp_path)
    assert torchinit.fingerprint(built) == expected
    built.lm_head.weight = nn.Parameter(built.lm_head.weight.detach().clone())
    assert torchinit.fingerprint(built) == expected
    with torch.no_grad():
        built.lm_head.weight[3, 4] += 1
    assert torchinit.fingerprint(built) != expected


def test_errors(tmp_path):
    with pytest.raises(ArgumentError, match="'weight' has no values to read: it is on the meta"):
        torchinit.fingerprint(nn.Linear(3, 3, device="meta"))
    with pytest.raises(ArgumentError, match="has no values to read: it has no memory"):
        torchinit.fingerprint(nn.LazyLinear(3))
    with pytest.raises(ArgumentError, match="no such checkpoint"):
        torchinit.fingerprint(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="not dict"):
        torchinit.fingerprint({})
    with pytest.raises(ArgumentError, match="'a' is a nested tensor"):
        of(a=torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged))
    with pytest.raises(ArgumentError, match="cannot be read"):
        of(a=torch.eye(3).to_sparse())
    with pytest.raises(ArgumentError, match="there are no values"):
        torchinit.fingerprint(torch.jit.freeze(torch.jit.script(nn.Linear(3, 3).eval())))


def test_names_that_are_no_unicode_or_given_twice():
    built = nn.Linear(3, 3)
    built._parameters["\ud800"] = nn.Parameter(torch.ones(3))
    before = torchinit.fingerprint(built)
    built._parameters["\ud801"] = built._parameters.pop("\ud800")
    assert torchinit.fingerprint(built) != before
    built._orig_mod = nn.Module()  # as of torch.compile, whose names leave it out
    built._orig_mod.register_buffer("weight", torch.ones(3))
    with pytest.raises(ArgumentError, match="a parameter and a buffer are named 'weight'"):
        torchinit.fingerprint(built)
    built._orig_mod.weight = built.weight  # now one tensor by two paths
    assert torchinit.fingerprint(built)
