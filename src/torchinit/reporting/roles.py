"""The role of a parameter, and its depth in the model: by its name."""

from __future__ import annotations

import re
from typing import NamedTuple

# In the order of the legend.
ROLES = (
    "embedding", "q", "k", "v", "qkv", "o", "up", "gate", "gate_up", "down", "router", "conv",
    "norm", "bias", "head", "other",
)  # fmt: skip

# The first match counts, of the last components of a name, from the last one back.
_ATOMS: tuple[tuple[str, str], ...] = (
    ("norm", r"(.*_)?(rms|layer|batch|group)?_?norm\w*|ln(_?\w+)?|(q|k|input|post)_?(layer)?norm|"
             r"bn\d*|gamma|norm\d*|.*layernorm\w*|LayerNorm"),
    ("qkv", r"(c_attn|qkv\w*|w?qkv|query_key_value|in_proj|in_proj_weight|Wqkv|to_qkv|attn_qkv)"),
    ("gate_up", r"(gate_up_proj|gate_and_up|w13|w1_w3|wi_fused|gate_up)"),
    ("q", r"(q|wq|q_proj|q_lin|query|query_proj|to_q|q_proj_weight|q_[ab]_proj|SelfQuery)"),
    ("k", r"(k|wk|k_proj|k_lin|key|key_proj|to_k|k_proj_weight)"),
    ("v", r"(v|wv|v_proj|v_lin|value|value_proj|to_v|v_proj_weight)"),
    ("o", r"(o|wo_attn|o_proj|out_proj|out_lin|to_out|attn_out|dense_o)"),
    ("gate", r"(gate_proj|w1|wi_0|fc1_g|linear_v|wg)"),
    ("up", r"(up_proj|c_fc|fc1|fc_in|w3|wi|wi_1|lin1|linear1|linear_1|dense_h_to_4h|intermediate|"
           r"fc1_x)"),
    ("down", r"(down_proj|fc2|fc_out|w2|lin2|linear2|linear_2|dense_4h_to_h)"),
    ("router", r"(router|gate|w?gate_network)"),
    ("head", r"(lm_head|head|heads|classifier|score|fc|output|output_projection|pooler|predictions|"
             r"decoder|cls|qa_outputs|logits?|embed_out)"),
    ("embedding", r"(wte|wpe|\w*embed\w*|shared|tok_embeddings|pos_embed|cls_token|\w*_token|"
                  r"relative_attention_bias|relative_position_bias_table|patch_embed\w*|emb)"),
    ("conv", r"(conv\d*\w*|downsample|\w*_conv)"),
)  # fmt: skip
_COMPILED = [(role, re.compile(pattern, re.IGNORECASE)) for role, pattern in _ATOMS]
_ATTENTION = re.compile(r"(self_?|cross_?|enc_?dec_?)?att(n|ention)?\w*", re.IGNORECASE)
_NUMBERED = re.compile(r"(layer|stage|block)s?_?(\d+)")
_STACKS = {"blocks", "block", "layers", "layer", "h", "stages", "stage", "resblocks", "encoder"}


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
    atoms = name.split(".")
    first = next((i for i, atom in enumerate(atoms) if _number(atom) is not None), None)
    if first is None:
        return Depth("", (), name, name)
    depth = [_number(atoms[first])]
    last = first
    following = atoms[first + 1 : first + 3]
    whole = atoms[first].isdecimal()
    if whole and len(following) == 2 and following[0] in ("blocks", "layers", "block"):
        if following[1].isdecimal():
            last, depth = first + 2, [*depth, int(following[1])]
    elif not whole and following and following[0].isdecimal():
        last, depth = first + 1, [*depth, int(following[0])]
    stack = atoms[:first] if whole else [*atoms[:first], re.sub(r"_?\d+$", "", atoms[first])]
    pattern = [re.sub(r"\d+", "*", atom) if i <= last else atom for i, atom in enumerate(atoms)]
    for i in range(last + 1, len(atoms)):
        if atoms[i].isdecimal() and "expert" in atoms[i - 1]:
            pattern[i] = "*"
    return Depth(
        ".".join(stack), tuple(n for n in depth if n is not None),
        ".".join(atoms[last + 1 :]), ".".join(pattern),
    )  # fmt: skip


def _number(atom: str) -> int | None:
    """The number that a component is, or ends with as ``layer1`` does."""
    if atom.isdecimal():
        return int(atom)
    found = _NUMBERED.fullmatch(atom)
    return int(found[2]) if found else None


def role_of(name: str, dimensions: int) -> str:
    """The role of a parameter.

    Args:
        name: of the parameter, or of a part of one.
        dimensions: their number.

    >>> role_of("transformer.h.0.attn.c_attn.weight", 2), role_of("model.norm.weight", 1)
    ('qkv', 'norm')
    """
    atoms = name.split(".")
    last = atoms[-1]
    in_block = depth_of(name).depth != ()
    if last == "bias" or (last.endswith("_bias") and dimensions == 1):
        return "bias"
    if last in ("weight", "original", "weight_v", "original0", "original1"):
        atoms = atoms[:-1]
    atoms = [atom for atom in atoms if not atom.isdecimal()] or atoms[-1:]
    attention = any(_ATTENTION.fullmatch(atom) for atom in atoms)
    if atoms and dimensions > 1 and (role := _in_context(atoms, attention, name)):
        return role
    for atom in reversed(atoms[-3:]):
        for role, pattern in _COMPILED:
            if role == "head" and (in_block or dimensions < 2):
                continue
            if role == "norm" and dimensions > 1:
                continue
            if role not in ("norm", "embedding") and dimensions < 2:
                continue
            if pattern.fullmatch(atom):
                return role
    return "norm" if dimensions == 1 and last in ("weight", "scale") else "other"


def _in_context(atoms: list[str], attention: bool, name: str) -> str | None:
    """The role of names that mean one thing in attention and another elsewhere."""
    last = atoms[-1]
    expert = "expert" in name
    if last in ("c_proj", "proj", "dense", "wo", "out", "to_out", "output", "Wo"):
        if attention or "SelfAttention" in name or "EncDecAttention" in name:
            return "o"
        if last == "dense" and "intermediate" in atoms:
            return "up"
        if last == "dense" and "pooler" in atoms:
            return "head"
        if last in ("c_proj", "wo", "Wo") or (last == "dense" and "output" in atoms):
            return "down"
        if last == "wo":
            return "o"
        if last == "proj" and any("patch" in atom for atom in atoms):
            return "embedding"
    if last == "gate" and not expert and "shared" not in name:
        return "router"
    if last in ("w1", "w2", "w3") and not attention:
        return {"w1": "gate", "w2": "down", "w3": "up"}[last]
    if last in ("projection", "word_embeddings") and any("embed" in a for a in atoms):
        return "embedding"
    return None
