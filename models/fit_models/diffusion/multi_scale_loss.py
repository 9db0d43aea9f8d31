"""The loss of a network that predicts noise at several resolutions.

Each coarser branch is taught the noise summed over blocks of pixels and divided by the block's
side, so that it stays standard normal. Source: DiMR (arXiv:2406.09416).

Dimension key: S sequences of one size, C latent channels, h, w latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def multi_scale_loss(
    predictions: Sequence[Tensor], noise_SChw: Tensor, coefficients: Sequence[float]
) -> Tensor:
    """Sum over branches of coefficient times mean square error, [S].

    Args:
        predictions: from coarse to fine, [S, C, h / b, w / b] with a whole b each.
        noise_SChw: what was added to the latents.
        coefficients: one for each; 1/4 and 1 for two branches.
    """
    total_S = torch.zeros(len(noise_SChw), device=noise_SChw.device)
    for prediction, coefficient in zip(predictions, coefficients, strict=True):
        block = noise_SChw.shape[-1] // prediction.shape[-1]
        target = F.avg_pool2d(noise_SChw, block) * block if block > 1 else noise_SChw
        total_S = total_S + coefficient * (prediction - target).square().flatten(1).mean(1)
    return total_S
