"""The ternary product in PyTorch: a few rows of the weight are unpacked at a time.

For CPUs without a C compiler. One tile of floats is reused, so that it stays in the cache and no
copy of the weight ever exists.

Dimension key: T packed tokens, D width, F features, Q = F / 4 rows of bytes, B rows of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TILE_VALUES = 512 * 1024  # 2 MB of fp32, the second-level cache of a current server core
_SHIFTS = (6, 4, 2, 0)


def product_by_tiles(
    x_TD: Tensor, packed_QD: Tensor, alpha_1: Tensor, bias_F: Tensor | None
) -> Tensor:
    """See `fit_kernels.reference.ternary_linear`; the factor meets the sums, not the weights."""
    (tokens, width), rows = x_TD.shape, packed_QD.shape[0]
    out_TF = x_TD.new_empty(tokens, 4 * rows)
    out_T4Q = out_TF.unflatten(1, (4, rows))
    height = max(1, min(rows, _TILE_VALUES // max(1, width)))
    code_BD = packed_QD.new_empty(height, width)
    tile_BD = x_TD.new_empty(height, width)
    for first in range(0, rows, height):
        byte_BD = packed_QD[first : first + height]
        code, tile = code_BD[: byte_BD.shape[0]], tile_BD[: byte_BD.shape[0]]
        for block, shift in enumerate(_SHIFTS):
            torch.bitwise_right_shift(byte_BD, shift, out=code)
            tile.copy_(code.bitwise_and_(3)).sub_(1)
            out_T4Q[:, block, first : first + height] = x_TD @ tile.T
    out_TF *= alpha_1
    return out_TF if bias_F is None else out_TF.add_(bias_F)
