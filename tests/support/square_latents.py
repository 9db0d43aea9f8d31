"""Latents of one shape to packed tokens and back, for networks tied to a square grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fit_models.patches import patchify, unpatchify
from fit_models.positions import PositionTables, layout_of_tables


class OnLatents:
    """A network of packed tokens behind the originals' interface of latents [B, C, h, w]."""

    def __init__(self, network: Any, tables: PositionTables, position_factor: float = 1.0) -> None:
        self.network = network
        self.tables = tables
        self.position_factor = position_factor
        self.patch_size: int = network.config.patch_size

    def __call__(self, x_BChw: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        rows, columns = (side // self.patch_size for side in x_BChw.shape[-2:])
        layout = layout_of_tables([(rows, columns)] * len(x_BChw), self.tables)
        layout = replace(layout, rope_cos=layout.rope_cos * self.position_factor)
        tokens_TK = patchify(x_BChw, self.patch_size).flatten(0, 1)
        out_TP = self.network(tokens_TK, layout, t_B, y_B.long())
        out_BNP = out_TP.unflatten(0, (len(x_BChw), -1))
        return unpatchify(out_BNP, rows, columns, self.patch_size)


def doubled(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    scale: Callable[[Tensor], Tensor],
    guided_channels: int = 3,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """DiT's guided forward: halves [conditional | unconditional], both fed the first's state."""

    def guided(x_BChw: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        half = x_BChw[: len(x_BChw) // 2]
        out = predict(torch.cat((half, half)), t_B, y_B)
        noise, rest = out[:, :guided_channels], out[:, guided_channels:]
        conditional, unconditional = noise.chunk(2)
        s = scale(t_B[: len(half)]).view(-1, 1, 1, 1)
        moved = unconditional + s * (conditional - unconditional)
        return torch.cat((torch.cat((moved, moved)), rest), dim=1)

    return guided
