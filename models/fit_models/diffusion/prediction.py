"""What number a network wants for time, and what it returns.

The only file that knows FiTv2's t runs from noise (0) to data (1). Everything else speaks of sigma,
the noise level, which falls from 1 to 0 (x = (1 - sigma) data + sigma noise).
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Value = TypeVar("Value", Tensor, float)


def timestep_of_sigma(sigma: Value) -> Value:
    """FiTv2's timestep for a noise level: t = 1 - sigma."""
    return 1.0 - sigma


def sigma_of_timestep(timestep: Value) -> Value:
    """The noise level at FiTv2's timestep; below 0 where a solver overshoots."""
    return 1.0 - timestep
