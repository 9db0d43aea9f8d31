"""Update rules as rows of coefficients: pure, one evaluation at a time, nothing remembered here.

Every rule offered is linear in what it has: the state the network was evaluated at, the prediction,
one memory that belongs to the sequence, and fresh noise. So one evaluation of one sequence is seven
numbers, and a packed batch of any mix of rules advances in one vectorised step
(`fit_kernels.guided_step`)::

    x'      = x.state x + x.velocity v + x.memory m + x.noise n
    memory' = m.state x + m.velocity v + m.memory m

The velocity points from noise to data, so lowering sigma by h adds h v (SiT, arXiv:2401.08740).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from fit_models.diffusion.prediction import timestep_of_sigma
from fit_models.diffusion.schedule import flow_sigmas

# SiT's SDE integration stops here and takes one last step of this size without noise.
SDE_LAST_STEP = 0.04
DIFFUSION_FORMS = ("sigma", "constant", "linear", "decreasing", "increasing-decreasing")
LAST_STEPS = ("mean", "tweedie", "euler", "none")


@dataclass(frozen=True)
class Evaluation:
    """One network evaluation of one sequence and what follows from it.

    Attributes:
        sigma: noise level at which the network is evaluated; below 0 never.
        coefficients: (state, velocity, memory, noise) of x', then (state, velocity, memory) of m'.
        step: index of the step of the schedule it belongs to.
        ends_step: whether x' is the state at the next sigma of the schedule.
    """

    sigma: float
    coefficients: tuple[float, float, float, float, float, float, float]
    step: int
    ends_step: bool = True

    @property
    def network_timestep(self) -> float:
        """The number the network is given for time; on the straight path FiTv2's."""
        return timestep_of_sigma(self.sigma)

    @property
    def needs_noise(self) -> bool:
        """Whether fresh noise enters."""
        return self.coefficients[3] != 0.0


@dataclass(frozen=True)
class Trajectory:
    """All evaluations of a sequence, and the noise added before the first (SDE Heun only)."""

    evaluations: tuple[Evaluation, ...]
    start_noise: float = 0.0


def euler(num_inference_steps: int) -> Trajectory:
    """First order: one evaluation a step."""
    sigmas = flow_sigmas(num_inference_steps)
    return Trajectory(
        tuple(
            Evaluation(s, (1.0, s - s_next, 0.0, 0.0, 0.0, 0.0, 0.0), i)
            for i, (s, s_next) in enumerate(pairwise(sigmas))
        )
    )


def heun(num_inference_steps: int) -> Trajectory:
    """Heun's second-order rule: two evaluations a step; memory is x + h/2 v."""
    sigmas = flow_sigmas(num_inference_steps)
    rows = []
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        h = s - s_next
        rows.append(Evaluation(s, (1.0, h, 0.0, 0.0, 1.0, h / 2, 0.0), i, ends_step=False))
        rows.append(Evaluation(s_next, (0.0, h / 2, 1.0, 0.0, 0.0, 0.0, 0.0), i))
    return Trajectory(tuple(rows))


def midpoint(num_inference_steps: int) -> Trajectory:
    """The midpoint rule: two evaluations a step; memory is x."""
    sigmas = flow_sigmas(num_inference_steps)
    rows = []
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        h = s - s_next
        rows.append(Evaluation(s, (1.0, h / 2, 0.0, 0.0, 1.0, 0.0, 0.0), i, ends_step=False))
        rows.append(Evaluation(s - h / 2, (0.0, h, 1.0, 0.0, 0.0, 0.0, 0.0), i))
    return Trajectory(tuple(rows))


def diffusion_coefficient(form: str, norm: float, sigma: float) -> float:
    """g of SiT's SDE at a noise level (arXiv:2401.08740, table of diffusion forms).

    Raises:
        ValueError: the form is unknown.
    """
    timestep = 1.0 - sigma
    match form:
        case "sigma" | "linear":  # both are 1 - t on the straight path
            return norm * sigma
        case "constant":
            return norm
        case "decreasing":
            return 0.25 * (norm * math.cos(math.pi * timestep) + 1.0) ** 2
        case "increasing-decreasing":
            return norm * math.sin(math.pi * timestep) ** 2
    raise ValueError(f"diffusion form {form!r} is unknown; known: {', '.join(DIFFUSION_FORMS)}")


def _drift(sigma: float, g: float) -> tuple[float, float]:
    """v + g score as (factor of x, factor of v), with score = (t v - x) / sigma."""
    if g == 0.0:
        return 0.0, 1.0
    return -g / sigma, 1.0 + g * (1.0 - sigma) / sigma


def _last_step(kind: str, sigma: float, g: float, step: int) -> tuple[Evaluation, ...]:
    if kind == "none":
        return ()
    if kind == "mean":
        from_x, from_v = _drift(sigma, g)
        row = (1.0 + sigma * from_x, sigma * from_v)
    elif kind in ("euler", "tweedie"):
        row = (1.0, sigma)  # Tweedie's x / t + sigma^2 / t * score is x + sigma v on this path
    else:
        raise ValueError(f"last step {kind!r} is unknown; known: {', '.join(LAST_STEPS)}")
    return (Evaluation(sigma, (*row, 0.0, 0.0, 0.0, 0.0, 0.0), step),)


def _noisy_sigmas(
    num_inference_steps: int, last_step: str, last_step_size: float
) -> tuple[float, ...]:
    """Sigmas of the steps with noise; the last step, if any, goes on from the last of them to 0."""
    noisy_steps = num_inference_steps - (last_step != "none")
    end = 0.0 if last_step == "none" else last_step_size
    return flow_sigmas(noisy_steps, end) if noisy_steps else (1.0,)


def sde_euler(
    num_inference_steps: int,
    form: str = "sigma",
    norm: float = 1.0,
    last_step: str = "mean",
    last_step_size: float = SDE_LAST_STEP,
) -> Trajectory:
    """Euler-Maruyama on SiT's SDE, then one step without noise; one evaluation a step.

    Both drift and score are functions of the one prediction, so the network is asked once where the
    original asks twice. `num_inference_steps` counts the last step.
    """
    sigmas = _noisy_sigmas(num_inference_steps, last_step, last_step_size)
    rows = []
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        h, g = s - s_next, diffusion_coefficient(form, norm, s)
        from_x, from_v = _drift(s, g)
        noise = math.sqrt(2.0 * g * h)
        rows.append(Evaluation(s, (1.0 + h * from_x, h * from_v, 0.0, noise, 0.0, 0.0, 0.0), i))
    g_last = diffusion_coefficient(form, norm, sigmas[-1])
    return Trajectory((*rows, *_last_step(last_step, sigmas[-1], g_last, len(rows))))


def sde_heun(
    num_inference_steps: int,
    form: str = "sigma",
    norm: float = 1.0,
    last_step: str = "mean",
    last_step_size: float = SDE_LAST_STEP,
) -> Trajectory:
    """Stochastic Heun: noise enters first, then two evaluations a step; memory is x + h/2 drift.

    Raises:
        ValueError: the schedule reaches sigma 0 where the drift has no value.
    """
    sigmas = _noisy_sigmas(num_inference_steps, last_step, last_step_size)
    if sigmas[-1] == 0.0:
        raise ValueError("sde_heun needs a last step: its drift has no value at sigma 0")
    noises = [
        math.sqrt(2.0 * diffusion_coefficient(form, norm, s) * (s - s_next))
        for s, s_next in pairwise(sigmas)
    ]
    rows = []
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        h = s - s_next
        x1, v1 = _drift(s, diffusion_coefficient(form, norm, s))
        x2, v2 = _drift(s_next, diffusion_coefficient(form, norm, s_next))
        first = (1.0 + h * x1, h * v1, 0.0, 0.0, 1.0 + h / 2 * x1, h / 2 * v1, 0.0)
        noise = noises[i + 1] if i + 1 < len(noises) else 0.0
        second = (h / 2 * x2, h / 2 * v2, 1.0, noise, 0.0, 0.0, 0.0)
        rows.append(Evaluation(s, first, i, ends_step=False))
        rows.append(Evaluation(s_next, second, i))
    g_last = diffusion_coefficient(form, norm, sigmas[-1])
    last = _last_step(last_step, sigmas[-1], g_last, len(noises))
    return Trajectory((*rows, *last), start_noise=noises[0] if noises else 0.0)


SAMPLERS: dict[str, Callable[[int], Trajectory]] = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "sde": sde_euler,
    "sde-heun": sde_heun,
}


def make_trajectory(sampler: str, num_inference_steps: int) -> Trajectory:
    """All evaluations of a sequence under a named sampler.

    Raises:
        ValueError: the sampler is unknown, or there is not at least one step.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; known: {', '.join(SAMPLERS)}")
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be at least 1")
    return SAMPLERS[sampler](num_inference_steps)
