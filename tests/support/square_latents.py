"""Latents of one shape to packed tokens and back, for networks tied to a square grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fit_models.diffusion.discrete_sampler import (
    DiscreteEvaluation,
    scaled_noise,
    variance_ranges,
)
from fit_models.diffusion.sampler import Trajectory
from fit_models.patches import patchify, unpatchify
from fit_models.positions import PositionTables, layout_of_tables

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


class OnLatents:
    """A network of packed tokens behind the originals' interface of latents [B, C, h, w]."""

    def __init__(self, network: Any, tables: PositionTables, position_factor: float = 1.0) -> None:
        self.network = network
        self.tables = tables
        self.position_factor = position_factor
        self.patch_size: int = network.config.patch_size

    def __call__(self, x_BChw: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        rows, columns = (side // self.patch_size for side in x_BChw.shape[-2:])
        layout = layout_of_tables([(rows, columns)] * len(x_BChw), self.tables)
        layout = replace(layout, rope_cos=layout.rope_cos * self.position_factor)
        tokens_TK = patchify(x_BChw, self.patch_size).flatten(0, 1)
        out_TP = self.network(tokens_TK, layout, t_B, y_B.long())
        out_BNP = out_TP.unflatten(0, (len(x_BChw), -1))
        return unpatchify(out_BNP, rows, columns, self.patch_size)


def doubled(
    predict: Predict, scale: Callable[[Tensor], Tensor], guided_channels: int = 3
) -> Predict:
    """DiT's guided forward: halves [conditional | unconditional], both fed the first's state."""

    def guided(x_BChw: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        half = x_BChw[: len(x_BChw) // 2]
        out = predict(torch.cat((half, half)), t_B, y_B)
        noise, rest = out[:, :guided_channels], out[:, guided_channels:]
        conditional, unconditional = noise.chunk(2)
        s = scale(t_B[: len(half)]).view(-1, 1, 1, 1)
        moved = unconditional + s * (conditional - unconditional)
        return torch.cat((torch.cat((moved, moved)), rest), dim=1)

    return guided


def run_discrete(
    predict: Predict, trajectory: Trajectory, z_BChw: Tensor, y_B: Tensor, noises: Tensor | None
) -> dict[str, Tensor]:
    """DDPM or DDIM with a prediction that is guided already; what the originals recorded of it.

    The first half of the batch is kept of states and estimates.
    """
    x, channels, kept = z_BChw, z_BChw.shape[1], len(z_BChw) // 2
    states, estimates, timesteps = [], [], []
    for i, evaluation in enumerate(trajectory.evaluations):
        assert isinstance(evaluation, DiscreteEvaluation)
        t_B = torch.full((len(x),), evaluation.timestep)
        noise, variance = predict(x, t_B, y_B).split(channels, dim=1)
        state, prediction = evaluation.data_estimate
        estimates.append((state * x + prediction * noise)[:kept])
        state, prediction, _, fresh, *_ = evaluation.coefficients
        x = state * x + prediction * noise
        if fresh:
            assert noises is not None
            ranges, row_B = variance_ranges([evaluation]), torch.zeros(len(x), dtype=torch.int64)
            draws = scaled_noise(noises[i].flatten(1), variance.flatten(1), ranges, row_B)
            x = x + fresh * draws.view_as(x)
        states.append(x[:kept])
        timesteps.append(evaluation.timestep)
    return {
        "final": x,
        "samples": torch.stack(states),
        "pred_xstart": torch.stack(estimates),
        "t_net": torch.tensor(timesteps),
    }
