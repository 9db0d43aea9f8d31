"""A variance-preserving path through trained noise levels, continued between them.

Knows log alpha at each trained level and interpolates it, x = alpha data + sigma noise with
alpha^2 + sigma^2 = 1. Source: DPM-Solver (arXiv:2206.00927), its treatment of discrete models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy
from numpy.typing import NDArray

Float64s = NDArray[numpy.float64]

# Stable Diffusion's levels, which DiMR is trained on (arXiv:2112.10752).
FIRST_BETA, LAST_BETA, NUM_LEVELS = 0.00085, 0.012, 1000


@dataclass(frozen=True, eq=False)
class VPSchedule:
    """Trained levels 1 ... n at times i / n.

    Attributes:
        alphas_cumprod: float64 [n], share of the data's variance that is left, falling.
    """

    alphas_cumprod: Float64s

    @property
    def num_levels(self) -> int:
        """n."""
        return len(self.alphas_cumprod)

    @cached_property
    def _times(self) -> Float64s:
        return numpy.arange(1, self.num_levels + 1, dtype=numpy.float64) / self.num_levels

    @cached_property
    def _log_alphas(self) -> Float64s:
        return 0.5 * numpy.log(self.alphas_cumprod)

    def abar(self, level: int) -> float:
        """Alpha^2 of a trained level 0 ... n; level 0 is the data itself."""
        return 1.0 if level == 0 else float(self.alphas_cumprod[level - 1])

    def log_alpha(self, t: float) -> float:
        """Log alpha at a time from 1 / n to 1, piecewise linear."""
        return float(numpy.interp(t, self._times, self._log_alphas))

    def sigma(self, t: float) -> float:
        """Standard deviation of the noise at a time."""
        return math.sqrt(-math.expm1(2.0 * self.log_alpha(t)))

    def log_ratio(self, t: float) -> float:
        """Lambda = log(alpha / sigma) at a time."""
        return self.log_alpha(t) - math.log(self.sigma(t))

    def t_at_log_ratio(self, log_ratio: float) -> float:
        """The time of a lambda: the exact inverse of `log_ratio`."""
        log_alpha = -0.5 * numpy.logaddexp(0.0, -2.0 * log_ratio)
        return float(numpy.interp(log_alpha, self._log_alphas[::-1], self._times[::-1]))


@lru_cache(maxsize=1)
def scaled_linear_schedule() -> VPSchedule:
    """Stable Diffusion's: square roots of the betas are evenly spaced."""
    roots = numpy.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, NUM_LEVELS, dtype=numpy.float64)
    return VPSchedule(numpy.cumprod(1.0 - roots**2, dtype=numpy.float64))
