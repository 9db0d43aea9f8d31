"""Sizes take turns, the best turn counts, and the limit of seconds holds."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.engine.step_timing import MAX_ROUNDS, PackShape, time_in_turns
from support.fake_runner import FakeClock

SHAPES = [PackShape((8, 8), count) for count in (16, 1, 4)]


class Device:
    """Steps take what a function says of (shape, how often it has run); runs are remembered."""

    def __init__(self, clock: FakeClock, seconds_of: Callable[[PackShape, int], float]) -> None:
        self.ran: list[int] = []
        self._clock, self._seconds_of = clock, seconds_of

    def __call__(self, shape: PackShape) -> None:
        self._clock.now_s += self._seconds_of(shape, self.ran.count(shape.tokens))
        self.ran.append(shape.tokens)


def linear(shape: PackShape, _: int) -> float:
    return shape.tokens / 1000


def test_a_shape_knows_its_lengths() -> None:
    shape = PackShape((2, 3), 4)
    assert (shape.tokens, shape.lengths) == (24, (6, 6, 6, 6))


def test_small_sizes_come_first_each_twice_then_they_take_turns() -> None:
    clock = FakeClock()
    device = Device(clock, linear)
    samples = time_in_turns(SHAPES, device, 15.0, clock)  # a turn is 50 ms, the least step 64
    sizes = (64, 256, 1024)
    assert device.ran[:6] == [64, 64, 256, 256, 1024, 1024]
    assert device.ran[6:] == [64, 256, 1024] * 3  # nothing gets better
    assert [(s.tokens, s.lengths) for s in samples] == [(n, (64,) * (n // 64)) for n in sizes]
    assert [s.seconds for s in samples] == pytest.approx([0.064, 0.256, 1.024])


def test_a_turn_of_a_short_step_is_as_long_as_the_others() -> None:
    clock = FakeClock()
    device = Device(clock, linear)
    time_in_turns(SHAPES, device, 360.0, clock)  # a turn is 1.2 s
    assert device.ran.count(1024) == 1 + 4
    assert device.ran.count(256) == 1 + 4 * 4
    assert device.ran.count(64) == 1 + 4 * 18


def test_other_work_on_the_machine_does_not_favour_short_steps() -> None:
    """Something else has every other 10 ms: a step of 5 ms that slips through is no fast step."""
    shapes = [PackShape((8, 8), count) for count in (1, 2, 4, 8, 16)]
    now_us = 0

    def run(shape: PackShape) -> None:
        nonlocal now_us
        for _ in range(shape.tokens * 78 // 64):  # 64 us of work each; 5 ms for the smallest
            if now_us % 20_000 >= 10_000:
                now_us += 20_000 - now_us % 20_000
            now_us += 64

    samples = time_in_turns(shapes, run, 30.0, lambda: now_us / 1e6)
    rates = [s.tokens / s.seconds for s in samples]
    assert max(rates) / min(rates) < 1.2


def test_the_best_turn_counts_and_what_a_first_run_compiles_does_not() -> None:
    clock = FakeClock()
    worse = (100, 3, 2, 1, 4)
    device = Device(clock, lambda shape, n: linear(shape, n) * worse[min(n, 4)])
    samples = time_in_turns([PackShape((8, 8), 1)], device, 15.0, clock)
    assert samples[0].seconds == pytest.approx(0.064)


def test_what_gets_better_for_ever_ends_too() -> None:
    clock = FakeClock()
    device = Device(clock, lambda _, n: 0.9**n)
    time_in_turns(SHAPES[:1], device, 1e-9 + 10.0, clock)
    assert device.ran.count(1024) >= 2 + MAX_ROUNDS


def test_a_slow_model_is_seen_at_small_sizes_only() -> None:
    clock = FakeClock()
    started = clock()
    device = Device(clock, lambda shape, _: shape.tokens / 10)  # 6.4, 25.6 and 102 seconds
    samples = time_in_turns(SHAPES, device, 100.0, clock)
    assert [s.tokens for s in samples] == [64, 256]
    assert clock() - started <= 100.0


def test_the_smallest_size_is_seen_however_slow() -> None:
    clock = FakeClock()
    device = Device(clock, lambda *_: 500.0)
    assert [s.tokens for s in time_in_turns(SHAPES, device, 1.0, clock)] == [64]
    assert device.ran == [64]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=8, unique=True),
    st.floats(0.1, 10.0),
    st.floats(0.005, 1.0),
    st.floats(1e-5, 0.1),
)
def test_the_limit_is_exceeded_by_the_first_step_at_most(
    counts: list[int], seconds: float, floor: float, per_token: float
) -> None:
    clock = FakeClock()
    started = clock()

    def seconds_of(shape: PackShape) -> float:
        return floor + per_token * shape.tokens

    def run(shape: PackShape) -> None:
        clock.now_s += seconds_of(shape)

    shapes = [PackShape((2, 2), count) for count in counts]
    smallest = min(shapes, key=lambda shape: shape.tokens)
    samples = time_in_turns(shapes, run, seconds, clock)
    assert samples[0].tokens == smallest.tokens
    assert clock() - started <= max(seconds, seconds_of(smallest)) * (1 + 1e-9)


def test_what_does_not_fit_in_memory_is_left_out() -> None:
    clock = FakeClock()

    def run(shape: PackShape) -> None:
        clock.now_s += 0.1
        if shape.tokens > 256:
            raise torch.OutOfMemoryError("too large")

    assert [s.tokens for s in time_in_turns(SHAPES, run, 100.0, clock)] == [64, 256]
    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        time_in_turns(SHAPES[:1], run, 100.0, clock)


def test_a_clock_that_stands_still_gives_no_zero() -> None:
    ticks = itertools.repeat(1.0)
    samples = time_in_turns(SHAPES, lambda _: None, 1.0, lambda: next(ticks))
    assert all(s.seconds > 0 for s in samples)
