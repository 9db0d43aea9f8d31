"""What a class-conditional Next-DiT is made of, the sizes that have a name, and what was released.

Its checkpoints have Flag-DiT's keys, but four vectors of adaLN a block instead of six. Knows
numbers; not layers or files. Sources: Lumina-Next (arXiv:2406.18583) and the code of
Alpha-VLLM/Lumina-T2X (Next-DiT-ImageNet).

Dimension key: N tokens of a grid, E head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fit_models.networks.lumina_config import LuminaConfig, check_sides
from fit_models.networks.lumina_positions import RopeScaling, grid_tables
from fit_models.released.release import Release

LONGEST_SIDE = 384  # tokens: the end of the original's rotary table


@dataclass(frozen=True, kw_only=True)
class NextDiTConfig(LuminaConfig):
    """A class-conditional Next-DiT; it predicts data minus noise at t in [0, 1], 0 is noise.

    Attributes:
        num_classes: labels; label `num_classes` is the null label of guidance.
        rope_interpolation: positions are divided by it, for pictures larger than those of training.
        rope_base_factor: the base of the rotary frequencies is multiplied by it, likewise.
    """

    num_classes: int = 1000
    rope_interpolation: float = 1.0
    rope_base_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; it must be at least 1")
        for name in ("rope_interpolation", "rope_base_factor"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return self.num_classes


def check_size(rows: int, columns: int, config: NextDiTConfig) -> None:
    """Any grid within the rotary table will do.

    Raises:
        ValueError: the grid has no tokens or reaches beyond the table.
    """
    check_sides(rows, columns, config, LONGEST_SIDE)


def position_tables(rows: int, columns: int, config: NextDiTConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's row and column, fp32 [N, E/2]."""
    scaling = RopeScaling(config.rope_interpolation, config.rope_base_factor)
    return grid_tables(rows, columns, config.head_dim, scaling)


NAMED_NEXT_DIT_CONFIGS: dict[str, NextDiTConfig] = {
    f"Next-DiT-{size}": NextDiTConfig(hidden_size=width, depth=depth, num_heads=32)
    for size, (width, depth) in {
        "600M": (1536, 16),
        "2B": (2304, 24),
        "3B": (3072, 32),
        "7B": (4096, 32),
    }.items()
}

RELEASES = (
    Release(
        name="Next-DiT-ImageNet-600M",
        files=("consolidated_ema.00-of-01.pth",),  # expected; the listing was not seen
        size_bytes=None,  # 559,455,776 fp32 values: about 2.24 GB
        licence="Apache-2.0",
        source="huggingface.co/Alpha-VLLM/Next-DiT",
        config_name="Next-DiT-600M",
    ),
)
