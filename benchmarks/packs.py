"""Packs of pictures as a server runs them: both branches of guided requests, end to end.

Mixed set "C" of the field on the areas FiT is made for (256, 384, 512 and 768 pixels squared: about
256, 576, 1024 and 2304 tokens; 15/25/45/15 % of the requests), half of the pictures not square.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

Grid = tuple[int, int]

# Rows and columns of tokens, 16 pixels each.
_AREA_256: tuple[Grid, ...] = ((16, 16), (13, 20))
_AREA_384: tuple[Grid, ...] = ((24, 24), (29, 20))
_AREA_512: tuple[Grid, ...] = ((32, 32), (26, 39))
_AREA_768: tuple[Grid, ...] = ((48, 48), (39, 59))


# Twenty requests of the mix, square and not square by turns.
_TRAFFIC = [_AREA_256] * 3 + [_AREA_384] * 5 + [_AREA_512] * 9 + [_AREA_768] * 3

PICTURES: dict[str, tuple[Grid, ...]] = {
    "512": ((16, 16),),
    "2k": ((16, 16), (13, 20), (29, 20)),
    "8k": ((16, 16), (29, 20), (32, 32), (39, 59)),
    "40k": tuple(area[i % 2] for i, area in enumerate(_TRAFFIC)),
    "toy": ((1, 2), (2, 2)),
}


def grids_of(pack: str) -> list[Grid]:
    """One grid per sequence: every picture twice, its two branches side by side."""
    return [grid for grid in PICTURES[pack] for _ in range(2)]


def lengths_of(pack: str) -> list[int]:
    """Tokens of every sequence."""
    return [rows * columns for rows, columns in grids_of(pack)]


def cu_seqlens_of(lengths: list[int], device: torch.device | str) -> Tensor:
    """int32 [S + 1]: where each sequence starts, and the total."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
