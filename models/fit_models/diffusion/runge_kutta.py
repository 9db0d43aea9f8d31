"""Explicit Runge-Kutta solvers that own their loop: offline sampling, for parity with the papers.

dopri5 chooses its steps from one error norm over everything it integrates, so neighbours change
each other's pictures, and the number of evaluations is not known before the end: it is never in the
engine.

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", II.1, II.4, II.6;
step control and interpolation as in torchdiffeq 0.2.5, which FiT's published numbers used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau: stage times, stage weights, solution weights."""

    times: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


FIXED_STEP = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0)),
    "heun2": Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "heun3": Tableau((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "rk4": Tableau(  # the 3/8 rule
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}

_DOPRI5 = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
)
_ERROR = (
    35 / 384 - 1951 / 21600,
    0.0,
    500 / 1113 - 22642 / 50085,
    125 / 192 - 451 / 720,
    -2187 / 6784 + 12231 / 42400,
    11 / 84 - 649 / 6300,
    -1 / 60,
)
_MIDDLE = (
    6025192743 / 30085553152 / 2,
    0.0,
    51252292925 / 65400821598 / 2,
    -2691868925 / 45128329728 / 2,
    187940372067 / 1594534317056 / 2,
    -1776094331 / 19743644256 / 2,
    11237099 / 235043384 / 2,
)
_SAFETY, _MAX_GROWTH, _MIN_SHRINK, _ORDER = 0.9, 10.0, 0.2, 5


def integrate_fixed(field: Field, x: Tensor, times: Tensor, method: str) -> Tensor:
    """Integrate dx/dt = field(t, x) over the given times with a fixed-step rule.

    Args:
        field: takes a scalar time and a state.
        x: state at times[0].
        times: increasing, at least two.
        method: a key of `FIXED_STEP`.

    Returns:
        the state at every time, stacked.

    Raises:
        ValueError: the method is unknown.
    """
    if method not in FIXED_STEP:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(FIXED_STEP)}, dopri5")
    tableau = FIXED_STEP[method]
    states = [x]
    for start, end in pairwise(times):
        stages = _stages(field, states[-1], start, end - start, tableau)
        states.append(states[-1] + (end - start) * _combine(tableau.weights, stages))
    return torch.stack(states)


def integrate_dopri5(field: Field, x: Tensor, times: Tensor, atol: float, rtol: float) -> Tensor:
    """Adaptive Dormand-Prince 5(4) with dense output; may evaluate past the last time.

    Step arithmetic is float64; the field receives float64 times. Returns as `integrate_fixed`.
    """
    times = times.double()
    time = times[0]
    slope = field(time, x)
    step = _first_step(field, x, time, slope, atol, rtol)
    states = [x]
    polynomial: tuple[Tensor, ...] = (x, x, x, x, x)
    start, end = time, time
    for target in times[1:]:
        while target > end:
            stages = _stages(field, x, end, step, _DOPRI5, first=slope)
            x_next = x + step.to(x.dtype) * _combine(_DOPRI5.weights, stages)
            error = step.to(x.dtype) * _combine(_ERROR, stages)
            limit = atol + rtol * torch.maximum(x.abs(), x_next.abs())
            ratio = (error / limit).square().mean().sqrt().double()
            if ratio <= 1.0:
                polynomial = _quartic(x, x_next, stages, step.to(x.dtype))
                start, end = end, end + step
                x, slope = x_next, stages[-1]
            step = step * _growth(ratio)
        states.append(_evaluate(polynomial, ((target - start) / (end - start)).to(x.dtype)))
    return torch.stack(states)


def _stages(
    field: Field,
    x: Tensor,
    time: Tensor,
    step: Tensor,
    tableau: Tableau,
    first: Tensor | None = None,
) -> list[Tensor]:
    stages = [field(time, x) if first is None else first]
    for offset, weights in zip(tableau.times[1:], tableau.stages[1:], strict=True):
        state = x + step.to(x.dtype) * _combine(weights, stages)
        stages.append(field(time + step * offset, state))
    return stages


def _combine(weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    total = torch.zeros_like(stages[0])
    for weight, stage in zip(weights, stages, strict=False):
        if weight:
            total = total + weight * stage
    return total


def _first_step(
    field: Field, x: Tensor, time: Tensor, slope: Tensor, atol: float, rtol: float
) -> Tensor:
    """Hairer's starting step (II.4): two probes of the size of the solution and its slope."""
    scale = atol + x.abs() * rtol
    d0 = (x / scale).square().mean().sqrt().double()
    d1 = (slope / scale).square().mean().sqrt().double()
    h0 = torch.tensor(1e-6, dtype=torch.float64) if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    probe = field(time + h0, x + h0.to(x.dtype) * slope)
    d2 = ((probe - slope) / scale).square().mean().sqrt().double() / h0
    if d1 <= 1e-15 and d2 <= 1e-15:
        h1 = torch.maximum(torch.tensor(1e-6, dtype=torch.float64), h0 * 1e-3)
    else:
        h1 = (0.01 / torch.maximum(d1, d2)) ** (1.0 / _ORDER)
    return torch.minimum(100.0 * h0, h1)


def _growth(ratio: Tensor) -> Tensor:
    """Factor on the step; a step that was accepted never shrinks."""
    if ratio == 0.0:
        return torch.tensor(_MAX_GROWTH, dtype=torch.float64)
    shrink = 1.0 if ratio < 1.0 else _MIN_SHRINK
    return (_SAFETY * ratio ** (-1.0 / _ORDER)).clamp(shrink, _MAX_GROWTH)


def _quartic(x: Tensor, x_next: Tensor, stages: list[Tensor], h: Tensor) -> tuple[Tensor, ...]:
    """Quartic through both ends, both slopes and the middle; coefficients from high to low."""
    middle = x + h * _combine(_MIDDLE, stages)
    f0, f1 = h * stages[0], h * stages[-1]
    return (
        2.0 * (f1 - f0) - 8.0 * (x_next + x) + 16.0 * middle,
        5.0 * f0 - 3.0 * f1 + 18.0 * x + 14.0 * x_next - 32.0 * middle,
        f1 - 4.0 * f0 - 11.0 * x - 5.0 * x_next + 16.0 * middle,
        f0,
        x,
    )


def _evaluate(polynomial: tuple[Tensor, ...], position: Tensor) -> Tensor:
    total = torch.zeros_like(polynomial[0])
    for coefficient in polynomial:
        total = total * position + coefficient
    return total
