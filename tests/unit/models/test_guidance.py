"""Guidance equals the authors' code, acts where it is asked to, and refuses what it cannot mean."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fit_models.diffusion.guidance import Guidance, guide
from fit_models.diffusion.prediction import sigma_of_timestep
from support.golden import load_family
from support.official import grids_of, layout_for, network_of, pack, pad

FAMILY = load_family("fitv2")


@pytest.mark.parametrize("name", FAMILY.case_names("forward_with_cfg"))
def test_two_branches_equal_the_original_double_batch(name: str):
    case = FAMILY.case(name)
    network = network_of(FAMILY, case)
    grids, t = grids_of(case), case.inputs["t"]
    half = len(grids) // 2
    assert torch.equal(t[:half], t[half:])
    # The original feeds the first half to both branches and ignores the second.
    x_TK = pack(case.inputs["x"][:half].repeat(2, 1, 1), grids)
    out_TK = network(x_TK, layout_for(network, grids), t, case.inputs["y"].long())
    conditional, unconditional = out_TK.chunk(2)
    guidance = Guidance(case.params["cfg_scale"], scale_power=case.params["scale_pow"])
    scale_S = torch.tensor([guidance.scale_at(sigma_of_timestep(x)) for x in t[:half].tolist()])
    tokens_S = torch.tensor([h * w for h, w in grids[:half]])
    g = network.config.guided_token_channels
    scale_T1 = scale_S.repeat_interleave(tokens_S)[:, None]
    kept = guide(conditional, unconditional, scale_T1, g)
    other = torch.cat((kept[:, :g], unconditional[:, g:]), dim=1)
    case.check({"out": pad(torch.cat((kept, other)), grids, case.inputs["x"].shape[1])})


CONDITIONAL, UNCONDITIONAL = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def guided(scale_T1: Tensor, channels: int, tokens: slice = slice(None)) -> Tensor:
    return guide(CONDITIONAL[tokens], UNCONDITIONAL[tokens], scale_T1, channels)


def test_scale_1_is_the_conditional_branch_and_0_the_unconditional():
    torch.testing.assert_close(guided(torch.ones(5, 1), 8), CONDITIONAL)
    assert torch.equal(guided(torch.zeros(5, 1), 8), UNCONDITIONAL)


def test_channels_that_are_not_guided_stay_conditional():
    out = guided(torch.full((5, 1), 7.0), 6)
    assert torch.equal(out[:, 6:], CONDITIONAL[:, 6:])
    wanted = UNCONDITIONAL + 7.0 * (CONDITIONAL - UNCONDITIONAL)
    torch.testing.assert_close(out[:, :6], wanted[:, :6])


def test_each_token_has_the_scale_of_its_own_sequence():
    scale_T1 = torch.tensor([[1.5], [1.5], [4.0], [0.5], [0.5]])
    together = guided(scale_T1, 6)
    for part in (slice(t, t + 1) for t in range(5)):
        assert torch.equal(together[part], guided(scale_T1[part], 6, part))


def test_outside_its_interval_there_is_no_second_branch():
    guidance = Guidance(3.0, interval=(0.2, 0.8))
    scales = [guidance.scale_at(s) for s in (0.0, 0.19, 0.2, 0.5, 0.8, 0.81, 1.0)]
    assert scales == [1.0, 1.0, 3.0, 3.0, 3.0, 1.0, 1.0]


def test_beyond_the_data_end_counts_as_the_data_end():
    assert Guidance(3.0).scale_at(-0.3) == 3.0
    assert Guidance(3.0, interval=(0.1, 1.0)).scale_at(-0.3) == 1.0


@given(st.floats(0.0, 20.0), st.floats(0.05, 4.0))
def test_the_power_course_runs_from_the_whole_scale_at_noise_to_none_at_data(scale, power):
    guidance = Guidance(scale, scale_power=power)
    assert guidance.scale_at(1.0) == pytest.approx(scale)
    assert guidance.scale_at(0.0) == pytest.approx(1.0)
    course = [guidance.scale_at(s / 20) for s in range(21)]
    assert course == sorted(course, reverse=scale < 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": -0.1}, r"guidance_scale is -0\.1; it must be finite and at least 0"),
        ({"scale": math.inf}, "guidance_scale is inf"),
        ({"scale": math.nan}, "guidance_scale is nan"),
        ({"interval": (0.6, 0.4)}, r"guidance_interval is \(0\.6, 0\.4\)"),
        ({"interval": (-0.1, 1.0)}, "guidance_interval"),
        ({"interval": (0.0, 1.1)}, "guidance_interval"),
        ({"interval": (math.nan, 1.0)}, "guidance_interval"),
        ({"scale_power": -1.0}, r"scale_power is -1\.0; it must be at least 0"),
    ],
)
def test_values_without_a_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**values)
