"""Packed pictures with a token at the end of every line, and without it again.

The engine packs a picture's tokens only; Lumina-T2I's network sees one more after each row. Knows
where they go; not what they are.

Dimension key: T packed tokens, U packed tokens with line ends, S sequences, D width, E head dim,
P rows of the rotary slab, V line ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fit_models.networks.lumina_t2i_config import LuminaT2IConfig, line_end_tables
from fit_models.packing import PackedLayout, pack_layout


@dataclass(frozen=True, eq=False)
class Lines:
    """A batch of pictures as their lines.

    Attributes:
        layout: where each sequence lies with its line ends.
        source_U: int64, the packed token each place has; a line end, the last token of its line.
        is_end_U1: whether a place is a line end.
        kept_T: int64, the place of each packed token.
    """

    layout: PackedLayout
    source_U: Tensor
    is_end_U1: Tensor
    kept_T: Tensor

    def with_ends(self, x_TD: Tensor, end_D: Tensor) -> Tensor:
        """Put the same token after every line: [T, D] -> [U, D]."""
        return torch.where(self.is_end_U1, end_D, x_TD.index_select(0, self.source_U))

    def without_ends(self, x_UD: Tensor) -> Tensor:
        """[U, D] -> [T, D]."""
        return x_UD.index_select(0, self.kept_T)


def lines_of(layout: PackedLayout, config: LuminaT2IConfig) -> Lines:
    """Describe the same sequences with their line ends.

    What depends on grids alone is kept from call to call; only the rotary slab is joined anew.
    Padding, which has no grid, is one line each.

    Raises:
        ValueError: the layout does not say its grids, or they do not cover its tokens.
    """
    padding = layout.lengths[len(layout.grids) :] if layout.grids else ()
    grids = (*layout.grids, *((1, length) for length in padding))
    if sum(rows * columns for rows, columns in grids) != layout.num_tokens:
        raise ValueError(
            f"grids {list(layout.grids)} do not cover {layout.num_tokens} tokens: line ends need "
            "the rows and columns of every sequence"
        )
    plan = _plan(grids, config, layout.rope_cos.device)
    slab_rows = layout.rope_cos.shape[0]
    row_U = torch.where(
        plan.is_end_U1[:, 0],
        plan.layout.rope_row + slab_rows,
        layout.rope_row.index_select(0, plan.source_U),
    )
    packed = PackedLayout(
        lengths=plan.layout.lengths,
        runs=plan.layout.runs,
        cu_seqlens=plan.layout.cu_seqlens,
        seq_of_token=plan.layout.seq_of_token,
        rope_cos=torch.cat((layout.rope_cos, plan.layout.rope_cos)),
        rope_sin=torch.cat((layout.rope_sin, plan.layout.rope_sin)),
        rope_row=row_U,
    )
    return Lines(packed, plan.source_U, plan.is_end_U1, plan.kept_T)


@lru_cache(maxsize=64)
def _plan(
    grids: tuple[tuple[int, int], ...], config: LuminaT2IConfig, device: torch.device
) -> Lines:
    """Lines whose rotary slab has line ends only: [V, E/2], in the order of the pack."""
    is_end, source, tables, start = [], [], [], 0
    for rows, columns in grids:
        place = torch.arange(columns + 1).clamp(max=columns - 1)
        line = torch.arange(rows)[:, None] * columns + place
        source.append((start + line).flatten())
        is_end.append((torch.arange(columns + 1) == columns).repeat(rows))
        tables.append(line_end_tables(rows, columns, config))
        start += rows * columns
    is_end_U = torch.cat(is_end)
    layout = pack_layout(
        [rows * (columns + 1) for rows, columns in grids],
        torch.cat([cos for cos, _ in tables]).to(device),
        torch.cat([sin for _, sin in tables]).to(device),
        (is_end_U.cumsum(0) - 1).clamp(min=0),  # of the line ends; the others' is not read
    )
    kept_T = torch.nonzero(~is_end_U)[:, 0]
    return Lines(
        layout, torch.cat(source).to(device), is_end_U[:, None].to(device), kept_T.to(device)
    )
