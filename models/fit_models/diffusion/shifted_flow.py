"""Flow schedules with more steps near the noise, and trajectories along any schedule.

The engine's schedules fall evenly; larger pictures need more of their steps at high noise, so
Lumina bends them (arXiv:2406.18583, §2.3), as SD3 does (arXiv:2403.03206, eq. 23). With sigma the
noise level and s the shift::

    sigma' = s sigma / (1 + (s - 1) sigma),    t' = t / (t + s (1 - t))

Knows sigmas and coefficient rows, as `fit_models.diffusion.sampler` has them; not networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fit_models.diffusion.sampler import Evaluation, Trajectory
from fit_models.diffusion.schedule import flow_sigmas


def check_shift(shift: float) -> None:
    """Refuse a shift that bends nothing.

    Raises:
        ValueError: it is not finite and above 0.
    """
    if not (math.isfinite(shift) and shift > 0.0):
        raise ValueError(f"time shift is {shift}; it must be finite and above 0")


def shifted_sigma(sigma: float, shift: float) -> float:
    """Noise level after the shift; 0 and 1 stay."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def shifted_sigmas(num_inference_steps: int, shift: float) -> tuple[float, ...]:
    """From 1 to 0, both included, one more than steps.

    Raises:
        ValueError: fewer than 1 step, or no such shift.
    """
    check_shift(shift)
    return tuple(shifted_sigma(sigma, shift) for sigma in flow_sigmas(num_inference_steps))


def shifted_times(num_points: int, shift: float = 1.0) -> Tensor:
    """The originals' grid of t from noise (0) to data (1), fp32: points, one more than steps.

    Raises:
        ValueError: fewer than 2 points, or no such shift.
    """
    check_shift(shift)
    if num_points < 2:
        raise ValueError(f"num_points is {num_points}; it must be at least 2")
    t = torch.linspace(0, 1, num_points)
    return t / (t + shift - shift * t)


def shifted_training_times(time_S: Tensor, factor: float) -> Tensor:
    """Times of training moved towards the data by a factor above 1, [S]: f t / (1 + (f - 1) t).

    The same bend as of a schedule, but of t and not of sigma, so in the other direction: that is
    how the original's `shift_f` reads with its t.

    Raises:
        ValueError: no such shift.
    """
    check_shift(factor)
    return factor * time_S / (1.0 + (factor - 1.0) * time_S)


def from_strength(schedule: Sequence[float], strength: float) -> tuple[float, ...]:
    """The rest of a schedule of n points that begins at an image, not at noise.

    The first int(n (1 - strength)) points are left out; the state begins as
    (1 - sigma) data + sigma noise at the first that stays (image to image, Lumina-Next).

    Raises:
        ValueError: the strength is not in (0, 1], or leaves no step.
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength is {strength}; it must be above 0 and at most 1")
    kept = tuple(schedule[int(len(schedule) * (1.0 - strength)) :])
    if len(kept) < 2:
        raise ValueError(
            f"strength {strength} leaves no step of {len(schedule) - 1}; take more of either"
        )
    return kept


def euler_along(sigmas: Sequence[float]) -> Trajectory:
    """Euler's rule along any falling schedule."""
    return Trajectory(
        tuple(
            Evaluation(s, (1.0, s - s_next, 0.0, 0.0, 0.0, 0.0, 0.0), i)
            for i, (s, s_next) in enumerate(pairwise(sigmas))
        )
    )


def heun_along(sigmas: Sequence[float]) -> Trajectory:
    """Heun's rule along any falling schedule; memory is x + h/2 v."""
    rows = []
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        h = s - s_next
        rows.append(Evaluation(s, (1.0, h, 0.0, 0.0, 1.0, h / 2, 0.0), i, ends_step=False))
        rows.append(Evaluation(s_next, (0.0, h / 2, 1.0, 0.0, 0.0, 0.0, 0.0), i))
    return Trajectory(tuple(rows))


def midpoint_along(sigmas: Sequence[float]) -> Trajectory:
    """The midpoint rule along any falling schedule: midpoints of neighbours after the shift."""
    rows = []
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        h = s - s_next
        rows.append(Evaluation(s, (1.0, h / 2, 0.0, 0.0, 1.0, 0.0, 0.0), i, ends_step=False))
        rows.append(Evaluation(s - h / 2, (0.0, h, 1.0, 0.0, 0.0, 0.0, 0.0), i))
    return Trajectory(tuple(rows))


ALONG: dict[str, Callable[[Sequence[float]], Trajectory]] = {
    "euler": euler_along,
    "heun": heun_along,
    "midpoint": midpoint_along,
}


def shifted_trajectory(
    sampler: str, num_inference_steps: int, shift: float, strength: float = 1.0
) -> Trajectory:
    """All evaluations of a sequence under a named rule and a shifted schedule.

    Raises:
        ValueError: the sampler is unknown, or steps, shift or strength are refused.
    """
    if sampler not in ALONG:
        raise ValueError(f"sampler {sampler!r} is unknown; known: {', '.join(ALONG)}")
    return ALONG[sampler](from_strength(shifted_sigmas(num_inference_steps, shift), strength))
