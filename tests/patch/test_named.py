"""Keys of names: values that follow from the seed and the name alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import torchinit
from conftest import native_only
from torchinit.fill.door import fill
from torchinit.patch.handlers import FillByName
from torchinit.patch.swap import intercept
from torchinit.schemes.distributions import normal_draw
from torchinit.streams.named_keys import keys_of_names, part_of

pytestmark = native_only
SIZE = 150


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def build(depth=3):
    return nn.ModuleDict({f"layer{i}": nn.Linear(SIZE, SIZE) for i in range(depth)})


def values(model):
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def assert_same(found, expected):
    for name, one in found.items():
        assert torch.equal(one, expected[name]), name


def initialise(layers):
    for layer in layers:
        layer.reset_parameters()


def by_key(key, shape, std=1.0):
    from torchinit.fill.door import fill

    return fill(normal_draw(0.0, std), torch.empty(shape), key)


def test_a_name_decides():
    model = build()
    state = torch.get_rng_state()
    with torchinit.patch_nn_init(seed=7, names_from=model):
        for name, one in model.named_parameters():
            nn.init.normal_(one, std=0.5)
            assert torch.equal(one, by_key(keys_of_names(7)(name), one.shape, 0.5))
    assert torch.equal(torch.get_rng_state(), state)


def test_order_repetition_and_other_layers_change_nothing():
    model = build()
    with torchinit.patch_nn_init(seed=7, names_from=model):
        initialise(model.values())
    expected = values(model)
    with torchinit.patch_nn_init(seed=7, names_from=model):
        initialise(reversed(list(model.values())))
        initialise(model.values())
    assert_same(values(model), expected)
    larger = build(5)
    with torchinit.patch_nn_init(seed=7, names_from=larger):
        initialise(larger.values())
    assert_same(expected, values(larger))
    with torchinit.patch_nn_init(seed=8, names_from=model):
        initialise(model.values())
    assert not torch.equal(model["layer0"].weight, expected["layer0.weight"])


def test_narrow_dtypes_are_rounded():
    single, narrow = build(), build().bfloat16()
    for model in (single, narrow):
        with torchinit.patch_nn_init(seed=7, names_from=model):
            initialise(model.values())
    assert_same(values(single.bfloat16()), values(narrow))


@pytest.mark.parametrize(
    "way", [lambda w: w, lambda w: w.data, lambda w: w.detach(), lambda w: w.view(-1)]
)
def test_aliases_have_the_name(way):
    model = build(1)
    weight = model["layer0"].weight
    with torchinit.patch_nn_init(seed=7, names_from=model), torch.no_grad():
        way(weight).normal_()
    assert torch.equal(weight, by_key(keys_of_names(7)("layer0.weight"), weight.shape))


def test_a_tie_counts_by_its_smallest_name():
    model = nn.ModuleDict({"b": nn.Linear(SIZE, SIZE), "a": nn.Linear(SIZE, SIZE)})
    model["a"].weight = model["b"].weight
    with torchinit.patch_nn_init(seed=7, names_from=model):
        nn.init.normal_(model["b"].weight)
    assert torch.equal(
        model["b"].weight, by_key(keys_of_names(7)("a.weight"), model["b"].weight.shape)
    )


def test_parts_are_numbered():
    model = build(2)
    weight, other = model["layer0"].weight, model["layer1"].weight
    with torchinit.patch_nn_init(seed=7, names_from=model):
        nn.init.normal_(weight)
        nn.init.normal_(weight.data[:3])
        nn.init.normal_(other.data[5])
        nn.init.normal_(weight.data[10:140])
    key = keys_of_names(7)
    assert torch.equal(weight[:3], by_key(key(part_of("layer0.weight", 0)), (3, SIZE)))
    assert torch.equal(weight[10:140], by_key(key(part_of("layer0.weight", 1)), (130, SIZE)))
    assert torch.equal(other[5], by_key(key(part_of("layer1.weight", 0)), (SIZE,)))
    assert torch.equal(weight[3], by_key(key("layer0.weight"), weight.shape)[3])


def test_orthogonal_and_truncated():
    model = build(1)
    for function in (nn.init.orthogonal_, nn.init.trunc_normal_):
        results = []
        for _ in range(2):
            torch.randn(1)
            with torchinit.patch_nn_init(seed=7, names_from=model):
                function(model["layer0"].weight)
            results.append(values(model)["layer0.weight"])
        assert torch.equal(*results)


def test_parameters_replaced_inside():
    model = build()
    with torchinit.patch_nn_init(seed=7, names_from=model):
        initialise(model.values())
    expected = values(model)
    with torch.device("meta"):
        model = build()
    with torchinit.patch_nn_init(seed=7, names_from=model):
        initialise(model.values())  # nothing, on meta
        model.to_empty(device="cpu")
        initialise(model.values())
    assert_same(values(model), expected)


def test_tensors_without_a_name_are_warned_about():
    model = build(1)
    torch.manual_seed(3)

    @torchinit.patch_nn_init(seed=7, names_from=model)
    def fill():
        found = nn.init.normal_(torch.empty(2, 3))
        nn.init.normal_(torch.empty(2, 3))
        torch.randn(300, 300)
        nn.init.normal_(torch.empty(3, dtype=torch.complex64))
        nn.init.zeros_(torch.empty(3))
        initialise(model.values())
        return found

    with pytest.warns(UserWarning, match="4 random fills") as record:
        found = fill()
    assert len(record) == 1
    assert "float32[2, 3] (2 times), float32[300, 300], complex64[3]" in str(record[0].message)
    torch.manual_seed(3)
    assert torch.equal(found, torchinit.normal_(torch.empty(2, 3)))


def test_a_generator_that_is_given_has_a_warning_and_no_name():
    model = build(1)
    weight = model["layer0"].weight

    def fill():
        generator = torch.Generator().manual_seed(5)
        nn.init.normal_(weight, generator=generator)
        return weight.detach().clone(), generator.get_state()

    plain = fill()
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"1 random fill .* given a generator.*\[150, 150\]"):
        found = torchinit.patch_nn_init(seed=7, names_from=model)(fill)()
    assert all(map(torch.equal, found, plain))
    found = torchinit.patch_nn_init(seed=7, names_from=model, generators=True)(fill)()
    assert torch.equal(found[0], by_key(keys_of_names(7)("layer0.weight"), weight.shape))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_warning_after_an_error():
    @torchinit.patch_nn_init(seed=7, names_from=build(1))
    def fill_and_raise():
        torch.randn(3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill_and_raise()


def test_memory_given_anew_is_not_taken_for_the_old():
    """Tensors that die leave no name to those that are made in their place."""
    expected = by_key(keys_of_names(7)(part_of("other", 0)), (SIZE,))
    for _ in range(50):
        named = [("w", torch.empty(SIZE))]
        handler = FillByName(keys_of_names(7), named.copy, name_elsewhere=lambda: "other")
        named.clear()
        tensor = torch.empty(SIZE)
        with intercept(handler):
            nn.init.normal_(tensor)
        assert torch.equal(tensor, expected)


def test_the_warning_points_at_the_block():
    with pytest.warns(UserWarning, match="1 random fill ") as record:  # noqa: SIM117
        with torchinit.patch_nn_init(seed=7, names_from=build(1)):
            torch.randn(3)
    assert record[0].filename == __file__


def test_a_list_of_names_and_meta_tensors():
    weight, meta = torch.empty(3, 4), torch.empty(3, 4, device="meta")
    handler = FillByName(keys_of_names(7), lambda: [("w", weight), ("m", meta)])
    with intercept(handler):
        nn.init.normal_(weight)
        nn.init.normal_(meta)
        nn.init.normal_(weight.data[1:])
    handler.warn()  # nothing
    key = keys_of_names(7)
    assert torch.equal(weight[0], by_key(key("w"), (3, 4))[0])
    assert torch.equal(weight[1:], by_key(key(part_of("w", 0)), (2, 4)))


def test_errors_are_those_without_names():
    model = build(1)
    weight = model["layer0"].weight
    with torchinit.patch_nn_init(seed=7, names_from=model):
        with pytest.raises(ValueError, match="std"):
            nn.init.normal_(weight, std=-1)
        with pytest.raises(ValueError, match="dimensions"):
            nn.init.xavier_normal_(model["layer0"].bias)
        with pytest.warns(UserWarning, match="mean is more than 2 std"):
            nn.init.trunc_normal_(weight, mean=10.0)


class Fused(nn.Module):
    """torchtitan's way: what is drawn into a tensor of its own is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def init_weights(self) -> None:
        parts = [nn.init.normal_(torch.empty(4, 4), std=0.1) for _ in range(3)]
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat(parts))


def test_draws_into_other_tensors_are_parts_of_the_module_that_makes_them():
    model = nn.ModuleDict({"a": Fused(), "b": Fused()})
    with torchinit.patch_nn_init(seed=3, names_from=model):
        for block in model.values():
            block.init_weights()
    again = nn.ModuleDict({"z": Fused(), "b": Fused(), "a": Fused()})
    with torchinit.patch_nn_init(seed=3, names_from=again):
        for block in again.values():
            block.init_weights()
    for name in ("a", "b"):
        assert torch.equal(model[name].qkv.weight, again[name].qkv.weight)
    assert not torch.equal(model["a"].qkv.weight, model["b"].qkv.weight)
    key = keys_of_names(3)(part_of("b", 1))
    expected = fill(normal_draw(0.0, 0.1), torch.empty(4, 4), key)
    assert torch.equal(model["b"].qkv.weight[4:8], expected)


def test_what_is_not_the_models_is_not_looked_for_in_all_of_it(monkeypatch):
    """Temporaries of many modules, views of one storage: the model is listed once for all."""
    from torchinit.patch import patch

    listed = []
    gather = patch.gather
    monkeypatch.setattr(patch, "gather", lambda model: listed.append(1) or gather(model))
    model = nn.Module()
    model.blocks = nn.ModuleList(Fused() for _ in range(30))
    flat = torch.empty(30 * 8)
    model.views = nn.ParameterList(nn.Parameter(flat[8 * i : 8 * i + 8]) for i in range(30))
    with torchinit.patch_nn_init(seed=3, names_from=model):
        for block in model.blocks:
            block.init_weights()
        for view in model.views:
            nn.init.normal_(view)
            nn.init.normal_(view.data[2:5])
    assert len(listed) == 1
    expected = by_key(keys_of_names(3)(part_of("blocks.29", 1)), (4, 4), 0.1)
    assert torch.equal(model.blocks[29].qkv.weight[4:8], expected)
    expected = by_key(keys_of_names(3)(part_of("views.7", 0)), (3,))
    assert torch.equal(model.views[7][2:5], expected)


def new_parameter(model):
    model["a"].qkv.weight = nn.Parameter(torch.empty(12, 4))
    nn.init.normal_(model["a"].qkv.weight)


def new_memory(model):
    model["a"].qkv.weight.data = torch.empty(12, 4)
    nn.init.normal_(model["a"].qkv.weight.data)


def new_buffer(model):
    del model["a"].qkv.weight
    model["a"].qkv.register_buffer("weight", torch.empty(12, 4))
    nn.init.normal_(model["a"].qkv.weight)


def new_module(model):
    with torch.device("meta"):
        model["a"] = Fused()
    model["a"].to_empty(device="cpu")
    with torch.no_grad():
        nn.init.normal_(model["a"].qkv.weight.view(-1))


@pytest.mark.parametrize("replace", [new_parameter, new_memory, new_buffer, new_module])
def test_what_is_put_into_the_model_inside_has_its_name(replace):
    model = nn.ModuleDict({"a": Fused(), "b": Fused()})
    with torchinit.patch_nn_init(seed=3, names_from=model):
        model["b"].init_weights()
        replace(model)
    expected = by_key(keys_of_names(3)("a.qkv.weight"), (12, 4))
    assert torch.equal(model["a"].qkv.weight, expected)
