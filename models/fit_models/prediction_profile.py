"""Measures how a model's prediction behaves along its trajectories, for the step cache's plan.

A few guided sequences are sampled as they always are; the profile is what their predictions did on
the way, and what became of small errors put in. See `fit_models.diffusion.step_cache`.

Dimension key: T packed tokens, S sequences, K token channels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.diffusion.guidance import guide
from fit_models.diffusion.prediction import timestep_of_sigma
from fit_models.diffusion.schedule import flow_sigmas
from fit_models.diffusion.step_cache import PredictionProfile
from fit_models.packing import layout_of_grids

_ERROR = 0.02  # root mean square of the error put in; the latent's is near 1

Field = Callable[[Tensor, float], Tensor]


@torch.inference_mode()
def measure_profile(
    bundle: Bundle,
    num_sequences: int = 12,
    num_steps: int = 40,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PredictionProfile:
    """Sample `num_sequences` pictures of different classes and shapes, and watch.

    Args:
        bundle: the model.
        num_sequences: pictures; more of them, less noise.
        num_steps: Euler steps of the watched trajectory.
        seed: of the noise.
        on_progress: told evaluations done and in all.

    Raises:
        ValueError: fewer than 1 sequence or 4 steps.
    """
    if num_sequences < 1 or num_steps < 4:
        raise ValueError(
            f"num_sequences is {num_sequences} and num_steps {num_steps}; at least 1 and 4"
        )
    field, noise_TK = _field(bundle, num_sequences, seed)
    coarse = flow_sigmas(num_steps // 2)
    starts = range(0, len(coarse) - 1, 2)
    total = num_steps + sum(len(coarse) - 1 - start for start in starts) + len(coarse) - 1
    done = 0

    def watched(x_TK: Tensor, sigma: float) -> Tensor:
        nonlocal done
        done += 1
        on_progress(done, total)
        return field(x_TK, sigma)

    fine = flow_sigmas(num_steps)
    predictions = _trajectory(watched, noise_TK, fine)[1]
    slopes = [
        (after - before) / (t - s)
        for (s, before), (t, after) in pairwise(zip(fine, predictions, strict=False))
    ]
    bends = [
        (after - before) / (fine[i + 2] - fine[i])
        for i, (before, after) in enumerate(pairwise(slopes))
    ]
    at, sensitivity = _sensitivity(watched, noise_TK, coarse, starts)
    sigmas = tuple(sorted(fine[1:-2]))
    return PredictionProfile(
        sigmas=sigmas,
        slope=tuple(_rms(slope) for slope in reversed(slopes[: len(sigmas)])),
        curvature=tuple(_rms(bend) for bend in reversed(bends[: len(sigmas)])),
        sensitivity=tuple(_between(at, sensitivity, sigma) for sigma in sigmas),
    )


def _field(bundle: Bundle, num_sequences: int, seed: int) -> tuple[Field, Tensor]:
    """Guided prediction of all sequences, and their start noise [T, K]."""
    network, device = bundle.fitv2("prediction profiles"), bundle.device
    config = network.config
    side = config.rope.ori_max_pe_len
    shapes = ((side, side), (side * 3 // 4, side), (side, side * 3 // 4))
    grids = [shapes[i % len(shapes)] for i in range(num_sequences)]
    layout = layout_of_grids(grids, config.head_dim, config.rope, device)
    stride = max(1, config.num_classes // num_sequences)
    labels = torch.arange(num_sequences, device=device) * stride % config.num_classes
    nulls = torch.full_like(labels, config.null_label)
    scale = bundle.defaults.guidance_scale

    def field(x_TK: Tensor, sigma: float) -> Tensor:
        timestep_S = torch.full((num_sequences,), timestep_of_sigma(sigma), device=device)
        x = x_TK.to(bundle.dtype)
        conditional_TK = network(x, layout, timestep_S, labels).float()
        if scale == 1.0:
            return conditional_TK
        unconditional_TK = network(x, layout, timestep_S, nulls).float()
        scale_T1 = torch.full((len(x), 1), scale, device=device)
        return guide(conditional_TK, unconditional_TK, scale_T1, config.guided_token_channels)

    generator = torch.Generator().manual_seed(seed)
    noise_TK = torch.randn(layout.num_tokens, config.token_channels, generator=generator)
    return field, noise_TK.to(device)


def _trajectory(
    field: Field, x_TK: Tensor, sigmas: tuple[float, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """Euler's states, the last one included, and predictions."""
    states, predictions = [x_TK], []
    for sigma, after in pairwise(sigmas):
        predictions.append(field(states[-1], sigma))
        states.append(states[-1] + (sigma - after) * predictions[-1])
    return states, predictions


def _sensitivity(
    field: Field, noise_TK: Tensor, sigmas: tuple[float, ...], starts: range
) -> tuple[list[float], list[float]]:
    """Noise levels, and how much an error made there is grown at the end.

    The error points where errors of reuse do: along the prediction's own change.
    """
    states, predictions = _trajectory(field, noise_TK, sigmas)
    at, growth = [], []
    for start in starts:
        other = min(start + 1, len(predictions) - 1)
        change = predictions[other] - predictions[max(other - 1, 0)]
        error = change * (_ERROR / max(_rms(change), 1e-12))
        end = _trajectory(field, states[start] + error, sigmas[start:])[0][-1]
        at.append(sigmas[start])
        growth.append(_rms(end - states[-1]) / _ERROR)
    return at[::-1], growth[::-1]


def _between(at: list[float], values: list[float], sigma: float) -> float:
    """Linear between rising positions, constant beyond them."""
    for (low, below), (high, above) in pairwise(zip(at, values, strict=True)):
        if low <= sigma <= high:
            return below + (above - below) * (sigma - low) / (high - low)
    return values[0] if sigma < at[0] else values[-1]


def _rms(x: Tensor) -> float:
    return float(x.pow(2).mean().sqrt())
