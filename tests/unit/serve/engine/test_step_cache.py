"""Settings of the step cache, and which rule a request gets from them."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_models.diffusion.guidance import Guidance
from fit_models.diffusion.sampler import make_trajectory
from fit_models.diffusion.step_cache import FEWEST_COMPUTED, GENERIC_PROFILE, LONGEST_REUSE
from fit_serve.engine.reuse_rule import ChangeReuse, PlannedReuse
from fit_serve.engine.step_cache import StepCache
from fit_serve.quality import EXACT, QUALITIES

INEXACT = sorted(set(QUALITIES) - {EXACT})


def scales_of(sampler: str, steps: int, interval: tuple[float, float]) -> list[float]:
    evaluations = make_trajectory(sampler, steps).evaluations
    return [Guidance(3.0, interval).scale_at(e.sigma) for e in evaluations]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="step cache rule 'guess' is unknown; known: plan, change"):
        StepCache("guess")
    with pytest.raises(ValueError, match="step cache order is 2; it must be 0 or 1"):
        StepCache(order=2)


@pytest.mark.parametrize("rule", ["plan", "change"])
def test_exact_is_without_a_rule(rule: str) -> None:
    trajectory = make_trajectory("euler", 20)
    assert StepCache(rule).rule_for(EXACT, trajectory, [1.0] * 20) is None


def test_a_quality_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="quality 'best' is unknown; known: exact, balanced, fast"):
        StepCache().rule_for("best", make_trajectory("euler", 2), [1.0] * 2)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(("euler", "heun", "midpoint")),
    st.integers(6, 40),
    st.sampled_from(((0.0, 1.0), (0.3, 0.8), (0.0, 0.5))),
    st.sampled_from(INEXACT),
    st.sampled_from((0, 1)),
)
def test_a_planned_rule_keeps_the_share_of_the_quality(
    sampler: str, steps: int, interval: tuple[float, float], quality: str, order: int
) -> None:
    trajectory, scales = make_trajectory(sampler, steps), scales_of(sampler, steps, interval)
    rule = StepCache("plan", order).rule_for(quality, trajectory, scales)
    assert isinstance(rule, PlannedReuse)
    count = len(trajectory.evaluations)
    changes = [i for i in range(1, count) if scales[i] != scales[i - 1]]
    bounds = [0, *changes, count]
    must = sum(-(-(end - first) // (LONGEST_REUSE + 1)) for first, end in pairwise(bounds))
    computed = len(rule.computed_left(0))
    assert computed <= max(must, FEWEST_COMPUTED, QUALITIES[quality].computed_share * count)
    assert all(rule.computed[first] for first in (0, *changes))


def test_a_rule_that_watches_has_the_threshold_of_the_quality() -> None:
    rule = StepCache("change").rule_for("fast", make_trajectory("euler", 3), [1.0, 2.0, 2.0])
    assert isinstance(rule, ChangeReuse)
    assert rule.threshold == QUALITIES["fast"].change
    assert rule.scales == (1.0, 2.0, 2.0)
    assert rule.sigmas == pytest.approx((1.0, 2 / 3, 1 / 3))


def test_two_sequences_never_share_what_they_have_seen() -> None:
    trajectory, cache = make_trajectory("euler", 9), StepCache("change")
    one, other = (cache.rule_for("fast", trajectory, [1.0] * 9) for _ in range(2))
    assert one is not other


def test_one_step_has_nothing_to_reuse() -> None:
    cache = StepCache("plan", profile=GENERIC_PROFILE)
    assert cache.rule_for("fast", make_trajectory("euler", 1), [2.0]) is None
