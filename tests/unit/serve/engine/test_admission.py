"""Who is let in: never more than may wait, never one who would be late, and promises are kept."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.engine.admission import Admission
from fit_serve.engine.batching import StepLimits
from fit_serve.engine.cost_model import CostModel
from fit_serve.engine.order import Order
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence
from fit_serve.errors import DeadlineInfeasible, InvalidRequest, Overloaded
from support.sequences import planned, request_of

MILLISECOND_A_TOKEN = CostModel(((1, 0.001), (1000, 1.0)), 1000, 0.0)
ONE_AT_A_TIME = StepLimits(10, 8, 10**9)
NOW_S = 50.0


def admission_of(
    limits: StepLimits = ONE_AT_A_TIME,
    order: Order | None = None,
    max_queued_requests: int = 100,
    cost_model: CostModel | None = MILLISECOND_A_TOKEN,
    after_steps_s: Callable[[Sequence], float] = lambda s: 0.0,
) -> Admission:
    return Admission(
        limits, order or Order(), max_queued_requests, lambda: cost_model, after_steps_s
    )


def asked(name: str = "a", deadline_s: float | None = None, priority: int = 0) -> Sequence:
    """Ten tokens, ten steps: a tenth of a second alone."""
    return planned(
        request_of(name, (2, 5), 10, scale=1.0, deadline_s=deadline_s, priority=priority)
    )


def present(admission: Admission, *sequences: Sequence) -> list[Sequence]:
    for sequence in sequences:
        admission.prepare([sequence], NOW_S)
    return list(sequences)


def check(admission: Admission, newcomer: Sequence, others: list[Sequence]) -> None:
    admission.prepare([newcomer], NOW_S)
    admission.check([newcomer], others, NOW_S)


# --- predictions --------------------------------------------------------------------------------


def test_moments_and_predictions_are_written_into_newcomers() -> None:
    admission = admission_of(after_steps_s=lambda s: 0.001 * s.num_tokens)
    relaxed, urgent = asked(), asked(deadline_s=3.0)
    admission.prepare([relaxed, urgent], NOW_S)
    assert (relaxed.submitted_s, relaxed.deadline_s) == (50.0, None)
    assert (urgent.submitted_s, urgent.deadline_s) == (50.0, 53.0)
    assert relaxed.alone_s == urgent.alone_s == pytest.approx(0.11)


def test_before_anything_was_measured_nobody_is_refused_for_time() -> None:
    admission = admission_of(cost_model=None)
    newcomer = asked(deadline_s=1e-9)
    check(admission, newcomer, present(admission, asked("p", 1e-9)))
    assert newcomer.alone_s == 0.0


# --- deadlines ----------------------------------------------------------------------------------


def test_who_would_be_late_even_alone_is_told_not_to_ask_again() -> None:
    admission = admission_of(after_steps_s=lambda s: 0.02)
    with pytest.raises(InvalidRequest, match="cannot be kept even on an idle server") as refused:
        check(admission, asked(deadline_s=0.11), [])
    assert (refused.value.param, refused.value.code) == ("deadline_ms", "deadline_infeasible")
    assert "deadline_ms 110 " in refused.value.message
    assert "120 ms" in refused.value.message
    check(admission, asked(deadline_s=0.121), [])


def test_who_would_be_late_for_others_is_told_what_was_predicted() -> None:
    admission = admission_of()
    others = present(admission, asked("1"), asked("2"))
    with pytest.raises(DeadlineInfeasible) as refused:
        check(admission, asked("late", 0.25), others)
    assert refused.value.predicted_s == pytest.approx(0.31)  # with the step under way
    assert refused.value.retry_after_s == pytest.approx(0.06)
    check(admission, asked("in time", 0.311), others)


def test_of_several_newcomers_all_must_be_in_time() -> None:
    admission = admission_of()
    newcomers = [asked("1", 0.25), asked("2", 0.25), asked("3", 0.25)]
    admission.prepare(newcomers, NOW_S)
    with pytest.raises(DeadlineInfeasible):
        admission.check(newcomers, [], NOW_S)
    admission.check(newcomers[:2], [], NOW_S)


def test_what_is_done_already_counts() -> None:
    admission = admission_of()
    (other,) = others = present(admission, asked("other"))
    for _ in range(6):
        other.advance(other.next_turn())
    check(admission, asked("in time", 0.151), others)
    with pytest.raises(DeadlineInfeasible):
        check(admission, asked("late", 0.149), others)


@pytest.mark.parametrize("deadline_s", [None, 0.15])
def test_a_newcomer_that_would_break_a_promise_comes_back_later(deadline_s: float | None) -> None:
    admission = admission_of()
    others = present(admission, asked("promised", 0.15))
    with pytest.raises(Overloaded, match="promised to be in time") as refused:
        check(admission, asked("first", deadline_s, priority=-1), others)
    assert type(refused.value) is Overloaded
    assert refused.value.retry_after_s == 1.0
    check(admission, asked("behind"), others)


def test_who_is_late_anyway_is_no_reason_to_refuse_others() -> None:
    admission = admission_of()
    (late,) = others = present(admission, asked("late", 0.15))
    late.deadline_s = NOW_S + 0.05
    check(admission, asked("first", 0.5, priority=-1), others)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(1, 30))
def test_without_deadlines_nobody_is_refused_for_time(before: int, count: int) -> None:
    admission = admission_of()
    others = present(admission, *(asked(f"p{i}") for i in range(before)))
    newcomers = [asked(f"n{i}") for i in range(count)]
    admission.prepare(newcomers, NOW_S)
    admission.check(newcomers, others, NOW_S)


def _between_milliseconds(hundredths: int) -> float:
    """Steps take whole milliseconds; at a tie the last bits would decide."""
    return hundredths / 100 + 0.0005


@st.composite
def streams(draw: st.DrawFn) -> dict[int, list[Sequence]]:
    """Newcomers by the step before which they come."""
    stream: dict[int, list[Sequence]] = {}
    for number in range(draw(st.integers(1, 20))):
        request = request_of(
            str(number),
            (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
            draw(st.integers(1, 10)),
            draw(st.sampled_from((1.0, 2.0))),
            priority=draw(st.integers(-1, 1)),
            deadline_s=draw(st.none() | st.integers(1, 60).map(_between_milliseconds)),
        )
        stream.setdefault(draw(st.integers(0, 30)), []).append(planned(request))
    return stream


@settings(max_examples=60, deadline=None)
@given(
    streams(),
    st.builds(StepLimits, st.integers(10, 60), st.integers(1, 5), st.just(10**9)),
    st.sampled_from(("fcfs", "deadline")),
)
def test_whoever_is_let_in_is_in_time_to_a_step_if_steps_take_what_was_predicted(
    stream: dict[int, list[Sequence]], limits: StepLimits, policy: str
) -> None:
    order = Order(policy, priority_step_s=0.05, patience_s=0.3)
    admission, scheduler = admission_of(limits, order), Scheduler(limits, "packed", order)
    now_s, number, alive = NOW_S, 0, list[Sequence]()
    while number <= max(stream) or not scheduler.is_empty():
        for newcomer in stream.get(number, ()):
            admission.prepare([newcomer], now_s)
            try:
                admission.check([newcomer], alive, now_s)
            except (InvalidRequest, Overloaded):
                continue
            alive.append(newcomer)
            scheduler.add([newcomer])
        number += 1
        if not (chosen := scheduler.schedule()):
            continue
        lengths = [s.num_tokens for s in chosen for _ in range(s.num_branches)]
        now_s += MILLISECOND_A_TOKEN.step_seconds(lengths)
        for sequence in chosen:
            sequence.advance(sequence.next_turn())
            if sequence.is_finished:
                late_s = now_s - (sequence.deadline_s or math.inf)
                assert late_s <= MILLISECOND_A_TOKEN.tokens_step_seconds(limits.tokens)
                alive.remove(sequence)
                scheduler.remove([sequence])


# --- room ---------------------------------------------------------------------------------------


def test_more_than_may_ever_wait_is_the_requests_fault() -> None:
    admission = admission_of(max_queued_requests=2)
    newcomers = [asked(str(i)) for i in range(3)]
    with pytest.raises(InvalidRequest, match="3 images at once; the limit is 2") as refused:
        admission.check(newcomers, [], NOW_S)
    assert refused.value.param == "num_images"


def test_a_full_queue_refuses_until_enough_will_have_ended() -> None:
    limits = StepLimits(10, 8, 10**9)
    admission = admission_of(limits, max_queued_requests=3)
    slow = [
        planned(request_of(str(i), (2, 5), 200 + 100 * i, scale=1.0)) for i in range(4)
    ]  # 2, 3, 4 and 5 seconds, one after another
    others = present(admission, *slow)
    others[0].started_s = NOW_S  # three wait
    with pytest.raises(Overloaded, match="3 sequences are waiting, 2 more") as refused:
        admission.check(present(admission, asked("x"), asked("y")), others, NOW_S)
    assert refused.value.code == "queue_full"
    assert refused.value.retry_after_s == pytest.approx(5.0)  # when two have ended
    others[1].started_s = NOW_S
    check(admission, asked("z"), others)


def test_it_never_says_to_come_back_at_once() -> None:
    admission = admission_of(max_queued_requests=1, cost_model=None)
    with pytest.raises(Overloaded) as refused:
        check(admission, asked("x"), present(admission, asked("w")))
    assert refused.value.retry_after_s == 1.0
