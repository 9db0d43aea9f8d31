"""Trajectories equal those of the authors' own code; the offline solvers too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fit_kernels import guided_step
from fit_models.diffusion.guidance import Guidance, guide
from fit_models.diffusion.prediction import timestep_of_sigma
from fit_models.diffusion.runge_kutta import FIXED_STEP, integrate_dopri5, integrate_fixed
from fit_models.diffusion.sampler import (
    SAMPLERS,
    Trajectory,
    euler,
    heun,
    make_trajectory,
    midpoint,
    sde_euler,
    sde_heun,
)
from fit_models.networks.fitv2 import FiTv2
from support.golden import Case, load_family
from support.official import grids_of, layout_for, network_of

FAMILY = load_family("fitv2_samplers")
OURS = {"euler": euler, "midpoint": midpoint, "heun2": heun}


def advance(
    x: Tensor, velocity: Tensor, memory: Tensor, noise: Tensor | None, rows: Tensor, seq: Tensor
) -> tuple[Tensor, Tensor]:
    """One update by coefficients alone: what guidance there is, is in the velocity already."""
    own, unguided = torch.arange(len(x)), torch.ones(len(rows), 1)
    return guided_step(
        x, velocity, memory, noise, own, own, torch.cat((rows, unguided), 1), seq, x.shape[1]
    )


class Offline:
    """Evaluates the recorded case's network on [B, N, K] states as packed sequences."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.network: FiTv2 = network_of(FAMILY, case)
        if case.params.get("dtype") == "float64":
            self.network = self.network.double()
        self.labels = case.inputs["y"].long()
        self.guided = "cfg_scale" in case.params
        self.layout = layout_for(self.network, grids_of(case))
        self.guidance = Guidance(
            case.params.get("cfg_scale", 1.0), scale_power=case.params.get("scale_pow", 0.0)
        )
        self.calls: list[float] = []

    def raw(self, x_BNK: Tensor, timestep: float) -> Tensor:
        self.calls.append(float(timestep))
        t = torch.full((len(x_BNK),), float(timestep), dtype=torch.float32)
        out = self.network(x_BNK.flatten(0, 1), self.layout, t, self.labels)
        return out.unflatten(0, x_BNK.shape[:2])

    def doubled(self, x_BNK: Tensor, timestep: float) -> Tensor:
        """The original's convention: both halves integrated, the second fed the first's state."""
        if not self.guided:
            return self.raw(x_BNK, timestep)
        half = x_BNK[: len(x_BNK) // 2]
        out = self.raw(torch.cat((half, half)), timestep)
        scale = self.guidance.scale_at(1.0 - timestep)
        g = self.network.config.guided_token_channels
        cond, uncond = out.flatten(0, 1).chunk(2)
        first = guide(cond, uncond, torch.full((len(cond), 1), scale, dtype=out.dtype), g)
        second = torch.cat((first[:, :g], uncond[:, g:]), 1)
        return torch.cat((first, second)).view_as(out)

    def kept(self, x: Tensor) -> Tensor:
        return x[: len(x) // 2] if self.guided else x

    def run(self, trajectory: Trajectory, noise: Tensor | None) -> list[Tensor]:
        """Our own way: only the kept half has a state; every rule is a row of coefficients."""
        x = self.kept(self.case.inputs["z"]).clone()
        draws = iter(noise if noise is not None else [])
        if trajectory.start_noise:
            x = x + trajectory.start_noise * self.kept(next(draws))
        shape, memory = x.shape, torch.zeros_like(x)
        seq_of_token = torch.arange(shape[0]).repeat_interleave(shape[1])
        states = []
        for evaluation in trajectory.evaluations:
            timestep = timestep_of_sigma(evaluation.sigma)
            velocity = self.kept(self.doubled(torch.cat((x, x)) if self.guided else x, timestep))
            rows = torch.tensor([evaluation.coefficients] * shape[0])
            drawn = None
            if noise is not None and evaluation.ends_step:
                draw = next(draws, torch.zeros_like(self.case.inputs["z"]))
                drawn = self.kept(draw).flatten(0, 1)
            flat = [v.flatten(0, 1) for v in (x, velocity, memory)]
            x, memory = (v.view(shape) for v in advance(*flat, drawn, rows, seq_of_token))
            if evaluation.ends_step:
                # Stochastic Heun adds the next step's noise at the end of this one.
                early = evaluation.coefficients[3] if trajectory.start_noise else 0.0
                states.append(x if drawn is None else x - early * drawn.view(shape))
        return states


@pytest.mark.parametrize(
    "name", [c.name for c in FAMILY.cases("sample_ode") if c.params["method"] in OURS]
)
def test_ode_samplers_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    offline = Offline(case)
    states = offline.run(OURS[case.params["method"]](case.params["num_steps"] - 1), None)
    if "states" in case.expected:
        got = {"states": torch.stack(states), "t_eval": torch.tensor(offline.calls)}
        case.check(got, partial=True)
    else:
        expected, tolerance = offline.kept(case.expected["final"]), case.tol["final"]
        torch.testing.assert_close(states[-1], expected, atol=tolerance, rtol=0.0)
    assert len(offline.calls) == int(case.expected["nfe"])


@pytest.mark.parametrize("name", FAMILY.case_names("sample_sde"))
def test_sde_samplers_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    offline = Offline(case)
    p = case.params
    make = sde_heun if p["method"] == "Heun" else sde_euler
    last = (p["last_step"] or "none").lower()
    # The original's num_steps counts the points of its time grid, which the last step extends.
    steps = p["num_steps"] if last != "none" else p["num_steps"] - 1
    trajectory = make(steps, p["diffusion_form"], p["diffusion_norm"], last, p["last_step_size"])
    states = offline.run(trajectory, case.inputs["noise"])
    if last == "none":  # the original then repeats its last state
        states.append(states[-1])
    if "states" in case.expected:
        case.check({"states": torch.stack(states)}, partial=True)
    else:
        expected, tolerance = offline.kept(case.expected["final"]), case.tol["final"]
        torch.testing.assert_close(states[-1], expected, atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("name", FAMILY.case_names("sample_ode"))
def test_offline_solvers_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    offline = Offline(case)
    dtype = torch.float64 if case.params.get("dtype") == "float64" else torch.float32
    z = case.inputs["z"].to(dtype)
    times = torch.linspace(0, 1, case.params["num_steps"])

    def field(time: Tensor, x: Tensor) -> Tensor:
        return offline.doubled(x, float(time.float()))

    if case.params["method"] in FIXED_STEP:
        states = integrate_fixed(field, z, times, case.params["method"])
    else:
        states = integrate_dopri5(
            field, z, times, case.params.get("atol", 1e-6), case.params.get("rtol", 1e-3)
        )
    got = {"final": states[-1].float()}
    if "states" in case.expected:
        got["states"] = torch.stack([offline.kept(s) for s in states[1:]]).float()
        # Step sizes follow error estimates of 1e-8, which feel the last bits of the network: on
        # this very field torchdiffeq 0.2.5 makes the same steps as ours, to the last digit.
        calls = torch.tensor(offline.calls)
        torch.testing.assert_close(calls, case.expected["t_eval"], atol=2e-3, rtol=0.0)
    case.check(got, partial=True)
    assert abs(len(offline.calls) - int(case.expected["nfe"])) <= case.tol["nfe"]


def test_every_named_sampler_lands_on_the_data_of_a_straight_path() -> None:
    """With the exact velocity of a single datum, any rule must end at that datum."""
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 6, 4, generator=generator)
    seq = torch.zeros(6, dtype=torch.int64)
    for name in SAMPLERS:
        for steps in (20, 50) if name.startswith("sde") else (1, 2, 7):
            trajectory = make_trajectory(name, steps)
            x, memory = noise.clone(), torch.zeros_like(noise)
            if trajectory.start_noise:
                x = x + trajectory.start_noise * torch.randn(6, 4, generator=generator)
            for e in trajectory.evaluations:
                # the data is known, so v = (data - x) / sigma wherever x has been pushed
                v = (data - x) / max(e.sigma, 1e-3) if e.sigma > 0 else data - noise
                drawn = torch.randn(6, 4, generator=generator)
                x, memory = advance(x, v, memory, drawn, torch.tensor([e.coefficients]), seq)
            # A straight path is followed exactly; an SDE stops 0.04 of the noise short of the data.
            atol = 8.0 / steps if name.startswith("sde") else 1e-6
            assert (x - data).abs().max() < atol, (name, steps)
