"""Which relative of FiTv2 released tensors belong to: FiT v1, DiT or SiT.

Knows names and shapes, which is all these families differ in but for one thing: SiT has DiT's
shapes, so a person must say that weights predict a velocity.

Dimension key: D width, F width of the MLP, C latent channels, N positions of the trained grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fit_models.config import HR_ROPE, RopeConfig
from fit_models.networks.dit_config import NAMED_DIT_CONFIGS, DiTConfig, as_diffusers
from fit_models.networks.fitv1_config import NAMED_FITV1_CONFIGS, FiTv1Config

Shapes = Mapping[str, tuple[int, ...]]

_EMBEDDER = "x_embedder.proj.weight"
_LABELS = "y_embedder.embedding_table.weight"
_ADALN = "blocks.0.adaLN_modulation.1.weight"
_GATE = "blocks.0.mlp.fc1_g.weight"
_FC1 = "blocks.0.mlp.fc1.weight"
_END = "final_layer.linear.weight"
_POSITIONS = "pos_embed"


def is_fitv1(shapes: Shapes) -> bool:
    """A gated MLP, and a full adaLN in every block."""
    adaln = shapes.get(_ADALN, ())
    return _GATE in shapes and len(adaln) == 2 and adaln[0] == 6 * adaln[1]


def is_dit(shapes: Shapes) -> bool:
    """A plain MLP, joined projections, and a stored table of positions."""
    return all(name in shapes for name in (_FC1, "blocks.0.attn.qkv.weight", _POSITIONS))


def fitv1_config(
    shapes: Shapes, latent_channels: int, num_heads: int | None, hr: bool
) -> tuple[FiTv1Config, str | None]:
    """Infer the configuration of a FiT, and the name of its size if it has one.

    Raises:
        ValueError: tensors are missing or contradict one another, or heads are not told.
    """
    _need(shapes, (_EMBEDDER, _LABELS, _ADALN, _GATE, _END), "FiT")
    width, token_channels = shapes[_EMBEDDER]
    patch_size = _patch_size(token_channels, latent_channels)
    config = FiTv1Config(
        hidden_size=width,
        depth=_depth(shapes),
        num_heads=1,
        in_channels=latent_channels,
        patch_size=patch_size,
        num_classes=shapes[_LABELS][0] - 1,
        mlp_ratio=shapes[_GATE][0] / width,
        learned_variance=_has_variance(shapes, token_channels),
        guided_channels=min(3, latent_channels),
        rope=HR_ROPE if hr else RopeConfig(),
    )
    named = {
        size: replace(each, num_classes=config.num_classes, rope=config.rope)
        for size, each in NAMED_FITV1_CONFIGS.items()
    }
    heads = _heads([c.num_heads for c in named.values() if _same(c, config)], num_heads, width)
    config = replace(config, num_heads=heads)
    return config, next((size for size, each in named.items() if each == config), None)


def dit_config(
    shapes: Shapes, latent_channels: int, num_heads: int | None, prediction: str, port: bool
) -> tuple[DiTConfig, str | None]:
    """Infer the configuration of a DiT or SiT, and the name of its size if it has one.

    Args:
        shapes: under the original's names.
        latent_channels: of the autoencoder.
        num_heads: None takes those of the named size with equal shapes.
        prediction: "noise" (DiT) or "velocity" (SiT).
        port: whether the weights come from diffusers' port, which computes two things otherwise.

    Raises:
        ValueError: tensors are missing or contradict one another, or heads are not told.
    """
    _need(shapes, (_EMBEDDER, _LABELS, _FC1, _END, _POSITIONS), "DiT")
    width, channels, patch_size = shapes[_EMBEDDER][:3]
    if channels != latent_channels:
        raise ValueError(
            f"weights: {_EMBEDDER} takes {channels} channels; the autoencoder has {latent_channels}"
        )
    grid = math.isqrt(shapes[_POSITIONS][1])
    config = DiTConfig(
        hidden_size=width,
        depth=_depth(shapes),
        num_heads=1,
        in_channels=channels,
        patch_size=patch_size,
        num_classes=shapes[_LABELS][0] - 1,
        mlp_ratio=shapes[_FC1][0] / width,
        learned_variance=_has_variance(shapes, channels * patch_size**2),
        prediction=prediction,
        trained_grid=grid,
        guided_channels=min(3, channels),
    )
    if port:
        config = as_diffusers(config)
    named = {
        size: replace(each, num_classes=config.num_classes)
        for size, each in NAMED_DIT_CONFIGS.items()
    }
    alike = [c.num_heads for c in named.values() if c.hidden_size == width]
    config = replace(config, num_heads=_heads(alike, num_heads, width))
    return config, next((size for size, each in named.items() if each == config), None)


def _same(named: FiTv1Config, found: FiTv1Config) -> bool:
    return replace(named, num_heads=1) == found


def _need(shapes: Shapes, names: Sequence[str], family: str) -> None:
    if missing := [name for name in names if name not in shapes]:
        raise ValueError(f"weights: not a whole {family}; missing {', '.join(missing)}")


def _has_variance(shapes: Shapes, token_channels: int) -> bool:
    rows = shapes[_END][0]
    if rows not in (token_channels, 2 * token_channels):
        raise ValueError(
            f"weights: {_END} has {rows} rows; tokens of {token_channels} channels need as many "
            "or twice as many"
        )
    return rows == 2 * token_channels


def _patch_size(token_channels: int, latent_channels: int) -> int:
    patch_size = math.isqrt(token_channels // latent_channels)
    if latent_channels * patch_size**2 != token_channels:
        raise ValueError(
            f"weights: tokens have {token_channels} channels, which are no square patches of the "
            f"autoencoder's {latent_channels} latent channels"
        )
    return patch_size


def _heads(alike: Sequence[int], num_heads: int | None, width: int) -> int:
    if num_heads is None:
        if not alike:
            raise ValueError(
                f"num_heads: shapes do not tell, and no named size has hidden_size {width}; "
                "give --num-heads"
            )
        return alike[0]
    if num_heads < 1:
        raise ValueError(f"num_heads is {num_heads}; it must be at least 1")
    return num_heads


def _depth(shapes: Shapes) -> int:
    blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")}
    if blocks != set(range(len(blocks))):
        absent = min(set(range(len(blocks))) - blocks)
        raise ValueError(f"weights: blocks up to {max(blocks)}, but there is no block {absent}")
    return len(blocks)
