"""Lumina-Next's tensors under the names of diffusers' copy of it, and back.

That copy (`LuminaNextDiT2DModel`) keeps the query projection of each block twice, once for
self-attention and once for text: one is dropped here after a look that both are equal. Names only;
how its pipeline behaves otherwise (rotary tables stretched at every size) is not imitated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

LUMINA_PORT_MARK = "patch_embedder.proj.weight"
"""The name by which the copy is told from the original."""
_ENDS = {
    "patch_embedder.proj": "x_embedder",
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_caption_embed.caption_embedder": "cap_embedder",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
    "pad_token": "pad_token",
}
_BLOCK = {
    "gate": "attention.gate",
    "attn1.to_q": "attention.wq",
    "attn1.to_k": "attention.wk",
    "attn1.to_v": "attention.wv",
    "attn1.norm_q": "attention.q_norm",
    "attn1.norm_k": "attention.k_norm",
    "attn2.to_k": "attention.wk_y",
    "attn2.to_v": "attention.wv_y",
    "attn2.norm_k": "attention.ky_norm",
    "attn2.to_out.0": "attention.wo",
    "norm1.norm": "attention_norm1",
    "norm1.linear": "adaLN_modulation.1",
    "norm1_context": "attention_y_norm",
    "norm2": "attention_norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
}
_TWICE = {"attn2.to_q": "attn1.to_q", "attn2.norm_q": "attn1.norm_q"}
_LAYER = re.compile(r"layers\.\d+\.")


def official_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of diffusers' copy under the names of the original files.

    Raises:
        ValueError: a name is unknown, or two copies of one projection differ.
    """
    official = {}
    for name, tensor in state.items():
        prefix, inner = _split(name)
        if twin := _renamed(inner, _TWICE):
            if prefix + twin not in state or not torch.equal(tensor, state[prefix + twin]):
                raise ValueError(f"weights: {name} is not the same as {prefix + twin}")
            continue
        official[official_name(name)] = tensor
    return official


def official_name(name: str) -> str:
    """The original's name of one tensor of diffusers' copy.

    Raises:
        ValueError: it is unknown.
    """
    prefix, inner = _split(name)
    if renamed := _renamed(inner, _BLOCK if prefix else _ENDS):
        return prefix + renamed
    raise ValueError(f"weights: {name} is no tensor of diffusers' Lumina-Next")


def diffusers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `official_state`, for export: query projections twice again.

    Raises:
        ValueError: a name is unknown.
    """
    back_block = {ours: theirs for theirs, ours in _BLOCK.items()}
    back_ends = {ours: theirs for theirs, ours in _ENDS.items()}
    twins = {theirs: twin for twin, theirs in _TWICE.items()}
    diffusers = {}
    for name, tensor in state.items():
        prefix, inner = _split(name)
        renamed = _renamed(inner, back_block if prefix else back_ends)
        if renamed is None:
            raise ValueError(f"weights: {name} is no tensor of Lumina-Next")
        diffusers[prefix + renamed] = tensor
        if prefix and (twin := _renamed(renamed, twins)):
            diffusers[prefix + twin] = tensor
    return diffusers


def _split(name: str) -> tuple[str, str]:
    """The block a tensor belongs to, "layers.3.", or nothing; and the rest of its name."""
    match = _LAYER.match(name)
    return (match.group(), name[match.end() :]) if match else ("", name)


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    """A name with its module's part exchanged: whole, or all before the last one or two words."""
    for words in range(3):
        head, tail = _cut(name, words)
        if head in names:
            return names[head] + tail
    return None


def _cut(name: str, words: int) -> tuple[str, str]:
    parts = name.split(".")
    if words >= len(parts):
        return "", ""
    kept = parts[: len(parts) - words]
    return ".".join(kept), name[len(".".join(kept)) :]
