"""A packed layout out of position tables of any kind, made on the spot.

What `fit_models.packing.layout_of_grids` is for rotary tables of FiT, this is for every network
that brings a function from a grid to its pair of tables. For training and offline sampling; the
engine keeps tables in a cache instead.

Dimension key: N tokens of a grid, A and B values of a token's row in the two tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fit_models.packing import PackedLayout, pack_layout

PositionTables = Callable[[int, int], tuple[Tensor, Tensor]]


def layout_of_tables(
    grids: Sequence[tuple[int, int]],
    tables_of: PositionTables,
    device: torch.device | str = "cpu",
) -> PackedLayout:
    """Describe sequences given by their (rows, columns); equal grids share their rows.

    Args:
        grids: one for each sequence.
        tables_of: from rows and columns to the tables [N, A] and [N, B] of a grid.
        device: of the layout's tensors.
    """
    first_row: dict[tuple[int, int], int] = {}
    tables: list[tuple[Tensor, Tensor]] = []
    num_rows = 0
    for grid in grids:
        if grid not in first_row:
            first_row[grid] = num_rows
            tables.append(tables_of(*grid))
            num_rows += grid[0] * grid[1]
    slab_rows = [
        torch.arange(first_row[rows, columns], first_row[rows, columns] + rows * columns)
        for rows, columns in grids
    ]
    return pack_layout(
        [rows * columns for rows, columns in grids],
        torch.cat([first for first, _ in tables]).to(device),
        torch.cat([second for _, second in tables]).to(device),
        torch.cat(slab_rows),
        grids,
    )
