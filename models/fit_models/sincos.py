"""Two-dimensional sine-cosine positions in closed form, for a grid of any size.

Knows grids and frequencies; not how a table is added to tokens. The first half of a row tells the
token's column, the second its row, sines before cosines in each (DiT's table, arXiv:2212.09748,
whose frequencies are those of arXiv:1706.03762).

Dimension key: N tokens of a grid (row-major), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BASE = 10000.0


def sincos_table(rows: int, columns: int, width: int, trained_grid: int | None = None) -> Tensor:
    """Position of every token of a grid, fp32 [N, D], made in float64.

    Args:
        rows, columns: tokens of the grid.
        width: D, a multiple of 4.
        trained_grid: tokens a side at training: each axis is squeezed or stretched to span as
            much (interpolation); None leaves integer positions (extrapolation).

    Raises:
        ValueError: the width is not a multiple of 4, or the grid is empty.
    """
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4 (sine and cosine of two axes)")
    if rows < 1 or columns < 1:
        raise ValueError(f"a grid of {rows}x{columns} tokens is empty; both must be at least 1")
    row_features = _axis_features(rows, width // 2, trained_grid)
    column_features = _axis_features(columns, width // 2, trained_grid)
    table = torch.cat(
        (column_features.repeat(rows, 1), row_features.repeat_interleave(columns, dim=0)), dim=1
    )
    return table.float()


def _axis_features(length: int, features: int, trained_grid: int | None) -> Tensor:
    """Sines, then cosines, of one axis' positions: float64 [length, features]."""
    position = torch.arange(length, dtype=torch.float64)
    if trained_grid is not None:
        position = position / (length / trained_grid)
    half = features // 2
    frequency = _BASE ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = position[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1)
