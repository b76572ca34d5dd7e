"""Globs over names, held against a slow matcher; compiled patterns; types; which rule wins."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchinit
from made import fill, model_of
from torchinit import ArgumentError
from torchinit.native import load
from torchinit.rules.globs import _TOKEN, glob_matcher, match_tokens, translate
from torchinit.rules.rules import Rules


def matches(glob, name):
    """By the regular expression, by the places in the name, and by the one that is chosen."""
    found = re.fullmatch(translate(glob), name, re.DOTALL) is not None
    assert match_tokens(_TOKEN.findall(glob), name) == glob_matcher(glob)(name) == found
    return found


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("**", ["a", "a.b.c", "a\nb"], []),
        ("**.weight", ["weight", "a.weight", "a.b.weight"], ["a_weight", "a.weight.b", ".eight"]),
        ("**weight", ["weight", "a.weight", "a_weight"], ["weights"]),
        ("**norm.weight", ["norm.weight", "l.0.input_layernorm.weight"], ["norm.bias"]),
        ("a.**.b", ["a.b", "a.x.b", "a.x.y.b"], ["a.xb", "ab", "b"]),
        ("a**.b", ["a.b", "ax.b", "a.x.b"], ["ab", "b"]),
        ("a.**", ["a.", "a.b", "a.b.c"], ["a", "ab"]),
        ("*", ["a", "ab"], ["a.b"]),
        ("layers.*.w", ["layers.0.w", "layers.12.w"], ["layers.w", "layers.0.1.w"]),
        ("w?", ["w1"], ["w", "w12", "w."]),
        ("a?b", ["axb"], ["a.b"]),
        ("{a,b}.w", ["a.w", "b.w"], ["c.w", "ab.w", "{a,b}.w"]),
        ("{w*,v?}", ["w", "w12", "v1"], ["v", "w.1"]),
        ("{a,}b", ["ab", "b"], ["cb"]),
        ("a.b", ["a.b"], ["axb", "a.b.c", "x.a.b"]),
        ("a+b[0]^$|(c)\\", ["a+b[0]^$|(c)\\"], ["aab0", "a"]),
        ("a,b", ["a,b"], ["a", "b"]),
    ],
)
def test_globs(glob, yes, no):
    assert [name for name in yes if not matches(glob, name)] == []
    assert [name for name in no if matches(glob, name)] == []


@pytest.mark.parametrize(
    ("glob", "said"),
    [
        ("", "matches no name"),
        ("***", "three stars"),
        ("a.****", "three stars"),
        ("{a,{b,c}}", "nested braces"),
        ("{a,b", "'{' without '}'"),
        ("a}", "'}' without '{'"),
        ("{a.b,c}", "dot in braces"),
        ("{a,**}", r"'\*\*' in braces"),
    ],
)
def test_bad_globs_are_named(glob, said):
    with pytest.raises(ArgumentError, match=said) as error:
        Rules({glob: "zeros"})
    assert repr(glob) in str(error.value)


# A matcher that shares nothing with the translation: the places that each token may lead to.


def tokens_of(glob):
    tokens, place = [], 0
    while place < len(glob):
        if glob.startswith("**.", place) and (place == 0 or glob[place - 1] == "."):
            tokens.append("atoms")
            place += 3
        elif glob.startswith("**", place):
            tokens.append("any")
            place += 2
        elif glob[place] == "{":
            end = glob.index("}", place)
            tokens.append([tokens_of(x) for x in glob[place + 1 : end].split(",")])
            place = end + 1
        else:
            tokens.append({"*": "in atom", "?": "one"}.get(glob[place], "=" + glob[place]))
            place += 1
    return tokens


def places(tokens, name, start):
    reached = {start}
    for token in tokens:
        ahead = set()
        for place in reached:
            rest = name[place:]
            if isinstance(token, list):
                for alternative in token:
                    ahead |= places(alternative, name, place)
            elif token == "any":
                ahead |= set(range(place, len(name) + 1))
            elif token == "atoms":
                ahead |= {place} | {place + i + 1 for i, x in enumerate(rest) if x == "."}
            elif token == "in atom":
                ahead |= {place + i for i in range(len(rest.split(".")[0]) + 1)}
            elif token == "one":
                ahead |= {place + 1} if rest and rest[0] != "." else set()
            elif rest.startswith(token[1:]):
                ahead.add(place + 1)
        reached = ahead
    return reached


PIECES = st.sampled_from(["a", "b", ".", "*", "?", "**.", "**", "{a,b}", "{a*,,b?}", "ab."])
GLOBS = st.lists(PIECES, min_size=1, max_size=6).map("".join).filter(lambda g: "***" not in g)
NAMES = st.text("ab.", max_size=9)


@given(GLOBS, NAMES)
def test_globs_against_a_slow_matcher(glob, name):
    assert matches(glob, name) == (len(name) in places(tokens_of(glob), name, 0))


@pytest.mark.parametrize(
    "glob",
    ["{*,*}" * 20, "*a" * 20, "**a" * 20, "{a*,b*,*}" * 15 + "c", "**.*." * 15, "*" + "?*" * 20,
     "**.{*,?*}" * 15],
)  # fmt: skip
def test_many_stars_take_no_time(glob):
    """A regular expression would try each way to share out the name."""
    model = model_of({"a" * 60 + "." + "a." * 30 + "a": (2,)})
    rules = {f"{glob}!": "zeros", nn.Linear: "zeros", "**": "ones"}
    assert len(torchinit.plan_model(model, rules, strict=False)) == 1
    rules = {"b": "zeros", "**a" * 10: "ones", "*": "ones", "**": "ones"}
    assert torchinit.plan_model(model, rules, strict=False)[0].rule == "**a" * 10
    with pytest.raises(ArgumentError, match="only: "):
        torchinit.init_model_(model, {"**": "ones"}, seed=0, only=f"{glob}!")


@given(st.lists(GLOBS, min_size=1, max_size=5, unique=True), NAMES, st.integers(0, 5))
def test_the_first_rule_that_matches_wins(globs, name, number):
    keys = list(globs)
    keys.insert(min(number, len(keys)), re.compile("a.*"))  # neighbouring globs are joined
    expected = next(
        (
            i
            for i, key in enumerate(keys)
            if (key.fullmatch(name) if isinstance(key, re.Pattern) else matches(key, name))
        ),
        -1,
    )
    assert Rules(dict.fromkeys(keys, "zeros")).find(name, nn.Module()) == expected


def test_compiled_patterns_match_the_whole_name():
    rules = {
        re.compile(r"layers\.\d+\.w"): torchinit.Constant(1),
        re.compile("LAY.*", re.I): "zeros",
    }
    got = fill({"layers.0.w": (2,), "layers.0.wx": (2,)}, rules)
    assert {name: x[0].item() for name, x in got.items()} == {"layers.0.w": 1, "layers.0.wx": 0}


def test_types_match_what_their_modules_own():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Bilinear(3, 3, 3)), nn.LayerNorm(3))
    rules = {
        nn.Linear: torchinit.Constant(1),
        nn.LayerNorm: torchinit.Constant(2),
        nn.Module: "zeros",
    }
    torchinit.init_model_(model, rules, seed=0)
    values = {name: p.unique().tolist() for name, p in model.named_parameters()}
    assert values == {
        "0.weight": [1], "0.bias": [1], "1.0.weight": [0], "1.0.bias": [0],
        "2.weight": [2], "2.bias": [2],
    }  # fmt: skip


def test_types_match_subclasses_and_parametrized_parameters():
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(Mine(3, 3)))
    rows = torchinit.plan_model(model, {nn.Linear: "ones"})
    assert {(row.name, row.rule) for row in rows} == {("0.weight", "Linear"), ("0.bias", "Linear")}


@pytest.mark.parametrize(
    "key", [3, None, ("a", "b"), nn.Linear(1, 1), int, re.compile(b"a")], ids=lambda k: str(k)[:12]
)
def test_other_keys_are_errors(key):
    with pytest.raises(TypeError, match=re.escape(repr(key))):
        Rules({key: "zeros"})


@pytest.mark.parametrize("rules", [[("**", "zeros")], "zeros", 3])
def test_rules_are_a_mapping(rules):
    with pytest.raises(TypeError, match="rules must be a mapping"):
        torchinit.init_model_(nn.Linear(2, 2), rules, seed=0)


def test_parameters_without_a_rule_are_named_and_nothing_is_written():
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(ArgumentError, match=r"no rule matches 1 of 2 parameters: bias\."):
        torchinit.init_model_(model, {"weight": "ones"}, seed=0)
    assert torch.equal(model.weight, before)


def test_rules_without_a_parameter_are_named_with_the_nearest():
    model = model_of({"layers.0.norm.weight": (2,)})
    rules = {"**.nrom.weight": "ones", "head.*": "zeros", nn.Linear: "zeros", "**": "zeros"}
    said = (
        r"3 of 4 rules match no parameter: '\*\*\.nrom\.weight' \(nearest: layers\.0\.norm\.weight"
    )
    with pytest.raises(ArgumentError, match=said):
        torchinit.plan_model(model, rules)
    assert len(torchinit.plan_model(model, rules, strict=False)) == 1


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            ["**.weight", "b.weight", "**"],
            "'b.weight' (the earlier rule '**.weight' takes b.weight)",
        ),
        (["**", nn.Linear], "'Linear' (the earlier rule '**' takes a.weight)"),
        ([nn.Linear, "a.bias", "**"], "'a.bias' (the earlier rule 'Linear' takes a.bias)"),
        (["**", re.compile("b.*")], "\"re.compile('b.*')\" (the earlier rule '**' takes b.weight)"),
        (["{a,b}.*", "?.bias", "**"], "2 of 3 rules come too late: '?.bias' (the earlier rule"),
        (
            ["**", "c.weight", "a.weight"],
            "1 of 3 rules matches no parameter: 'c.weight' (nearest: b.weight). 1 of 3 rules comes",
        ),
    ],
    ids=str,
)
def test_rules_that_come_too_late_are_told_from_those_that_match_nothing(rules, said):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.LayerNorm(2)})
    rules = dict.fromkeys(rules, "ones") | ({"**": "zeros"} if "**" in rules else {})
    with pytest.raises(ArgumentError) as error:
        torchinit.plan_model(model, {key: torchinit.Constant(1) for key in rules})
    assert said in str(error.value)
    torchinit.plan_model(model, {key: torchinit.Constant(1) for key in rules}, strict=False)


LONE = "a\ud800"  # half of a pair of UTF-16, as in names from damaged files


@pytest.mark.parametrize("rule", ["**", "a*", LONE, "a?", re.compile("a.")])
def test_names_that_are_no_unicode_match_and_have_no_key(rule):
    model = nn.Module()
    model.register_parameter(LONE, nn.Parameter(torch.zeros(3)))
    torchinit.init_model_(model, {rule: "ones"}, seed=0)
    assert getattr(model, LONE).tolist() == [1, 1, 1]
    assert r"a\ud800" in str(torchinit.plan_model(model, {rule: "ones"}))
    assert r"a\ud800" in str(torchinit.report_model(model, {rule: torchinit.Normal(1.0)}))
    for draw in (
        lambda: torchinit.init_model_(model, {rule: torchinit.Normal(1.0)}, seed=0),
        lambda: torchinit.init_shard_(
            torch.zeros(3), torchinit.Normal(1.0), global_shape=(3,), offset=0,
            seed=0, name=LONE,
        ),
        lambda: torchinit.build_model(lambda: _drawn(LONE), seed=0),
        # Without kernels, torch draws there, from no key.
        *([lambda: _patched(model)] if load.module is not None else []),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=r"'a\\ud800' is not Unicode text") as error:
            draw()
        str(error.value).encode()
    assert getattr(model, LONE).tolist() == [1, 1, 1]
    torchinit.init_model_(model, {"b": torchinit.Normal(1.0)}, seed=0, rename={LONE: "b"})


def _drawn(name):
    model = nn.Module()
    model.register_parameter(name, nn.Parameter(torch.randn(3)))
    return model


def _patched(model):
    with torchinit.patch_nn_init(0, model):
        nn.init.normal_(getattr(model, LONE))
