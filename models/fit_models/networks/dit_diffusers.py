"""DiT's weights out of the layout of diffusers' port, and the port's config as ours.

Knows the names in `DiTTransformer2DModel` (older files: `Transformer2DModel`); not files. The port
keeps a copy of the timestep and label embedders in every block and conditions each block by its
own; released files hold equal copies, and others are refused, since one network has one. The port
computes two things otherwise than the original (`fit_models.networks.dit_config.as_diffusers`).

Dimension key: D width, N tokens of the trained grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fit_models.networks.dit_config import DiTConfig, as_diffusers
from fit_models.sincos import sincos_table

PORT_MARK = "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight"

# Without ".weight" and ".bias", which every one of these has.
_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_IN_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_COPIED = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
_JOINED = ("attn1.to_q", "attn1.to_k", "attn1.to_v")  # one after another in `attn.qkv`
_BLOCK = re.compile(r"^transformer_blocks\.(\d+)\.(.+)$")


def config_of_diffusers(values: Mapping[str, Any]) -> DiTConfig:
    """Our config of a network that the port's `config.json` describes.

    Raises:
        ValueError: something is needed and missing, or is of another kind of network.
    """
    wanted = {
        "norm_type": "ada_norm_zero",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "norm_elementwise_affine": False,
    }
    for key, value in wanted.items():
        if values.get(key, value) != value:
            raise ValueError(f"transformer: {key} is {values[key]!r}; DiT has {value!r}")
    try:
        heads, head_dim = values["num_attention_heads"], values["attention_head_dim"]
        in_channels, patch_size = values["in_channels"], values["patch_size"]
        config = DiTConfig(
            hidden_size=heads * head_dim,
            depth=values["num_layers"],
            num_heads=heads,
            in_channels=in_channels,
            patch_size=patch_size,
            num_classes=values["num_embeds_ada_norm"],
            learned_variance=values.get("out_channels") == 2 * in_channels,
            trained_grid=values["sample_size"] // patch_size,
            guided_channels=in_channels,
        )
    except KeyError as error:
        raise ValueError(f"transformer: config.json of a DiT needs {error}") from error
    return as_diffusers(config)


def weights_of_diffusers(stored: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The same weights under the original's names, position table included.

    Args:
        stored: the port's state dict.
        config: for the position table, which the port does not store.

    Raises:
        ValueError: a name is unknown, or the blocks' copies of an embedder are not equal.
    """
    weights: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        stem, kind = name.rsplit(".", 1)
        match = _BLOCK.match(stem)
        if stem in _ENDS:
            weights[f"{_ENDS[stem]}.{kind}"] = tensor
        elif match and match[2] in _IN_BLOCK:
            weights[f"blocks.{match[1]}.{_IN_BLOCK[match[2]]}.{kind}"] = tensor
        elif match and match[2] in _JOINED:
            joined = f"blocks.{match[1]}.attn.qkv.{kind}"
            projections.setdefault(joined, {})[match[2]] = tensor
        elif match and match[2] in _COPIED:
            _take_copy(weights, f"{_COPIED[match[2]]}.{kind}", tensor, name)
        elif name != "pos_embed.pos_embed":  # some versions store the table
            raise ValueError(f"weights: {name!r} is not in diffusers' DiT")
    for name, parts in projections.items():
        if missing := [part for part in _JOINED if part not in parts]:
            raise ValueError(f"weights: {name} has no {', '.join(missing)}")
        weights[name] = torch.cat([parts[part] for part in _JOINED])
    grid = config.trained_grid
    weights["pos_embed"] = sincos_table(grid, grid, config.hidden_size)[None]
    return weights


def _take_copy(weights: dict[str, Tensor], name: str, copy: Tensor, stored_as: str) -> None:
    """Keep the first copy of an embedder's tensor and compare the others with it."""
    kept = weights.setdefault(name, copy)
    if kept is not copy and not torch.equal(kept, copy):
        raise ValueError(
            f"weights: {stored_as} differs from the first block's copy; blocks with embedders of "
            "their own are not one DiT"
        )
