"""``torchinit checkpoint``, the example, and what a config must say."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from written import LLAMA, assert_equal, contents, on_meta, read, small, write

import torchinit
import warm
from torchinit.cli import main as main_module
from torchinit.cli import user_code
from torchinit.cli.main import main
from torchinit.errors import ArgumentError
from torchinit.native import load

transformers = pytest.importorskip("transformers")

EXAMPLE = Path(__file__).parents[2] / "examples" / "seed_checkpoint.py"
SAID = LLAMA | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
RULES_FILE = """
import torchinit

def rules(config):
    return {"**norm*.weight": "ones", "**": torchinit.Normal(config.initializer_range * 2)}
"""


@pytest.fixture
def config(tmp_path):
    """The path of a config."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SAID))
    return path


def run(capsys, *arguments):
    """Exit code, output and errors of a command."""
    status = main(["checkpoint", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def llama():
    return on_meta(transformers.LlamaForCausalLM, transformers.LlamaConfig(**LLAMA))()


def test_the_command(config, tmp_path, capsys):
    (tmp_path / "rules.py").write_text(RULES_FILE)
    out = tmp_path / "out"
    options = ["--dtype", "bfloat16", "--rules", tmp_path / "rules.py", "--shard-size", "30KB"]
    status, said, _ = run(capsys, config, out, "--seed", 3, *options)
    assert status == 0
    count = sum(one.numel() for one in llama().parameters())
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    shards = len(list(out.glob("*.safetensors")))
    assert said == f"{out}: {count:,} parameters, {size:,} bytes in {shards} files\n"
    rules = {"**norm*.weight": "ones", "**": torchinit.Normal(0.04)}
    model = torchinit.init_model_(llama(), rules, seed=3, dtype=torch.bfloat16, device="cpu")
    assert_equal(read(out), model.state_dict())
    before = contents(out)
    assert f"{out} holds a finished checkpoint (" in run(capsys, config, out, "--seed", 3)[2]
    status, again, _ = run(capsys, config, out, "--seed", 3, *options, "--resume")
    assert (status, again) == (0, said.replace(": ", ": was finished already: ", 1))
    status, said, err = run(capsys, config, out, "--seed", 4, *options, "--resume")
    assert (status, said) == (1, "")
    assert err.startswith(
        f"torchinit: --resume: {out} holds a finished checkpoint of other arguments: the seed (3 "
        "there, 4"
    )
    assert contents(out) == before
    (out / "config.json").write_text(json.dumps(SAID | {"bos_token_id": 7}))
    with pytest.warns(UserWarning, match=r"out/config\.json had other contents"):
        assert run(capsys, config, out, "--seed", 3, *options, "--resume")[0] == 0
    assert contents(out) == before


def test_an_unfinished_checkpoint_says_how_to_go_on(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(capsys, config, out)[0] == 0
    (out / "model.safetensors").unlink()
    status, _, err = run(capsys, config, out)
    assert status == 1
    assert err.endswith("Go on with --resume, or give another path\n")
    assert run(capsys, config, out, "--resume", "--shard-size", "9XB")[2] == (
        "torchinit: --shard-size='9XB' must be a number and TB, GB, MB or KB, such as '5GB'\n"
    )
    assert run(capsys, config, out, "--resume")[0] == 0


def test_callables_in_a_file_are_told_apart_by_its_text(config, tmp_path, capsys):
    rules, out = tmp_path / "rules.py", tmp_path / "out"
    text = "std = {}\ndef fill(t): t.normal_(std=std)\nrules = {{'**': fill}}\n"
    rules.write_text(text.format(0.5))
    assert run(capsys, config, out, "--rules", rules)[0] == 0
    assert run(capsys, config, out, "--rules", rules, "--resume")[0] == 0
    rules.write_text(text.format(0.6))
    assert "the rules" in run(capsys, config, out, "--rules", rules, "--resume")[2]


def test_dry_run(config, tmp_path, capsys):
    status, said, _ = run(capsys, config, "--dry-run", "--dtype", "fp16")
    assert status == 0
    table, totals = said.rstrip().rsplit("\n\n", 1)
    plan = torchinit.plan_model(llama())
    lines = table.splitlines()
    assert len(lines) == 1 + len(plan) + 2
    assert lines[-2:] == ["dtype: float16", "rule: LlamaForCausalLM(config)"]
    assert "normal(mean=0, std=0.02)" in table
    count = sum(one.numel() for one in llama().parameters())
    assert totals.startswith(f"{count:,} parameters, ")
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["config.json"],
        *(
            ["config.json", "out", "--seed", text]
            for text in ("-1", "\u0663", "1_0", " 7", "+7", "9" * 99)
        ),
        ["config.json", "out", "--dtype", "int8"],
    ],
)
def test_bad_usage(arguments, capsys):
    assert run(capsys, *arguments)[0] == 2


BAD = {
    "no JSON": ("{", "config.json is not JSON"),
    "no text": (b"\xff\xfe\x00", "config.json is not JSON"),
    "no object": ("[1]", "must hold a JSON object"),
    "no architectures": (json.dumps(LLAMA), "architectures=None: its first name must be the class"),
    "empty architectures": (json.dumps(SAID | {"architectures": []}), r"architectures=\[\]"),
    "unknown": (
        json.dumps(SAID | {"architectures": ["GPT9ForCausalLM"]}),
        "architectures\\[0\\]='GPT9ForCausalLM', which Transformers .* has no model of",
    ),
    "no model": (json.dumps(SAID | {"architectures": ["LlamaConfig"]}), "has no model of"),
    "nested": ("[" * 100_000, "too deeply nested"),
    "nested objects": ('{"a":' * 100_000, "too deeply nested"),
    "a long number": ('{"a": ' + "1" * 5000 + "}", "config.json is not JSON"),
    "another family": (
        json.dumps(SAID | {"model_type": "gpt2"}),
        r"model_type='gpt2' and architectures\[0\]='LlamaForCausalLM', whose model_type is 'llama'",
    ),
    "another class": (
        json.dumps(SAID | {"architectures": ["GPT2LMHeadModel"]}),
        r"model_type='llama' and architectures\[0\]='GPT2LMHeadModel', whose model_type is 'gpt2'",
    ),
    "a longer name": (
        json.dumps({"architectures": ["T5Model"], "model_type": "mt5"}),
        "model_type='mt5' and .* whose model_type is 't5'",
    ),
    "no such family": (json.dumps(SAID | {"model_type": "lama"}), "model_type='lama' and"),
    "no name of a family": (
        json.dumps(SAID | {"model_type": ["llama"]}),
        r"model_type=\['llama'\]",
    ),
    **{
        f"{key} {value!r}": (
            json.dumps(SAID | {key: value}),
            f"says {key}={re.escape(repr(value))}: it must be one of float32, bfloat16, ",
        )
        for key, value in [
            ("dtype", "auto"),
            ("torch_dtype", "auto"),
            ("dtype", "torch.bfloat16"),
            ("dtype", "float8_e4m3fn"),
            ("dtype", "int8"),
            ("dtype", "Tensor"),
            ("dtype", "nn"),
            ("dtype", ""),
            ("dtype", 3),
            ("dtype", []),
            ("torch_dtype", {}),
        ]
    },
    "an inner dtype": (
        json.dumps(SAID | {"text_config": {"dtype": "auto"}}),
        "says text_config.dtype='auto'",
    ),
    "quantised": (
        json.dumps(SAID | {"quantization_config": {"quant_method": "fp8"}}),
        "has a quantization_config",
    ),
    "corrupted": (
        json.dumps(SAID | {"hidden_size": "wide"}),
        "LlamaForCausalLM cannot be built of it: ",
    ),
    "impossible": (
        json.dumps(SAID | {"vocab_size": -3}),
        "LlamaForCausalLM cannot be built of it: ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configs(name, tmp_path, capsys):
    text, said = BAD[name]
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArgumentError, match=said):
        torchinit.write_checkpoint(path, tmp_path / "out", seed=0)
    status, out, err = run(capsys, tmp_path, tmp_path / "out")
    assert (status, out) == (1, "")
    assert err.startswith("torchinit: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("LlamaForCausalLM", None),
        ("LlamaForCausalLM", "exaone"),  # a family that has the classes of another
        ("LlamaModel", "llama"),
    ],
)
def test_families_that_fit(kind, family, config, capsys):
    config.write_text(json.dumps(SAID | {"architectures": [kind], "model_type": family}))
    status, _, err = run(capsys, config, "--dry-run")
    assert (status, err) == (0, "")


MUTATED = ["", None, True, -1, 0, 1.5, float("nan"), "a\x1b[31m\nb", [], {}, [[]], {"a": {}}]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("key", SAID)
def test_mutated_configs_end_in_one_sentence(key, tmp_path, capsys):
    path = tmp_path / "config.json"
    for value in [*MUTATED, *([10**30] if key != "num_hidden_layers" else [])]:
        path.write_text(json.dumps(SAID | {key: value}))
        status, _, err = run(capsys, path, "--dry-run")
        assert status in (0, 1)
        assert err.count("\n") == status
        assert "\x1b" not in err


def test_what_is_not_there(config, tmp_path, capsys):
    assert f"{tmp_path / 'no.json'}: No such file" in run(capsys, tmp_path / "no.json", "out")[2]
    rules = run(capsys, config, tmp_path / "out", "--rules", tmp_path / "no.py")
    assert rules[0] == 1
    assert f"no such rules file: {tmp_path / 'no.py'}" in rules[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rule = {}", "defines no rules"),
        ("rules = 3", "rules must be a mapping, or a function of the config, not int"),
        ("def rules(config): return 3", r"rules(config) must return a mapping, not int"),
        ("rules = {", "raised SyntaxError"),
        ("raise KeyError(3)", "raised KeyError: 3"),
        ("rules = {'**.weight': 'normal'}", "needs numbers"),
        ("rules = {'**.q_proj.weight': 'zeros'}", "no rule matches"),
        ("rules = None", "defines no rules"),
        ("raise SystemExit", "exited with None"),
        ("rules = " + "[" * 500 + "]" * 500, "raised SyntaxError"),
        ("def rules(config):\n    return config.nope", "rules.py:2 raised AttributeError: "),
        ("def rules(config): raise SystemExit(0)", "rules.py:1 raised SystemExit: 0"),
        ("def rules(config): return rules(config)", "rules.py:1 raised RecursionError"),
        ("def rules(config): raise RuntimeError('a\\nb\\x1b')", r"raised RuntimeError: a b\x1b"),
        ("rules = {'**': lambda tensor: exit(0)}", "rules.py:1 raised SystemExit: 0"),
        ("def rules(config): raise MemoryError", "out of memory"),
    ],
)
def test_bad_rules(text, said, config, tmp_path, capsys):
    (tmp_path / "rules.py").write_text(text)
    status, _, err = run(capsys, config, tmp_path / "out", "--rules", tmp_path / "rules.py")
    assert status == 1
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nope_nope", "ModuleNotFoundError: No module named 'nope_nope'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("build = 3", "must be a function, not int"),
        ("def build(): raise SystemExit(0)", ".py:1 raised SystemExit: 0"),
        ("def build(): raise KeyError('x')", ".py:1 raised KeyError: 'x'"),
        ("def build():\n    return build()", ".py:2 raised RecursionError"),
        ("import torch\ndef build(): return torch.nn.Linear(3, -2)", ".py:2 raised RuntimeError"),
        ("def build(): open('/nope/nope')", ".py:1 raised FileNotFoundError"),
    ],
)
def test_bad_builds(text, said, tmp_path, capsys, monkeypatch, request):
    name = f"build_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err = run(capsys, "--build", f"{name}:build", tmp_path / "out")
    assert status == 1
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shard_size", "error"),
    [
        ("5", ValueError),
        ("5 apples", ValueError),
        ("\u0663GB", ValueError),
        ("\uff15GB", ValueError),
        ("5\u212aB", ValueError),  # the sign of kelvin, which is K where case does not matter
        ("1_0MB", ValueError),
        ("9" * 400 + "GB", ValueError),
        (0, ValueError),
        (-1, ValueError),
        (1.5, TypeError),
    ],
)
def test_bad_shard_sizes(shard_size, error, tmp_path):
    with pytest.raises(error, match="shard_size="):
        torchinit.write_checkpoint(small, tmp_path / "a", seed=0, shard_size=shard_size)
    assert not (tmp_path / "a").exists()


def test_bad_models(tmp_path):
    out = tmp_path / "a"
    with pytest.raises(TypeError, match="config is a module: give a function"):
        torchinit.write_checkpoint(small(), out, seed=0)
    with pytest.raises(TypeError, match="config=3 must be the path"):
        torchinit.write_checkpoint(3, out, seed=0)
    zeros = {"**": "zeros"}
    with pytest.raises(TypeError, match=r"config\(\) must return a torch\.nn\.Module, not int"):
        torchinit.write_checkpoint(lambda: 3, out, zeros, seed=0)
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module, not int"):
        torchinit.write_checkpoint(lambda: 3, out, seed=0)
    with pytest.raises(ArgumentError, match="'weight' is on cpu: build the model on the meta"):
        torchinit.write_checkpoint(lambda: torch.nn.Linear(2, 3), out, zeros, seed=0)
    with pytest.raises(ArgumentError, match="no parameters"):
        torchinit.write_checkpoint(torch.nn.ReLU, out, seed=0)
    with pytest.raises(TypeError, match=r"dtype='bfloat16' must be a torch\.dtype, not str"):
        torchinit.write_checkpoint(small, out, {"**": "zeros"}, seed=0, dtype="bfloat16")
    with pytest.raises(ArgumentError, match=r"dtype=torch\.int8 must be a floating-point"):
        torchinit.write_checkpoint(small, out, {"**": "zeros"}, seed=0, dtype=torch.int8)
    with pytest.raises(ArgumentError, match="rules is a function of the config"):
        torchinit.write_checkpoint(small, out, torchinit.recipes.llama, seed=0)
    assert not out.exists()


def python(*arguments, **environment):
    """Runs Python, where a network may not be looked for."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = warm.run(*arguments, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example(config, tmp_path):
    said = python(EXAMPLE, config, tmp_path / "out")
    assert said.startswith(f"{tmp_path / 'out'}: config.json, generation_config.json, model.safet")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    assert all(bool((layer.input_layernorm.weight == 1).all()) for layer in model.model.layers)
    deeper = [layer.mlp.down_proj.weight.float().std().item() for layer in model.model.layers]
    assert deeper[1] < 0.8 * deeper[0]
    assert len(EXAMPLE.read_text().splitlines()) < 40


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_reader_of_such_checkpoints(config, tmp_path):
    """What torchtitan reads by --checkpoint.initial_load_in_hf."""
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    path = write(config, tmp_path / "out", seed=2)
    model = torchinit.init_model_(llama(), seed=2, device="cpu")
    found = {name: torch.zeros_like(one) for name, one in model.state_dict().items()}
    reader = checkpoint.HuggingFaceStorageReader(path)
    checkpoint.load(found, storage_reader=reader, no_dist=True)
    assert_equal(found, model.state_dict())


def test_without_the_native_module(tmp_path):
    """The numbers are torch's then, as those of init_model_; and no run goes on from ours."""
    program = """
import sys
from written import RULES, assert_equal, read, small, write
from pathlib import Path
import torchinit
path = write(small, Path(sys.argv[1]), RULES)
assert_equal(read(path), torchinit.init_model_(small(), RULES, seed=0, device="cpu").state_dict())
try:
    write(small, Path(sys.argv[2]), RULES, resume=True)
except ValueError as error:
    print(error)
"""
    rules = {"norm.weight": "ones", "**": torchinit.Normal(0.02)}
    path = write(small, tmp_path / "a", rules)
    said = python("-c", program, tmp_path / "b", path, TORCHINIT_DISABLE_NATIVE="1")
    if torchinit.which(torch.empty(3), "normal").kind == "native":
        assert f"whose numbers are used (torchinit there, torch {torch.__version__} asked" in said


def test_nothing_of_it_is_imported_before_it_is_needed():
    loaded = python("-c", "import sys, torchinit; print(*sys.modules)").split()
    assert not {"transformers", "huggingface_hub", "safetensors"} & set(loaded)


@pytest.mark.skipif(load.module is None, reason="needs the native module")
@pytest.mark.filterwarnings("ignore:.* do not consist of whole blocks")
def test_formats(config, tmp_path, capsys):
    options = ["--format", "**.up_proj.weight=fp8-ue8m0", "--format", "**_proj.weight=fp8-ue8m0"]
    options += ["--layout", "fp8", "--dtype", "bfloat16"]
    status, said, _ = run(capsys, config, "--dry-run", *options)
    assert status == 0
    assert said.count("as FP8Blocks(scale='ue8m0')") == 14
    assert run(capsys, config, tmp_path / "out", *options)[0] == 0
    form = user_code.FORMATS["fp8-ue8m0"]
    formats = dict.fromkeys(("**.up_proj.weight", "**_proj.weight"), form)
    same = torchinit.write_checkpoint(
        config, tmp_path / "same", seed=0, dtype=torch.bfloat16, formats=formats, layout="fp8"
    )
    assert contents(same) == contents(tmp_path / "out")
    assert tuple(user_code.FORMATS) == main_module._FORMATS
    for name in user_code.FORMATS:
        _, _, err = run(capsys, config, "--dry-run", "--format", f"**.q_proj.weight={name}")
        assert err.startswith("torchinit: --layout: formats need a layout")
    for text in ("mxfp8", "=mxfp8", "**=mxfp4", "**"):
        assert run(capsys, config, "--dry-run", "--format", text)[0] == 2
    assert (
        "does not hold NVFP4()"
        in run(
            capsys, config, "--dry-run", "--format", "**.q_proj.weight=nvfp4", "--layout", "fp8"
        )[2]
    )
