"""Laws of the loop, without a network: every sequence ends once, whatever happens to its step."""

import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.engine.engine import Engine
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence
from fit_serve.errors import Cancelled, EngineFailed
from fit_serve.request import SequenceRequest
from support.fake_runner import FakeClock, FakeRunner, RecordingListener
from support.sequences import planned, requests, sequence_of

PATIENCE_S = 20.0  # of a test for a thread; none waits unless something is wrong

Arrival = tuple[int, SequenceRequest, int | None]
"""Step before which it comes, what it is, and how many steps later it is cancelled."""


class House:
    """An engine with a fake runner and all that can be seen of it."""

    def __init__(self, runner: FakeRunner | None = None, budget: int = 60) -> None:
        self.runner = runner or FakeRunner()
        self.listener = RecordingListener()
        self.clock = FakeClock()
        self.engine = Engine(Scheduler(budget, 8), self.runner, self.listener, self.clock)

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.engine.loop, daemon=True)
        thread.start()
        return thread


def failing_at(numbers: set[int]) -> Callable[[int, list[Sequence]], None]:
    def before_run(number: int, sequences: list[Sequence]) -> None:
        if number in numbers:
            raise RuntimeError(f"step {number} fails")

    return before_run


def arrivals() -> st.SearchStrategy[list[Arrival]]:
    moments = st.integers(0, 12)
    return st.lists(st.tuples(moments, requests(), st.none() | moments), min_size=1, max_size=15)


def play(house: House, traffic: list[Arrival], num_steps: int | None = None) -> list[Sequence]:
    """Step until the traffic has come and gone, or a number of times; gives all sequences."""
    everybody = [(come, planned(request), leave) for come, request, leave in traffic]
    engine, number = house.engine, 0
    while number != num_steps:
        for come, sequence, leave in everybody:
            if come == number:
                engine.put([sequence])
            if leave is not None and come + leave == number:
                sequence.is_cancelled = True
        engine.step()
        number += 1
        if number > 30 and not (engine.scheduler.running or engine.scheduler.waiting):
            break
    return [sequence for come, sequence, _ in everybody if num_steps is None or come < num_steps]


@settings(max_examples=60, deadline=None)
@given(arrivals(), st.sets(st.integers(1, 25), max_size=4))
def test_every_sequence_ends_once_whatever_fails_or_is_cancelled(
    traffic: list[Arrival], failures: set[int]
) -> None:
    house = House(FakeRunner(failing_at(failures)))
    everybody = play(house, traffic)
    assert {s: len(house.listener.ends[s]) for s in everybody} == dict.fromkeys(everybody, 1)
    assert house.runner.held == set()
    for sequence in everybody:
        (end,) = house.listener.ends[sequence]
        told = house.listener.positions[sequence]
        assert told == list(range(1, len(told) + 1))
        assert (end is None) == (len(told) == len(sequence.evaluations))
        assert not isinstance(end, Cancelled) or sequence.is_cancelled


@settings(max_examples=40, deadline=None)
@given(arrivals(), st.integers(0, 12))
def test_stopped_in_the_middle_everybody_is_told(traffic: list[Arrival], num_steps: int) -> None:
    house = House()
    everybody = play(house, traffic, num_steps)
    late = sequence_of("late")
    house.engine.put([late])
    house.engine.stop()
    house.engine.loop()
    assert all(len(house.listener.ends[s]) == 1 for s in (*everybody, late))
    assert isinstance(house.listener.ends[late][0], Cancelled)


def test_a_failed_step_ends_those_in_it_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    house = House(FakeRunner(failing_at({2})), budget=24)
    first, second, third = (sequence_of(name, (2, 3)) for name in ("a", "b", "c"))
    house.engine.put([first, second, third])  # 12 tokens each: the third waits
    for _ in range(6):
        house.engine.step()
    assert [type(house.listener.ends[s][0]) for s in (first, second)] == [EngineFailed] * 2
    assert house.listener.ends[third] == [None]
    assert "a step with 2 sequences failed" in caplog.text


def test_a_cancelled_sequence_frees_its_room_at_the_next_step() -> None:
    house = House(budget=24)
    running, also, waits = (sequence_of(name, (2, 3)) for name in ("a", "b", "c"))
    house.engine.put([running, also, waits])
    house.engine.step()
    running.is_cancelled = True
    house.engine.step()
    assert house.runner.steps == [[running, also], [also, waits]]
    assert running not in house.runner.held
    assert isinstance(house.listener.ends[running][0], Cancelled)


def test_a_sequence_cancelled_while_it_waits_never_runs() -> None:
    house = House(budget=12)
    running, waits = sequence_of("a"), sequence_of("b")
    house.engine.put([running, waits])
    house.engine.step()
    waits.is_cancelled = True
    house.engine.step()
    assert isinstance(house.listener.ends[waits][0], Cancelled)
    assert waits.started_s is None


def test_moments_are_those_of_the_clock() -> None:
    house = House()
    sequence = sequence_of(steps=2)
    house.engine.put([sequence])
    for moment in (7.0, 9.0):
        house.clock.now_s = moment
        house.engine.step()
    assert (sequence.started_s, sequence.finished_s) == (7.0, 9.0)


def test_it_says_since_when_a_step_takes() -> None:
    seen: list[float | None] = []
    house = House(FakeRunner(lambda number, who: seen.append(house.engine.busy_since_s)))
    house.engine.put([sequence_of(steps=1)])
    house.engine.step()
    house.engine.step()
    assert seen == [100.0]
    assert house.engine.busy_since_s is None


def test_an_idle_loop_wakes_for_what_is_put_and_for_stop() -> None:
    ended = threading.Event()
    house = House()
    house.listener.on_denoised = lambda sequence, tokens: ended.set()
    thread = house.start()
    house.engine.put([sequence_of(steps=3)])
    assert ended.wait(PATIENCE_S)
    house.engine.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_nothing_is_taken_after_stop() -> None:
    house = House()
    house.engine.stop()
    with pytest.raises(EngineFailed, match="has stopped"):
        house.engine.put([sequence_of()])


def test_a_bug_in_the_loop_ends_it_and_tells_everybody(caplog: pytest.LogCaptureFixture) -> None:
    house = House(budget=12)

    def broken(report: object, seconds: float) -> None:
        raise AssertionError("a bug")

    house.listener.on_step = broken
    sequences = [sequence_of("runs"), sequence_of("waits")]
    house.engine.put(sequences)
    house.engine.loop()
    assert house.listener.counts() == {"EngineFailed": 2}
    assert "the step loop died" in caplog.text
    with pytest.raises(EngineFailed):
        house.engine.put([sequence_of()])


def test_what_no_handler_may_hold_still_leaves_nobody_without_an_answer() -> None:
    def exits(number: int, sequences: list[Sequence]) -> None:
        raise SystemExit

    house = House(FakeRunner(exits), budget=12)
    house.engine.put([sequence_of("runs"), sequence_of("waits")])
    with pytest.raises(SystemExit):
        house.engine.loop()
    assert house.listener.counts() == {"EngineFailed": 2}


def test_an_answer_comes_even_if_forgetting_fails(caplog: pytest.LogCaptureFixture) -> None:
    house = House(FakeRunner(failing_at({1})), budget=12)

    def broken(sequences: object) -> None:
        raise RuntimeError("the device is gone")

    house.runner.forget = broken
    house.engine.put([sequence_of("runs"), sequence_of("waits")])
    house.engine.loop()
    assert house.listener.counts() == {"EngineFailed": 2}
    assert "the device is gone" in caplog.text
