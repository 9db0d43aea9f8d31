"""What Lumina-T2I is made of, its one released size, and where that is.

Knows numbers, and the tables of grids whose rows end with a token of their own; not layers.
Sources: Lumina-T2X (arXiv:2405.05945) and the code of Alpha-VLLM/Lumina-T2X (lumina_t2i).

Dimension key: N tokens of a grid, E head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.networks.lumina_config import LuminaTextConfig, check_sides
from fit_models.networks.lumina_positions import RopeScaling, line_tables
from fit_models.released.release import Release

LONGEST_LINE = 40_000  # tokens, line ends included: the end of the original's rotary table


@dataclass(frozen=True, kw_only=True)
class LuminaT2IConfig(LuminaTextConfig):
    """A Lumina-T2I (arXiv:2405.05945); it predicts data minus noise at t in [0, 1], 0 is noise.

    `flops_per_token` counts the tokens of the picture; the network adds one for each of its rows.

    Attributes:
        rope_interpolation: positions are divided by it, whatever the size.
        rope_base_factor: the base of the rotary frequencies is multiplied by it; None for the
            ratio of a picture's area to the trained one, where that is above 1.
    """

    rope_interpolation: float = 1.0
    rope_base_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rope_interpolation", "rope_base_factor"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"{name} is {value}; it must be above 0")


def check_size(rows: int, columns: int, config: LuminaT2IConfig) -> None:
    """Any grid whose tokens and line ends fit the rotary table will do.

    Raises:
        ValueError: the grid has no tokens or reaches beyond the table.
    """
    check_sides(rows, columns, config, LONGEST_LINE)
    if (tokens := rows * (columns + 1)) > LONGEST_LINE:
        raise ValueError(
            f"a grid of {rows}x{columns} has {tokens} tokens with its line ends; there are "
            f"positions for {LONGEST_LINE}: take fewer rows or columns"
        )


def position_tables(rows: int, columns: int, config: LuminaT2IConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's place, line ends counted but not listed, fp32 [N, E/2]."""
    places = _places(rows, columns)[:, :columns].flatten()
    return line_tables(places, config.head_dim, scaling_of(rows, columns, config))


def line_end_tables(rows: int, columns: int, config: LuminaT2IConfig) -> tuple[Tensor, Tensor]:
    """The same of the line ends, fp32 [rows, E/2]."""
    places = _places(rows, columns)[:, columns]
    return line_tables(places, config.head_dim, scaling_of(rows, columns, config))


def scaling_of(rows: int, columns: int, config: LuminaT2IConfig) -> RopeScaling:
    """How tables of a grid are stretched: NTK-aware, by area, as the released demo does."""
    factor = config.rope_base_factor
    if factor is None:
        factor = max(rows * columns / config.trained_side**2, 1.0)
    return RopeScaling(config.rope_interpolation, factor)


def _places(rows: int, columns: int) -> Tensor:
    """Places in reading order, [rows, columns + 1]: the last column is that of the line ends."""
    return torch.arange(rows * (columns + 1)).view(rows, columns + 1)


NAMED_LUMINA_T2I_CONFIGS: dict[str, LuminaT2IConfig] = {
    "Lumina-T2I-5B": LuminaT2IConfig(
        hidden_size=3072,
        depth=32,
        num_heads=32,
        caption_channels=4096,  # LLaMA2-7B, its last hidden state
        # (1024/16)^2 + 2 (1024/16), as the released demo counts; the true length is 4160.
        proportional_base=4224,
    ),
}

RELEASES = (
    Release(
        name="Lumina-T2I",
        files=(
            "consolidated_ema.00-of-01.pth",
        ),  # by the authors' scheme; the listing was not seen
        size_bytes=None,  # 5,046,643,744 values: about 20.2 GB in fp32
        licence="not confirmed; the code is MIT, the text encoder (LLaMA2) has terms of its own",
        source="huggingface.co/Alpha-VLLM/Lumina-T2I",
        config_name="Lumina-T2I-5B",
    ),
)
