"""DDPM and DDIM as rows of coefficients over the predicted noise, like every other sampler.

`fit_models.diffusion.sampler` has the form: x' = a x + b prediction + c memory + d noise. Here the
prediction is the noise eps, and estimate, mean and direction of a step are all linear in x and eps,
so one row is the whole step. One thing more is needed where the network says how large the
variance is: the fresh noise then has a factor for each element, exp(half the log variance), which
`scaled_noise` puts on it before the common update adds it with d = 1.

Sources: DDPM (arXiv:2006.11239), learned variance (arXiv:2102.09672, eq. 15), DDIM
(arXiv:2010.02502, eq. 12). Dimension key: Ts state tokens, S sequences, K token channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.diffusion.discrete import DiscretePath, discrete_path, path_sigma
from fit_models.diffusion.sampler import Evaluation, Trajectory

# exp(0 / 2) = 1: the range of a sequence whose noise is scaled by its row alone.
UNIT_RANGE = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class DiscreteEvaluation(Evaluation):
    """An evaluation on the discrete path; its `sigma` is the timestep's share of the trained ones.

    Attributes:
        timestep: index among the trained steps, what the network is given.
        log_variance_range: lower and upper end between which the network's second half of channels
            chooses the noise's log variance; None where the row's noise coefficient says all.
        data_estimate: factors of state and prediction in the estimate of the data, for previews.
    """

    timestep: int
    log_variance_range: tuple[float, float] | None = None
    data_estimate: tuple[float, float]


def ddpm(path: DiscretePath, learned_variance: bool = True) -> Trajectory:
    """Ancestral sampling: the posterior's mean at the estimated data, plus noise but at the end.

    Args:
        path: the kept steps.
        learned_variance: whether the network says where the log variance lies in its range;
            otherwise it is the lower end, the posterior's own.
    """
    rows = []
    for step, k in enumerate(reversed(range(len(path.timesteps)))):
        data, state = float(path.posterior_mean_coef1[k]), float(path.posterior_mean_coef2[k])
        from_state, from_noise = path.data_estimate(k)
        variance_range = path.log_variance_range(k) if k > 0 and learned_variance else None
        noise = math.exp(0.5 * float(path.posterior_log_variance_clipped[k])) if k > 0 else 0.0
        row = (data * from_state + state, data * from_noise, noise if not variance_range else 1.0)
        rows.append(_evaluation(path, k, step, row, variance_range))
    return Trajectory(tuple(rows))


def ddim(path: DiscretePath, eta: float = 0.0) -> Trajectory:
    """The implicit rule: deterministic at eta 0, as noisy as DDPM's lower variance at eta 1.

    Raises:
        ValueError: eta is negative or not finite, or leaves no room for the direction.
    """
    if not (math.isfinite(eta) and 0.0 <= eta <= 1.0):
        raise ValueError(f"eta is {eta}; it must be in 0..1")
    rows = []
    for step, k in enumerate(reversed(range(len(path.timesteps)))):
        abar, abar_prev = float(path.alphas_cumprod[k]), float(path.alphas_cumprod_prev[k])
        noise = eta * math.sqrt((1.0 - abar_prev) / (1.0 - abar) * (1.0 - abar / abar_prev))
        from_state, from_noise = path.data_estimate(k)
        direction = math.sqrt(max(1.0 - abar_prev - noise**2, 0.0))
        scale = math.sqrt(abar_prev)
        row = (scale * from_state, scale * from_noise + direction, noise)
        rows.append(_evaluation(path, k, step, row, None))
    return Trajectory(tuple(rows))


def scaled_noise(
    noise_TsK: Tensor, variance_TsK: Tensor, range_S2: Tensor, sequence_Ts: Tensor
) -> Tensor:
    """Fresh noise with the deviation the network asks for; the specification of any fused form.

    The log variance is low + (v + 1) / 2 (high - low), v the network's unclipped answer.

    Args:
        noise_TsK: standard normal draws.
        variance_TsK: v, the second half of the (conditional) prediction of each state token.
        range_S2: fp32, low and high of each sequence; `UNIT_RANGE` where nothing is learned.
        sequence_Ts: int64, the sequence of each state token.

    Returns:
        [Ts, K] in the dtype of the noise.
    """
    low_Ts1, high_Ts1 = range_S2.index_select(0, sequence_Ts).split(1, dim=1)
    share_TsK = (variance_TsK.float() + 1.0) / 2.0
    log_variance_TsK = share_TsK * high_Ts1 + (1.0 - share_TsK) * low_Ts1
    return noise_TsK * torch.exp(0.5 * log_variance_TsK).to(noise_TsK.dtype)


def variance_ranges(evaluations: list[Evaluation]) -> Tensor:
    """`range_S2` of `scaled_noise` for the current evaluations of a batch of any mix of rules."""
    ranges = [getattr(evaluation, "log_variance_range", None) for evaluation in evaluations]
    return torch.tensor([r or UNIT_RANGE for r in ranges], dtype=torch.float32)


def _evaluation(
    path: DiscretePath,
    k: int,
    step: int,
    row: tuple[float, float, float],
    variance_range: tuple[float, float] | None,
) -> DiscreteEvaluation:
    """A whole step from its factors of state, prediction and noise; nothing is remembered."""
    state, prediction, noise = row
    timestep = path.timesteps[k]
    return DiscreteEvaluation(
        sigma=path_sigma(timestep),
        coefficients=(state, prediction, 0.0, noise, 0.0, 0.0, 0.0),
        step=step,
        timestep=timestep,
        log_variance_range=variance_range,
        data_estimate=path.data_estimate(k),
    )


DISCRETE_SAMPLERS: dict[str, Callable[[int], Trajectory]] = {
    "ddpm": lambda steps: ddpm(discrete_path("even", steps)),
    "ddim": lambda steps: ddim(discrete_path("leading", steps)),
}


def make_discrete_trajectory(sampler: str, num_inference_steps: int) -> Trajectory:
    """All evaluations of a sequence under a named sampler, as the releases' own scripts space them.

    Raises:
        ValueError: the sampler is unknown, or the path has not that many steps.
    """
    if sampler not in DISCRETE_SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; known: {', '.join(DISCRETE_SAMPLERS)}")
    return DISCRETE_SAMPLERS[sampler](num_inference_steps)
