"""A bias by windows is the bias by index, on the trained grid and on its corners."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fit_models.packing import PackedLayout
from fit_models.position_table import corner_positions
from fit_models.positions import layout_of_tables
from fit_models.relative_bias import (
    attend_with_bias,
    grid_runs,
    relative_bias,
    relative_position_index,
)

SIDE, HEADS = 5, 3
TABLE = torch.randn((2 * SIDE - 1) ** 2 + 3, HEADS, generator=torch.Generator().manual_seed(0))


def layout_for(grids: list[tuple[int, int]]) -> PackedLayout:
    return layout_of_tables(grids, lambda rows, columns: corner_positions(rows, columns, SIDE))


@pytest.mark.parametrize("grid", [(5, 5), (1, 1), (2, 5), (4, 3), (5, 1)])
def test_windows_give_what_the_index_gives(grid: tuple[int, int]) -> None:
    rows, columns = grid
    corner_N = corner_positions(rows, columns, SIDE)[0][:, 0].long()
    index_NN = relative_position_index(SIDE)[corner_N][:, corner_N]
    assert torch.equal(relative_bias(TABLE, SIDE, rows, columns), TABLE[index_NN].permute(2, 0, 1))


def test_the_gradient_goes_to_the_offsets_used() -> None:
    table = TABLE.clone().requires_grad_()
    relative_bias(table, SIDE, 2, 2).sum().backward()
    assert table.grad is not None
    counts = table.grad[: (2 * SIDE - 1) ** 2, 0].unflatten(0, (9, 9))
    assert counts[3:6, 3:6].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert counts.sum() == 16
    assert not table.grad[-3:].any()


def test_equal_neighbours_are_one_run() -> None:
    runs = grid_runs(layout_for([(2, 4), (2, 4), (4, 2), (2, 4)]))
    assert [(r.start, r.count, r.rows, r.columns) for r in runs] == [
        (0, 2, 2, 4),
        (16, 1, 4, 2),
        (24, 1, 2, 4),
    ]


def test_padding_keeps_its_values() -> None:
    layout = layout_for([(2, 2), (3, 2)])
    runs = grid_runs(replace(layout, grids=((2, 2),)))
    q, k, v = torch.randn(3, 10, HEADS, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(attend_with_bias(q, k, v, runs, TABLE, SIDE)[4:], v[4:])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="6x2 tokens has offsets that the bias table of 5x5"):
        relative_bias(TABLE, SIDE, 6, 2)
    layout = layout_for([(2, 2)])
    with pytest.raises(ValueError, match=r"layout\.grids is empty"):
        grid_runs(replace(layout, grids=()))
    with pytest.raises(ValueError, match="a grid of 3x2 for a sequence of 4 tokens"):
        grid_runs(replace(layout, grids=((3, 2),)))
