"""Power-cosine guidance takes the published values."""

from __future__ import annotations

import pytest

from fit_models.diffusion.power_cosine import power_cosine_scale


@pytest.mark.parametrize(
    ("scale", "timestep", "expected"),
    [
        (4.4, 999, 1.0),
        (4.4, 750, 1.00013),
        (4.4, 500, 1.03267),
        (4.4, 250, 1.77295),
        (4.4, 100, 3.50067),
        (4.4, 0, 4.4),
        (3.8, 500, 1.02690),
        (3.8, 250, 1.63655),
        (3.8, 100, 3.05937),
    ],
)
def test_it_rises_from_nothing_to_its_scale(scale: float, timestep: int, expected: float) -> None:
    assert power_cosine_scale(scale, 4.0, timestep) == pytest.approx(expected, abs=5e-6)


def test_a_scale_of_one_is_none_anywhere() -> None:
    assert {power_cosine_scale(1.0, 4.0, t) for t in range(0, 1000, 37)} == {1.0}
