"""Classifier-free guidance: how strong it is at a noise level, and how two branches become one.

Sources: arXiv:2207.12598; guidance interval arXiv:2404.07724; FiT guides the first three latent
channels only and keeps the conditional prediction of the fourth; the power-cosine scale is DiffiT's
(arXiv:2312.02139) as used in FiT's code.

Dimension key: T packed tokens, K token channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Guidance of one sequence.

    Attributes:
        scale: 1 means none: the sequence then is one branch, not two.
        interval: (low, high) noise levels between which guidance acts, both included.
        scale_power: exponent of the power-cosine course of the scale; 0 is constant.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    scale_power: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0.0):
            raise ValueError(f"guidance_scale is {self.scale}; it must be finite and at least 0")
        low, high = self.interval
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(
                f"guidance_interval is {self.interval}; it must be 0 <= low <= high <= 1"
            )
        if self.scale_power < 0.0:
            raise ValueError(f"scale_power is {self.scale_power}; it must be at least 0")

    def scale_at(self, sigma: float) -> float:
        """The scale at a noise level; exactly 1.0 where no second branch is needed."""
        low, high = self.interval
        sigma = max(sigma, 0.0)  # adaptive solvers overshoot the data end
        if self.scale == 1.0 or not low - 1e-9 <= sigma <= high + 1e-9:
            return 1.0
        if self.scale_power == 0.0:
            return self.scale
        timestep = 1.0 - sigma
        rise = (1.0 - math.cos(math.pi * (1.0 - timestep) ** self.scale_power)) / 2.0
        return 1.0 + (self.scale - 1.0) * rise


def guide(
    conditional_TK: Tensor, unconditional_TK: Tensor, scale_T1: Tensor, guided_token_channels: int
) -> Tensor:
    """Move the leading channels away from the unconditional prediction; keep the others.

    Args:
        conditional_TK: prediction for the label.
        unconditional_TK: prediction for the null label.
        scale_T1: guidance scale of each token's sequence.
        guided_token_channels: 12 of 16 for FiT; all for most others.

    Returns:
        [T, K].
    """
    g = guided_token_channels
    moved = unconditional_TK[:, :g] + scale_T1 * (conditional_TK[:, :g] - unconditional_TK[:, :g])
    return torch.cat((moved, conditional_TK[:, g:]), dim=1)
