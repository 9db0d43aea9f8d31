"""Attention with a learned bias for each offset between two tokens of a grid.

The table is made for a grid of `side` x `side`; a smaller grid uses the offsets it has. Sources:
Swin (arXiv:2103.14030), BEiT (arXiv:2106.08254), as MDT and DiffiT use them on a whole picture.

Dimension key: T packed tokens, H heads, E head dim, N tokens of a grid, L offsets in the table,
B sequences of one grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_models.packing import PackedLayout

INDEX_NAME = "relative_position_index"


@dataclass(frozen=True)
class GridRun:
    """Neighbouring sequences of one grid among the packed tokens.

    Attributes:
        start: first token.
        count: number of sequences.
        rows, columns: of the grid of each.
    """

    start: int
    count: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """N."""
        return self.rows * self.columns

    @property
    def end(self) -> int:
        """One past the last token."""
        return self.start + self.count * self.tokens


def grid_runs(layout: PackedLayout) -> tuple[GridRun, ...]:
    """Group neighbouring sequences of one grid.

    Sequences at the tail that have no grid are padding and in no run.

    Raises:
        ValueError: no grid is known, or one does not fit its sequence's length.
    """
    if not layout.grids:
        raise ValueError("this network needs the grid of every sequence: layout.grids is empty")
    runs: list[GridRun] = []
    start = 0
    for (rows, columns), length in zip(layout.grids, layout.lengths, strict=False):
        if rows * columns != length:
            raise ValueError(f"a grid of {rows}x{columns} for a sequence of {length} tokens")
        last = runs[-1] if runs else None
        if last is not None and (last.rows, last.columns) == (rows, columns):
            runs[-1] = GridRun(last.start, last.count + 1, rows, columns)
        else:
            runs.append(GridRun(start, 1, rows, columns))
        start += length
    return tuple(runs)


def relative_position_index(side: int) -> Tensor:
    """Row of the table for each query and key of a full grid, int64 [N, N] as released files do."""
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    down = row[:, None] - row + side - 1
    right = column[:, None] - column + side - 1
    return down * (2 * side - 1) + right


def relative_bias(table_LH: Tensor, side: int, rows: int, columns: int) -> Tensor:
    """The bias of every query and key, [H, N, N], by windows over the table and no index.

    Args:
        table_LH: (2 side - 1)^2 offsets, row offset slowest; more at the end are not read.
        side: of the trained grid.
        rows, columns: of the grid wanted.

    Raises:
        ValueError: the grid is larger than the trained one.
    """
    if max(rows, columns) > side:
        raise ValueError(
            f"a grid of {rows}x{columns} tokens has offsets that the bias table of {side}x{side} "
            "has not"
        )
    span = 2 * side - 1
    offsets_Hyx = table_LH[: span * span].T.unflatten(1, (span, span))
    used_Hyx = offsets_Hyx[:, side - rows : side + rows - 1, side - columns : side + columns - 1]
    # Window (i, j) holds offsets i - rows + 1 ... i of query row i: keys in falling order.
    windows = used_Hyx.unfold(1, rows, 1).unfold(2, columns, 1)
    return windows.flip(3, 4).reshape(-1, rows * columns, rows * columns)


def attend_with_bias(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    runs: tuple[GridRun, ...],
    table_LH: Tensor,
    side: int,
) -> Tensor:
    """Softmax attention inside each sequence with its grid's bias on the scores, [T, H, E].

    One call for each run; padding gets its own values back.
    """
    biases: dict[tuple[int, int], Tensor] = {}
    parts = []
    for run in runs:
        grid = (run.rows, run.columns)
        if grid not in biases:
            biases[grid] = relative_bias(table_LH, side, *grid).to(q_THE.dtype)
        q_BHNE, k_BHNE, v_BHNE = (
            x[run.start : run.end].unflatten(0, (run.count, run.tokens)).transpose(1, 2)
            for x in (q_THE, k_THE, v_THE)
        )
        out_BHNE = F.scaled_dot_product_attention(
            q_BHNE, k_BHNE, v_BHNE, attn_mask=biases[grid][None]
        )
        parts.append(out_BHNE.transpose(1, 2).flatten(0, 1))
    if runs[-1].end < len(v_THE):
        parts.append(v_THE[runs[-1].end :])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def new_bias_table(side: int, num_heads: int, extra: int = 0) -> nn.Parameter:
    """A fresh table [L, H] as Swin starts it."""
    table = torch.empty((2 * side - 1) ** 2 + extra, num_heads)
    return nn.Parameter(nn.init.trunc_normal_(table, std=0.02))


def accept_index(module: nn.Module, side: int) -> None:
    """Let a module load files that hold `relative_position_index` beside the table.

    The index follows from the grid, so it is compared and dropped: 8 MB a block at 32x32.
    """

    def drop(
        _: nn.Module,
        state: dict[str, Any],
        prefix: str,
        __: Mapping[str, Any],
        ___: bool,
        ____: list[str],
        _____: list[str],
        errors: list[str],
    ) -> None:
        index = state.pop(prefix + INDEX_NAME, None)
        if index is None or index.device.type == "meta":
            return
        wanted = relative_position_index(side)
        if index.shape != wanted.shape or not torch.equal(index.cpu().long(), wanted):
            errors.append(f"{prefix}{INDEX_NAME} is not that of a grid of {side}x{side} tokens")

    module.register_load_state_dict_pre_hook(drop)
