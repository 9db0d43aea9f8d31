"""Rotary tables of the Lumina networks, and how they are stretched to larger pictures.

Flag-DiT counts tokens in reading order (one axis); Next-DiT turns every second pair with the row
and every other with the column. Knows grids and frequencies; not networks.
Sources: Lumina-T2X (arXiv:2405.05945), Lumina-Next (arXiv:2406.18583, §2.2) and their released
code, whose time-aware rule is a switch and not the paper's continuous course.

Dimension key: E head dim, N tokens of a grid (row-major).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

THETA = 10000.0


@dataclass(frozen=True)
class RopeScaling:
    """How far frequencies are stretched; hashable, so that tables can be kept by it.

    Attributes:
        interpolation: positions are divided by it.
        base_factor: the base of the frequencies is multiplied by it (NTK-aware).
    """

    interpolation: float = 1.0
    base_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("interpolation", "base_factor"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


UNSCALED = RopeScaling()


def time_aware_scaling(stretch: float, watershed: float, timestep: float) -> RopeScaling:
    """Interpolate near noise, then change the base: global shape first, details after.

    Args:
        stretch: side of the picture over that of training.
        watershed: t at which the rule changes.
        timestep: Lumina's t, 0 is noise; it is compared in fp32, as the network gets it.
    """
    if torch.tensor(timestep, dtype=torch.float32).item() < watershed:
        return RopeScaling(interpolation=stretch)
    return RopeScaling(base_factor=stretch)


def line_tables(
    positions_N: Tensor, head_dim: int, scaling: RopeScaling = UNSCALED
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of places along one axis, fp32 [N, E/2]."""
    angles = _angles(positions_N, head_dim, 2, scaling)
    return angles.cos(), angles.sin()


def raster_tables(
    rows: int, columns: int, head_dim: int, scaling: RopeScaling = UNSCALED
) -> tuple[Tensor, Tensor]:
    """Tables of a grid whose tokens are counted in reading order, fp32 [N, E/2]."""
    return line_tables(torch.arange(rows * columns), head_dim, scaling)


def grid_tables(
    rows: int, columns: int, head_dim: int, scaling: RopeScaling = UNSCALED
) -> tuple[Tensor, Tensor]:
    """Tables of a grid, fp32 [N, E/2]: pair 2i turns with the row, pair 2i + 1 with the column."""
    row_angles = _angles(torch.arange(rows), head_dim, 4, scaling).repeat_interleave(columns, 0)
    column_angles = _angles(torch.arange(columns), head_dim, 4, scaling).repeat(rows, 1)
    angles = torch.stack((row_angles, column_angles), dim=-1).flatten(1)
    return angles.cos(), angles.sin()


def _angles(positions_N: Tensor, head_dim: int, stride: int, scaling: RopeScaling) -> Tensor:
    exponents = torch.arange(0, head_dim, stride, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (THETA * scaling.base_factor) ** exponents / scaling.interpolation
    return positions_N.float()[:, None] * frequencies
