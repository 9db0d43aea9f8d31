"""FiT v1 equals the authors' own code (its timestep not capped) on every recorded forward."""

from __future__ import annotations

import pytest
import torch

from fit_models.diffusion.guidance import guide
from fit_models.networks.fitv1 import FiTv1
from support.discrete_networks import Subject, fitv1_config_of, subject_of
from support.golden import load_family

FAMILY = load_family("fitv1")


@pytest.mark.parametrize("case_name", FAMILY.case_names("forward"))
def test_forward_equals_the_original(case_name: str) -> None:
    case = FAMILY.case(case_name)
    subject = subject_of(FAMILY, case)
    x = case.inputs["x"]
    grids = subject.grids(case, x)
    out = subject.network(
        subject.pack(x, grids), subject.layout(grids), case.inputs["t"], case.inputs["y"].long()
    )
    case.check({"out": subject.unpack(out, grids, x)})


@pytest.mark.parametrize("case_name", FAMILY.case_names("forward_with_cfg"))
def test_guidance_moves_three_channels_and_keeps_the_rest(case_name: str) -> None:
    case = FAMILY.case(case_name)
    subject = subject_of(FAMILY, case)
    x = case.inputs["x"]
    half = x[: len(x) // 2]
    grids = subject.grids(case, x)
    out = subject.network(
        subject.pack(torch.cat((half, half)), grids),
        subject.layout(grids),
        case.inputs["t"],
        case.inputs["y"].long(),
    )
    conditional, null = out.chunk(2)
    guided_channels = subject.config.guided_token_channels
    scale = torch.full((len(conditional), 1), case.params["cfg_scale"])
    moved = guide(conditional, null, scale, guided_channels)
    of_null_half = torch.cat((moved[:, :guided_channels], null[:, guided_channels:]), dim=1)
    case.check({"out": subject.unpack(torch.cat((moved, of_null_half)), grids, x)})


def test_a_sequence_does_not_notice_its_neighbours() -> None:
    subject = subject_of(FAMILY, FAMILY.case("forward_3x5"))
    grids = [(3, 5), (4, 4), (1, 1), (3, 5), (2, 9)]
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(h * w, 16, generator=generator) for h, w in grids]
    t = torch.tensor([0, 250, 500, 750, 999])
    y = torch.arange(len(grids)) * 7
    together = subject.network(torch.cat(tokens), subject.layout(grids), t, y)
    start = 0
    for i, grid in enumerate(grids):
        layout = subject.layout([grid])
        alone = subject.network(tokens[i], layout, t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(together[start : start + len(alone)], alone, atol=2e-5, rtol=0.0)
        start += len(alone)


def test_the_state_dict_has_the_released_names_and_shapes() -> None:
    network = FiTv1(fitv1_config_of(FAMILY.config("tiny"), {}))
    assert {n: tuple(v.shape) for n, v in network.state_dict().items()} == FAMILY.shapes("tiny")


def test_a_fresh_network_answers_zero() -> None:
    network = FiTv1(fitv1_config_of(FAMILY.config("tiny"), {}))
    network.initialize()
    layout = Subject(network).layout([(2, 3)])
    out = network(torch.randn(6, 16), layout, torch.tensor([5]), torch.tensor([1]))
    assert out.shape == (6, 32)
    assert not out.any()
