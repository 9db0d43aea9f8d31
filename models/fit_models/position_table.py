"""Positions as rows of a learned table, for networks that were trained on one square grid.

A token's position is a row of a table made for a grid of `side` x `side`; a smaller grid is its
top left corner. The table itself is the network's.

Dimension key: N tokens of a grid (row-major), T packed tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fit_models.packing import PackedLayout


def corner_positions(rows: int, columns: int, side: int) -> tuple[Tensor, Tensor]:
    """Which row of the table each token of a grid uses, as tables for `PackedLayout`.

    Returns:
        fp32 [N, 1] of whole numbers, and an empty [N, 0].

    Raises:
        ValueError: the grid is larger than the table's.
    """
    if max(rows, columns) > side:
        raise ValueError(
            f"a grid of {rows}x{columns} tokens does not fit the position table of {side}x{side}"
        )
    index = torch.arange(rows)[:, None] * side + torch.arange(columns)
    return index.reshape(-1, 1).float(), torch.empty(rows * columns, 0)


def table_rows(layout: PackedLayout) -> Tensor:
    """int64 [T]: each packed token's row of the position table, from `corner_positions`' slab."""
    return layout.rope_cos[:, 0].long()[layout.rope_row]
