"""Which FiTv2 released tensors belong to, told by their names and shapes.

Knows the names of FiTv2 (from the network itself); its relatives are `relatives.py`'s. Values are
never looked at. What shapes cannot say is taken from the named sizes: heads above all.

Dimension key: D width, F width of the MLP, K token channels, r rank of adaLN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from fit_models.config import HR_ROPE, NAMED_CONFIGS, ModelConfig, RopeConfig
from fit_models.families import NetworkConfig
from fit_models.networks.fitv2 import FiTv2

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_GLOBAL = "global_adaLN_modulation.1.weight"
_GATE = "blocks.0.mlp.fc1_g.weight"
_DOWN = "blocks.0.adaLN_modulation.1.weight"
_EMBEDDER = "x_embedder.proj.weight"
_LABELS = "y_embedder.embedding_table.weight"
_TELLING = (_EMBEDDER, _LABELS, _GLOBAL, _GATE, _DOWN)
_USUAL_MLP_RATIO = 4.0
_GUIDED_CHANNELS = 3  # of four, in every released model


@dataclass(frozen=True)
class Recognised:
    """A configuration, and the name of the size that it is, if it has one."""

    config: NetworkConfig
    size: str | None


def recognise(
    shapes: Shapes, latent_channels: int, num_heads: int | None = None, hr: bool = False
) -> Recognised:
    """Infer the configuration of a FiTv2 network from its tensors' shapes.

    Args:
        shapes: of all tensors, by name.
        latent_channels: of the autoencoder; the patch size follows from it.
        num_heads: None takes those of the named size with equal shapes.
        hr: the rotary embedding of the high-resolution models, whose shapes are their base's.

    Raises:
        ValueError: the tensors are another family's, contradict one another, or have the shapes of
            no named size and no `num_heads` is given.
    """
    _refuse_strangers(shapes)
    rope = HR_ROPE if hr else RopeConfig()
    wanted = _shape_config(shapes, latent_channels)
    named = {
        size: replace(config, num_classes=wanted.num_classes, rope=RopeConfig())
        for size, config in NAMED_CONFIGS.items()
        if config.rope == RopeConfig()
    }
    if num_heads is None:
        alike = [c.num_heads for c in named.values() if replace(c, num_heads=1) == wanted]
        if not alike:
            raise ValueError(
                f"num_heads: shapes do not tell, and no named size has hidden_size "
                f"{wanted.hidden_size}, depth {wanted.depth}, adaln_lora_dim "
                f"{wanted.adaln_lora_dim} and MLP width {wanted.mlp_hidden}; give --num-heads"
            )
        num_heads = alike[0]
    if num_heads < 1:
        raise ValueError(f"num_heads is {num_heads}; it must be at least 1")
    config = replace(wanted, num_heads=num_heads, rope=rope)
    size = next(
        (
            s
            for s, c in NAMED_CONFIGS.items()
            if replace(c, num_classes=config.num_classes) == config
        ),
        None,
    )
    return Recognised(config, size)


def _refuse_strangers(shapes: Shapes) -> None:
    known = {_BLOCK.sub("blocks.N.", name) for name in _names_of_fitv2()}
    strange = sorted(name for name in shapes if _BLOCK.sub("blocks.N.", name) not in known)
    if strange:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise ValueError(
            f"weights: not FiTv2, which has no {', '.join(map(repr, strange[:5]))}{more}; of other "
            "families say which with --config (fit-serve models lists them)"
        )
    if missing := [name for name in _TELLING if name not in shapes]:
        raise ValueError(f"weights: not a whole FiTv2; missing {', '.join(missing)}")


def _names_of_fitv2() -> list[str]:
    with torch.device("meta"):
        return list(FiTv2(NAMED_CONFIGS["FiTv2-toy/2"]).state_dict())


def _shape_config(shapes: Shapes, latent_channels: int) -> ModelConfig:
    """All that shapes tell; one head stands for the number that they do not."""
    for name in _TELLING:
        if len(shapes[name]) != 2 or min(shapes[name]) < 1:
            raise ValueError(f"weights: {name} has shape {list(shapes[name])}, not a matrix's")
    width, token_channels = shapes[_EMBEDDER]
    patch_size = math.isqrt(token_channels // latent_channels)
    if latent_channels * patch_size**2 != token_channels:
        raise ValueError(
            f"weights: tokens have {token_channels} channels, which are no square patches of the "
            f"autoencoder's {latent_channels} latent channels"
        )
    if shapes[_LABELS][0] < 2:
        raise ValueError(f"weights: {_LABELS} has {shapes[_LABELS][0]} rows; the last is no class")
    return ModelConfig(
        hidden_size=width,
        depth=_depth(shapes),
        num_heads=1,
        adaln_lora_dim=shapes[_DOWN][0],
        in_channels=latent_channels,
        patch_size=patch_size,
        num_classes=shapes[_LABELS][0] - 1,
        mlp_ratio=_mlp_ratio(width, shapes[_GATE][0]),
        guided_channels=min(_GUIDED_CHANNELS, latent_channels),
    )


def _depth(shapes: Shapes) -> int:
    blocks = {int(match[1]) for name in shapes if (match := _BLOCK.match(name))}
    if blocks != set(range(len(blocks))):
        absent = min(set(range(len(blocks))) - blocks)
        raise ValueError(f"weights: blocks up to {max(blocks)}, but there is no block {absent}")
    return len(blocks)


def _mlp_ratio(width: int, mlp_hidden: int) -> float:
    """The ratio whose two thirds are the MLP's width: the usual one if it fits."""
    least = -(-3 * mlp_hidden // 2)
    for ratio in (_USUAL_MLP_RATIO, least / width, math.nextafter(least / width, math.inf)):
        if int(width * ratio) * 2 // 3 == mlp_hidden:
            return ratio
    raise ValueError(f"weights: no mlp_ratio gives an MLP of {mlp_hidden} at width {width}")
