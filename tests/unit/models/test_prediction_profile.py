"""A profile says how predictions really changed: known for predictions that are known functions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_models.bundle import Bundle, load_bundle
from fit_models.diffusion.step_cache import PredictionProfile
from fit_models.prediction_profile import measure_profile
from support.toy_bundle import make_toy_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_toy_bundle(tmp_path_factory.mktemp("toy"))))


class Parabola:
    """A prediction of 3 + 2 sigma + 5 sigma^2 + k x for every label."""

    def __init__(self, real: Any, k: float = 0.0) -> None:
        self.config, self.parameters = real.config, real.parameters
        self._k = k

    def __call__(self, x: Tensor, layout: object, timestep_S: Tensor, label_S: Tensor) -> Tensor:
        sigma = 1.0 - float(timestep_S[0])
        return torch.full_like(x, 3 + 2 * sigma + 5 * sigma**2) + self._k * x


def measured(bundle: Bundle, k: float = 0.0) -> PredictionProfile:
    network: Any = Parabola(bundle.network, k)
    return measure_profile(replace(bundle, network=network), num_sequences=2, num_steps=20)


def test_slope_and_curvature_of_a_parabola_are_found(bundle: Bundle) -> None:
    profile = measured(bundle)
    for sigma, slope, curvature in zip(
        profile.sigmas, profile.slope, profile.curvature, strict=True
    ):
        # Differences over a step of 0.05: the mean slope between two noise levels.
        assert slope == pytest.approx(2 + 10 * sigma, abs=0.3)
        assert curvature == pytest.approx(5.0, rel=1e-2)
    assert profile.sensitivity == pytest.approx([1.0] * len(profile.sigmas), rel=1e-3)


def test_errors_that_the_field_grows_are_seen_to_grow(bundle: Bundle) -> None:
    """dx = k x over a distance of sigma grows an error by exp(k sigma), in Euler's steps nearly."""
    profile = measured(bundle, k=2.0)
    for sigma, sensitivity in zip(profile.sigmas, profile.sensitivity, strict=True):
        assert sensitivity == pytest.approx(float(torch.tensor(2.0 * sigma).exp()), rel=0.2)
    assert list(profile.sensitivity) == sorted(profile.sensitivity)


def test_a_real_network_has_a_profile_that_survives_a_file(bundle: Bundle, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    profile = measure_profile(bundle, num_sequences=2, num_steps=8, on_progress=tell)
    assert told == [(done, told[0][1]) for done in range(1, told[0][1] + 1)]
    again = PredictionProfile.from_dict(profile.to_dict())
    assert again.slope == pytest.approx(profile.slope, rel=1e-3)


@pytest.mark.parametrize("bad", [{"num_sequences": 0}, {"num_steps": 3}])
def test_too_little_to_watch_is_refused(bundle: Bundle, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="num_sequences is"):
        measure_profile(bundle, **bad)
