"""Where one stands in the line is fixed once, and everybody is the earliest at last."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.engine.order import POLICIES, Order
from fit_serve.engine.sequence import Sequence
from support.sequences import sequence_of

moments = st.integers(0, 1000).map(float)


def arrived(submitted_s: float, priority: int = 0, deadline_s: float | None = None) -> Sequence:
    sequence = sequence_of(priority=priority, submitted_s=submitted_s)
    if deadline_s is not None:
        sequence.request = replace(sequence.request, deadline_s=deadline_s)
        sequence.deadline_s = submitted_s + deadline_s
    return sequence


@pytest.mark.parametrize("policy", POLICIES)
@given(moments, st.integers(0, 5), st.none() | st.integers(1, 50).map(float))
@settings(max_examples=20, deadline=None)
def test_a_moment_does_not_change_while_a_sequence_runs(
    policy: str, submitted_s: float, priority: int, deadline_s: float | None
) -> None:
    order, sequence = Order(policy), arrived(submitted_s, priority, deadline_s)
    sequence.alone_s = 3.0
    moment = order.moment(sequence)
    sequence.started_s = submitted_s + 1
    sequence.advance(sequence.next_turn())
    assert order.moment(sequence) == moment


@pytest.mark.parametrize("policy", POLICIES)
def test_among_equals_the_lower_number_goes_first(policy: str) -> None:
    order = Order(policy, priority_step_s=0.5)
    standing = [order.moment(arrived(7.0, priority)) for priority in (-2, -1, 0, 1, 5)]
    assert standing == sorted(set(standing))


@pytest.mark.parametrize("policy", ["fcfs", "deadline"])
@given(moments, moments, st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_level_of_priority_is_worth_a_fixed_time_of_waiting(
    policy: str, one_s: float, other_s: float, one: int, other: int
) -> None:
    order = Order(policy, priority_step_s=10.0)
    gap = order.moment(arrived(one_s, one)) - order.moment(arrived(other_s, other))
    assert gap == pytest.approx((one_s - other_s) + 10.0 * (one - other))


def test_first_come_first_served_does_not_ask_for_deadlines_or_work() -> None:
    sequence = arrived(5.0, deadline_s=1.0)
    sequence.alone_s = 100.0
    assert Order("fcfs").moment(sequence) == 5.0


def test_by_deadline_the_last_moment_to_begin_decides() -> None:
    order = Order("deadline", patience_s=60.0)
    urgent, relaxed, whenever = (
        arrived(9.0, deadline_s=5.0),
        arrived(0.0, deadline_s=40.0),
        arrived(0.0),
    )
    for sequence, alone_s in ((urgent, 2.0), (relaxed, 8.0), (whenever, 1.0)):
        sequence.alone_s = alone_s
    assert [order.moment(s) for s in (urgent, relaxed, whenever)] == [12.0, 32.0, 59.0]


@given(moments, st.integers(0, 60).map(float), st.integers(1, 200).map(float))
@settings(max_examples=30, deadline=None)
def test_whoever_comes_after_its_patience_stands_behind(
    submitted_s: float, alone_s: float, deadline_s: float
) -> None:
    """A deadline that is accepted leaves the time to keep it, so slack is never negative."""
    order = Order("deadline", patience_s=60.0)
    waits, newcomer = arrived(submitted_s), arrived(submitted_s + 60.0, deadline_s=deadline_s)
    waits.alone_s, newcomer.alone_s = alone_s, min(alone_s, deadline_s)
    assert order.moment(waits) <= order.moment(newcomer)


def test_shortest_goes_by_the_predicted_work() -> None:
    long, short = arrived(0.0), arrived(1000.0)
    long.alone_s, short.alone_s = 5.0, 1.0
    assert Order("shortest").moment(short) < Order("shortest").moment(long)


def test_a_policy_has_a_name_and_times_are_not_negative() -> None:
    with pytest.raises(ValueError, match=r"policy 'lifo' is unknown; known: fcfs, deadline, short"):
        Order("lifo")
    with pytest.raises(ValueError, match=r"priority_step_s is -1.0; it must be at least 0"):
        Order(priority_step_s=-1.0)
    with pytest.raises(ValueError, match="patience_s is nan; it must be at least 0"):
        Order(patience_s=float("nan"))
