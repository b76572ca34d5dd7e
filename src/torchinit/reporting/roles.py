"""The role of a parameter, and its depth in the model: by its name."""

from __future__ import annotations

import re
from typing import NamedTuple

# In the order of the legend.
ROLES = (
    "embedding", "q", "k", "v", "qkv", "o", "up", "gate", "gate_up", "down", "router", "in_proj",
    "ssm", "out_proj", "conv1", "conv2", "conv3", "downsample", "conv", "norm", "bias", "head",
    "other",
)  # fmt: skip

# The first match counts, of the last components of a name, from the last one back.
_PATTERNS = [(role, re.compile(pattern, re.IGNORECASE)) for role, pattern in (
    ("norm", r"(.*_)?(rms|layer|batch|group)?_?norm\w*|ln(_?\w+)?|(q|k|input|post)_?(layer)?norm|"
             r"bn\d*|gamma|norm\d*|.*layernorm\w*|LayerNorm"),
    ("qkv", r"(c_attn|qkv\w*|w?qkv|query_key_value|in_proj_(weight|qkv\w*)|Wqkv|to_qkv|attn_qkv)"),
    ("gate_up", r"(gate_up_proj|gate_and_up|w13|w1_w3|wi_fused|gate_up)"),
    ("q", r"(q|wq|q_proj|q_lin|query|query_proj|to_q|q_proj_weight|q_[ab]_proj|SelfQuery)"),
    ("k", r"(k|wk|k_proj|k_lin|key|key_proj|to_k|k_proj_weight)"),
    ("v", r"(v|wv|v_proj|v_lin|value|value_proj|to_v|v_proj_weight)"),
    ("o", r"(o|wo_attn|o_proj|out_lin|to_out|attn_out|dense_o)"),
    ("gate", r"(gate_proj|w1|wi_0|fc1_g|linear_v|wg)"),
    ("up", r"(up_proj|c_fc|fc1|fc_in|w3|wi|wi_1|lin1|linear1|linear_1|dense_h_to_4h|intermediate|"
           r"fc1_x)"),
    ("down", r"(down_proj|fc2|fc_out|w2|lin2|linear2|linear_2|dense_4h_to_h)"),
    ("router", r"(router|gate|w?gate_network)"),
    ("head", r"(lm_head|head|heads|classifier|score|fc|output|output_projection|pooler|predictions|"
             r"decoder|cls|qa_outputs|logits?|embed_out)"),
    ("embedding", r"(wte|wpe|\w*embed\w*|shared|tok_embeddings|pos_embed|cls_token|\w*_token|"
                  r"relative_attention_bias|relative_position_bias_table|patch_embed\w*|emb)"),
    ("downsample", r"(conv_)?(downsample|shortcut)"),
    *((f"conv{n}", rf"conv_?{n}") for n in "123"),
    ("conv", r"(conv\d*\w*|\w*_conv)"),
)]  # fmt: skip
_ATTENTION = re.compile(r"(\w*_|self|cross|enc_?dec)?att(n|ention)?\w*", re.IGNORECASE)
# What a state-space layer has besides its projections.
_SSM = ("A_log", "D", "dt_bias", "dt_proj", "x_proj")
_IN_BLOCKS = ("conv1", "conv2", "conv3", "downsample")
_NUMBERED = re.compile(r"((layer|stage|block)s?_?)?\d{1,9}")
# Modules whose numbers are no layers.
_HEAD = re.compile(r"(lm_)?heads?|classifier|fc|score")
_NESTED = (["blocks"], ["layers"], ["block"])
# Characters of a component that are looked at: some patterns take cubic time.
_LONGEST = 64


class Depth(NamedTuple):
    """Where in the depth of a model a parameter is.

    Attributes:
        stack: the components before the first number, which counts its layers; empty without one.
        depth: that number, and a second one for a stack in a stack; empty without one.
        rest: the components after the numbers.
        pattern: the name with ``*`` for the numbers of its depth and expert: the same for siblings.
    """

    stack: str
    depth: tuple[int, ...]
    rest: str
    pattern: str


def depth_of(name: str) -> Depth:
    """The depth of a parameter of this name.

    >>> depth_of("model.layers.3.mlp.experts.7.w1.weight")
    Depth(stack='model.layers', depth=(3,), rest='mlp.experts.7.w1.weight', \
pattern='model.layers.*.mlp.experts.*.w1.weight')
    """
    components = name.split(".")
    first = next((i for i, part in enumerate(components) if _NUMBERED.fullmatch(part)), None)
    if first is None or _HEAD.fullmatch("".join(components[max(first - 1, 0) : first])):
        return Depth("", (), name, name)
    second = first + 1  # of layer1.0
    if components[first].isdecimal():  # of layers.1.blocks.0
        second = first + 2 if components[first + 1 : first + 2] in _NESTED else len(components)
    is_number = second < len(components) and re.fullmatch(r"\d{1,9}", components[second])
    last = second if is_number else first
    stack = [*components[:first], re.sub(r"_?\d+$", "", components[first])]
    pattern = [
        re.sub(r"\d+", "*", part)
        if i <= last or (part.isdecimal() and "expert" in components[i - 1])
        else part
        for i, part in enumerate(components)
    ]
    return Depth(
        ".".join(stack).removesuffix("."),
        tuple(int(re.sub(r"\D", "", components[i])) for i in sorted({first, last})),
        ".".join(components[last + 1 :]),
        ".".join(pattern),
    )


def role_of(name: str, dimensions: int) -> str:
    """The role of a parameter.

    Args:
        name: of the parameter, or of a part of one.
        dimensions: their number.

    >>> role_of("transformer.h.0.attn.c_attn.weight", 2), role_of("model.norm.weight", 1)
    ('qkv', 'norm')
    """
    components = name.split(".")
    last = components[-1]
    if last in ("running_mean", "running_var", "num_batches_tracked"):
        return "norm"
    in_layer = bool(depth_of(name).depth)
    if in_layer and last in _SSM:
        return "ssm"
    if last == "bias" or (last.endswith("_bias") and dimensions == 1):
        return "bias"
    if last in ("weight", "original", "weight_v", "original0", "original1"):
        components = components[:-1]
    numbered = components[-2:]
    components = [part for part in components if not part.isdecimal()] or components[-1:]
    components = [part[:_LONGEST] for part in components]
    if components and dimensions > 1 and (role := _in_context(components, name, in_layer)):
        return role
    if dimensions < 2:
        possible = {"norm", "embedding"}
    else:  # a layer has no head, and a stem no second convolution
        possible = set(ROLES) - {"norm", *(("head",) if in_layer else _IN_BLOCKS)}
        if in_layer and numbered[-1:] == ["convolution"] and numbered[0] in ("0", "1", "2"):
            return f"conv{int(numbered[0]) + 1}"  # of Transformers' ResNet
    for component in reversed(components[-3:]):
        for role, pattern in _PATTERNS:
            if role in possible and pattern.fullmatch(component):
                return role
    if dimensions > 3:
        return "conv"
    return "norm" if dimensions == 1 and last in ("weight", "scale") else "other"


def _in_context(components: list[str], name: str, in_layer: bool) -> str | None:
    """The role of names that mean one thing in attention and another elsewhere."""
    last, is_attention = components[-1], any(map(_ATTENTION.fullmatch, components))
    if last in ("in_proj", "out_proj"):
        if is_attention:
            return "qkv" if last == "in_proj" else "o"
        return last if in_layer else None
    if in_layer and last in _SSM:
        return "ssm"
    if in_layer and components[-2:-1] == ["shortcut"]:
        return "downsample"
    if last in ("c_proj", "proj", "dense", "wo", "out", "to_out", "output", "Wo"):
        if is_attention or "SelfAttention" in name or "EncDecAttention" in name:
            return "o"
        if last == "dense" and "intermediate" in components:
            return "up"
        if last == "dense" and "pooler" in components:
            return "head"
        if last in ("c_proj", "wo", "Wo") or (last == "dense" and "output" in components):
            return "down"
        if last == "proj" and any("patch" in part for part in components):
            return "embedding"
    if last == "gate" and "expert" not in name and "shared" not in name:
        return "router"
    if last in ("w1", "w2", "w3") and not is_attention:
        return {"w1": "gate", "w2": "down", "w3": "up"}[last]
    if last in ("projection", "word_embeddings") and any("embed" in part for part in components):
        return "embedding"
    return None
