"""The traffic is what its name says: areas, steps, shares, arrival rate; and repeatable."""

from __future__ import annotations

import pytest

from fit_serve.bench.traffic import TRAFFIC, make_requests, poisson_arrivals, sizes_near


def draw(num_requests: int = 2000, traffic: str = "c-fit-small", seed: int = 0):
    return make_requests(traffic, num_requests, 30, 16, 3.0, (0.0, 1.0), seed)


@pytest.mark.parametrize("traffic", sorted(TRAFFIC))
def test_areas_and_steps_come_at_their_shares(traffic: str) -> None:
    requests = draw(traffic=traffic)
    for kind in TRAFFIC[traffic]:
        near = {(kind.side, kind.side), *sizes_near(kind.side, 16)}
        mine = [r for r in requests if (r.height, r.width) in near]
        assert abs(len(mine) / len(requests) - kind.share) < 0.04
        assert {r.num_inference_steps for r in mine} == {kind.num_inference_steps}
        squares = sum(r.height == r.width for r in mine)
        assert abs(squares / len(mine) - 0.5) < 0.08


@pytest.mark.parametrize("side", [96, 128, 160, 192, 256, 512, 768])
def test_non_square_sizes_keep_the_area_and_the_multiple(side: int) -> None:
    sizes = sizes_near(side, 16)
    assert len(sizes) >= 4
    for height, width in sizes:
        assert height != width
        assert height % 16 == width % 16 == 0
        assert 0.75 < height * width / side**2 < 1.25


def test_the_same_seed_asks_for_the_same() -> None:
    assert draw(50) == draw(50)
    assert draw(50) != draw(50, seed=1)


def test_arrivals_come_at_the_rate_and_in_order() -> None:
    moments = [a.at_s for a in poisson_arrivals(draw(), rate=4.0, seed=0)]
    assert moments == sorted(moments)
    assert abs(len(moments) / moments[-1] - 4.0) < 0.4
    assert {a.at_s for a in poisson_arrivals(draw(10), rate=None, seed=0)} == {0.0}


def test_unknown_traffic_is_named() -> None:
    with pytest.raises(ValueError, match="'rush-hour' is unknown; known: c-fit"):
        draw(traffic="rush-hour")
