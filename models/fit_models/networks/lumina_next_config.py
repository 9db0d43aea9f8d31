"""What a Lumina-Next is made of, the sizes that have a name, and what was released.

Knows numbers, and how rotary tables follow size and time; not layers or files.
Sources: Lumina-Next (arXiv:2406.18583) and the code of Alpha-VLLM/Lumina-T2X (lumina_next_t2i).

Dimension key: N tokens of a grid, E head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fit_models.networks.lumina_config import LuminaTextConfig, check_sides
from fit_models.networks.lumina_positions import (
    UNSCALED,
    RopeScaling,
    grid_tables,
    time_aware_scaling,
)
from fit_models.released.release import Release

LONGEST_SIDE = 384  # tokens: the end of the original's rotary table


@dataclass(frozen=True, kw_only=True)
class LuminaNextConfig(LuminaTextConfig):
    """A Lumina-Next (arXiv:2406.18583); it predicts data minus noise at t in [0, 1], 0 is noise.

    Attributes:
        watershed: t at which rotary tables of pictures larger than those of training change from
            interpolated positions to a larger base.
    """

    watershed: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.watershed <= 1.0:
            raise ValueError(f"watershed is {self.watershed}; it must be in [0, 1]")


def check_size(rows: int, columns: int, config: LuminaNextConfig) -> None:
    """Any grid within the rotary table will do; up to twice the trained side it was shown to work.

    Raises:
        ValueError: the grid has no tokens or reaches beyond the table.
    """
    check_sides(rows, columns, config, LONGEST_SIDE)


def scaling_at(rows: int, columns: int, config: LuminaNextConfig, timestep: float) -> RopeScaling:
    """How tables of a grid are stretched at a time; nothing up to the trained area.

    A sequence has two tables at most in its life, so they can be kept by (grid, scaling).

    Args:
        rows, columns: tokens.
        config: of the network.
        timestep: t of the sequence, 0 is noise.
    """
    stretch = math.sqrt(rows * columns) / config.trained_side
    if stretch <= 1.0:
        return UNSCALED
    return time_aware_scaling(stretch, config.watershed, timestep)


def position_tables(
    rows: int, columns: int, config: LuminaNextConfig, scaling: RopeScaling = UNSCALED
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's row and column, fp32 [N, E/2], of `scaling_at`."""
    return grid_tables(rows, columns, config.head_dim, scaling)


NAMED_LUMINA_NEXT_CONFIGS: dict[str, LuminaNextConfig] = {
    "Lumina-Next-2B": LuminaNextConfig(
        hidden_size=2304,
        depth=24,
        num_heads=32,
        num_kv_heads=8,
        caption_channels=2048,  # Gemma-2B, its second-to-last hidden state
        proportional_base=4096,
    ),
    # In the code, never released: a key head for every query head.
    "Lumina-Next-2B-MHA": LuminaNextConfig(
        hidden_size=2304, depth=24, num_heads=32, caption_channels=2048, proportional_base=4096
    ),
}

_BYTES = 6_510_000_000  # as the hub rounds it: 1,627,386,400 fp32 values

_ENCODER_TERMS = "Apache-2.0; the text encoder (Gemma) has terms of its own"

RELEASES = (
    Release(
        name="Lumina-Next-T2I",
        files=("consolidated_ema.00-of-01.safetensors",),
        size_bytes=_BYTES,
        licence=_ENCODER_TERMS,
        source="huggingface.co/Alpha-VLLM/Lumina-Next-T2I",
        config_name="Lumina-Next-2B",
    ),
    Release(
        name="Lumina-Next-SFT",
        files=("consolidated_ema.00-of-01.safetensors",),
        size_bytes=_BYTES,
        licence=_ENCODER_TERMS,
        source="huggingface.co/Alpha-VLLM/Lumina-Next-SFT",
        config_name="Lumina-Next-2B",
    ),
    Release(
        name="Lumina-Next-SFT-diffusers",
        files=("transformer",),  # names of diffusers' own: `lumina_next_diffusers` leads back
        size_bytes=None,
        licence=_ENCODER_TERMS,
        source="huggingface.co/Alpha-VLLM/Lumina-Next-SFT-diffusers",
        config_name="Lumina-Next-2B",
    ),
)
