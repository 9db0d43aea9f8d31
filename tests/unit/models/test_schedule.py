"""A schedule falls from pure noise to its end in equal steps; timesteps run the other way."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fit_models.diffusion.prediction import sigma_of_timestep, timestep_of_sigma
from fit_models.diffusion.schedule import flow_sigmas


@given(st.integers(1, 300), st.floats(0.0, 0.99))
def test_sigmas_fall_from_1_to_the_last_in_equal_steps(num_steps: int, last: float):
    sigmas = flow_sigmas(num_steps, last)
    assert len(sigmas) == num_steps + 1
    assert (sigmas[0], sigmas[-1]) == (1.0, last)
    fall = (1.0 - last) / num_steps
    for i, sigma in enumerate(sigmas):
        assert sigma == pytest.approx(1.0 - i * fall, abs=1e-12)
    assert list(sigmas) == sorted(set(sigmas), reverse=True)


@pytest.mark.parametrize("num_steps", [0, -3])
def test_a_schedule_has_at_least_one_step(num_steps: int):
    with pytest.raises(ValueError, match=f"num_inference_steps is {num_steps}; it must be at le"):
        flow_sigmas(num_steps)


@pytest.mark.parametrize("last", [1.0, 1.5, -0.1, float("nan")])
def test_the_last_sigma_is_below_the_first(last: float):
    with pytest.raises(ValueError, match="last_sigma is"):
        flow_sigmas(4, last)


def test_noise_is_timestep_0_and_data_is_1():
    assert (timestep_of_sigma(1.0), timestep_of_sigma(0.0)) == (0.0, 1.0)
    sigma = torch.linspace(0, 1, 9)
    assert torch.equal(sigma_of_timestep(timestep_of_sigma(sigma)), sigma)
