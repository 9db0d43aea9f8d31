"""The loss of a network that predicts noise and a learned variance, on packed tokens.

Two parts per sequence, each a mean over its own tokens: the mean square of the noise's error, and
the variational bound in bits per value, which teaches the variance alone (the noise enters it
without gradient). As in DiT's and FiT's training (`MSE` with a learned range, not rescaled).
Sources: arXiv:2102.09672 (eq. 14 to 16), the discretised likelihood of arXiv:2006.11239, eq. 13.

Dimension key: T packed tokens, S sequences, K token channels, P = 2 K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.diffusion.discrete import TRAINED_STEPS, trained_path

_HALF_LEVEL = 1.0 / 255.0  # half of the distance of 256 levels in [-1, 1]
_EDGE = 0.999  # values beyond it belong to the first and the last level
_LEAST_PROBABILITY = 1e-12
_LN2 = math.log(2.0)


@dataclass(frozen=True)
class DiscreteLoss:
    """Per sequence [S]: mean square of the noise's error, and the bound in bits per value."""

    mean_square: Tensor
    bound: Tensor

    @property
    def total(self) -> Tensor:
        """What training lowers, [S]."""
        return self.mean_square + self.bound


def uniform_timesteps(num_sequences: int, generator: torch.Generator) -> Tensor:
    """Trained timesteps, int64 [S], one per sequence, each as likely as any other."""
    return torch.randint(TRAINED_STEPS, (num_sequences,), generator=generator)


def discrete_inputs(data_TK: Tensor, noise_TK: Tensor, timestep_T: Tensor) -> Tensor:
    """Noisy tokens sqrt(abar) data + sqrt(1 - abar) noise at trained timesteps, [T, K].

    Args:
        data_TK, noise_TK: tokens and standard normal draws.
        timestep_T: int64, the timestep of each token's sequence.
    """
    abar_T1 = _at(trained_path().alphas_cumprod, timestep_T, torch.float64)
    kept_T1, added_T1 = abar_T1.sqrt().float(), (1.0 - abar_T1).sqrt().float()
    return kept_T1 * data_TK + added_T1 * noise_TK


def discrete_loss(
    prediction_TP: Tensor,
    data_TK: Tensor,
    noise_TK: Tensor,
    noisy_TK: Tensor,
    timestep_S: Tensor,
    seq_of_token_T: Tensor,
) -> DiscreteLoss:
    """Both parts of the loss, each sequence by itself.

    Args:
        prediction_TP: the network's answer: noise, then variance.
        data_TK, noise_TK: what the noisy tokens were made of.
        noisy_TK: what the network saw, from `discrete_inputs`.
        timestep_S: int64, 0..999.
        seq_of_token_T: int64.
    """
    noise_hat_TK, variance_TK = prediction_TP.float().chunk(2, dim=-1)
    bits_TK = variational_bits(
        noise_hat_TK.detach(), variance_TK, data_TK, noisy_TK, timestep_S[seq_of_token_T]
    )
    square_TK = (noise_TK - noise_hat_TK).square()
    return DiscreteLoss(
        sequence_mean(square_TK, seq_of_token_T, len(timestep_S)),
        sequence_mean(bits_TK, seq_of_token_T, len(timestep_S)),
    )


def variational_bits(
    noise_hat_TK: Tensor,
    variance_TK: Tensor,
    data_TK: Tensor,
    noisy_TK: Tensor,
    timestep_T: Tensor,
) -> Tensor:
    """The bound's term of every value, in bits: KL(q(x_prev | x, data) | p), at t = 0 -log p(data).

    Args:
        noise_hat_TK: predicted noise.
        variance_TK: where the log variance lies in its range, -1 low, 1 high, not clipped.
        data_TK, noisy_TK: tokens before and after the noise.
        timestep_T: int64, of each token.
    """
    path = trained_path()
    low_T1, high_T1 = (
        _at(table, timestep_T) for table in (path.posterior_log_variance_clipped, path.log_betas)
    )
    share_TK = (variance_TK + 1.0) / 2.0
    log_variance_TK = share_TK * high_T1 + (1.0 - share_TK) * low_T1
    state_T1 = _at(path.sqrt_recip_alphas_cumprod, timestep_T)
    data_hat_TK = (
        state_T1 * noisy_TK - _at(path.sqrt_recipm1_alphas_cumprod, timestep_T) * noise_hat_TK
    )
    coef1_T1 = _at(path.posterior_mean_coef1, timestep_T)
    from_state_TK = _at(path.posterior_mean_coef2, timestep_T) * noisy_TK
    mean_TK = coef1_T1 * data_hat_TK + from_state_TK
    true_mean_TK = coef1_T1 * data_TK + from_state_TK
    divergence_TK = _gaussian_divergence(true_mean_TK, low_T1, mean_TK, log_variance_TK)
    first_TK = -_log_likelihood(data_TK, mean_TK, 0.5 * log_variance_TK)
    return torch.where(timestep_T[:, None] == 0, first_TK, divergence_TK) / _LN2


def sequence_mean(values_TK: Tensor, seq_of_token_T: Tensor, num_sequences: int) -> Tensor:
    """Mean over the values of each sequence, [S]: a small image weighs as much as a large one."""
    per_token_T = values_TK.mean(-1)
    total_S = per_token_T.new_zeros(num_sequences).index_add(0, seq_of_token_T, per_token_T)
    return total_S / torch.bincount(seq_of_token_T, minlength=num_sequences)


def _gaussian_divergence(
    mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor
) -> Tensor:
    """KL of two normal distributions, element by element, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1.0
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2).square() * torch.exp(-log_variance2)
    )


def _log_likelihood(data: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log probability of the level of 256 that a value in [-1, 1] is at, in nats."""
    centred, precision = data - mean, torch.exp(-log_deviation)
    below_upper = _normal_cdf(precision * (centred + _HALF_LEVEL))
    below_lower = _normal_cdf(precision * (centred - _HALF_LEVEL))
    probability = torch.where(
        data < -_EDGE,
        below_upper,
        torch.where(data > _EDGE, 1.0 - below_lower, below_upper - below_lower),
    )
    return probability.clamp(min=_LEAST_PROBABILITY).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation the originals use, not the exact function."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _at(table: object, timestep_T: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Entries of a float64 table for each token, [T, 1]."""
    values = torch.as_tensor(table, dtype=torch.float64).to(timestep_T.device)
    return values[timestep_T][:, None].to(dtype)
