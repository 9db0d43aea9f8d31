"""One training problem laid out packed and padded, and its prediction and loss either way.

Knows that all ways must agree, and checks it; nothing of time, optimizers or photographs.

Dimension key: B images, N tokens of the longest, T real tokens, K token channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from padded_training import PaddedBatch, pad_tokens, padded_batch, padded_forward, padded_loss
from torch import Tensor

from fit_models.diffusion.loss import flow_inputs, logit_normal_sigma, sequence_mean_square
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import PackedLayout, layout_of_grids

Grid = tuple[int, int]
WAYS = ("packed", "padded", "padded, products")
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Problem:
    """Images of one step, laid out both ways.

    Attributes:
        x, target: packed noisy tokens and velocity targets, [T, K].
        timestep, label: one per image.
        layout: of the packed tokens.
        padded: of the same images, each in its row.
        padded_x, padded_target: [B, N, K].
    """

    x: Tensor
    target: Tensor
    timestep: Tensor
    label: Tensor
    layout: PackedLayout
    padded: PaddedBatch
    padded_x: Tensor
    padded_target: Tensor


def make_problem(network: FiTv2, grids: Sequence[Grid], generator: torch.Generator) -> Problem:
    """Random latents, noise, noise levels and labels for images of the given grids."""
    config = network.config
    grids = sorted(grids, key=lambda grid: (grid[0] * grid[1], grid))
    layout = layout_of_grids(grids, config.head_dim, config.rope)
    shape = (layout.num_tokens, config.token_channels)
    data, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    sigma = logit_normal_sigma(len(grids), generator)
    x, timestep, target = flow_inputs(data, noise, sigma, layout.seq_of_token)
    label = torch.randint(config.num_classes, (len(grids),), generator=generator)
    padded = padded_batch(grids, config)
    rows = (pad_tokens(x, padded), pad_tokens(target, padded))
    return Problem(x, target, timestep, label, layout, padded, *rows)


def predict(network: FiTv2, problem: Problem, way: str) -> Tensor:
    """Velocity of the real tokens and, where padded, of the padding: [T, K] or [B, N, K]."""
    if way == "packed":
        return network(problem.x, problem.layout, problem.timestep, problem.label)
    conditioning = (problem.timestep, problem.label)
    products = way == "padded, products"
    return padded_forward(network, problem.padded_x, problem.padded, *conditioning, products)


def loss_of(velocity: Tensor, problem: Problem, way: str) -> Tensor:
    """The flow-matching loss, a mean per image, either way."""
    if way != "packed":
        return padded_loss(velocity, problem.padded_target, problem.padded)
    layout = problem.layout
    error = velocity.float() - problem.target
    return sequence_mean_square(error, layout.seq_of_token, layout.num_sequences).mean()


def check_agreement(network: FiTv2, problem: Problem) -> float:
    """Assert that all ways predict the same with the same loss; return the largest difference."""
    largest = 0.0
    with torch.no_grad():
        wanted = predict(network, problem, "packed")
        wanted_loss = loss_of(wanted, problem, "packed")
        for way in WAYS[1:]:
            velocity = predict(network, problem, way)
            difference = float((velocity[problem.padded.real] - wanted).abs().max())
            loss_difference = float((loss_of(velocity, problem, way) - wanted_loss).abs())
            largest = max(largest, difference, loss_difference)
            assert largest <= _TOLERANCE, (way, difference, loss_difference)
            assert not velocity[~problem.padded.real].any(), way
    return largest


def open_gates(network: FiTv2, generator: torch.Generator) -> None:
    """Values of size one behind every matrix that `initialize` puts to zero, and in every bias.

    Else no block would change anything, and agreement would say nothing of attention.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                std = parameter.shape[1] ** -0.5 if parameter.ndim > 1 else 0.1
                parameter.normal_(std=std, generator=generator)
