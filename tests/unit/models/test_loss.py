"""Packed loss and gradients equal those of the original on a padded, masked batch."""

import pytest
import torch
from torch import Tensor

from fit_models.diffusion.loss import (
    flow_inputs,
    logit_normal_sigma,
    noisy_tokens,
    sequence_mean_square,
    velocity_target,
)
from fit_models.diffusion.prediction import sigma_of_timestep
from fit_models.networks.fitv2 import FiTv2
from support.golden import Case, load_family
from support.official import grids_of, layout_for, network_of, pack, pad

FAMILY = load_family("fitv2")


def prediction_and_loss(network: FiTv2, case: Case) -> tuple[Tensor, Tensor]:
    """Packed prediction [T, K] and loss per sequence [S] at the recorded times and noise."""
    grids = grids_of(case)
    layout = layout_for(network, grids)
    data, noise = (pack(case.inputs[name], grids) for name in ("x1", "x0"))
    sigma_S = sigma_of_timestep(case.inputs["t"])
    x, timestep_S, target = flow_inputs(data, noise, sigma_S, layout.seq_of_token)
    prediction = network(x, layout, timestep_S, case.inputs["y"].long())
    return prediction, sequence_mean_square(prediction - target, layout.seq_of_token, len(grids))


def test_the_loss_equals_the_original():
    case = FAMILY.case("loss_masked")
    prediction, loss = prediction_and_loss(network_of(FAMILY, case), case)
    padded = pad(prediction, grids_of(case), case.inputs["x1"].shape[1])
    case.check({"loss": loss, "pred": padded})


def test_the_gradients_equal_the_original():
    case = FAMILY.case("grad_masked")
    network = network_of(FAMILY, case).requires_grad_()
    _, loss = prediction_and_loss(network, case)
    loss.mean().backward()
    gradients = {}
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        gradients[key] = parameter.grad
    assert sorted(gradients) == case.params["keys"]
    found = {
        "loss": loss,
        "grad_norms": torch.stack([gradients[k].norm() for k in sorted(gradients)]),
    }
    full = [name for name in case.expected if name not in found]
    assert full
    case.check({**found, **{name: gradients[name.removeprefix("grad_")] for name in full}})


def test_a_small_image_weighs_as_much_as_a_large_one():
    error = torch.cat((torch.full((1, 4), 2.0), torch.full((9, 4), 3.0)))
    seq = torch.tensor([0] + [1] * 9)
    assert sequence_mean_square(error, seq, 2).tolist() == [4.0, 9.0]


def test_a_sequence_does_not_notice_its_neighbours():
    error = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    seq = torch.tensor([0] * 3 + [1] * 5 + [2] * 2)
    together = sequence_mean_square(error, seq, 3)
    alone = sequence_mean_square(error[3:8], torch.zeros(5, dtype=torch.int64), 1)
    torch.testing.assert_close(together[1:2], alone)


def test_the_loss_is_fp32_whatever_the_prediction():
    error = torch.full((6, 16), 1.0 + 2**-7, dtype=torch.bfloat16)
    loss = sequence_mean_square(error, torch.zeros(6, dtype=torch.int64), 1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([(1 + 2**-7) ** 2]))


def test_the_path_is_data_at_sigma_0_noise_at_1_and_straight_between():
    data, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noisy_tokens(data, noise, torch.zeros(3, 1)), data)
    assert torch.equal(noisy_tokens(data, noise, torch.ones(3, 1)), noise)
    # From any point of it the target, taken for sigma, leads to the data.
    sigma = torch.tensor([[0.2], [0.5], [0.9]])
    x = noisy_tokens(data, noise, sigma)
    torch.testing.assert_close(x + sigma * velocity_target(data, noise), data)


def test_times_are_logit_normal_and_repeatable():
    sigma = logit_normal_sigma(20_000, torch.Generator().manual_seed(3))
    assert torch.equal(sigma, logit_normal_sigma(20_000, torch.Generator().manual_seed(3)))
    assert ((sigma > 0) & (sigma < 1)).all()
    logit = sigma.logit()
    # standard errors at this size: 0.007 of the mean, 0.005 of the deviation
    assert logit.mean().item() == pytest.approx(0.0, abs=0.03)
    assert logit.std().item() == pytest.approx(1.0, abs=0.03)
