"""Packed tokens seen as maps: what convolutions and changes of resolution need.

Neighbouring sequences of one grid are one stack of maps; tokens stay packed between. Everything
here keeps the order of sequences and, inside each, of rows and columns.

Dimension key: T packed tokens, S sequences, D width, B sequences of one grid, h, w its rows and
columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fit_kernels import attention_varlen
from fit_kernels.attention import equal_runs
from fit_models.relative_bias import GridRun

Runs = Sequence[GridRun]


def finer(runs: Runs, factor: int) -> tuple[GridRun, ...]:
    """The same sequences on grids with `factor` times as many rows and columns."""
    return tuple(
        GridRun(run.start * factor**2, run.count, run.rows * factor, run.columns * factor)
        for run in runs
    )


def on_maps(x_TD: Tensor, runs: Runs, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply what takes and gives maps [B, D, h, w] of one grid; the grid may change.

    Returns:
        packed tokens of the results.
    """
    parts = []
    for run in runs:
        x_BhwD = x_TD[run.start : run.end].unflatten(0, (run.count, run.rows, run.columns))
        parts.append(change(x_BhwD.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def corner_rows(table_PD: Tensor, rows: int, columns: int, runs: Runs) -> Tensor:
    """Rows [T, D] of a position table of `rows` x `columns` for packed tokens: the top left corner.

    Raises:
        ValueError: a grid is larger than the table's.
    """
    table = table_PD.unflatten(0, (rows, columns))
    parts = []
    for run in runs:
        if run.rows > rows or run.columns > columns:
            raise ValueError(
                f"a grid of {run.rows}x{run.columns} does not fit the position table of "
                f"{rows}x{columns}"
            )
        corner_ND = table[: run.rows, : run.columns].flatten(0, 1)
        parts.append(corner_ND.repeat(run.count, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def shuffle_up(x_TD: Tensor, runs: Runs) -> Tensor:
    """Every token becomes 2 x 2: [T, 4 D] in the order (row, column, channel) -> [4 T, D]."""
    parts = []
    for run in runs:
        shape = (run.count, run.rows, run.columns, 2, 2, x_TD.shape[1] // 4)
        x = x_TD[run.start : run.end].reshape(shape).permute(0, 1, 3, 2, 4, 5)
        parts.append(x.flatten(0, 4))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class HeadedSequences:
    """Packed sequences, each with one more token in front of those of its grid.

    Attributes:
        runs: where the grids lie without that token.
        cu_seqlens: int32 [S + 1] without it.
    """

    runs: tuple[GridRun, ...]
    cu_seqlens: Tensor

    @cached_property
    def _lengths(self) -> list[int]:
        return [run.tokens + 1 for run in self.runs for _ in range(run.count)]

    @cached_property
    def _cu_seqlens(self) -> Tensor:
        shift = torch.arange(len(self._lengths) + 1, device=self.cu_seqlens.device)
        return (self.cu_seqlens + shift).int()

    def prepend(self, x_TD: Tensor, first_SD: Tensor) -> Tensor:
        """[T, D] and one token for each sequence -> [T + S, D]."""
        parts, sequence = [], 0
        for run in self.runs:
            x_BND = x_TD[run.start : run.end].unflatten(0, (run.count, run.tokens))
            first_B1D = first_SD[sequence : sequence + run.count, None]
            parts.append(torch.cat((first_B1D, x_BND), dim=1).flatten(0, 1))
            sequence += run.count
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def drop(self, x_TD: Tensor) -> Tensor:
        """The inverse of `prepend`, without the first tokens."""
        parts, start = [], 0
        for run in self.runs:
            end = start + run.count * (run.tokens + 1)
            x_BND = x_TD[start:end].unflatten(0, (run.count, run.tokens + 1))[:, 1:]
            parts.append(x_BND.flatten(0, 1))
            start = end
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def attend(self, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor) -> Tensor:
        """Softmax attention inside each sequence, its first token included."""
        lengths = self._lengths
        return attention_varlen(
            q_THE, k_THE, v_THE, self._cu_seqlens, equal_runs(lengths), max(lengths)
        )
