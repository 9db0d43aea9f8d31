"""Guidance that grows from nothing at pure noise to its full scale at the image.

Source: DiffiT (arXiv:2312.02139), MDT (arXiv:2303.14389); DiMR has it as an option. (FiT's code has
the same curve over the opposite direction of time: `Guidance.scale_power`.)
"""

from __future__ import annotations

import math


def power_cosine_scale(
    scale: float, power: float, timestep: float, num_timesteps: int = 1000
) -> float:
    """Scale at a timestep of a process whose high timesteps are noise.

    Args:
        scale: at timestep 0; 1 means none.
        power: larger ones keep guidance off for longer; near 0 it is constant.
        timestep: 0 ... `num_timesteps`; the index of the full process, not of a respaced one.
        num_timesteps: of the full process.
    """
    nearness = 1.0 - timestep / num_timesteps
    return 1.0 + (scale - 1.0) * (1.0 - math.cos(math.pi * nearness**power)) / 2.0
