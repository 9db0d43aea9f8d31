"""Laws of the scheduler: nothing lost, nothing twice, budgets kept, nobody starves."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.engine.config import BATCHING
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence
from fit_serve.request import SequenceRequest
from support.sequences import planned, request_of, requests, sequence_of


@dataclass
class Traffic:
    """Sequences that arrive before given steps; some are cancelled before others."""

    arrivals: dict[int, list[Sequence]] = field(default_factory=dict)
    cancels: dict[int, list[Sequence]] = field(default_factory=dict)

    @property
    def everybody(self) -> list[Sequence]:
        return [s for step in sorted(self.arrivals) for s in self.arrivals[step]]


@st.composite
def traffics(draw: st.DrawFn) -> Traffic:
    traffic = Traffic()
    moments = st.integers(0, 15)
    for request in draw(st.lists(requests(), min_size=1, max_size=20)):
        sequence, arrives = planned(request), draw(moments)
        traffic.arrivals.setdefault(arrives, []).append(sequence)
        if draw(st.integers(0, 3)) == 0:
            leaves = arrives + draw(moments)
            traffic.cancels.setdefault(leaves, []).append(sequence)
    return traffic


@dataclass
class Play:
    """A scheduler that runs a traffic to its end; every step is written down."""

    scheduler: Scheduler
    traffic: Traffic
    steps: list[list[Sequence]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    reserved: list[int] = field(default_factory=list)
    done: list[Sequence] = field(default_factory=list)
    gone: list[Sequence] = field(default_factory=list)

    def run(self) -> "Play":
        last = max((*self.traffic.arrivals, *self.traffic.cancels))
        while len(self.steps) <= last or self.scheduler.waiting or self.scheduler.running:
            self.step(len(self.steps))
        return self

    def step(self, number: int) -> None:
        self.scheduler.add(self.traffic.arrivals.get(number, ()))
        for sequence in self.traffic.cancels.get(number, ()):
            sequence.is_cancelled = True
        self.gone += self.scheduler.remove_cancelled()
        running = self.scheduler.schedule()
        self.check_head_of_queue(running)
        self.steps.append(running)
        self.tokens.append(sum(s.num_tokens * s.num_branches for s in running))
        self.reserved.append(sum(s.max_tokens for s in running))
        for sequence in running:
            sequence.position += 1
        finished = [s for s in running if s.is_finished]
        self.scheduler.retire(finished)
        self.done += finished

    def check_head_of_queue(self, running: list[Sequence]) -> None:
        """The first that waits has a reason to wait."""
        if not self.scheduler.waiting:
            return
        head, scheduler = self.scheduler.waiting[0], self.scheduler
        reserved = sum(s.max_tokens for s in running)
        is_full = len(running) == scheduler.max_num_seqs
        has_no_room = reserved + head.max_tokens > scheduler.max_num_batched_tokens
        is_unlike = scheduler.batching == "equal-shape" and head.grid != running[0].grid
        assert running
        assert is_full or has_no_room or is_unlike


def play(traffic: Traffic, budget: int, max_num_seqs: int, batching: str = "packed") -> Play:
    return Play(Scheduler(budget, max_num_seqs, batching), traffic).run()


laws = settings(max_examples=40, deadline=None)
budgets = st.integers(1, 160)
limits_of_sequences = st.integers(1, 8)
policies = st.sampled_from(BATCHING)


@laws
@given(traffics(), budgets, limits_of_sequences, policies)
def test_nothing_is_lost_and_nothing_comes_twice(
    traffic: Traffic, budget: int, max_num_seqs: int, batching: str
) -> None:
    end = play(traffic, budget, max_num_seqs, batching)
    assert sorted(map(id, end.done + end.gone)) == sorted(map(id, traffic.everybody))
    for sequence in end.done:
        assert sum(sequence in step for step in end.steps) == len(sequence.evaluations)


@laws
@given(traffics(), budgets, limits_of_sequences, policies)
def test_budgets_are_kept_at_every_step(
    traffic: Traffic, budget: int, max_num_seqs: int, batching: str
) -> None:
    end = play(traffic, budget, max_num_seqs, batching)
    for running, tokens, reserved in zip(end.steps, end.tokens, end.reserved, strict=True):
        assert len(running) <= max_num_seqs
        assert tokens <= reserved
        assert reserved <= budget or len(running) == 1


@laws
@given(traffics(), budgets, limits_of_sequences, policies)
def test_first_come_first_served_and_what_runs_runs_to_its_end(
    traffic: Traffic, budget: int, max_num_seqs: int, batching: str
) -> None:
    end = play(traffic, budget, max_num_seqs, batching)
    first_step: dict[Sequence, int] = {}
    for number, step in enumerate(end.steps):
        for sequence in step:
            first_step.setdefault(sequence, number)
    started = [first_step[s] for s in traffic.everybody if s in first_step]
    assert started == sorted(started)
    for sequence in end.done:
        first = first_step[sequence]
        assert all(sequence in s for s in end.steps[first : first + len(sequence.evaluations)])


@laws
@given(traffics(), budgets, limits_of_sequences, policies)
def test_nobody_waits_longer_than_the_work_before_them(
    traffic: Traffic, budget: int, max_num_seqs: int, batching: str
) -> None:
    arrived_at = {s: step for step, arrived in traffic.arrivals.items() for s in arrived}
    end = play(traffic, budget, max_num_seqs, batching)
    for index, sequence in enumerate(traffic.everybody):
        if sequence in end.done:
            arrival = arrived_at[sequence]
            started = next(n for n, step in enumerate(end.steps) if sequence in step)
            older = set(traffic.everybody[:index])
            assert all(older & set(step) for step in end.steps[arrival:started])
            assert started - arrival <= sum(len(s.evaluations) for s in older)


@laws
@given(traffics(), budgets, limits_of_sequences, policies)
def test_a_cancelled_sequence_is_out_of_the_next_step(
    traffic: Traffic, budget: int, max_num_seqs: int, batching: str
) -> None:
    end = play(traffic, budget, max_num_seqs, batching)
    for moment, cancelled in traffic.cancels.items():
        assert not set(cancelled) & {s for step in end.steps[moment:] for s in step}


@laws
@given(traffics(), budgets, limits_of_sequences)
def test_equal_shapes_share_a_step_and_serial_shares_none(
    traffic: Traffic, budget: int, max_num_seqs: int
) -> None:
    twin = Traffic(
        {step: [planned(s.request) for s in arrived] for step, arrived in traffic.arrivals.items()}
    )
    alike = play(traffic, budget, max_num_seqs, "equal-shape")
    assert all(len({s.grid for s in step}) <= 1 for step in alike.steps)
    alone = play(twin, budget, max_num_seqs, "serial")
    assert all(len(step) <= 1 for step in alone.steps)


def test_unlike_sequences_share_a_step() -> None:
    """The point of it all: nothing but room decides."""
    unlike: list[SequenceRequest] = [
        request_of("a", (2, 3), steps=2, scale=1.0),
        request_of("b", (5, 1), steps=9, scale=3.0, sampler="heun"),
        request_of("c", (4, 4), steps=4, scale=2.0, interval=(0.2, 0.6), sampler="sde"),
    ]
    scheduler = Scheduler(1000, 8)
    scheduler.add(map(planned, unlike))
    assert len(scheduler.schedule()) == 3


def test_a_sequence_above_the_budget_runs_alone() -> None:
    scheduler = Scheduler(max_num_batched_tokens=20, max_num_seqs=8)
    small, giant, late = (sequence_of("s", (2, 2)), sequence_of("g", (6, 6)), sequence_of("l"))
    scheduler.add([small, giant, late])
    assert scheduler.schedule() == [small]
    scheduler.retire([small])
    assert scheduler.schedule() == [giant]
    assert scheduler.schedule() == [giant]
    scheduler.retire([giant])
    assert scheduler.schedule() == [late]


def test_room_is_kept_for_the_second_branch_that_comes_later() -> None:
    scheduler = Scheduler(max_num_batched_tokens=20, max_num_seqs=8)
    later = sequence_of("later", (2, 4), steps=4, interval=(0.0, 0.5))  # 8 tokens, then 16
    other = sequence_of("other", (2, 4), steps=4, scale=1.0)
    scheduler.add([later, other])
    assert scheduler.schedule() == [later]
    later.position = 3
    assert later.num_branches == 2


def test_a_mark_set_while_we_look_loses_nobody() -> None:
    """`is_cancelled` is set by other threads, also between two looks at it."""

    class MarkedAfterTheFirstLook(Sequence):
        looks = 0

        def __getattribute__(self, name: str) -> Any:
            if name != "is_cancelled":
                return super().__getattribute__(name)
            self.looks += 1
            return self.looks > 1

    scheduler = Scheduler(100, 8)
    first = sequence_of("first")
    racing = [
        MarkedAfterTheFirstLook(first.request, first.grid, first.evaluations, first.guidance_scales)
        for _ in range(2)
    ]
    scheduler.add([first, racing[0]])
    scheduler.schedule()
    scheduler.add([racing[1]])
    first.is_cancelled = True
    seen = [*scheduler.remove_cancelled(), *scheduler.running, *scheduler.waiting]
    assert sorted(map(id, seen)) == sorted(map(id, (first, *racing)))


@pytest.mark.parametrize("batching", BATCHING)
def test_dropping_everything_gives_everything_back(batching: str) -> None:
    scheduler = Scheduler(20, 8, batching)
    sequences = [sequence_of(str(i)) for i in range(5)]
    scheduler.add(sequences)
    scheduler.schedule()
    assert set(scheduler.drop_all()) == set(sequences)
    assert not scheduler.running
    assert not scheduler.waiting
