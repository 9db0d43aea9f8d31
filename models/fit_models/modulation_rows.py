"""AdaLN vectors as every network takes them, whoever made them.

Dimension key: T packed tokens, R modulation rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Modulation:
    """AdaLN vectors: one row per distinct (timestep, label), and which row each token uses.

    Attributes:
        blocks: per block [R, 6 D]: shift, scale, gate of attention, then of the MLP; networks with
            other blocks say what theirs have.
        final: [R, 2 D]: shift, scale.
        row_of_token: int64 [T].
    """

    blocks: tuple[Tensor, ...]
    final: Tensor
    row_of_token: Tensor
