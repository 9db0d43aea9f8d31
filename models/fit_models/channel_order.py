"""The order of values in a token that DiT's last layer writes, and ours.

Dimension key: T packed tokens, P channels of a prediction.
"""

from __future__ import annotations

from torch import Tensor


def channels_slowest(prediction_TP: Tensor, patch_size: int) -> Tensor:
    """From (row, column, channel), the last layer's order, to (channel, row, column): [T, P]."""
    return prediction_TP.unflatten(1, (patch_size**2, -1)).transpose(1, 2).flatten(1)
