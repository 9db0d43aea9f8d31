"""DiMR equals the authors' code; its neighbours do not matter to a sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fit_models.diffusion.dpm_solver import dpm_solver_single
from fit_models.diffusion.multi_scale_loss import multi_scale_loss
from fit_models.diffusion.power_cosine import power_cosine_scale
from fit_models.diffusion.vp_schedule import scaled_linear_schedule
from fit_models.networks.dimr import DiMR
from support.dimr_networks import branch_maps, guided, layout_for, network_of, predict
from support.golden import Case, load_family
from support.solver_steps import run_solver

FAMILY = load_family("dimr")


def discrete_time(case: Case) -> torch.Tensor:
    """The network's timestep from the original's `log_snr`."""
    return (case.inputs["log_snr"] + 4.0) * 125.0


@pytest.mark.parametrize("name", FAMILY.case_names("forward"))
def test_every_branch_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    network, x, y = network_of(FAMILY, case), case.inputs["x"], case.inputs["y"]
    maps = branch_maps(network, x, discrete_time(case), y)
    case.check({f"out{i}": one for i, one in enumerate(maps)})
    assert torch.equal(predict(network, x, discrete_time(case), y), maps[-1])


@pytest.mark.parametrize("name", FAMILY.case_names("guided"))
def test_guidance_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    n, scale, power = case.inputs["n"], case.params["cfg_scale"], case.params["cfg_scale_pow"]
    scales = [
        power_cosine_scale(scale, power, float(one)) if power > 0 else 1.0 + scale for one in n
    ]
    eps = guided(
        network_of(FAMILY, case), case.inputs["x"], n, case.inputs["y"], torch.tensor(scales)
    )
    case.check({"eps": eps})


@pytest.mark.parametrize("name", FAMILY.case_names("sample"))
def test_sampling_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    network, y = network_of(FAMILY, case), case.inputs["y"]
    trajectory = dpm_solver_single(case.params["steps"], scaled_linear_schedule())

    def noise(x: torch.Tensor, timestep: float) -> torch.Tensor:
        n = torch.full((len(x),), timestep)
        if not case.params["guided"]:
            return predict(network, x, n, y)
        return guided(network, x, n, y, torch.full((len(x),), 1.0 + case.params["cfg_scale"]))

    final, timesteps = run_solver(trajectory, noise, case.inputs["z"])
    nfe = torch.tensor(len(timesteps))
    case.check({"final": final, "t_eval": torch.tensor(timesteps), "nfe": nfe})


def loss_of(network: DiMR, case: Case) -> torch.Tensor:
    schedule, n, noise = scaled_linear_schedule(), case.inputs["n"], case.inputs["noise"]
    abar = torch.tensor([schedule.abar(int(one)) for one in n]).view(-1, 1, 1, 1)
    x = abar.sqrt() * case.inputs["x0"] + (1.0 - abar).sqrt() * noise
    maps = branch_maps(network, x, n, case.inputs["y"])
    return multi_scale_loss(maps, noise, case.params["coeffs"])


@pytest.mark.parametrize("name", FAMILY.case_names("loss"))
def test_the_loss_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    case.check({"loss": loss_of(network_of(FAMILY, case), case)})


def test_gradients_equal_the_original() -> None:
    case = FAMILY.case("grad_two")
    network = network_of(FAMILY, case).requires_grad_(True)
    loss = loss_of(network, case)
    loss.mean().backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    assert sorted(gradients) == case.params["keys"]
    norms = []
    for key in case.params["keys"]:
        gradient = gradients[key]
        assert gradient is not None, key
        norms.append(gradient.norm())
    case.check({"loss": loss, "grad_norms": torch.stack(norms)})


@pytest.mark.parametrize("name", ["forward_two_mixed_n", "forward_three"])
def test_a_sequence_does_not_notice_its_neighbours(name: str) -> None:
    network = network_of(FAMILY, FAMILY.case(name))
    grids = [(4, 4), (2, 4), (4, 2), (4, 4), (4, 4), (1, 1), (3, 4)]
    generator = torch.Generator().manual_seed(0)
    channels = network.config.token_channels
    tokens = [torch.randn(r * c, channels, generator=generator) for r, c in grids]
    t = torch.linspace(1.0, 1000.0, len(grids))
    y = torch.arange(len(grids)) * 7
    together = network(torch.cat(tokens), layout_for(network, grids), t, y)
    parts = together.split([len(x) for x in tokens])
    for i, grid in enumerate(grids):
        alone = network(tokens[i], layout_for(network, [grid]), t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(parts[i], alone, atol=5e-5, rtol=0.0)


def test_bfloat16_is_the_same_network_more_coarsely() -> None:
    network = network_of(FAMILY, FAMILY.case("forward_two_mixed_n"))
    tokens = torch.randn(
        24, network.config.token_channels, generator=torch.Generator().manual_seed(2)
    )
    t, y = torch.tensor([900.0, 30.0]), torch.tensor([1, 2])
    layout = layout_for(network, [(4, 4), (2, 4)])
    exact = network(tokens, layout, t, y)
    coarse = network.bfloat16()(tokens.bfloat16(), layout, t, y)
    assert coarse.dtype == torch.bfloat16
    error = (coarse.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.05


def test_sequences_without_a_grid_are_padding() -> None:
    network = network_of(FAMILY, FAMILY.case("forward_two_mixed_n"))
    tokens = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([10.0, 500.0, 0.0]), torch.tensor([1, 2, 3])
    layout = layout_for(network, [(4, 4), (4, 4), (2, 4)])
    padded = network(tokens, replace(layout, grids=layout.grids[:2]), t, y)
    torch.testing.assert_close(padded[:32], network(tokens, layout, t, y)[:32])
    assert not padded[32:].any()
