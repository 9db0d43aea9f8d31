"""DPM-Solver++ as rows of coefficients: single-step of order 3, and two-step ("2M").

Every rule is linear in states and in estimates of the data D = (x - sigma eps) / alpha, so it fits
`fit_models.diffusion.sampler`'s form with a single memory. That is so for order 3 as well, which
uses x and D of its first evaluation in its second and its third: the state between, x1, is a
combination of them, so with D as the memory x = (x1 - b1 D) / a1 need not be kept.

Sources: DPM-Solver (arXiv:2206.00927), DPM-Solver++ (arXiv:2211.01095); the choice of orders and
times is that of the authors' method "fast", which DiMR (arXiv:2406.09416) samples with.

`t` runs from 1 / n, the least noisy trained level, to 1; a network is given n t, n = 1000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy
from numpy.typing import NDArray

from fit_models.diffusion.sampler import Evaluation, Trajectory
from fit_models.diffusion.vp_schedule import VPSchedule


@dataclass(frozen=True, kw_only=True)
class SolverEvaluation(Evaluation):
    """An evaluation between trained levels; its `sigma` is the timestep's share of them.

    Attributes:
        timestep: what the network is given, n t; not a whole number in general.
        data_estimate: factors of state and prediction in the estimate of the data, for previews.
    """

    timestep: float
    data_estimate: tuple[float, float]

    @property
    def network_timestep(self) -> float:
        """As it is."""
        return self.timestep


@dataclass(frozen=True)
class _Level:
    """One noise level: x = alpha data + sigma noise, log signal-to-noise lambda."""

    t: float
    alpha: float
    sigma: float
    log_ratio: float

    def estimate(self) -> tuple[float, float]:
        """Factors of state and prediction in D."""
        return 1.0 / self.alpha, -self.sigma / self.alpha


def single_step_orders(num_inference_steps: int) -> tuple[int, ...]:
    """Orders that add up to the number of evaluations: threes, then what is left.

    Raises:
        ValueError: there is not at least one.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be at least 1")
    threes, rest = divmod(num_inference_steps, 3)
    if rest == 0:
        return (*[3] * (threes - 1), 2, 1)
    return (*[3] * threes, rest)


def dpm_solver_single(num_inference_steps: int, schedule: VPSchedule) -> Trajectory:
    """Single-step DPM-Solver++ of order 3 over even times; one evaluation for each of the steps.

    Args:
        num_inference_steps: evaluations.
        schedule: noise levels the network was trained on.

    Raises:
        ValueError: there is not at least one step.
    """
    orders = single_step_orders(num_inference_steps)
    grid = [_level(schedule, float(t)) for t in _even_times(num_inference_steps, schedule)]
    rows: list[SolverEvaluation] = []
    first = 0
    for order in orders:
        start, end = grid[first], grid[first + order]
        match order:
            case 1:
                rows += _first_order(schedule, first, start, end)
            case 2:
                rows += _second_order(schedule, first, start, grid[first + 1], end)
            case _:
                rows += _third_order(schedule, first, start, *grid[first + 1 : first + 3], end)
        first += order
    return Trajectory(tuple(rows))


def dpm_solver_2m(num_inference_steps: int, schedule: VPSchedule) -> Trajectory:
    """Two-step DPM-Solver++ over even times; the memory is the estimate one step before.

    The first step is of first order, and so is the last of fewer than 15, which else may overshoot.

    Raises:
        ValueError: there is not at least one step.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be at least 1")
    grid = [_level(schedule, float(t)) for t in _even_times(num_inference_steps, schedule)]
    rows = []
    for i, (start, end) in enumerate(pairwise(grid)):
        keep, gain = _step(start, end)
        is_last = i == num_inference_steps - 1
        own, before = gain, 0.0
        if i > 0 and not (is_last and num_inference_steps < _FEW_STEPS):
            step_before = start.log_ratio - grid[i - 1].log_ratio
            ahead = (end.log_ratio - start.log_ratio) / (2.0 * step_before)
            own, before = gain * (1.0 + ahead), -gain * ahead
        state, prediction = start.estimate()
        moved = (keep + own * state, own * prediction, before)
        rows.append(_evaluation(schedule, i, start, moved, (state, prediction, 0.0)))
    return Trajectory(tuple(rows))


_FEW_STEPS = 15


def _first_order(
    schedule: VPSchedule, place: int, start: _Level, end: _Level
) -> list[SolverEvaluation]:
    keep, gain = _step(start, end)
    state, prediction = start.estimate()
    moved = (keep + gain * state, gain * prediction, 0.0)
    return [_evaluation(schedule, place, start, moved, (0.0, 0.0, 0.0))]


def _second_order(
    schedule: VPSchedule, place: int, start: _Level, middle: _Level, end: _Level
) -> list[SolverEvaluation]:
    """x' = keep x + gain D + slope (D1 - D); the memory is all of it but slope D1."""
    keep, gain = _step(start, end)
    slope = gain * (end.log_ratio - start.log_ratio) / (middle.log_ratio - start.log_ratio) / 2.0
    keep1, gain1 = _step(start, middle)
    state, prediction = start.estimate()
    rest = gain - slope
    first = (keep1 + gain1 * state, gain1 * prediction, 0.0)
    memory = (keep + rest * state, rest * prediction, 0.0)
    state1, prediction1 = middle.estimate()
    last = (slope * state1, slope * prediction1, 1.0)
    return [
        _evaluation(schedule, place, start, first, memory, ends_step=False),
        _evaluation(schedule, place + 1, middle, last, (0.0, 0.0, 0.0)),
    ]


def _third_order(
    schedule: VPSchedule, place: int, start: _Level, one: _Level, two: _Level, end: _Level
) -> list[SolverEvaluation]:
    """x2 = keep2 x + gain2 D + slope2 (D1 - D), then x' likewise with D2; see the module."""
    width = end.log_ratio - start.log_ratio
    to_one, to_two = one.log_ratio - start.log_ratio, two.log_ratio - start.log_ratio
    keep1, gain1 = _step(start, one)
    keep2, gain2 = _step(start, two)
    keep, gain = _step(start, end)
    slope2 = (to_two / to_one) * two.alpha * _second_integral(to_two)
    slope = (width / to_two) * end.alpha * _second_integral(width)
    state, prediction = start.estimate()
    first = (keep1 + gain1 * state, gain1 * prediction, 0.0)
    state1, prediction1 = one.estimate()
    second = (
        keep2 / keep1 + slope2 * state1,
        slope2 * prediction1,
        gain2 - slope2 - keep2 / keep1 * gain1,
    )
    memory = (keep / keep1, 0.0, gain - slope - keep / keep1 * gain1)
    state2, prediction2 = two.estimate()
    last = (slope * state2, slope * prediction2, 1.0)
    return [
        _evaluation(schedule, place, start, first, (state, prediction, 0.0), ends_step=False),
        _evaluation(schedule, place + 1, one, second, memory, ends_step=False),
        _evaluation(schedule, place + 2, two, last, (0.0, 0.0, 0.0)),
    ]


def _step(start: _Level, end: _Level) -> tuple[float, float]:
    """Factors of x and of a constant D in the exact solution between two levels."""
    shrink = math.expm1(start.log_ratio - end.log_ratio)
    return end.sigma / start.sigma, -end.alpha * shrink


def _second_integral(width: float) -> float:
    """(e^-w - 1) / w + 1: what a D that grows linearly in lambda adds."""
    return math.expm1(-width) / width + 1.0


def _evaluation(
    schedule: VPSchedule,
    place: int,
    level: _Level,
    moved: tuple[float, float, float],
    memory: tuple[float, float, float],
    ends_step: bool = True,
) -> SolverEvaluation:
    """Factors of state, prediction and memory in x', then in the memory after it."""
    state, prediction, kept = moved
    return SolverEvaluation(
        sigma=level.t,
        coefficients=(state, prediction, kept, 0.0, *memory),
        step=place,
        ends_step=ends_step,
        timestep=schedule.num_levels * level.t,
        data_estimate=level.estimate(),
    )


def _level(schedule: VPSchedule, t: float) -> _Level:
    log_alpha = schedule.log_alpha(t)
    sigma = math.sqrt(-math.expm1(2.0 * log_alpha))
    return _Level(t, math.exp(log_alpha), sigma, log_alpha - math.log(sigma))


def _even_times(num_inference_steps: int, schedule: VPSchedule) -> NDArray[numpy.float64]:
    return numpy.linspace(1.0, 1.0 / schedule.num_levels, num_inference_steps + 1)
