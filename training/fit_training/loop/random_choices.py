"""All that is random in a training step, drawn on the CPU from one generator per micro-batch.

Knows seeds and shapes; not what the draws are for. A draw depends on the run's seed, the step and
the micro-batch's place in it, so neither a stop nor the number of processes changes it.

Dimension key: T packed tokens, S sequences, K token channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.diffusion.loss import logit_normal_sigma

# Distances between the seeds of runs and of micro-batches: primes, so that they seldom meet. The
# CPU's generator takes no more than the lower 32 bits of a seed.
_RUN_STRIDE, _MICRO_BATCH_STRIDE = 1_000_003, 15_485_863


@dataclass(frozen=True)
class RandomChoices:
    """Noise levels [S], noise [T, K], and whose label is dropped [S]."""

    sigma: Tensor
    noise: Tensor
    dropped: Tensor


def micro_batch_generator(seed: int, step: int, index: int) -> torch.Generator:
    """The generator of micro-batch `index` of a step."""
    return torch.Generator().manual_seed(seed * _RUN_STRIDE + step + index * _MICRO_BATCH_STRIDE)


def draw_choices(
    tokens_TK: Tensor, num_sequences: int, generator: torch.Generator, dropout: float
) -> RandomChoices:
    """Draw for a packed batch; labels are dropped with probability `dropout`."""
    return RandomChoices(
        sigma=logit_normal_sigma(num_sequences, generator),
        noise=torch.randn(tokens_TK.shape, generator=generator),
        dropped=torch.rand(num_sequences, generator=generator) < dropout,
    )
