"""Shifted schedules and the rules along them equal the recorded grids and trajectories."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fit_models.diffusion.runge_kutta import integrate_dopri5, integrate_fixed
from fit_models.diffusion.sampler import sde_euler
from fit_models.diffusion.shifted_flow import (
    ALONG,
    from_strength,
    shifted_sigmas,
    shifted_times,
    shifted_training_times,
    shifted_trajectory,
)
from support.golden import load_family

FAMILY = load_family("schedules")
RULES = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun"}


def toy_velocity(x: Tensor, t: float) -> Tensor:
    return 0.5 * torch.sin(3.0 * x) - t * x


@pytest.mark.parametrize("name", FAMILY.case_names("flow_grid"))
def test_grids_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    points, shift = case.params["num_steps"], case.params["shift"] or 1.0
    case.check({"t": shifted_times(points, shift).to(case.expected["t"].dtype)})
    sigmas = torch.tensor(shifted_sigmas(points - 1, shift), dtype=case.expected["t"].dtype)
    case.check({"t": 1.0 - sigmas})


@pytest.mark.parametrize("name", FAMILY.case_names("toy_ode"))
def test_solvers_equal_the_original_on_an_analytic_field(name: str) -> None:
    case = FAMILY.case(name)
    p, calls = case.params, []

    def field(time: Tensor, x: Tensor) -> Tensor:
        t = float(time.float())  # the originals hand t over in fp32
        calls.append(t)
        return toy_velocity(x, t)

    x = case.inputs["x"].double()
    times = shifted_times(p["num_steps"], p["shift"] or 1.0)
    if p["method"] == "dopri5":
        states = integrate_dopri5(field, x, times, p["atol"], p["rtol"])
    else:
        states = integrate_fixed(field, x, times, p["method"])
    got = {"states": states, "t_eval": torch.tensor(calls), "nfe": torch.tensor(len(calls))}
    if case.expected["states"].shape[0] == len(states) - 1:
        got["states"] = states[1:]
    case.check(got, partial=True)


@pytest.mark.parametrize(
    "name", [c.name for c in FAMILY.cases("toy_ode") if c.params["method"] in RULES]
)
def test_coefficient_rows_equal_the_original_on_an_analytic_field(name: str) -> None:
    case = FAMILY.case(name)
    p = case.params
    x = case.inputs["x"].double()
    memory, states = torch.zeros_like(x), [x]
    rule = RULES[p["method"]]
    for evaluation in shifted_trajectory(rule, p["num_steps"] - 1, p["shift"] or 1.0).evaluations:
        v = toy_velocity(x, 1.0 - evaluation.sigma)
        a, b, c, _, e, f, g = evaluation.coefficients
        x, memory = a * x + b * v + c * memory, e * x + f * v + g * memory
        if evaluation.ends_step:
            states.append(x)
    recorded = len(case.expected["states"])
    case.check({"states": torch.stack(states)[-recorded:]}, partial=True)


@pytest.mark.parametrize("name", FAMILY.case_names("sde_grid"))
def test_noisy_steps_lie_on_the_original_grid(name: str) -> None:
    case = FAMILY.case(name)
    p = case.params
    rows = sde_euler(p["num_steps"], last_step_size=p["last_step_size"]).evaluations
    t = torch.tensor([1.0 - row.sigma for row in rows])
    steps = [later - earlier for earlier, later in pairwise(t.double().tolist())]
    case.check({"t": t, "dt": torch.tensor(steps[0]).reshape(case.expected["dt"].shape)})


def test_training_times_move_towards_the_data() -> None:
    case = FAMILY.case("shift_train")
    case.check({"t": shifted_training_times(case.inputs["u"], case.params["factor"])})


def test_bad_values_name_what_would_do() -> None:
    for shift in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="it must be finite and above 0"):
            shifted_sigmas(4, shift)
    with pytest.raises(ValueError, match="num_points is 1; it must be at least 2"):
        shifted_times(1)
    with pytest.raises(ValueError, match="sampler 'rk4' is unknown; known: euler, heun, midpoint"):
        shifted_trajectory("rk4", 4, 4.0)
    with pytest.raises(ValueError, match=r"strength is 1.5; it must be above 0"):
        from_strength(shifted_sigmas(4, 4.0), 1.5)
    with pytest.raises(ValueError, match=r"strength 0.1 leaves no step of 4"):
        from_strength(shifted_sigmas(4, 4.0), 0.1)


def test_all_of_a_schedule_stays_at_full_strength() -> None:
    sigmas = shifted_sigmas(7, 6.0)
    assert from_strength(sigmas, 1.0) == sigmas
    assert sigmas[0] == 1.0
    assert sigmas[-1] == 0.0
    for rule in ALONG:
        assert shifted_trajectory(rule, 7, 6.0) == ALONG[rule](sigmas)
