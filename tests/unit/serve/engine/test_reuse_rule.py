"""When the network is not asked: by a plan, or by how the prediction has changed so far."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_models.diffusion.step_cache import LONGEST_REUSE
from fit_serve.engine.reuse_rule import ChangeReuse, PlannedReuse

INFINITE = float("inf")


def levels(count: int) -> tuple[float, ...]:
    return tuple(1.0 - i / count for i in range(count))


def walk(rule: ChangeReuse, change: Callable[[int], float], lag: int = 0) -> list[int]:
    """Computed evaluations of a run in which a change is told `lag` turns late."""
    computed: list[int] = []
    position = 0
    while position < len(rule.sigmas):
        turn = len(computed)
        computed.append(position)
        position += 1 + rule.count(position, turn)
        if turn - lag >= 0:
            rule.observe(turn - lag, change(turn - lag))
    return computed


@given(st.lists(st.booleans(), min_size=1, max_size=20).map(lambda plan: (True, *plan)))
@settings(max_examples=50, deadline=None)
def test_a_plan_is_followed(plan: tuple[bool, ...]) -> None:
    rule = PlannedReuse(plan)
    computed = [i for i, flag in enumerate(plan) if flag]
    assert not rule.watches
    followed, position = [], 0
    while position < len(plan):
        assert rule.computed_left(position) == computed[len(followed) :]
        followed.append(position)
        position += 1 + rule.count(position, len(followed))
        rule.observe(len(followed), 1e9)
    assert followed == computed


@given(st.lists(st.floats(0.0, 2.0), min_size=40, max_size=40), st.floats(0.0, 1.0))
@settings(max_examples=50, deadline=None)
def test_a_change_two_turns_old_decides_and_no_newer_one(
    changes: list[float], threshold: float
) -> None:
    """So a loop that plans a step ahead of its results decides as one that does not."""
    scales = (2.0,) * 40
    plain = walk(ChangeReuse(levels(40), scales, threshold), changes.__getitem__)
    late = walk(ChangeReuse(levels(40), scales, threshold), changes.__getitem__, lag=1)
    assert plain == late


def test_what_is_newer_than_two_turns_is_not_looked_at() -> None:
    rule = ChangeReuse(levels(10), (1.0,) * 10, threshold=0.1)
    assert rule.count(0, 0) == rule.count(1, 1) == 0
    rule.observe(1, 0.0)  # nothing changes: reuse as much as may be
    assert rule.count(2, 2) == 0
    rule.observe(2, 1e9)
    assert rule.count(3, 3) == LONGEST_REUSE


def test_the_reuse_ends_where_the_expected_change_passes_the_threshold() -> None:
    rule = ChangeReuse(levels(20), (1.0,) * 20, threshold=0.35)
    for turn in range(3):
        rule.count(turn, turn)
        rule.observe(turn, 0.1)  # 0.1 a step
    assert rule.count(3, 3) == 3


@given(st.lists(st.floats(1e-6, 2.0), min_size=40, max_size=40))
@settings(max_examples=20, deadline=None)
def test_a_threshold_of_nothing_reuses_nothing(changes: list[float]) -> None:
    rule = ChangeReuse(levels(40), (2.0,) * 40, threshold=0.0)
    assert walk(rule, changes.__getitem__) == list(range(40))


@pytest.mark.parametrize("change", [0.0, 1.0, 1e30])
def test_a_threshold_without_end_reuses_as_much_as_may_be(change: float) -> None:
    rule = ChangeReuse(levels(40), (2.0,) * 40, threshold=INFINITE)
    stride = LONGEST_REUSE + 1
    assert walk(rule, lambda turn: change) == [0, 1, 2, *range(3, 40, stride)]


@given(st.lists(st.sampled_from((1.0, 2.0)), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_scale_of_guidance_ends_a_reuse_where_it_changes(scales: list[float]) -> None:
    rule = ChangeReuse(levels(len(scales)), scales, threshold=INFINITE)
    computed = walk(rule, lambda turn: 0.0)
    for first, end in zip(computed, [*computed[1:], len(scales)], strict=True):
        assert len(set(scales[first:end])) == 1
        assert end - first <= LONGEST_REUSE + 1


def test_a_change_across_two_scales_or_at_one_noise_level_says_nothing() -> None:
    other_scale = ChangeReuse(levels(20), (1.0,) * 2 + (2.0,) * 18, threshold=INFINITE)
    same_level = ChangeReuse((1.0, 0.5, 0.5, *levels(17)), (1.0,) * 20, threshold=INFINITE)
    for rule in (other_scale, same_level):
        for turn in range(3):
            assert rule.count(turn, turn) == 0
        rule.observe(2, 0.0)  # between 1 and 2: two scales, or one level
        assert rule.count(3, 3) == 0
        assert rule.count(4, 4) == 0
        rule.observe(3, 0.0)
        assert rule.count(5, 5) == LONGEST_REUSE


def test_a_turn_nobody_counted_says_nothing() -> None:
    rule = ChangeReuse(levels(9), (1.0,) * 9, threshold=INFINITE)
    rule.observe(0, 0.0)
    rule.observe(7, 0.0)
    assert rule.count(0, 9) == 0


def test_before_it_has_seen_anything_everything_may_be_computed() -> None:
    rule = ChangeReuse(levels(9), (1.0,) * 9, threshold=0.1)
    assert rule.watches
    assert rule.computed_left(4) == [4, 5, 6, 7, 8]
