"""How much a noise level counts in the loss, by its ratio of signal to noise.

Source: Min-SNR (arXiv:2303.09556), as MDTv2 trains with it: the mean square of the noise's error is
weighted, the variational bound is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fit_models.diffusion.discrete import trained_path

MOST_RATIO = 5.0


def min_snr_weight(timestep_S: Tensor, most: float = MOST_RATIO) -> Tensor:
    """min(snr, most) / snr of a loss on noise, fp32 [S]; snr = abar / (1 - abar).

    Args:
        timestep_S: int64, 0..999.
        most: ratio above which levels count less and less.
    """
    abar = torch.from_numpy(trained_path().alphas_cumprod).to(timestep_S.device)[timestep_S]
    ratio_S = abar / (1.0 - abar)
    return (ratio_S.clamp(max=most) / ratio_S).float()
