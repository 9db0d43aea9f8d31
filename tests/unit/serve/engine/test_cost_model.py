"""The cost of a step never falls, survives JSON, and its knee is where the device is busy."""

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.engine.cost_model import CostModel, Sample, fit_cost_model

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
SECONDS = st.floats(1e-6, 1e3)
LENGTHS = st.lists(st.integers(1, 5000), max_size=12)


@st.composite
def cost_models(draw: st.DrawFn) -> CostModel:
    tokens = sorted(draw(st.sets(st.integers(1, 40_000), min_size=1, max_size=10)))
    seconds = sorted(draw(st.lists(SECONDS, min_size=len(tokens), max_size=len(tokens))))
    return CostModel(
        tuple(zip(tokens, seconds, strict=True)),
        draw(st.integers(1, 512)),
        draw(st.floats(0, 1e-6)),
    )


def floor_then_linear(tokens: int, floor: float = 0.01, per_token: float = 1e-5) -> float:
    """A device that waits for launches up to `floor / per_token` tokens."""
    return max(floor, per_token * tokens)


def steps(length: int, seconds_of: Any, sizes: tuple[int, ...] = SIZES) -> list[Sample]:
    return [Sample(n, (length,) * (n // length), seconds_of(n)) for n in sizes]


@settings(deadline=None)
@given(cost_models(), LENGTHS, st.integers(1, 5000))
def test_a_step_costs_something_and_never_less_with_one_more_sequence(
    model: CostModel, lengths: list[int], more: int
) -> None:
    before, after = model.step_seconds(lengths), model.step_seconds([*lengths, more])
    assert (before > 0) == bool(lengths)
    assert 0 < after < math.inf
    assert after >= before * (1 - 1e-12)


@settings(deadline=None)
@given(cost_models(), st.lists(st.integers(1, 5000), min_size=1, max_size=12))
def test_a_step_never_costs_less_when_a_sequence_grows(
    model: CostModel, lengths: list[int]
) -> None:
    grown = [lengths[0] + 1, *lengths[1:]]
    assert model.step_seconds(grown) >= model.step_seconds(lengths) * (1 - 1e-12)


@settings(deadline=None)
@given(cost_models())
def test_points_are_met_and_the_first_is_the_floor(model: CostModel) -> None:
    for tokens, seconds in model.points:
        assert model.tokens_step_seconds(tokens) == pytest.approx(seconds)
    assert model.tokens_step_seconds(1) == model.points[0][1]


@settings(deadline=None)
@given(cost_models())
def test_a_model_survives_json(model: CostModel) -> None:
    assert CostModel.from_dict(json.loads(json.dumps(model.to_dict()))) == model


@settings(deadline=None)
@given(cost_models(), st.floats(0.01, 1.0))
def test_the_knee_is_measured_and_fast_enough_and_nothing_smaller_is(
    model: CostModel, share: float
) -> None:
    rates = {tokens: tokens / seconds for tokens, seconds in model.points}
    knee = model.knee(share)
    assert rates[knee] >= share * max(rates.values())
    assert all(rates[n] < share * max(rates.values()) for n in rates if n < knee)


@pytest.mark.parametrize("busy_from", SIZES)
def test_the_knee_is_where_launches_stop_to_matter(busy_from: int) -> None:
    floor = busy_from * 1e-5
    model = fit_cost_model(steps(64, lambda n: floor_then_linear(n, floor)))
    assert model.knee() == busy_from


def test_the_knee_of_a_soft_curve_takes_the_share_asked_for() -> None:
    # 1 ms and 10 us a token: 100 tokens of overhead, so n tokens reach n / (n + 100) of the best.
    model = fit_cost_model(steps(64, lambda n: 1e-3 + 1e-5 * n))
    best = 4096 / 4196
    expected = next(n for n in SIZES if n / (n + 100) >= 0.9 * best)
    assert model.knee(0.9) == expected == 1024
    assert model.knee(1.0) == 4096


def test_time_is_linear_between_points_and_beyond_by_the_last_slope() -> None:
    model = CostModel(((100, 1.0), (200, 1.0), (400, 2.0)), 100, 0.0)
    assert model.tokens_step_seconds(50) == 1.0
    assert model.tokens_step_seconds(300) == pytest.approx(1.5)
    assert model.tokens_step_seconds(600) == pytest.approx(3.0)


def test_time_grows_past_a_flat_end() -> None:
    assert CostModel(((100, 1.0),), 1, 0.0).tokens_step_seconds(300) == pytest.approx(3.0)
    flat_end = CostModel(((100, 1.0), (200, 2.0), (300, 2.0)), 1, 0.0)
    assert flat_end.tokens_step_seconds(500) == pytest.approx(3.0)


def test_pairs_beyond_the_reference_are_paid_and_short_sequences_give_nothing_back() -> None:
    model = CostModel(((100, 1.0), (1000, 10.0)), 10, 0.001)
    assert model.step_seconds([10] * 20) == pytest.approx(2.0)
    assert model.step_seconds([5] * 40) == pytest.approx(2.0)
    assert model.step_seconds([200]) == pytest.approx(2.0 + 0.001 * 200 * 190)


@settings(deadline=None)
@given(st.lists(SECONDS, min_size=len(SIZES), max_size=len(SIZES)))
def test_noise_cannot_make_time_fall(seconds: list[float]) -> None:
    noisy = dict(zip(SIZES, seconds, strict=True))
    model = fit_cost_model(steps(64, noisy.__getitem__))
    assert [tokens for tokens, _ in model.points] == list(SIZES)
    assert all(a[1] <= b[1] for a, b in pairwise(model.points))
    assert sum(s for _, s in model.points) == pytest.approx(sum(seconds))


@settings(deadline=None)
@given(st.floats(0, 1e-7), st.floats(1e-5, 1e-2), st.floats(1e-6, 1e-4))
def test_a_fit_finds_the_costs_that_made_the_samples(
    per_pair: float, floor: float, per_token: float
) -> None:
    truth = CostModel(tuple((n, floor + per_token * n) for n in SIZES), 64, per_pair)
    shapes = [*((64,) * (n // 64) for n in SIZES), (256,) * 4, (1024,), (1024, 1024), (64, 1024)]
    model = fit_cost_model(Sample(sum(s), s, truth.step_seconds(s)) for s in shapes)
    assert model.reference_length == 64
    assert model.seconds_per_pair == pytest.approx(per_pair, rel=1e-6, abs=1e-15)
    for shape in ((100, 300), (4096,), (2048, 64)):
        assert model.step_seconds(shape) == pytest.approx(truth.step_seconds(shape), rel=1e-6)


def test_the_best_of_equal_steps_counts_and_a_long_step_that_was_fast_costs_no_less() -> None:
    samples = [*steps(64, floor_then_linear), Sample(1024, (1024,), 1e-3)]
    model = fit_cost_model([*samples, Sample(64, (64,), 0.5)])
    assert model.tokens_step_seconds(64) == 0.01
    assert model.seconds_per_pair == 0.0


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([], "no sample holds sequences of one length"),
        ([Sample(3, (1, 2), 1.0)], "no sample holds sequences of one length"),
        ([Sample(4, (4,), 0.0)], "seconds is 0.0"),
        ([Sample(4, (4,), math.nan)], "seconds is nan"),
        ([Sample(3, (4,), 1.0)], "tokens is 3"),
        ([Sample(4, (), 1.0)], "tokens is 4"),
    ],
)
def test_samples_that_cannot_be_are_refused(samples: list[Sample], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_cost_model(samples)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"points": []}, "points is empty"),
        ({"points": 7}, "points is 7"),
        ({"points": [7]}, r"points is \[7\]"),
        ({"points": [[1]]}, r"points has \(1,\)"),
        ({"points": [[1.5, 1.0]]}, r"points has \(1.5, 1.0\)"),
        ({"points": [[1, "a"]]}, "points has"),
        ({"points": [[1, math.inf]]}, "points has"),
        ({"points": [[0, 1.0]]}, "points has"),
        ({"points": [[1, 0.0]]}, "points has"),
        ({"points": [[2, 1.0], [2, 1.0]]}, "tokens must rise"),
        ({"points": [[1, 1.0], [2, 0.5]]}, "seconds never fall"),
        ({"reference_length": 0}, "reference_length is 0"),
        ({"reference_length": True}, "reference_length is True"),
        ({"seconds_per_pair": -1.0}, "seconds_per_pair is -1.0"),
        ({"seconds_per_pair": "x"}, "seconds_per_pair is 'x'"),
        ({"speed": 1}, "speed"),
    ],
)
def test_a_model_that_cannot_be_is_refused_by_field_and_value(
    changed: dict[str, Any], said: str
) -> None:
    good = CostModel(((1, 1.0),), 1, 0.0).to_dict()
    with pytest.raises(ValueError, match=said):
        CostModel.from_dict({**good, **changed})


def test_what_cannot_be_asked_is_refused() -> None:
    model = CostModel(((1, 1.0),), 1, 0.0)
    with pytest.raises(ValueError, match="tokens is -1"):
        model.tokens_step_seconds(-1)
    for share in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="share is"):
            model.knee(share)
    with pytest.raises(ValueError, match="reference_length"):
        CostModel.from_dict({"points": [[1, 1.0]]})
