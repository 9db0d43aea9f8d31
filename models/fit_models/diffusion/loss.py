"""The path that is learned and its target, for training on the same packed tokens that are served.

Source: rectified flow with logit-normal times, FiTv2 §3 (arXiv:2410.13925), SiT (arXiv:2401.08740).

Dimension key: T packed tokens, S sequences, K token channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fit_models.diffusion.prediction import timestep_of_sigma


def logit_normal_sigma(num_sequences: int, generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1), one per sequence: sigmoid of a standard normal draw."""
    return torch.randn(num_sequences, generator=generator).sigmoid()


def noisy_tokens(data_TK: Tensor, noise_TK: Tensor, sigma_T1: Tensor) -> Tensor:
    """The straight path: (1 - sigma) data + sigma noise."""
    return (1.0 - sigma_T1) * data_TK + sigma_T1 * noise_TK


def velocity_target(data_TK: Tensor, noise_TK: Tensor) -> Tensor:
    """What the network is to predict: data - noise, whatever the noise level."""
    return data_TK - noise_TK


def sequence_mean_square(error_TK: Tensor, seq_of_token_T: Tensor, num_sequences: int) -> Tensor:
    """Mean of squares per sequence, [S]: a small image weighs as much as a large one."""
    per_token_T = error_TK.float().square().mean(-1)
    total_S = per_token_T.new_zeros(num_sequences).index_add(0, seq_of_token_T, per_token_T)
    count_S = torch.bincount(seq_of_token_T, minlength=num_sequences)
    return total_S / count_S


def flow_inputs(
    data_TK: Tensor, noise_TK: Tensor, sigma_S: Tensor, seq_of_token_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a training step feeds and expects.

    Returns:
        noisy tokens [T, K], the network's timesteps [S], the velocity target [T, K].
    """
    sigma_T1 = sigma_S[seq_of_token_T][:, None]
    return (
        noisy_tokens(data_TK, noise_TK, sigma_T1),
        timestep_of_sigma(sigma_S),
        velocity_target(data_TK, noise_TK),
    )
