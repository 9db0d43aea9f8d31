"""DDPM and DDIM, as rows for the common update, give the authors' own trajectories."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fit_kernels import guided_step
from fit_models.diffusion.discrete import discrete_path, leading_timesteps, respaced_path
from fit_models.diffusion.discrete_sampler import (
    DISCRETE_SAMPLERS,
    UNIT_RANGE,
    DiscreteEvaluation,
    ddim,
    ddpm,
    make_discrete_trajectory,
    scaled_noise,
    variance_ranges,
)
from fit_models.diffusion.sampler import Trajectory, euler
from support.discrete_networks import subject_of
from support.discrete_steps import walk
from support.golden import Case, load_family

FAMILIES = {name: load_family(name) for name in ("dit", "fitv1")}
TRAJECTORIES = [
    (f, c)
    for f, family in FAMILIES.items()
    for op in ("ddpm", "ddim")
    for c in family.case_names(op)
]


def trajectory_of(case: Case) -> Trajectory:
    steps = int(case.params["respacing"].removeprefix("ddim"))
    if case.op == "ddpm":
        return ddpm(discrete_path("even", steps))
    return ddim(discrete_path("strided", steps), case.params["eta"])


@pytest.mark.parametrize(("family_name", "case_name"), TRAJECTORIES)
def test_trajectories_equal_the_original(family_name: str, case_name: str) -> None:
    case = FAMILIES[family_name].case(case_name)
    subject = subject_of(FAMILIES[family_name], case)
    z = case.inputs["z"]
    grids = subject.grids(case, z)
    noise = case.inputs.get("noise")
    scale = case.params.get("cfg_scale")
    done = walk(
        subject,
        trajectory_of(case),
        subject.pack(z, grids),
        case.inputs["y"].long(),
        grids,
        None if noise is None else [subject.pack(draw, grids) for draw in noise],
        scale,
    )
    kept = len(z) if scale is None else len(z) // 2

    def kept_halves(packed: list[Tensor]) -> Tensor:
        return torch.stack([subject.unpack(x, grids, z)[:kept] for x in packed])

    case.check(
        {
            "final": subject.unpack(done.states[-1], grids, z),
            "samples": kept_halves(done.states),
            "pred_xstart": kept_halves(done.data_estimates),
            "t_net": torch.tensor(done.timesteps),
        }
    )


def test_the_diffusers_pipeline_is_ddim_with_leading_steps() -> None:
    family = load_family("dit_diffusers")
    case = family.case("pipeline_8")
    subject = subject_of(family, case)
    z = case.inputs["z"].repeat(2, 1, 1, 1)
    labels = torch.cat((case.inputs["y"].long(), torch.tensor([subject.config.null_label])))
    grids = subject.grids(case, z)
    done = walk(
        subject,
        make_discrete_trajectory("ddim", case.params["steps"]),
        subject.pack(z, grids),
        labels,
        grids,
        guidance_scale=case.params["guidance_scale"],
    )
    case.check({"states": torch.stack([subject.unpack(x, grids, z)[:1] for x in done.states])})


def test_sequences_of_any_mix_of_rules_advance_in_one_update() -> None:
    """DDPM at one step, DDIM with noise at another, and a straight path, beside each other."""
    evaluations = [
        ddpm(discrete_path("even", 10)).evaluations[3],
        ddim(discrete_path("leading", 7), eta=0.5).evaluations[2],
        euler(4).evaluations[1],
        ddpm(discrete_path("even", 10)).evaluations[-1],
    ]
    generator = torch.Generator().manual_seed(0)
    x, eps, v, noise = (torch.randn(len(evaluations), 16, generator=generator) for _ in range(4))
    sequence = torch.arange(len(evaluations))
    rows = torch.tensor([(*e.coefficients, 1.0) for e in evaluations])

    def advance(these: Tensor) -> Tensor:
        place = torch.arange(len(these))
        ranges = variance_ranges([evaluations[i] for i in these.tolist()])
        scaled = scaled_noise(noise[these], v[these], ranges, place)
        memory = torch.zeros_like(x[these])
        return guided_step(
            x[these], eps[these], memory, scaled, place, place, rows[these], place, 12
        )[0]

    together = advance(sequence)
    for i in sequence:
        torch.testing.assert_close(together[i : i + 1], advance(i[None]), atol=0.0, rtol=0.0)


def test_noise_keeps_its_size_where_nothing_is_learned() -> None:
    noise = torch.randn(3, 4)
    sequence = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(
        scaled_noise(noise, torch.full((3, 4), 7.0), torch.tensor([UNIT_RANGE]), sequence), noise
    )


def test_learned_noise_spans_its_range() -> None:
    path = discrete_path("even", 25)
    low, high = path.log_variance_range(10)
    noise, sequence = torch.ones(1, 3), torch.zeros(1, dtype=torch.int64)
    answers = torch.tensor([[-1.0, 0.0, 1.0]])
    scaled = scaled_noise(noise, answers, torch.tensor([[low, high]]), sequence)
    wanted = [math.exp(0.5 * value) for value in (low, (low + high) / 2, high)]
    torch.testing.assert_close(scaled, torch.tensor([wanted]))


def test_without_a_learned_variance_the_noise_is_the_posteriors() -> None:
    path = discrete_path("even", 25)
    learned, plain = ddpm(path).evaluations, ddpm(path, learned_variance=False).evaluations
    for k, one, other in zip(reversed(range(25)), learned, plain, strict=True):
        assert isinstance(other, DiscreteEvaluation)
        assert other.log_variance_range is None
        assert one.coefficients[:3] == other.coefficients[:3]
        variance = path.posterior_variance[k]
        assert other.coefficients[3] == pytest.approx(math.sqrt(variance))


def test_ddim_at_eta_1_is_ddpm_with_the_posteriors_variance() -> None:
    path = discrete_path("even", 25)
    for one, other in zip(
        ddim(path, eta=1.0).evaluations, ddpm(path, learned_variance=False).evaluations, strict=True
    ):
        assert one.coefficients == pytest.approx(other.coefficients, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("sampler", DISCRETE_SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 250, 1000])
def test_a_trajectory_falls_to_the_data_without_noise_at_the_end(sampler: str, steps: int) -> None:
    evaluations = make_discrete_trajectory(sampler, steps).evaluations
    assert [e.step for e in evaluations] == list(range(steps))
    sigmas = [e.sigma for e in evaluations]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0.0
    assert all(e.ends_step for e in evaluations)
    assert not evaluations[-1].needs_noise
    assert all(e.needs_noise == (sampler == "ddpm") for e in evaluations[:-1])


def test_a_perfect_prediction_of_noise_leads_to_the_data() -> None:
    """With the exact noise of one datum, DDIM ends at it from anywhere on its path."""
    data, noise = 0.7, -1.3
    path = respaced_path(leading_timesteps(20))
    x = math.sqrt(path.alphas_cumprod[-1]) * data + math.sqrt(1 - path.alphas_cumprod[-1]) * noise
    for evaluation in ddim(path).evaluations:
        state, prediction, *_ = evaluation.coefficients
        x = state * x + prediction * noise
    assert x == pytest.approx(data)


@pytest.mark.parametrize(("eta", "shown"), [(-0.1, "-0.1"), (1.5, "1.5"), (math.nan, "nan")])
def test_eta_must_leave_room_for_the_direction(eta: float, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"eta is {shown}; it must be in 0\.\.1"):
        ddim(discrete_path("even", 4), eta)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="sampler 'euler' is unknown; known: ddpm, ddim"):
        make_discrete_trajectory("euler", 4)
