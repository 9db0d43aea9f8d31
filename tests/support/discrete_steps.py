"""A whole trajectory on the discrete path, through the operator that the engine uses.

The originals carry a guided sequence as two states, of which only the first is ever read by the
network; both are advanced here, so that a recorded whole batch can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fit_kernels import guided_step
from fit_models.diffusion.discrete_sampler import (
    DiscreteEvaluation,
    scaled_noise,
    variance_ranges,
)
from fit_models.diffusion.sampler import Trajectory
from support.discrete_networks import Grid, Subject


@dataclass
class Walk:
    """What a trajectory left behind, each as packed tokens of the whole batch."""

    timesteps: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    data_estimates: list[Tensor] = field(default_factory=list)


def walk(
    subject: Subject,
    trajectory: Trajectory,
    start_TK: Tensor,
    labels: Tensor,
    grids: list[Grid],
    noises: Sequence[Tensor] | None = None,
    guidance_scale: float | None = None,
) -> Walk:
    """Run one trajectory for a batch of equal grids; guided, its second half has the null label."""
    x_TK, done = start_TK, Walk()
    layout = subject.layout(grids)
    for i, evaluation in enumerate(trajectory.evaluations):
        assert isinstance(evaluation, DiscreteEvaluation)
        seen_TK = x_TK
        if guidance_scale is not None:
            seen_TK = x_TK.chunk(2)[0].repeat(2, 1)
        timestep_S = torch.full((len(grids),), evaluation.timestep)
        prediction_TP = subject.network(seen_TK, layout, timestep_S, labels)
        noise_TK = noises[i] if noises is not None else None
        advanced = [
            _advance(subject, evaluation, x, prediction_TP, noise, half, guidance_scale)
            for half, (x, noise) in enumerate(_halves(x_TK, noise_TK, guidance_scale))
        ]
        x_TK = torch.cat([state for state, _ in advanced])
        done.timesteps.append(evaluation.timestep)
        done.states.append(x_TK)
        done.data_estimates.append(torch.cat([estimate for _, estimate in advanced]))
    return done


def _halves(
    x_TK: Tensor, noise_TK: Tensor | None, guidance_scale: float | None
) -> list[tuple[Tensor, Tensor | None]]:
    if guidance_scale is None:
        return [(x_TK, noise_TK)]
    noises = [None, None] if noise_TK is None else noise_TK.chunk(2)
    return list(zip(x_TK.chunk(2), noises, strict=True))


def _advance(
    subject: Subject,
    evaluation: DiscreteEvaluation,
    x_TK: Tensor,
    prediction_TP: Tensor,
    noise_TK: Tensor | None,
    half: int,
    guidance_scale: float | None,
) -> tuple[Tensor, Tensor]:
    """x' and the estimate of the data of one half; the null half keeps its unguided channels."""
    channels, n = subject.config.token_channels, len(x_TK)
    conditional = torch.arange(n) + half * (len(prediction_TP) - n)
    unconditional, scale = conditional, 1.0
    eps_TK = prediction_TP[:, :channels].clone()
    variance_TK = prediction_TP[conditional, channels:]
    if guidance_scale is not None:
        conditional, unconditional, scale = torch.arange(n), torch.arange(n) + n, guidance_scale
        if half == 1:
            g = subject.config.guided_token_channels
            eps_TK[:n, g:] = eps_TK[n:, g:]
    if noise_TK is not None and variance_TK.shape[1]:
        sequence_T = torch.zeros(n, dtype=torch.int64)
        noise_TK = scaled_noise(noise_TK, variance_TK, variance_ranges([evaluation]), sequence_T)
    rows = [(*evaluation.coefficients, scale), (*evaluation.data_estimate, *[0.0] * 5, scale)]
    results = [
        guided_step(
            x_TK,
            eps_TK,
            torch.zeros_like(x_TK),
            noise_TK if row[3] else None,
            conditional,
            unconditional,
            torch.tensor([row]),
            torch.zeros(n, dtype=torch.int64),
            subject.config.guided_token_channels,
        )[0]
        for row in rows
    ]
    return results[0], results[1]
