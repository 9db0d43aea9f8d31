"""Laws of the scheduler: nothing is lost, nothing comes twice, no later one delays an earlier."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.engine.batching import StepLimits
from fit_serve.engine.config import BATCHING
from fit_serve.engine.order import Order
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence
from fit_serve.request import SequenceRequest
from support.sequences import planned, request_of, requests, sequence_of

ROOMY = StepLimits(tokens=1000, sequences=64, state_tokens=10**9)


@dataclass(frozen=True)
class Arrival:
    """A request, the step before which it comes, and the one before which it is cancelled."""

    request: SequenceRequest
    comes: int
    leaves: int | None = None


Traffic = list[Arrival]


@st.composite
def traffics(draw: st.DrawFn, longest: int = 16, cancels: bool = True) -> Traffic:
    moments = st.integers(0, 15)
    traffic = []
    for request in draw(st.lists(requests(), min_size=1, max_size=longest)):
        comes = draw(moments)
        leaves = comes + draw(moments) if cancels and draw(st.integers(0, 3)) == 0 else None
        traffic.append(Arrival(request, comes, leaves))
    return sorted(traffic, key=lambda arrival: arrival.comes)


@dataclass
class Play:
    """A scheduler that runs a traffic to its end; every step is written down. A step is a second.

    `numbers` are those of the traffic; `steps` holds who ran, `needs` their tokens, `begun` who
    had begun by then.
    """

    scheduler: Scheduler
    traffic: Traffic
    steps: list[list[int]] = field(default_factory=list)
    needs: list[list[int]] = field(default_factory=list)
    begun: list[list[Sequence]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.everybody = [planned(arrival.request) for arrival in self.traffic]
        self.numbers = {s: number for number, s in enumerate(self.everybody)}

    def run(self) -> "Play":
        last = max(max(a.comes, a.leaves or 0) for a in self.traffic)
        while len(self.steps) <= last or not self.scheduler.is_empty():
            self.step(len(self.steps))
        return self

    def step(self, now: int) -> None:
        arrived = [s for s in self.everybody if self.traffic[self.numbers[s]].comes == now]
        for sequence in arrived:
            sequence.submitted_s = float(now)
        self.scheduler.add(arrived)
        for number, arrival in enumerate(self.traffic):
            if arrival.leaves is not None and arrival.leaves <= now:
                self.everybody[number].is_cancelled = True
        gone = self.scheduler.remove_where(lambda s: s.is_cancelled)
        self.gone += [self.numbers[s] for s in gone]
        chosen = self.scheduler.schedule()
        assert len(set(chosen)) == len(chosen)
        assert bool(chosen) != self.scheduler.is_empty()
        assert not set(self.scheduler.running) & set(self.scheduler.waiting)
        assert set(chosen) <= set(self.scheduler.running)
        self.steps.append([self.numbers[s] for s in chosen])
        self.needs.append([s.num_tokens * s.num_branches for s in chosen])
        self.begun.append(self.scheduler.running)
        for sequence in chosen:
            sequence.advance(sequence.next_turn())
        finished = [s for s in chosen if s.is_finished]
        self.scheduler.remove(finished)
        self.done += [self.numbers[s] for s in finished]


def play(
    traffic: Traffic, limits: StepLimits, batching: str = "packed", order: Order | None = None
) -> Play:
    return Play(Scheduler(limits, batching, order), traffic).run()


def limits_with(state: st.SearchStrategy[int]) -> st.SearchStrategy[StepLimits]:
    return st.builds(StepLimits, st.integers(1, 160), st.integers(1, 8), state)


laws = settings(max_examples=40, deadline=None)
limits = limits_with(st.integers(1, 300) | st.just(10**9))
batchings = st.sampled_from(BATCHING)
policies = st.sampled_from(("fcfs", "deadline", "shortest"))


@laws
@given(traffics(), limits, batchings, policies)
def test_nothing_is_lost_and_nothing_comes_twice(
    traffic: Traffic, limits: StepLimits, batching: str, policy: str
) -> None:
    end = play(traffic, limits, batching, Order(policy))
    assert sorted(end.done + end.gone) == list(range(len(traffic)))
    for number in end.done:
        runs = sum(number in step for step in end.steps)
        assert runs == planned(traffic[number].request).remaining_turns


@laws
@given(traffics(), limits, batchings)
def test_budgets_are_kept_at_every_step_or_it_is_of_one(
    traffic: Traffic, limits: StepLimits, batching: str
) -> None:
    end = play(traffic, limits, batching)
    for step, needs, begun in zip(end.steps, end.needs, end.begun, strict=True):
        assert len(step) <= limits.sequences
        assert sum(needs) <= limits.tokens or len(step) == 1
        assert sum(s.state_tokens for s in begun) <= limits.state_tokens or len(begun) == 1


@laws
@given(traffics(), limits_with(st.just(10**9)))
def test_the_earliest_always_runs(traffic: Traffic, limits: StepLimits) -> None:
    end = play(traffic, limits)
    left = {n: planned(a.request).remaining_turns for n, a in enumerate(traffic)}
    for now, step in enumerate(end.steps):
        here = [
            number
            for number, arrival in enumerate(traffic)
            if arrival.comes <= now
            and left[number]
            and (arrival.leaves is None or arrival.leaves > now)
        ]
        assert not here or min(here) in step
        for number in step:
            left[number] -= 1


@laws
@given(traffics(cancels=False), limits, st.integers(1, 15))
def test_a_later_one_never_delays_an_earlier_one(
    traffic: Traffic, limits: StepLimits, how_many: int
) -> None:
    """It fills what is left over: without it, the others run in the very same steps."""
    earlier = traffic[:how_many]
    alone, among = play(earlier, limits), play(traffic, limits)
    for number in range(len(earlier)):
        assert _steps_of(among, number) == _steps_of(alone, number)


@laws
@given(traffics(cancels=False), limits, st.integers(1, 15))
def test_padded_mixed_lets_nobody_be_delayed_by_a_later_one_either(
    traffic: Traffic, limits: StepLimits, how_many: int
) -> None:
    earlier = traffic[:how_many]
    alone = play(earlier, limits, "padded-mixed")
    among = play(traffic, limits, "padded-mixed")
    for number in range(len(earlier)):
        assert _steps_of(among, number) == _steps_of(alone, number)


def _steps_of(end: Play, number: int) -> list[int]:
    return [now for now, step in enumerate(end.steps) if number in step]


@pytest.mark.parametrize("batching", [b for b in BATCHING if b != "equal-shape-step"])
@pytest.mark.parametrize(
    ("order", "waits_s"),
    [
        (Order("fcfs", priority_step_s=0.0), 0.0),
        (Order("fcfs", priority_step_s=3.0), 6.0),  # the victim has priority 2
        (Order("deadline", priority_step_s=3.0, patience_s=12.0), 18.0),
    ],
)
@settings(max_examples=4, deadline=None)
@given(st.lists(requests(max_side=4, max_steps=3), min_size=10, max_size=10))
def test_nobody_starves_whatever_comes(
    batching: str, order: Order, waits_s: float, stream: list[SequenceRequest]
) -> None:
    """Two a second, for ever, and a step takes a second: more than can be done."""
    scheduler = Scheduler(StepLimits(40, 4, 200), batching, order)
    victim = sequence_of("victim", (6, 6), steps=5, priority=2)
    scheduler.add([victim])
    first, bound = None, 4.0 * 6 * (waits_s + 2) + 20  # turns of all who may go before it
    for now in count():
        newcomers = [planned(stream[(2 * now + i) % len(stream)]) for i in range(2)]
        for newcomer in newcomers:
            newcomer.submitted_s = float(now)
            newcomer.deadline_s = now + 1.0
        scheduler.add(newcomers)
        chosen = scheduler.schedule()
        for sequence in chosen:
            sequence.advance(sequence.next_turn())
        scheduler.remove([s for s in chosen if s.is_finished])
        if victim in chosen and first is None:
            first = now
        if victim.is_finished:
            break
        assert now <= bound
    assert first is not None


def test_the_shortest_first_starves_the_long() -> None:
    """What the others are better than."""
    scheduler = Scheduler(StepLimits(40, 4, 10**9), "packed", Order("shortest"))
    victim = sequence_of("victim", (6, 6))
    victim.alone_s = 10.0
    scheduler.add([victim])
    for now in range(100):
        short = sequence_of(str(now), (4, 5), steps=1)
        short.submitted_s, short.alone_s = float(now), 1.0
        scheduler.add([short])
        assert scheduler.schedule() == [short]
        scheduler.remove([short])


def test_small_newcomers_do_not_starve_one_that_waits_for_room_for_its_state() -> None:
    scheduler = Scheduler(StepLimits(1000, 64, 100))
    scheduler.add([sequence_of("first", (4, 4), steps=2), sequence_of("large", (6, 6), steps=2)])
    began: dict[str, int] = {}
    for now in range(8):
        scheduler.add([sequence_of(f"small-{now}", (2, 2), steps=3, submitted_s=1.0 + now)])
        for sequence in scheduler.schedule():
            began.setdefault(sequence.sequence_id, now)
            sequence.advance(sequence.next_turn())
        scheduler.remove([s for s in scheduler.running if s.is_finished])
    assert began["first"] == 0
    assert began["large"] == 2
    assert began["small-0"] == 2


@laws
@given(traffics(), limits)
def test_who_is_cancelled_is_out_of_the_next_step(traffic: Traffic, limits: StepLimits) -> None:
    end = play(traffic, limits)
    for number, arrival in enumerate(traffic):
        if arrival.leaves is not None:
            assert all(number not in step for step in end.steps[arrival.leaves :])


@laws
@given(traffics(), limits)
def test_equal_shapes_share_a_step_and_serial_shares_none(
    traffic: Traffic, limits: StepLimits
) -> None:
    for step in play(traffic, limits, "equal-shape-step").steps:
        assert len({planned(traffic[number].request).grid for number in step}) <= 1
    assert all(len(step) <= 1 for step in play(traffic, limits, "serial").steps)


@laws
@given(traffics(), limits)
def test_nobody_joins_a_dynamic_batch(traffic: Traffic, limits: StepLimits) -> None:
    end = play(traffic, limits, "equal-shape-dynamic")
    for before, after in zip(end.steps, end.steps[1:], strict=False):
        stayed = [n for n in before if n in after]
        assert stayed == after or not stayed


def test_unlike_sequences_share_a_step() -> None:
    """The point of it all: nothing but room decides."""
    unlike: list[SequenceRequest] = [
        request_of("a", (2, 3), steps=2, scale=1.0),
        request_of("b", (5, 1), steps=9, scale=3.0, sampler="heun", quality="fast"),
        request_of("c", (4, 4), steps=4, scale=2.0, interval=(0.2, 0.6), sampler="sde"),
    ]
    scheduler = Scheduler(ROOMY)
    scheduler.add(map(planned, unlike))
    assert len(scheduler.schedule()) == 3


def test_one_above_the_budget_runs_alone_and_smaller_ones_wait_for_it() -> None:
    scheduler = Scheduler(StepLimits(20, 8, 10**9))
    small, giant, late = sequence_of("s", (2, 2)), sequence_of("g", (6, 6)), sequence_of("l")
    scheduler.add([small, giant, late])
    assert scheduler.schedule() == [
        small,
        late,
    ]  # 8 and 12 tokens; the giant comes when it is first
    scheduler.remove([small])
    assert scheduler.schedule() == [giant]
    assert scheduler.running == [late, giant]  # who has begun may sit out
    scheduler.remove([giant])
    assert scheduler.schedule() == [late]


def test_who_grows_by_a_second_branch_pushes_a_later_one_out_for_as_long() -> None:
    scheduler = Scheduler(StepLimits(20, 8, 10**9))
    grows = sequence_of("grows", (2, 4), steps=4, interval=(0.5, 0.8))  # 8, 16, 16 and 8 tokens
    other = sequence_of("other", (2, 4), steps=4, scale=1.0)
    scheduler.add([grows, other])
    ran = []
    for _ in range(4):
        ran.append(len(scheduler.schedule()))
        grows.advance(grows.next_turn())
    assert ran == [2, 1, 1, 2]


def test_a_lower_number_goes_first_and_time_outweighs_it() -> None:
    scheduler = Scheduler(ROOMY, "serial", Order(priority_step_s=10.0))
    low = sequence_of("low", priority=1, submitted_s=0.0)
    soon, late = sequence_of("soon", submitted_s=9.0), sequence_of("late", submitted_s=11.0)
    scheduler.add([late, low, soon])
    assert scheduler.waiting == [soon, low, late]


def test_equal_moments_keep_their_order_of_arrival() -> None:
    scheduler = Scheduler(ROOMY)
    sequences = [sequence_of(str(i)) for i in range(9)]
    scheduler.add(sequences[:5])
    scheduler.add(sequences[5:])
    assert scheduler.waiting == sequences


@pytest.mark.parametrize("mark", ["is_cancelled", "deadline_s"])
def test_a_mark_set_while_we_look_loses_nobody(mark: str) -> None:
    """Marks are set by other threads, also between two looks at them."""

    class MarkedAfterTheFirstLook(Sequence):
        looks = 0

        def __getattribute__(self, name: str) -> Any:
            if name != mark:
                return super().__getattribute__(name)
            self.looks += 1
            return self.looks > 1

    first = sequence_of("first")
    racing = [
        MarkedAfterTheFirstLook(first.request, first.grid, first.evaluations, first.guidance_scales)
        for _ in range(3)
    ]
    scheduler = Scheduler(ROOMY)
    scheduler.add([first, racing[0]])
    scheduler.schedule()
    scheduler.add(racing[1:])
    setattr(first, mark, True)
    is_marked: Callable[[Sequence], bool] = lambda s: bool(getattr(s, mark))  # noqa: E731
    seen: Collection[Sequence] = [*scheduler.remove_where(is_marked), *scheduler.running]
    assert sorted(map(id, [*seen, *scheduler.waiting])) == sorted(map(id, (first, *racing)))
    assert [s.looks for s in racing] == [1] * 3


@pytest.mark.parametrize("batching", BATCHING)
def test_dropping_everything_gives_everything_back(batching: str) -> None:
    scheduler = Scheduler(StepLimits(20, 8, 10**9), batching)
    sequences = [sequence_of(str(i)) for i in range(5)]
    scheduler.add(sequences)
    scheduler.schedule()
    assert set(scheduler.drop_all()) == set(sequences)
    assert scheduler.is_empty()
    assert scheduler.running == scheduler.waiting == scheduler.schedule() == []


def test_removing_who_is_not_there_is_fine() -> None:
    scheduler, sequence = Scheduler(ROOMY), sequence_of()
    scheduler.remove([sequence])
    scheduler.add([sequence])
    assert scheduler.schedule() == [sequence]
    scheduler.remove([sequence, sequence_of("b")])
    assert scheduler.is_empty()
