"""DPM-Solver's rows give the authors' samples, and its schedule their values."""

from __future__ import annotations

from typing import cast

import numpy
import pytest
import torch

from fit_models.diffusion.dpm_solver import (
    SolverEvaluation,
    dpm_solver_2m,
    dpm_solver_single,
    single_step_orders,
)
from fit_models.diffusion.sampler import Trajectory
from fit_models.diffusion.vp_schedule import (
    FIRST_BETA,
    LAST_BETA,
    NUM_LEVELS,
    VPSchedule,
    scaled_linear_schedule,
)
from support.golden import load_family
from support.solver_steps import run_solver

FAMILY = load_family("dimr")
SCHEDULE = scaled_linear_schedule()


def test_the_schedule_equals_the_original() -> None:
    case = FAMILY.case("schedule")
    times = case.inputs["t"].tolist()
    betas = torch.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, NUM_LEVELS, dtype=torch.float64) ** 2
    abar = [SCHEDULE.abar(int(n)) for n in case.inputs["n"]]
    case.check(
        {
            "cum_alphas": torch.tensor(abar, dtype=torch.float64),
            "log_alpha": torch.tensor([SCHEDULE.log_alpha(t) for t in times]),
            "sigma": torch.tensor([SCHEDULE.sigma(t) for t in times]),
            "lambda_": torch.tensor([SCHEDULE.log_ratio(t) for t in times]),
            "t_back": torch.tensor([SCHEDULE.t_at_log_ratio(SCHEDULE.log_ratio(t)) for t in times]),
            "betas": torch.cat((betas[:5], betas[-5:])),
        }
    )


@pytest.mark.parametrize("name", FAMILY.case_names("solver"))
def test_single_steps_equal_the_original_on_a_known_field(name: str) -> None:
    case = FAMILY.case(name)
    trajectory = dpm_solver_single(case.params["steps"], SCHEDULE)

    def field(x: torch.Tensor, timestep: float) -> torch.Tensor:
        return 0.3 * x + 0.01 * torch.sin(3.0 * x) + 0.05 * timestep / 1000.0

    final, timesteps = run_solver(trajectory, field, case.inputs["x"])
    case.check({"final": final, "t_eval": torch.tensor(timesteps) / 1000.0})


def exact_field(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """Noise for data that is normal with deviation 1/2: the ODE has a closed solution."""
    alpha = float(numpy.exp(SCHEDULE.log_alpha(timestep / 1000.0)))
    sigma = SCHEDULE.sigma(timestep / 1000.0)
    return sigma * x / (0.25 * alpha**2 + sigma**2)


def error_of(trajectory: Trajectory) -> float:
    def deviation(t: float) -> float:
        alpha = float(numpy.exp(SCHEDULE.log_alpha(t)))
        return float(numpy.sqrt(0.25 * alpha**2 + SCHEDULE.sigma(t) ** 2))

    start = torch.ones(1, dtype=torch.float64)
    final, _ = run_solver(trajectory, exact_field, start)
    return abs(float(final) - deviation(1.0 / 1000.0) / deviation(1.0))


def test_the_two_step_solver_is_of_second_order() -> None:
    errors = [error_of(dpm_solver_2m(steps, SCHEDULE)) for steps in (200, 400, 800)]
    assert errors[0] > 3.0 * errors[1] > 9.0 * errors[2]


def test_one_step_is_the_same_rule_in_both() -> None:
    one_step_rules = [dpm_solver_2m(1, SCHEDULE), dpm_solver_single(1, SCHEDULE)]
    assert one_step_rules[0].evaluations[0].coefficients[:2] == pytest.approx(
        one_step_rules[1].evaluations[0].coefficients[:2]
    )


@pytest.mark.parametrize("steps", range(1, 31))
def test_every_step_is_one_evaluation(steps: int) -> None:
    assert sum(single_step_orders(steps)) == steps
    for trajectory in (dpm_solver_single(steps, SCHEDULE), dpm_solver_2m(steps, SCHEDULE)):
        rows = cast("tuple[SolverEvaluation, ...]", trajectory.evaluations)
        assert len(rows) == steps
        assert [row.step for row in rows] == list(range(steps))
        times = [row.timestep for row in rows]
        assert times == sorted(times, reverse=True)
        assert times[0] == 1000.0
        assert rows[-1].ends_step


def test_published_orders() -> None:
    assert single_step_orders(250) == (*[3] * 83, 1)
    assert single_step_orders(6) == (3, 2, 1)
    assert single_step_orders(8) == (3, 3, 2)


def test_no_steps_are_refused() -> None:
    for solver in (dpm_solver_single, dpm_solver_2m):
        with pytest.raises(ValueError, match="num_inference_steps is 0; it must be at least 1"):
            solver(0, SCHEDULE)


def test_any_trained_levels_make_a_schedule() -> None:
    schedule = VPSchedule(numpy.linspace(0.99, 0.01, 100))
    assert dpm_solver_single(5, schedule).evaluations[0].sigma == 1.0
    assert schedule.t_at_log_ratio(schedule.log_ratio(0.37)) == pytest.approx(0.37)
