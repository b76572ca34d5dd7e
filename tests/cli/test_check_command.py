"""``torchinit check-init``: of a config, of a checkpoint, and its exit codes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from torchinit.cli import check_command
from torchinit.cli.main import main
from torchinit.frameworks import loading

transformers = pytest.importorskip("transformers")

COMMON = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
          "intermediate_size": 64}  # fmt: skip
KINDS = {
    "Llama": ("LlamaForCausalLM", {"num_key_value_heads": 2, "vocab_size": 64}),
    "ViTMAE": ("ViTMAEModel", {"image_size": 32, "patch_size": 8}),
}


def config_of(kind):
    name, more = KINDS[kind]
    made = getattr(transformers, f"{kind}Config")(**COMMON, **more)
    made.architectures = [name]
    return made


def run(capsys, *arguments):
    status = main(["check-init", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_config(tmp_path, capsys):
    config_of("Llama").save_pretrained(tmp_path)
    expected = "LlamaForCausalLM, to_empty() and its own initialisation: all 14 tensors have values"
    for target in (tmp_path, tmp_path / "config.json"):
        assert run(capsys, target)[:2] == (0, f"{expected}\n")


def test_a_config_whose_model_leaves_something(tmp_path, capsys):
    """ViTMAE's own initialisation skips two parameters of the embeddings."""
    config_of("ViTMAE").save_pretrained(tmp_path)
    status, said, _ = run(capsys, tmp_path)
    assert status == 1
    first, *lines = said.splitlines()
    assert first.startswith("ViTMAEModel, to_empty() and its own initialisation: 2 of ")
    assert [line.split()[:3] for line in lines[1:]] == [
        ["embeddings.cls_token", "parameter", "unwritten"],
        ["embeddings.position_embeddings", "parameter", "unwritten"],
    ]


def test_a_model_of_the_demo(capsys):
    status, said, _ = run(capsys, "tiny")
    assert status == 0
    assert said.startswith("Decoder, to_empty() and its own initialisation: all ")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "check\x1b[31mpoint"
    transformers.LlamaForCausalLM(config_of("Llama")).save_pretrained(folder)
    return folder


GONE = "model.layers.0.mlp.up_proj.weight"


def remove(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[GONE]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint(checkpoint, capsys):
    status, said, _ = run(capsys, checkpoint)
    assert status == 0
    assert said.splitlines() == [
        "LlamaForCausalLM, from_pretrained: all 14 tensors have values",
        "never in a file: a loader that starts from to_empty() has to fill them: "
        "model.rotary_emb.inv_freq, model.rotary_emb.original_inv_freq",
    ]
    remove(checkpoint)
    status, said, _ = run(capsys, checkpoint)
    assert status == 0
    assert f"in no file, and initialised anew: {GONE}" in said


def test_a_checkpoint_that_leaves_something(checkpoint, capsys, monkeypatch):
    """A tensor in no file, of a class whose initialisation passes over it."""
    remove(checkpoint)
    own = transformers.LlamaForCausalLM._init_weights

    def init(self, module):
        if "Rotary" in type(module).__name__:
            own(self, module)

    monkeypatch.setattr(transformers.PreTrainedModel, "_init_weights", init)
    status, said, _ = run(capsys, checkpoint)
    assert status == 1
    assert said.startswith("LlamaForCausalLM, from_pretrained: 1 of 14 tensors is not initialised")
    assert GONE in said.splitlines()[2]


def test_what_cannot_be_judged(tmp_path, checkpoint, capsys, monkeypatch):
    (tmp_path / "config.json").write_text(
        '{"architectures": ["No\x1b[31mThing"]}'.replace("\x1b", "\\u001b")
    )
    quantised = json.loads((checkpoint / "config.json").read_text()) | {"quantization_config": {}}
    cases = {
        tmp_path
        / "absent": "is neither a config.json, nor a folder that has one, nor one of llama",
        tmp_path: "which Transformers",
        300 * "a": f"torchinit: {300 * 'a'}: File name too long",
        "": "torchinit: the target is empty: give a config.json",
    }
    for target, expected in cases.items():
        status, out, err = run(capsys, target)
        assert (status, out) == (2, "")
        assert expected in err
        assert "\x1b" not in err
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin may run code when it is loaded" in run(capsys, tmp_path)[2]
    (tmp_path / "pytorch_model.bin").unlink()
    (checkpoint / "config.json").rename(checkpoint / "other")
    said = "check\\x1b[31mpoint has no config.json, which must name the class"
    assert said in run(capsys, checkpoint)[2]
    (checkpoint / "other").rename(checkpoint / "config.json")
    (checkpoint / "model.safetensors").write_bytes(b"\x08" + bytes(15))
    status, out, err = run(capsys, checkpoint)
    assert (status, out) == (2, "")
    assert "\x1b" not in err
    (checkpoint / "config.json").write_text(
        json.dumps(quantised | {"quantization_config": {"a": 1}})
    )
    assert "quantization_config" in run(capsys, checkpoint)[2]
    config_of("Llama").save_pretrained(tmp_path)

    def full(_model):
        raise MemoryError("no room")

    monkeypatch.setattr("torchinit.cli.check_command.initialise", full)
    assert run(capsys, tmp_path)[0] == 2
    assert loading.initialise is not full


def test_usage(capsys):
    assert main(["check-init"]) == 2
    assert "CONFIG_OR_CHECKPOINT" in capsys.readouterr().err


def test_a_config_of_which_something_cannot_be_judged(monkeypatch):
    class Sparse(nn.Module):
        def __init__(self, **_):
            super().__init__()
            self.register_buffer("s", torch.eye(3, device="cpu").to_sparse())

    monkeypatch.setattr(check_command, "builder", lambda *_: Sparse)
    monkeypatch.setattr(check_command, "initialise", lambda _: None)
    said, code = check_command.run("llama-3.2-1b")
    assert code == check_command.NOT_JUDGED
    assert "1 of 1 cannot be judged" in said
    assert "cannot tell" in said
