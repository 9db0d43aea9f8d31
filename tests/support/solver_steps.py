"""A trajectory of DPM-Solver's rows, one plain linear update for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fit_models.diffusion.dpm_solver import SolverEvaluation
from fit_models.diffusion.sampler import Trajectory


def run_solver(
    trajectory: Trajectory, predict: Callable[[Tensor, float], Tensor], start: Tensor
) -> tuple[Tensor, list[float]]:
    """The last state and the timesteps at which the network was asked."""
    x, memory, timesteps = start, torch.zeros_like(start), []
    for evaluation in trajectory.evaluations:
        assert isinstance(evaluation, SolverEvaluation)
        noise = predict(x, evaluation.timestep)
        a, b, c, _, d, e, f = evaluation.coefficients
        x, memory = a * x + b * noise + c * memory, d * x + e * noise + f * memory
        timesteps.append(evaluation.timestep)
    return x, timesteps
