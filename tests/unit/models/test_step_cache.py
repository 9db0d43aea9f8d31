"""A plan computes what it may where it matters most; a profile says what it is, or is refused."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_models.diffusion.guidance import Guidance
from fit_models.diffusion.sampler import make_trajectory
from fit_models.diffusion.step_cache import (
    FEWEST_COMPUTED,
    GENERIC_PROFILE,
    LONGEST_REUSE,
    PredictionProfile,
    extrapolation,
    plan_evaluations,
)

Plan = tuple[bool, ...]

NAMES = ("sigmas", "slope", "curvature", "sensitivity")


# --- plans --------------------------------------------------------------------------------------


@st.composite
def profiles(draw: st.DrawFn) -> PredictionProfile:
    count = draw(st.integers(1, 4))
    values = st.lists(st.floats(0.01, 50.0), min_size=count, max_size=count).map(tuple)
    sigmas = draw(st.lists(st.floats(0.0, 1.0), min_size=count, max_size=count, unique=True))
    return PredictionProfile(tuple(sorted(sigmas)), draw(values), draw(values), draw(values))


@st.composite
def courses(
    draw: st.DrawFn, longest: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Noise levels (some repeated, as Heun's are), weights and scales of evaluations."""
    count = draw(st.integers(1, longest))
    sigmas = draw(st.lists(st.floats(0.0, 1.0), min_size=count, max_size=count))
    repeats = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    falling = sorted(sigmas, reverse=True)
    for index in range(1, count):
        if repeats[index]:
            falling[index] = falling[index - 1]
    weights = draw(st.lists(st.floats(0.01, 1.0), min_size=count, max_size=count))
    cuts = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    scales, scale = [], 1.0
    for cut in cuts:
        scale = 3.0 - scale if cut == 0 else scale  # 1, 2, 1, ...
        scales.append(scale)
    return tuple(falling), tuple(weights), tuple(scales)


shares = st.floats(0.05, 1.0)
orders = st.sampled_from((0, 1))


def stretches_of(scales: Sequence[float]) -> list[range]:
    starts = [i for i, s in enumerate(scales) if i == 0 or s != scales[i - 1]]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(scales)], strict=True)]


def longest_reuse(plan: Plan) -> int:
    return max(len(run) for run in "".join("x" if c else "." for c in plan).split("x"))


def fewest(scales: Sequence[float]) -> int:
    """How many evaluations are computed, whatever the share."""
    forced = sum(-(-len(stretch) // (LONGEST_REUSE + 1)) for stretch in stretches_of(scales))
    return max(forced, min(FEWEST_COMPUTED, len(scales)))


def is_allowed(plan: Plan, scales: Sequence[float]) -> bool:
    firsts = [stretch[0] for stretch in stretches_of(scales)]
    return all(plan[first] for first in firsts) and longest_reuse(plan) <= LONGEST_REUSE


def error_of(
    plan: Plan,
    sigmas: Sequence[float],
    weights: Sequence[float],
    scales: Sequence[float],
    order: int,
    profile: PredictionProfile,
) -> float:
    """What the profile says of a plan, by the book: Taylor remainders on the way to the picture."""
    total = 0.0
    for stretch in stretches_of(scales):
        computed: list[int] = []
        for index in stretch:
            if plan[index]:
                computed.append(index)
                continue
            slope, curvature, sensitivity = profile.at(sigmas[index])
            gap = abs(sigmas[index] - sigmas[computed[-1]])
            if gap == 0.0 and len(computed) >= 2:
                step = sigmas[computed[-1]] - sigmas[computed[-2]]
                total += weights[index] * sensitivity * curvature * step**2
                continue
            first_order = order == 0 or len(computed) < 2
            if first_order or sigmas[computed[-1]] == sigmas[computed[-2]]:
                miss = slope * gap
            else:
                miss = curvature * gap * abs(sigmas[index] - sigmas[computed[-2]])
            total += weights[index] * sensitivity * miss
    return total


@settings(max_examples=60, deadline=None)
@given(courses(40), shares, orders, profiles())
def test_a_plan_keeps_the_rules_and_the_share(
    course: tuple[tuple[float, ...], ...], share: float, order: int, profile: PredictionProfile
) -> None:
    sigmas, weights, scales = course
    plan = plan_evaluations(sigmas, weights, scales, share, order, profile)
    assert len(plan) == len(sigmas)
    assert is_allowed(plan, scales)
    assert sum(plan) <= max(int(share * len(sigmas) + 1e-9), fewest(scales))


@settings(max_examples=150, deadline=None)
@given(courses(8), shares, orders, profiles())
def test_no_plan_that_computes_as_few_has_less_error(
    course: tuple[tuple[float, ...], ...], share: float, order: int, profile: PredictionProfile
) -> None:
    """By trying all of them."""
    sigmas, weights, scales = course
    plan = plan_evaluations(sigmas, weights, scales, share, order, profile)
    affordable = max(int(share * len(sigmas) + 1e-9), fewest(scales))
    errors = [
        error_of(other, sigmas, weights, scales, order, profile)
        for other in product((False, True), repeat=len(sigmas))
        if is_allowed(other, scales) and sum(other) <= affordable
    ]
    own = error_of(plan, sigmas, weights, scales, order, profile)
    assert own <= min(errors) + 1e-9 * (1.0 + max(errors))


@pytest.mark.parametrize("sampler", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8)])
def test_a_larger_share_never_has_more_error(sampler: str, interval: tuple[float, float]) -> None:
    evaluations = make_trajectory(sampler, 20).evaluations
    sigmas = tuple(e.sigma for e in evaluations)
    weights = tuple(abs(e.coefficients[1]) for e in evaluations)
    scales = tuple(Guidance(2.0, interval).scale_at(sigma) for sigma in sigmas)
    plans = [
        plan_evaluations(sigmas, weights, scales, share, 1, GENERIC_PROFILE)
        for share in (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
    ]
    errors = [error_of(plan, sigmas, weights, scales, 1, GENERIC_PROFILE) for plan in plans]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.0
    assert [sum(plan) for plan in plans] == sorted(sum(plan) for plan in plans)


@given(courses(30), orders, profiles())
@settings(max_examples=20, deadline=None)
def test_the_whole_share_computes_everything(
    course: tuple[tuple[float, ...], ...], order: int, profile: PredictionProfile
) -> None:
    assert all(plan_evaluations(*course, 1.0, order, profile))


def test_work_goes_where_the_prediction_bends() -> None:
    sigmas = tuple(1.0 - i / 30 for i in range(30))
    bends_late = PredictionProfile((0.0, 0.49, 0.51, 1.0), (1,) * 4, (50, 50, 0.1, 0.1), (1,) * 4)
    bends_early = replace(bends_late, curvature=(0.1, 0.1, 50, 50))
    flat = (1.0,) * 30
    late = plan_evaluations(sigmas, flat, flat, 0.5, 1, bends_late)
    early = plan_evaluations(sigmas, flat, flat, 0.5, 1, bends_early)
    assert sum(late[15:]) > sum(late[:15])
    assert sum(early[:15]) > sum(early[15:])


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(ValueError, match=f"share is {share}; it must be above 0 and at most 1"):
        plan_evaluations((1.0, 0.5), (1.0, 1.0), (1.0, 1.0), share, 1, GENERIC_PROFILE)


@pytest.mark.parametrize("order", [-1, 2])
def test_an_order_is_0_or_1(order: int) -> None:
    with pytest.raises(ValueError, match=f"order is {order}; it must be 0 or 1"):
        plan_evaluations((1.0, 0.5), (1.0, 1.0), (1.0, 1.0), 0.5, order, GENERIC_PROFILE)


# --- the line -----------------------------------------------------------------------------------


@given(*[st.integers(0, 1000)] * 3, st.floats(-9, 9), st.floats(-9, 9))
@settings(max_examples=100, deadline=None)
def test_the_line_through_two_predictions_reproduces_what_is_linear(
    sigma: int, last: int, before: int, slope: float, constant: float
) -> None:
    weights = extrapolation(sigma / 1000, last / 1000, before / 1000)
    assert sum(weights) == pytest.approx(1.0)
    if last != before:
        values = [slope * level / 1000 + constant for level in (last, before)]
        read = sum(weight * value for weight, value in zip(weights, values, strict=True))
        assert read == pytest.approx(slope * sigma / 1000 + constant, abs=1e-9)


@pytest.mark.parametrize("before", [None, 0.5])
def test_one_prediction_is_repeated(before: float | None) -> None:
    assert extrapolation(0.25, 0.5, before) == (1.0, 0.0)


# --- profiles -----------------------------------------------------------------------------------


@given(profiles(), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_a_profile_is_linear_between_what_was_measured_and_constant_outside(
    profile: PredictionProfile, sigma: float
) -> None:
    expected = [numpy.interp(sigma, profile.sigmas, getattr(profile, n)) for n in NAMES[1:]]
    assert profile.at(sigma) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(profiles())
@settings(max_examples=30, deadline=None)
def test_a_profile_comes_back_from_its_file_to_four_digits(profile: PredictionProfile) -> None:
    wide = replace(profile, sigmas=tuple(i / 7 for i in range(len(profile.sigmas))))
    once = PredictionProfile.from_dict(wide.to_dict())
    assert PredictionProfile.from_dict(once.to_dict()) == once
    for name in NAMES:
        assert getattr(once, name) == pytest.approx(getattr(wide, name), rel=1e-3)


def test_the_generic_profile_comes_back_as_it_is() -> None:
    assert PredictionProfile.from_dict(GENERIC_PROFILE.to_dict()) == GENERIC_PROFILE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "step cache profile: KeyError"),  # left out
        (3.0, "step cache profile: TypeError"),
        (["high"], "step cache profile: ValueError"),
        ([0.5, -1.0], "{name} must be finite and at least 0"),
        ([0.5, float("nan")], "{name} must be finite and at least 0"),
        ([0.5, float("inf")], "{name} must be finite and at least 0"),
        ([], "{name} has {count} values; there must be as many as sigmas, {sigmas}"),
        ([0.1, 0.2, 0.3], "{name} has {count} values; there must be as many as sigmas, {sigmas}"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(name: str, value: object, message: str) -> None:
    values: dict[str, object] = {n: [0.25, 0.75] for n in NAMES}
    values[name] = value
    if value is None:
        del values[name]
    told, sigmas = name, 2
    if name == "sigmas" and isinstance(value, list) and len(value) != 2:
        sigmas = len(value)  # then it is the others that do not fit, or nothing is there at all
        told = "slope" if value else "sigmas"
    count = 2 if told != name else len(value) if isinstance(value, list) else 0
    expected = message.format(name=told, count=count, sigmas=sigmas)
    with pytest.raises(ValueError, match=expected):
        PredictionProfile.from_dict(values)


@pytest.mark.parametrize("sigmas", [[0.5, 0.5], [0.75, 0.25]])
def test_noise_levels_of_a_profile_rise(sigmas: list[float]) -> None:
    values = {name: [1.0, 1.0] for name in NAMES}
    with pytest.raises(ValueError, match="sigmas must rise"):
        PredictionProfile.from_dict({**values, "sigmas": sigmas})
