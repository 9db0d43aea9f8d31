"""Laws of the loop, plain and overlapped: every sequence ends once, whatever its step dies of."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fit_models.bundle import Bundle
from fit_serve.engine.batching import StepLimits
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.engine import Engine
from fit_serve.engine.runner import Runner
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence
from fit_serve.engine.step_cache import StepCache
from fit_serve.engine.step_clock import StepClock
from fit_serve.engine.step_executor import ThreadExecutor
from fit_serve.errors import Cancelled, DeadlineExceeded, EngineFailed, ServeError
from fit_serve.request import SequenceRequest
from support.fake_runner import FakeClock, FakeRunner, RecordingListener
from support.sequences import planned, request_of, requests, sequence_of
from support.toy_engine import threads_of

PATIENCE_S = 20.0  # of a test for a thread; none waits unless something is wrong

both_loops = pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"])

Arrival = tuple[int, SequenceRequest, int | None, int | None]
"""Step before which it comes, what it is, steps until it is cancelled, seconds it has."""


_executors: list[ThreadExecutor] = []


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    while _executors:
        _executors.pop().close()
    for thread in threads_of("engine-steps"):
        thread.join(PATIENCE_S)


class House:
    """An engine and all that can be seen of it; its clock stands still unless it is moved."""

    def __init__(
        self, overlaps: bool = False, runner: Any = None, budget: int = 60, sequences: int = 8
    ) -> None:
        self.runner = FakeRunner() if runner is None else runner
        self.listener = RecordingListener()
        self.clock = FakeClock()
        executor = ThreadExecutor(lambda: None) if overlaps else None
        if executor is not None:
            _executors.append(executor)
        self.engine = Engine(
            Scheduler(StepLimits(budget, sequences, 10**9)),
            self.runner,
            self.listener,
            self.clock,
            executor,
        )

    def put(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            sequence.submitted_s = self.clock.now_s
            if sequence.request.deadline_s is not None:
                sequence.deadline_s = self.clock.now_s + sequence.request.deadline_s
        self.engine.put(sequences)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.engine.step()

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.engine.loop, daemon=True)
        thread.start()
        return thread

    def end_of(self, sequence: Sequence) -> ServeError | None:
        """What it was told, which must be one thing; None is a picture."""
        (end,) = self.listener.ends[sequence]
        return end


def failing_at(numbers: set[int]) -> Callable[[int, list[Sequence]], None]:
    def before(number: int, sequences: list[Sequence]) -> None:
        if number in numbers:
            raise RuntimeError(f"step {number} fails")

    return before


def arrivals() -> st.SearchStrategy[list[Arrival]]:
    moments = st.integers(0, 12)
    visits = st.tuples(moments, requests(max_steps=8), st.none() | moments, st.none() | moments)
    return st.lists(visits, min_size=1, max_size=12)


def play(
    house: House,
    traffic: list[Arrival],
    num_steps: int | None = None,
    step_cache: StepCache | None = None,
) -> list[Sequence]:
    """Step until the traffic has come and gone, or a number of times; a step is a second."""
    everybody = [
        (come, planned(replace(request, deadline_s=seconds), step_cache), leave)
        for come, request, leave, seconds in traffic
    ]
    number = 0
    while number != num_steps:
        for come, sequence, leave in everybody:
            if come == number:
                house.put(sequence)
            if leave is not None and come + leave == number:
                sequence.is_cancelled = True
        house.step()
        house.clock.now_s += 1.0
        number += 1
        if number > 30 and house.engine.scheduler.is_empty():
            house.step()  # retires what is under way
            break
    return [sequence for come, sequence, _ in everybody if num_steps is None or come < num_steps]


@both_loops
@settings(max_examples=40, deadline=None)
@given(arrivals(), st.sets(st.integers(1, 25), max_size=3), st.sets(st.integers(1, 25), max_size=2))
def test_every_sequence_ends_once_whatever_fails_or_is_cancelled_or_late(
    overlaps: bool, traffic: list[Arrival], failures: set[int], unprepared: set[int]
) -> None:
    house = House(overlaps, FakeRunner(failing_at(failures), failing_at(unprepared)))
    for sequence in (everybody := play(house, traffic)):
        end, told = house.end_of(sequence), house.listener.positions[sequence]
        assert told == sorted(set(told))
        assert (end is None) == (told[-1:] == [len(sequence.evaluations)])
        assert not isinstance(end, Cancelled) or sequence.is_cancelled
        assert not isinstance(end, DeadlineExceeded) or sequence.deadline_s is not None
        if sequence.rule is None:
            assert told == list(range(1, len(told) + 1))
    assert house.listener.ends.keys() == set(everybody)
    assert house.runner.held == set()
    assert house.engine.scheduler.is_empty()


@both_loops
@settings(max_examples=30, deadline=None)
@given(arrivals(), st.integers(0, 12))
def test_stopped_in_the_middle_everybody_is_told(
    overlaps: bool, traffic: list[Arrival], num_steps: int
) -> None:
    house = House(overlaps)
    everybody = play(house, traffic, num_steps)
    late = sequence_of("late")
    house.put(late)
    house.engine.stop()
    house.engine.loop()
    assert all(len(house.listener.ends[s]) == 1 for s in (*everybody, late))
    assert isinstance(house.end_of(late), Cancelled)


@settings(max_examples=40, deadline=None)
@given(arrivals())
def test_both_loops_run_the_same_steps(traffic: list[Arrival]) -> None:
    steps, ends = [], []
    for overlaps in (False, True):
        house = House(overlaps)
        everybody = play(house, traffic)
        numbers = {sequence: number for number, sequence in enumerate(everybody)}
        steps.append([[numbers[s] for s in step] for step in house.runner.steps])
        ends.append([type(house.end_of(s)) for s in everybody])
    assert steps[0] == steps[1]
    assert ends[0] == ends[1]


# --- a step that fails --------------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("half", ["prepare", "execute"])
def test_a_failed_step_ends_those_in_it_and_nobody_else(
    overlaps: bool, half: str, caplog: pytest.LogCaptureFixture
) -> None:
    fails = failing_at({2})
    runner = FakeRunner(before_prepare=fails) if half == "prepare" else FakeRunner(fails)
    house = House(overlaps, runner, budget=24)
    first, second, third = (sequence_of(name, (2, 3)) for name in ("a", "b", "c"))
    house.put(first, second, third)  # 12 tokens each: the third waits
    house.step(9)
    assert [type(house.end_of(s)) for s in (first, second)] == [EngineFailed] * 2
    assert house.end_of(third) is None
    assert "a step with 2 sequences failed" in caplog.text
    assert house.runner.held == set()


def test_of_a_step_launched_behind_a_failed_one_the_others_go_on() -> None:
    house = House(True, FakeRunner(failing_at({1})))
    fails, joins = sequence_of("fails", steps=4), sequence_of("joins", steps=4)
    house.put(fails)
    house.step()  # under way
    house.put(joins)
    house.step()  # launches both, then learns that the first step has failed
    assert isinstance(house.end_of(fails), EngineFailed)
    assert joins not in house.listener.ends
    house.step(5)
    assert house.end_of(joins) is None
    assert house.runner.steps == [[fails, joins], [joins], [joins], [joins]]
    assert house.listener.positions[fails] == []
    assert house.listener.positions[joins] == [1, 2, 3, 4]
    assert house.runner.held == set()


def test_one_that_would_have_ended_behind_its_failed_step_has_no_picture() -> None:
    house = House(True, FakeRunner(failing_at({1})))
    fails, alone = sequence_of("fails", steps=2), sequence_of("alone", steps=1)
    house.put(fails)
    house.step()
    house.put(alone)
    house.step(3)  # the second step ends both
    assert isinstance(house.end_of(fails), EngineFailed)
    assert house.end_of(alone) is None


# --- cancelling and deadlines -------------------------------------------------------------------


@both_loops
def test_a_cancelled_sequence_frees_its_room_at_the_next_step(overlaps: bool) -> None:
    house = House(overlaps, budget=24)
    running, also, waits = (sequence_of(name, (2, 3)) for name in ("a", "b", "c"))
    house.put(running, also, waits)
    house.step()
    running.is_cancelled = True
    house.step(9)
    assert house.runner.steps[:2] == [[running, also], [also, waits]]
    assert running not in house.runner.held
    assert isinstance(house.end_of(running), Cancelled)


@both_loops
def test_a_sequence_cancelled_while_it_waits_never_runs(overlaps: bool) -> None:
    house = House(overlaps, budget=12)
    running, waits = sequence_of("a"), sequence_of("b")
    house.put(running, waits)
    house.step()
    waits.is_cancelled = True
    house.step()
    assert isinstance(house.end_of(waits), Cancelled)
    assert waits.started_s is None


@both_loops
def test_a_deadline_that_passes_ends_a_sequence_once_and_frees_its_room(overlaps: bool) -> None:
    house = House(overlaps, budget=24)
    late, waits = (planned(request_of(name, deadline_s=2.5)) for name in ("late", "waits"))
    others = [sequence_of("other"), sequence_of("next")]
    house.put(late, others[0], waits, others[1])
    for _ in range(9):
        house.step()
        house.clock.now_s += 1.0
    for sequence in (late, waits):
        end = house.end_of(sequence)
        assert isinstance(end, DeadlineExceeded)
        assert end.message == "deadline_ms: not done after 2500 ms"
    assert [house.end_of(s) for s in others] == [None, None]
    assert house.runner.steps[2:4] == [[late, others[0]], others]
    assert waits.started_s is None
    assert house.runner.held == set()


@both_loops
def test_a_deadline_is_kept_to_its_very_moment_and_done_is_done(overlaps: bool) -> None:
    house = House(overlaps)
    just, done = (planned(request_of(n, steps=s, deadline_s=2.0)) for n, s in (("j", 3), ("d", 2)))
    house.put(just, done)
    for _ in range(5):
        house.step()
        house.clock.now_s += 1.0
    assert house.end_of(done) is None
    assert house.end_of(just) is None  # its last step is launched at the moment itself


@both_loops
def test_who_is_late_and_cancelled_is_told_one_thing(overlaps: bool) -> None:
    house = House(overlaps)
    sequence = planned(request_of(steps=9, deadline_s=0.5))
    house.put(sequence)
    house.step()
    sequence.is_cancelled = True
    house.clock.now_s += 1.0
    house.step(3)
    assert isinstance(house.end_of(sequence), Cancelled)


# --- moments ------------------------------------------------------------------------------------


@both_loops
def test_moments_are_those_of_the_clock(overlaps: bool) -> None:
    house = House(overlaps)
    sequence = sequence_of(steps=2)
    house.put(sequence)
    for moment in (7.0, 9.0):
        house.clock.now_s = moment
        house.step()
    if overlaps:
        assert sequence.finished_s is None  # under way
        house.step()
    assert (sequence.started_s, sequence.finished_s) == (7.0, 9.0)


@both_loops
def test_it_says_since_when_a_step_takes(overlaps: bool) -> None:
    seen: list[float | None] = []
    runner = FakeRunner(lambda number, who: seen.append(house.engine.busy_since_s))
    house = House(overlaps, runner)
    house.put(sequence_of(steps=1))
    house.step(2)
    assert seen == [100.0]
    assert house.engine.busy_since_s is None


def test_overlapped_the_next_step_is_planned_while_one_runs() -> None:
    may_go, planned_two = threading.Event(), threading.Event()

    def waits(number: int, sequences: list[Sequence]) -> None:
        assert may_go.wait(PATIENCE_S)

    def notes(number: int, sequences: list[Sequence]) -> None:
        if number == 2:
            planned_two.set()

    house = House(True, FakeRunner(waits, notes))
    house.put(sequence_of(steps=4))
    thread = house.start()
    assert planned_two.wait(PATIENCE_S)
    assert house.runner.steps == []
    assert house.runner.num_prepared == 2  # and no further
    may_go.set()
    house.engine.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


# --- the life of the loop -----------------------------------------------------------------------


@both_loops
def test_an_idle_loop_wakes_for_what_is_put_and_for_stop(overlaps: bool) -> None:
    ended = threading.Event()
    house = House(overlaps)
    house.listener.on_denoised = lambda sequence, tokens, clock: ended.set()
    thread = house.start()
    for _ in range(2):
        house.put(sequence_of(steps=3))
        assert ended.wait(PATIENCE_S)
        ended.clear()
    house.engine.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


@both_loops
def test_what_is_under_way_at_a_stop_is_not_lost(overlaps: bool) -> None:
    house = House(overlaps)
    done, not_done = sequence_of("done", steps=1), sequence_of("not", steps=2)
    house.put(done, not_done)
    house.step()
    house.engine.stop()
    house.engine.loop()
    assert house.end_of(done) is None
    assert isinstance(house.end_of(not_done), Cancelled)


@both_loops
def test_nothing_is_taken_after_stop(overlaps: bool) -> None:
    house = House(overlaps)
    house.engine.stop()
    with pytest.raises(EngineFailed, match="has stopped"):
        house.put(sequence_of())


@both_loops
def test_a_bug_in_the_loop_ends_it_and_tells_everybody(
    overlaps: bool, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(overlaps, budget=12)

    def broken(report: object, seconds: float) -> None:
        raise AssertionError("a bug")

    house.listener.on_step = broken
    house.put(sequence_of("runs"), sequence_of("waits"))
    house.engine.loop()
    assert house.listener.counts() == {"EngineFailed": 2}
    assert "the step loop died" in caplog.text
    with pytest.raises(EngineFailed):
        house.put(sequence_of())


@both_loops
def test_what_no_handler_may_hold_still_leaves_nobody_without_an_answer(overlaps: bool) -> None:
    def exits(number: int, sequences: list[Sequence]) -> None:
        raise SystemExit

    house = House(overlaps, FakeRunner(exits), budget=12)
    house.put(sequence_of("runs"), sequence_of("waits"))
    with pytest.raises(SystemExit):
        house.engine.loop()
    assert house.listener.counts() == {"EngineFailed": 2}


@both_loops
def test_an_answer_comes_even_if_forgetting_fails(
    overlaps: bool, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(overlaps, FakeRunner(failing_at({1})), budget=12)

    def broken(sequences: object) -> None:
        raise RuntimeError("the device is gone")

    house.runner.forget = broken
    house.put(sequence_of("runs"), sequence_of("waits"))
    house.engine.loop()
    assert house.listener.counts() == {"EngineFailed": 2}
    assert "the device is gone" in caplog.text


# --- both loops make the same pictures ----------------------------------------------------------


class Latents(RecordingListener):
    """Keeps what was handed over."""

    def __init__(self) -> None:
        super().__init__()
        self.latents: dict[str, Tensor] = {}

    def on_denoised(self, sequence: Sequence, tokens: Tensor, clock: StepClock) -> None:
        super().on_denoised(sequence, tokens, clock)
        self.latents[sequence.sequence_id] = tokens.clone()


@pytest.mark.parametrize("rule", ["plan", "change"])
@settings(max_examples=8, deadline=None)
@given(arrivals())
def test_both_loops_make_the_same_pictures_to_the_last_bit(
    bundle: Bundle, rule: str, traffic: list[Arrival]
) -> None:
    """With a tiny cache of rotary rows, so that one step moves rows beside another."""
    named = [
        (come, replace(request, sequence_id=str(number)), leave, seconds)
        for number, (come, request, leave, seconds) in enumerate(traffic)
    ]
    latents, ends, runners = [], [], []
    for overlaps in (False, True):
        runner = Runner(bundle, EngineConfig(rope_cache_tokens=40, modulation_cache_rows=8))
        house = House(overlaps, runner, budget=100)
        house.listener = house.engine._listener = listener = Latents()
        everybody = play(house, named, step_cache=StepCache(rule))
        ends.append({s.sequence_id: type(house.end_of(s)) for s in everybody})
        latents.append(listener.latents)
        runners.append(runner)
    assert ends[0] == ends[1]
    assert latents[0].keys() == latents[1].keys()
    assert all(torch.equal(latent, latents[1][name]) for name, latent in latents[0].items())
    for runner in runners:
        assert runner._store._homes == {}
        assert runner._packer._generators == {}
