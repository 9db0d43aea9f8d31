"""A forecast is what the scheduler would do, played forward."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.engine.batching import StepLimits
from fit_serve.engine.cost_model import CostModel
from fit_serve.engine.forecast import Job, seconds_until_done, step_seconds
from fit_serve.engine.order import Order
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence
from support.sequences import sequence_of

BENT = CostModel(((1, 0.5), (20, 1.0), (100, 9.0)), reference_length=4, seconds_per_pair=1e-3)
EVEN = CostModel(((1, 1.0), (1024, 1024.0)), reference_length=1024, seconds_per_pair=0.0)

limits_of_steps = st.builds(StepLimits, st.integers(1, 120), st.integers(1, 6), st.just(10**9))


@st.composite
def lines(draw: st.DrawFn) -> list[Sequence]:
    """Sequences whose branches stay, some of them on their way."""
    side = st.integers(1, 5)
    sequences = []
    for number in range(draw(st.integers(0, 12))):
        sequence = sequence_of(
            str(number),
            (draw(side), draw(side)),
            draw(st.integers(1, 14)),
            draw(st.sampled_from((1.0, 2.0))),
            quality=draw(st.sampled_from(("exact", "balanced"))),
            priority=draw(st.integers(-1, 1)),
            submitted_s=float(draw(st.integers(0, 3))),
        )
        for _ in range(draw(st.integers(0, sequence.remaining_turns - 1))):
            sequence.advance(sequence.next_turn())
        sequences.append(sequence)
    return sequences


def job_of(sequence: Sequence, order: Order) -> Job:
    return Job(
        order.moment(sequence),
        sequence.num_tokens,
        sequence.num_branches,
        sequence.remaining_turns,
    )


@settings(max_examples=60, deadline=None)
@given(lines(), limits_of_steps, st.sampled_from((BENT, EVEN)))
def test_it_equals_the_scheduler_step_by_step(
    sequences: list[Sequence], limits: StepLimits, cost_model: CostModel
) -> None:
    order = Order(priority_step_s=1.0)
    predicted = seconds_until_done([job_of(s, order) for s in sequences], limits, cost_model)
    scheduler = Scheduler(limits, "packed", order)
    scheduler.add(sequences)
    now, done = 0.0, dict.fromkeys(sequences, 0.0)
    while not scheduler.is_empty():
        chosen = scheduler.schedule()
        now += cost_model.step_seconds(
            [s.num_tokens for s in chosen for _ in range(s.num_branches)]
        )
        for sequence in chosen:
            sequence.advance(sequence.next_turn())
            done[sequence] = now
        scheduler.remove([s for s in chosen if s.is_finished])
    assert predicted == pytest.approx([done[s] for s in sequences])


def test_who_has_nothing_left_is_done_and_an_empty_line_is_no_work() -> None:
    limits = StepLimits(100, 8, 10**9)
    assert seconds_until_done([], limits, EVEN) == []
    jobs = [Job(0.0, 10, 1.0, 0), Job(1.0, 10, 1.0, 2)]
    assert seconds_until_done(jobs, limits, EVEN) == [0.0, 20.0]


def test_moments_decide_and_not_places() -> None:
    limits = StepLimits(10, 8, 10**9)
    jobs = [Job(5.0, 10, 1.0, 1), Job(3.0, 10, 1.0, 2), Job(5.0, 10, 1.0, 1)]
    assert seconds_until_done(jobs, limits, EVEN) == [30.0, 20.0, 40.0]


def test_a_step_is_predicted_branch_by_branch() -> None:
    jobs = [Job(0.0, 6, 2.0, 1), Job(0.0, 3, 1.0, 1)]
    assert step_seconds(jobs, BENT) == BENT.step_seconds([6, 6, 3])
