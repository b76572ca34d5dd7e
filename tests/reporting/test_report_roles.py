"""Roles and depths by the names that models give."""

from __future__ import annotations

import pytest
from torch import nn

from torchinit.reporting.roles import ROLES, Depth, depth_of, role_of

LLAMA = "model.layers.11."
NAMES = {
    "model.embed_tokens.weight": "embedding",
    f"{LLAMA}self_attn.q_proj.weight": "q",
    f"{LLAMA}self_attn.k_proj.weight": "k",
    f"{LLAMA}self_attn.v_proj.weight": "v",
    f"{LLAMA}self_attn.o_proj.weight": "o",
    f"{LLAMA}mlp.gate_proj.weight": "gate",
    f"{LLAMA}mlp.up_proj.weight": "up",
    f"{LLAMA}mlp.down_proj.weight": "down",
    f"{LLAMA}input_layernorm.weight": "norm",
    f"{LLAMA}self_attn.q_norm.weight": "norm",
    f"{LLAMA}self_attn.q_proj.bias": "bias",
    f"{LLAMA}self_attn.qkv_proj.weight": "qkv",
    f"{LLAMA}mlp.gate_up_proj.weight": "gate_up",
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
    # GPT-2, and nanoGPT
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "embedding",
    "transformer.h.0.ln_1.weight": "norm",
    "transformer.h.0.attn.c_attn.weight": "qkv",
    "transformer.h.0.attn.c_proj.weight": "o",
    "transformer.h.0.mlp.c_fc.weight": "up",
    "transformer.h.0.mlp.c_proj.weight": "down",
    "transformer.ln_f.weight": "norm",
    # ViT and BERT of Transformers
    "vit.embeddings.cls_token": "embedding",
    "vit.embeddings.patch_embeddings.projection.weight": "embedding",
    "vit.encoder.layer.3.attention.attention.query.weight": "q",
    "vit.encoder.layer.3.attention.output.dense.weight": "o",
    "vit.encoder.layer.3.intermediate.dense.weight": "up",
    "vit.encoder.layer.3.output.dense.weight": "down",
    "vit.encoder.layer.3.layernorm_before.weight": "norm",
    "classifier.weight": "head",
    "bert.embeddings.word_embeddings.weight": "embedding",
    "bert.embeddings.LayerNorm.weight": "norm",
    "bert.encoder.layer.0.attention.self.key.weight": "k",
    "bert.encoder.layer.0.attention.output.LayerNorm.bias": "bias",
    "bert.pooler.dense.weight": "head",
    # Mixtral, before and after Transformers stacked the experts
    f"{LLAMA}block_sparse_moe.gate.weight": "router",
    f"{LLAMA}mlp.gate.weight": "router",
    f"{LLAMA}block_sparse_moe.experts.3.w1.weight": "gate",
    f"{LLAMA}block_sparse_moe.experts.3.w2.weight": "down",
    f"{LLAMA}block_sparse_moe.experts.3.w3.weight": "up",
    f"{LLAMA}mlp.experts.gate_up_proj": "gate_up",
    f"{LLAMA}mlp.experts.down_proj": "down",
    # torch.nn.TransformerEncoder
    "layers.0.self_attn.in_proj_weight": "qkv",
    "layers.0.self_attn.in_proj_bias": "bias",
    "layers.0.self_attn.out_proj.weight": "o",
    "layers.0.linear1.weight": "up",
    "layers.0.linear2.weight": "down",
    "layers.0.norm1.weight": "norm",
    # timm
    "patch_embed.proj.weight": "embedding",
    "pos_embed": "embedding",
    "blocks.5.attn.qkv.weight": "qkv",
    "blocks.5.attn.proj.weight": "o",
    "blocks.5.mlp.fc1.weight": "up",
    "blocks.5.mlp.fc2.weight": "down",
    "blocks.5.norm1.weight": "norm",
    "head.weight": "head",
    "conv1.weight": "conv",
    "layer1.0.conv1.weight": "conv1",
    "layer1.0.conv2.weight": "conv2",
    "layer1.0.conv3.weight": "conv3",
    "layer1.0.downsample.0.weight": "downsample",
    "layer1.0.bn1.weight": "norm",
    "fc.weight": "head",
    # ResNet of Transformers
    "resnet.embedder.embedder.convolution.weight": "conv",
    "resnet.encoder.stages.0.layers.1.layer.0.convolution.weight": "conv1",
    "resnet.encoder.stages.0.layers.1.layer.2.convolution.weight": "conv3",
    "resnet.encoder.stages.0.layers.0.shortcut.convolution.weight": "downsample",
    "classifier.1.weight": "head",
    # Mamba, Qwen3-Next, Whisper, RoBERTa's head
    "backbone.layers.0.mixer.in_proj.weight": "in_proj",
    "backbone.layers.0.mixer.out_proj.weight": "out_proj",
    "backbone.layers.0.mixer.conv1d.weight": "conv",
    "backbone.layers.0.mixer.A_log": "ssm",
    "backbone.layers.0.mixer.dt_proj.weight": "ssm",
    "backbone.layers.0.mixer.dt_proj.bias": "bias",
    "model.layers.0.linear_attn.in_proj_qkvz.weight": "qkv",
    "model.layers.0.linear_attn.out_proj.weight": "o",
    "model.decoder.layers.0.encoder_attn.out_proj.weight": "o",
    "model.encoder.conv1.weight": "conv",
    "classifier.out_proj.weight": "head",
    # T5, torchtitan
    "encoder.block.0.layer.0.SelfAttention.q.weight": "q",
    "encoder.block.0.layer.0.SelfAttention.o.weight": "o",
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": "gate",
    "encoder.block.0.layer.1.DenseReluDense.wi_1.weight": "up",
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": "down",
    "decoder.block.0.layer.0.layer_norm.weight": "norm",
    "shared.weight": "embedding",
    "layers.0.attention.wq.weight": "q",
    "layers.0.attention.wo.weight": "o",
    "layers.0.feed_forward.w1.weight": "gate",
    "layers.0.feed_forward.w2.weight": "down",
    "layers.0.feed_forward.w3.weight": "up",
    "tok_embeddings.weight": "embedding",
    "output.weight": "head",
    "something": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_roles(name):
    one = name.endswith(("bias", "norm.weight", "norm1.weight", "LayerNorm.weight")) or any(
        part in name for part in ("ln_", "layernorm", "bn1", "layer_norm")
    )
    assert role_of(name, 1 if one else 2) == NAMES[name]
    assert NAMES[name] in ROLES


@pytest.mark.parametrize("part", ["embed", "_norm", "conv" + "1" * 50_000, "attn", "1a", "9", "."])
def test_long_names_take_no_longer(part):
    """Without a limit on components these take minutes; numbers of 5000 digits are no depth."""
    name = (part * (50_000 // len(part) + 1))[:50_000] + "!.weight"
    assert role_of(name, 2) in ROLES
    assert depth_of(f"layers.{'9' * 5000}.{name}").depth == ()


def test_what_vectors_and_convolutions_are():
    assert role_of("backbone.layers.0.mixer.dt_bias", 1) == "ssm"
    assert role_of("backbone.layers.0.mixer.D", 1) == "ssm"
    assert role_of("features.0.weight", 4) == "conv"
    assert role_of("features.0.weight", 2) == "other"


def test_roles_of_torchs_own_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    found = {name: role_of(name, p.dim()) for name, p in layer.named_parameters()}
    assert set(found.values()) == {"qkv", "o", "up", "down", "norm", "bias"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.mlp.up_proj.weight",
         Depth("model.layers", (3,), "mlp.up_proj.weight", "model.layers.*.mlp.up_proj.weight")),
        ("layers.3.experts.7.w1", Depth("layers", (3,), "experts.7.w1", "layers.*.experts.*.w1")),
        ("layers.1.blocks.4.norm", Depth("layers", (1, 4), "norm", "layers.*.blocks.*.norm")),
        ("layer2.1.conv1.weight", Depth("layer", (2, 1), "conv1.weight", "layer*.*.conv1.weight")),
        ("encoder.block.2.layer.1.wo", Depth("encoder.block", (2,), "layer.1.wo",
                                             "encoder.block.*.layer.1.wo")),
        ("layers.².weight", Depth("", (), "layers.².weight", "layers.².weight")),
        ("head.weight", Depth("", (), "head.weight", "head.weight")),
        ("classifier.1.weight", Depth("", (), "classifier.1.weight", "classifier.1.weight")),
    ],
)  # fmt: skip
def test_places(name, expected):
    assert depth_of(name) == expected
