"""The discrete noise path of DDPM: a thousand trained steps, and a sampler's choice among them.

Knows betas and what follows from them, in float64; not networks, tensors of tokens or samplers.
Sources: DDPM (arXiv:2006.11239), its respacing and learned range of variance (arXiv:2102.09672),
as in DiT's code; diffusers' "leading" choice of steps.

Dimension key: n kept steps, from the least noisy to the noisiest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy
from numpy.typing import NDArray

TRAINED_STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 2e-2

Float64s = NDArray[numpy.float64]


def even_timesteps(num_inference_steps: int) -> tuple[int, ...]:
    """Evenly spread, both ends included: the originals' respacing "250".

    Raises:
        ValueError: there are not that many trained steps, or not at least one.
    """
    _check_steps(num_inference_steps)
    stride = (TRAINED_STEPS - 1) / (num_inference_steps - 1) if num_inference_steps > 1 else 1.0
    place, kept = 0.0, []
    for _ in range(num_inference_steps):
        kept.append(round(place))
        place += stride  # summed, not multiplied: so do the originals, and halves round by it
    return tuple(kept)


def strided_timesteps(num_inference_steps: int) -> tuple[int, ...]:
    """Every s-th from 0, s the least that gives this many: the originals' respacing "ddim50".

    Raises:
        ValueError: no whole stride gives that many.
    """
    _check_steps(num_inference_steps)
    least = -(-TRAINED_STEPS // num_inference_steps)
    kept = tuple(range(0, TRAINED_STEPS, least))
    if len(kept) != num_inference_steps:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}; no whole stride through "
            f"{TRAINED_STEPS} steps gives that many; a stride of {least} gives {len(kept)}"
        )
    return kept


def leading_timesteps(num_inference_steps: int) -> tuple[int, ...]:
    """The first of each of equal parts, rest ignored: diffusers' "leading" spacing.

    Raises:
        ValueError: there are not that many trained steps, or not at least one.
    """
    _check_steps(num_inference_steps)
    stride = TRAINED_STEPS // num_inference_steps
    return tuple(range(0, num_inference_steps * stride, stride))


SPACINGS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "even": even_timesteps,
    "strided": strided_timesteps,
    "leading": leading_timesteps,
}


@dataclass(frozen=True, eq=False)
class DiscretePath:
    """The kept steps and their noise: x = sqrt(abar) data + sqrt(1 - abar) noise.

    Attributes:
        timesteps: index of each among the trained steps, rising; what a network is given.
        betas: float64 [n], of the respaced process.
    """

    timesteps: tuple[int, ...]
    betas: Float64s

    @cached_property
    def alphas_cumprod(self) -> Float64s:
        """The share of the data's variance that is left, abar."""
        return numpy.cumprod(1.0 - self.betas, dtype=numpy.float64)

    @cached_property
    def alphas_cumprod_prev(self) -> Float64s:
        """The same one step nearer to the data, 1 for the first."""
        return numpy.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Float64s:
        """The state's factor in the estimate of the data."""
        return numpy.sqrt(1.0 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Float64s:
        """The predicted noise's factor in the estimate of the data, with a minus before it."""
        return numpy.sqrt(1.0 / self.alphas_cumprod - 1.0)

    @cached_property
    def posterior_mean_coef1(self) -> Float64s:
        """The data's factor in the mean of q(x_prev | x, data) (arXiv:2006.11239, eq. 7)."""
        return self.betas * numpy.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Float64s:
        """The state's factor in it."""
        left = 1.0 - self.alphas_cumprod_prev
        return left * numpy.sqrt(1.0 - self.betas) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> Float64s:
        """Variance of q(x_prev | x, data); 0 for the first step."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Float64s:
        """Its logarithm, the lower end of the learned range; the first takes the second's."""
        variance = self.posterior_variance
        second = variance[1] if len(variance) > 1 else self.betas[0]
        return numpy.log(numpy.append(second, variance[1:]))

    @cached_property
    def log_betas(self) -> Float64s:
        """The upper end of the learned range of log variances."""
        return numpy.log(self.betas)

    def log_variance_range(self, step: int) -> tuple[float, float]:
        """Lower and upper end of the learned log variance at a kept step."""
        return float(self.posterior_log_variance_clipped[step]), float(self.log_betas[step])

    def data_estimate(self, step: int) -> tuple[float, float]:
        """Factors of state and predicted noise in the estimate of the data, unclipped."""
        state = float(self.sqrt_recip_alphas_cumprod[step])
        return state, -float(self.sqrt_recipm1_alphas_cumprod[step])


def respaced_path(timesteps: Sequence[int]) -> DiscretePath:
    """The process that visits some of the trained steps only, with betas of its own.

    Raises:
        ValueError: the steps do not rise, or are not among the trained ones.
    """
    kept = [int(timestep) for timestep in timesteps]
    rising = all(a < b for a, b in pairwise(kept))
    if not kept or not rising or kept[0] < 0 or kept[-1] >= TRAINED_STEPS:
        raise ValueError(f"timesteps {kept} must rise, within 0..{TRAINED_STEPS - 1}")
    trained_betas = numpy.linspace(FIRST_BETA, LAST_BETA, TRAINED_STEPS, dtype=numpy.float64)
    abar = numpy.cumprod(1.0 - trained_betas)[kept]
    return DiscretePath(tuple(kept), 1.0 - abar / numpy.append(1.0, abar[:-1]))


@lru_cache(maxsize=64)
def discrete_path(spacing: str, num_inference_steps: int) -> DiscretePath:
    """The path of a named spacing.

    Raises:
        ValueError: the spacing is unknown or cannot make that many steps.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing {spacing!r} is unknown; known: {', '.join(SPACINGS)}")
    return respaced_path(SPACINGS[spacing](num_inference_steps))


def trained_path() -> DiscretePath:
    """All trained steps: what a loss is taken on."""
    return discrete_path("even", TRAINED_STEPS)


def path_sigma(timestep: float) -> float:
    """The noise level a timestep has for guidance intervals: its share of the trained steps.

    Not the amount of noise, which falls off at both ends, but what makes an interval cover the
    same share of steps as on the straight path, where sigma is 1 - t.
    """
    return timestep / TRAINED_STEPS


def _check_steps(num_inference_steps: int) -> None:
    if not 1 <= num_inference_steps <= TRAINED_STEPS:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}; it must be in 1..{TRAINED_STEPS}, "
            "the steps of the noise path"
        )
