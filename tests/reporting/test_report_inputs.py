"""What can be reported, and the errors of what cannot: modules, checkpoints, the command."""

from __future__ import annotations

import json

import pytest
import torch
from report_models import RULES, break_four, llama
from torch import nn
from torch._subclasses import FakeTensorMode

import torchinit
import warm
from torchinit.cli.main import main
from torchinit.cli.user_code import read_rules
from torchinit.errors import ArgumentError
from torchinit.reporting.report import judge_values

safetensors = pytest.importorskip("safetensors.torch", reason="comes with the extra report")

RULES_FILE = """
import torchinit
rules = {"**norm.weight": "ones", "**": torchinit.Normal(0.02)}
"""


def save(model, folder, shards=1):
    """A checkpoint, in shards with their index if more than one."""
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = [list(tensors)[i::shards] for i in range(shards)]
    folder.mkdir(exist_ok=True)
    if shards == 1:
        safetensors.save_file(tensors, folder / "model.safetensors")
        return folder
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for file, part in zip(files, names, strict=True):
        safetensors.save_file({name: tensors[name] for name in part}, folder / file)
    where = {name: file for file, part in zip(files, names, strict=True) for name in part}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def numbers(report):
    return {row.name: (row.moments[:-1], row.spectral, row.fan_in, str(row.law)) for row in report}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("rules", [None, RULES], ids=["siblings", "rules"])
def test_a_checkpoint_is_the_model(tmp_path, shards, rules):
    model = llama(5, dtype=torch.bfloat16)
    broken = break_four(model)
    path = save(model, tmp_path / "checkpoint", shards)
    report = torchinit.report_model(path, rules)
    assert numbers(report).keys() == dict(model.named_parameters()).keys()
    expected = numbers(torchinit.report_model(model, rules))
    for name, found in numbers(report).items():
        assert str(found) == str(expected[name])
    assert {outlier.name for outlier in report.outliers} == set(broken)
    if shards == 1:
        file = torchinit.report_model(str(path / "model.safetensors"), rules)
        assert str(numbers(file)) == str(numbers(report))


def test_gpt2s_linear_layers_are_known_by_config_or_shape(tmp_path):
    shapes = {"h.0.attn.c_attn.weight": (16, 48), "h.0.mlp.c_fc.weight": (16, 64)}
    for transposed in (False, True):
        model = nn.Module()
        tensors = {
            name: torch.randn(shape[::-1] if transposed else shape)
            for name, shape in shapes.items()
        }
        folder = tmp_path / str(transposed)
        folder.mkdir()
        safetensors.save_file(tensors, folder / "model.safetensors")
        assert [row.fan_in for row in torchinit.report_model(folder)] == [16, 16]
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    assert [row.fan_in for row in torchinit.report_model(folder)] == [48, 64]
    assert not list(model.parameters())


def test_fans_of_gpt2_in_memory():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    rows = {row.name: row for row in torchinit.report_model(transformers.GPT2Model(config))}
    assert rows["h.0.mlp.c_fc.weight"].fan_in == 16
    assert rows["h.0.mlp.c_proj.weight"].fan_in == 64
    assert rows["wte.weight"].fan_in == 16
    assert rows["h.0.attn.c_attn.weight"].gain == pytest.approx(0.08, rel=0.1)


def test_buffers_in_a_checkpoint_have_no_rule(tmp_path):
    tensors = {"bn.running_mean": torch.zeros(4), "bn.num_batches_tracked": torch.tensor(3),
               "mlp.gate.e_score_correction_bias": torch.zeros(4),
               "w.weight": torch.randn(64, 64)}  # fmt: skip
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    report = torchinit.report_model(tmp_path, {"**": torchinit.Normal(1.0)})
    assert len(report) == 4
    assert not report.outliers


def test_nothing_is_touched():
    model = llama(3).requires_grad_()
    model.get_parameter("model.norm.weight").grad = torch.ones(64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    versions = [p._version for p in model.parameters()]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torchinit.report_model(model, RULES)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert [p._version for p in model.parameters()] == versions
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
    assert torch.equal(model.get_parameter("model.norm.weight").grad, torch.ones(64))


def test_tied_and_shared_parameters_come_once():
    embedding, layer = nn.Embedding(10, 4), nn.Linear(4, 4)
    head = nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embed": embedding, "a": layer, "b": layer, "head": head})
    assert [row.name for row in torchinit.report_model(model)] == [
        "embed.weight", "a.weight", "a.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda _: 3, TypeError, "must be a torch.nn.Module or the path"),
        (lambda _: nn.Linear(2, 2, device="meta"), ArgumentError, "Initialise the model first"),
        (lambda _: nn.LazyLinear(3), ArgumentError, "lazy"),
        (lambda path: path / "nowhere", ArgumentError, "no such checkpoint"),
        (lambda path: path, ArgumentError, "it has no .safetensors file"),
        (lambda path: write(path / "model.bin", "x"), ArgumentError, "is not a checkpoint"),
        (lambda path: write(path / "a.safetensors", "x"), ArgumentError, "cannot be read"),
        (lambda path: write(path / "a.safetensors.index.json", "{}").parent, ArgumentError,
         "is not an index"),
        (lambda path: write(path / "a.safetensors.index.json",
                            '{"weight_map": {"w": "gone.safetensors"}}').parent,
         ArgumentError, "gone.safetensors"),
    ],
)  # fmt: skip
def test_errors(tmp_path, make, error, said):
    with pytest.raises(error, match=said.replace(".", r"\.")):
        torchinit.report_model(make(tmp_path))


def test_errors_of_the_other_model():
    with pytest.raises(TypeError, match="against must be a"):
        torchinit.report_model(nn.Linear(2, 2), against=3)


def write(path, text):
    path.write_text(text)
    return path


def test_rules_that_do_not_fit():
    with pytest.raises(ArgumentError, match="no rule matches"):
        torchinit.report_model(nn.Linear(2, 2), {"weight": "ones"})
    with pytest.raises(ArgumentError, match="1 of 2 rules matches no parameter"):
        torchinit.report_model(nn.Linear(2, 2), {"**.q.weight": "ones", "**": "zeros"})


def test_rules_for_other_names_than_a_checkpoint_has(tmp_path):
    path = save(llama(1), tmp_path)
    rules = {nn.LayerNorm: "ones", "**.experts.w": "zeros", **RULES}
    with pytest.warns(UserWarning, match="2 of 4 rules match nothing") as caught:
        torchinit.report_model(path, rules)
    assert caught[0].filename == __file__
    assert all(name in str(caught[0].message) for name in ("LayerNorm", "**.experts.w"))


def test_the_command(tmp_path, capsys):
    rules = write(tmp_path / "rules.py", RULES_FILE)
    right, broken = llama(5), llama(5)
    names = break_four(broken)
    paths = [str(save(model, tmp_path / name))
             for name, model in (("right", right), ("broken", broken))]  # fmt: skip
    picture = tmp_path / "report.png"
    assert main(["report", paths[0], "--rules", str(rules)]) == 0
    assert "no outliers" in capsys.readouterr().out
    arguments = ["report", paths[1], "--against", paths[0], "-o", str(picture)]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no such checkpoint: nowhere"),
        ([".", "-o", "a.jpg"], "must end in"),
        ([".", "-o", "nowhere/a.png"], "no such directory"),
        ([".", "--rules", "nowhere.py"], "no such rules file"),
    ],
)
def test_errors_of_the_command(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert "Traceback" not in err


def test_rules_in_a_file(tmp_path):
    path = tmp_path / "rules.py"
    write(path, RULES_FILE)
    assert list(read_rules(path, lambda: None)) == ["**norm.weight", "**"]
    write(path, "def rules(config): return {'**': config}")
    assert read_rules(path, lambda: "ones") == {"**": "ones"}
    for text, said in [
        ("def rules(config): return {}", "there is none"),
        ("x = 1", "defines no rules"),
        ("rules = 3", "that returns one, not int"),
        ("rules = 1 / 0", "raised ZeroDivisionError"),
        ("rules = {}['a']", "raised KeyError"),
        ("rules = (", "raised SyntaxError"),
        ("raise SystemExit(3)", "exited with 3"),
    ]:
        write(path, text)
        with pytest.raises(ArgumentError, match=said):
            read_rules(path, lambda: None)
    write(path, "def rules(config): raise OSError('x')")
    with pytest.raises(ArgumentError, match="raised OSError"):
        read_rules(path, lambda: 1)


def test_a_config_is_read_for_rules_that_are_a_function(tmp_path, capsys):
    """Any other config, even one that Transformers refuses, is nothing to rules that are none."""
    folder = save(llama(3), tmp_path / "checkpoint")
    (folder / "config.json").write_text('{"model_type": ["llama"]}')
    rules = write(tmp_path / "rules.py", RULES_FILE)
    assert main(["report", str(folder), "--rules", str(rules)]) == 0
    write(rules, f"{RULES_FILE}\nby_name = rules\ndef rules(config): return by_name")
    capsys.readouterr()
    assert main(["report", str(folder), "--rules", str(rules)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_default_devices_and_contexts(tmp_path):
    model = llama(3)
    expected = numbers(torchinit.report_model(model, RULES))
    with torch.device("meta"), torch.inference_mode():
        report = torchinit.report_model(model, RULES)
        report.save(tmp_path / "report.svg")
    assert str(numbers(report)) == str(expected)


def test_imported_where_another_device_is_the_default():
    code = """
import torch
torch.set_default_device("meta")
import torchinit
torch.set_default_device("cpu")
print(torchinit.report_model(torch.nn.Linear(64, 64))[0].law)
"""
    done = warm.run("-c", code)
    assert (done.stdout.strip(), done.returncode) == ("uniform", 0), done.stderr


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_buffers_in_a_checkpoint(tmp_path, dtype):
    tensors = {"table": torch.tensor([1, 2, 3]).to(dtype)}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    assert torchinit.report_model(tmp_path)[0].moments.high == 3


def test_a_constructor_with_padding_rows_and_parts_of_its_own():
    """Padding rows are left out; a mixture of distributions is not held against one of them."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 40, padding_idx=1)
            self.gate = nn.Linear(40, 40)
            with torch.no_grad():
                self.gate.bias[:20].fill_(3)

    report = torchinit.report_model(lambda: Model())
    assert report.title == "Model"
    assert [row.moments.numel for row in report] == [49 * 40, 40 * 40, 40]
    intended = [row.intended and row.intended.words.partition("(")[0] for row in report]
    assert intended == ["normal", "uniform", None]
    assert report.outliers == []
    wrong = torchinit.init_model_(torchinit.build_model(Model, seed=0), {"**": "zeros"}, seed=0)
    assert [one.name for one in judge_values(wrong, Model).outliers] == [
        "embed.weight", "gate.weight",
    ]  # fmt: skip


def test_modes_see_nothing_of_it(tmp_path):
    model = llama(4)
    expected = numbers(torchinit.report_model(model, RULES))
    with FakeTensorMode():
        report = torchinit.report_model(model)
        report.save(tmp_path / "report.svg")
        assert str(numbers(torchinit.report_model(model, RULES))) == str(expected)
