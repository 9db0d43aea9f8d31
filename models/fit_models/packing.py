"""The description of a packed batch that every network is called with.

Knows where each sequence lies among the packed tokens and which rotary row a token uses; not what
the sequences are for.

Dimension key: T packed tokens, S sequences, P rows of the rotary slab, E head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fit_kernels.attention import equal_runs
from fit_models.config import RopeConfig
from fit_models.device import upload
from fit_models.rope import rope_table


@dataclass(frozen=True)
class PackedLayout:
    """Sequences end to end.

    Attributes:
        lengths: tokens of each sequence, on the host.
        runs: neighbouring equal lengths, see `fit_kernels.attention.equal_runs`.
        cu_seqlens: int32 [S + 1], where each sequence starts; the last entry is T.
        seq_of_token: int64 [T].
        rope_cos: fp32 [P, E/2], the slab that `rope_row` points into.
        rope_sin: fp32 [P, E/2].
        rope_row: int64 [T].
        grids: (rows, columns) of each sequence on the host, where it is known; for networks that
            look at a picture's neighbourhoods or tie weights to a size. Sequences at the end that
            have none are padding.
    """

    lengths: tuple[int, ...]
    runs: tuple[tuple[int, int, int], ...]
    cu_seqlens: Tensor
    seq_of_token: Tensor
    rope_cos: Tensor
    rope_sin: Tensor
    rope_row: Tensor
    grids: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.seq_of_token.shape[0]

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.lengths)

    @cached_property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        return max(length for _, _, length in self.runs)


def pack_layout(
    lengths: Sequence[int],
    rope_cos: Tensor,
    rope_sin: Tensor,
    rope_row: Tensor,
    grids: Sequence[tuple[int, int]] = (),
) -> PackedLayout:
    """Describe sequences of the given lengths; tensors go to the device of the rotary slab.

    Raises:
        ValueError: a length is below 1, or the rotary rows do not cover all tokens.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"sequence lengths {list(lengths)}: every one must be at least 1")
    total = sum(lengths)
    if rope_row.shape[0] != total:
        raise ValueError(f"{rope_row.shape[0]} rotary rows for {total} tokens")
    device = rope_cos.device
    length_S = torch.tensor(lengths, dtype=torch.int64)
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(length_S, 0, dtype=torch.int32, out=cu_seqlens[1:])
    seq_of_token = torch.repeat_interleave(torch.arange(len(lengths)), length_S)
    return PackedLayout(
        lengths=tuple(lengths),
        runs=equal_runs(lengths),
        cu_seqlens=upload(cu_seqlens, device),
        seq_of_token=upload(seq_of_token, device),
        rope_cos=rope_cos,
        rope_sin=rope_sin,
        rope_row=upload(rope_row, device),
        grids=tuple(grids),
    )


def layout_of_grids(
    grids: Sequence[tuple[int, int]],
    head_dim: int,
    rope: RopeConfig,
    device: torch.device | str = "cpu",
    rope_dtype: torch.dtype = torch.float32,
) -> PackedLayout:
    """Describe sequences given by their (rows, columns), with rotary tables made on the spot.

    For training and offline sampling; the engine keeps tables in a cache instead.
    """
    tables: dict[tuple[int, int], tuple[Tensor, Tensor, int]] = {}
    next_row = 0
    rope_rows = []
    for rows, columns in grids:
        if (rows, columns) not in tables:
            cos, sin = rope_table(rows, columns, head_dim, rope, rope_dtype)
            tables[rows, columns] = (cos, sin, next_row)
            next_row += rows * columns
        first = tables[rows, columns][2]
        rope_rows.append(torch.arange(first, first + rows * columns))
    return pack_layout(
        [rows * columns for rows, columns in grids],
        torch.cat([t[0] for t in tables.values()]).to(device),
        torch.cat([t[1] for t in tables.values()]).to(device),
        torch.cat(rope_rows),
        grids,
    )
