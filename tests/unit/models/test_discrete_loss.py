"""The loss of noise and learned variance, packed, equals the authors' padded one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fit_models.diffusion.discrete_loss import (
    DiscreteLoss,
    discrete_inputs,
    discrete_loss,
    sequence_mean,
    uniform_timesteps,
    variational_bits,
)
from support.discrete_networks import Subject, subject_of
from support.golden import Case, load_family

FAMILIES = {name: load_family(name) for name in ("dit", "fitv1")}


def cases(op: str) -> list[tuple[str, str]]:
    return [(f, c) for f, family in FAMILIES.items() for c in family.case_names(op)]


def loss_of(subject: Subject, case: Case) -> DiscreteLoss:
    data, noise, timestep = (case.inputs[name] for name in ("x_start", "noise", "t"))
    grids = subject.grids(case, data)
    layout = subject.layout(grids)
    data_TK, noise_TK = subject.pack(data, grids), subject.pack(noise, grids)
    noisy_TK = discrete_inputs(data_TK, noise_TK, timestep[layout.seq_of_token])
    prediction_TP = subject.network(noisy_TK, layout, timestep, case.inputs["y"].long())
    return discrete_loss(prediction_TP, data_TK, noise_TK, noisy_TK, timestep, layout.seq_of_token)


def bound_of_padding(case: Case) -> Tensor:
    """What FiT's code adds to the bound: places of padding, predicted as zero, over real tokens.

    It depends on no weight, so training is the same without it.
    """
    noise, timestep, mask = case.inputs["noise"], case.inputs["t"], case.inputs.get("mask")
    if mask is None:
        return torch.zeros(len(timestep))
    sequence, place = (mask == 0).nonzero(as_tuple=True)
    noise_TK = noise[sequence, :, place]
    zero_TK = torch.zeros_like(noise_TK)
    noisy_TK = discrete_inputs(zero_TK, noise_TK, timestep[sequence])
    bits_TK = variational_bits(zero_TK, zero_TK, zero_TK, noisy_TK, timestep[sequence])
    total = torch.zeros(len(timestep)).index_add(0, sequence, bits_TK.mean(-1))
    return total / mask.sum(1)


@pytest.mark.parametrize(("family_name", "case_name"), cases("loss"))
def test_the_loss_equals_the_original(family_name: str, case_name: str) -> None:
    case = FAMILIES[family_name].case(case_name)
    loss = loss_of(subject_of(FAMILIES[family_name], case), case)
    padding = bound_of_padding(case)
    case.check({"loss": loss.total + padding, "mse": loss.mean_square, "vb": loss.bound + padding})


@pytest.mark.parametrize(("family_name", "case_name"), cases("grad"))
def test_the_gradients_equal_the_original(family_name: str, case_name: str) -> None:
    case = FAMILIES[family_name].case(case_name)
    subject = subject_of(FAMILIES[family_name], case)
    network = subject.network.requires_grad_(True)
    loss = loss_of(subject, case)
    loss.total.mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert sorted(gradients) == case.params["keys"]
    norms = [(g if g is not None else torch.zeros(1)).norm() for _, g in sorted(gradients.items())]
    full = {
        name: gradients[name.removeprefix("grad_")]
        for name in case.expected
        if name.startswith("grad_") and name != "grad_norms"
    }
    case.check(
        {
            "loss": loss.total + bound_of_padding(case),
            "grad_norms": torch.stack(norms),
            **{name: g for name, g in full.items() if g is not None},
        }
    )


def test_a_sequence_weighs_the_same_whatever_its_length() -> None:
    values = torch.cat((torch.full((2, 3), 4.0), torch.full((6, 3), 1.0)))
    sequence = torch.tensor([0] * 2 + [1] * 6)
    assert sequence_mean(values, sequence, 2).tolist() == [4.0, 1.0]


def test_a_perfect_prediction_costs_least() -> None:
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(5, 4, generator=generator).clamp(-1, 1) for _ in range(2))
    sequence = torch.tensor([0, 0, 1, 1, 1])
    timestep = torch.tensor([300, 700])
    noisy = discrete_inputs(data, noise, timestep[sequence])
    low = torch.full_like(noise, -1.0)  # the posterior's own variance
    exact = discrete_loss(torch.cat((noise, low), 1), data, noise, noisy, timestep, sequence)
    torch.testing.assert_close(exact.total, torch.zeros(2), atol=1e-6, rtol=0.0)
    off = discrete_loss(torch.cat((noise + 0.1, low), 1), data, noise, noisy, timestep, sequence)
    assert bool((off.total > exact.total).all())


def test_the_bound_teaches_the_variance_alone() -> None:
    prediction = torch.zeros(2, 8, requires_grad=True)
    data = torch.linspace(-1, 1, 8).reshape(2, 4)
    sequence, timestep = torch.tensor([0, 1]), torch.tensor([0, 500])
    noisy = discrete_inputs(data, data.flip(0), timestep[sequence])
    loss = discrete_loss(prediction, data, data.flip(0), noisy, timestep, sequence)
    (gradient,) = torch.autograd.grad(loss.bound.sum(), prediction)
    assert not gradient[:, :4].any()
    assert bool((gradient[:, 4:] != 0).any())


def test_every_trained_timestep_is_drawn() -> None:
    drawn = uniform_timesteps(20_000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    assert set(drawn.tolist()) == set(range(1000))
