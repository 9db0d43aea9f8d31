"""How long steps of several sizes take, within a limit of seconds.

Knows shapes of packs and a clock; what a step does is a function it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from fit_serve.engine.cost_model import Sample

MAX_ROUNDS = 30
_TURN_SHARE = 1 / 300  # of the limit: what a turn lasts at least
_STALE_ROUNDS = 3  # so many rounds in a row that brought next to nothing end it before the limit
_GAIN = 0.01  # share of the old times' sum that a round must bring to count as one that did


@dataclass(frozen=True)
class PackShape:
    """So many sequences of one grid (rows, columns), end to end."""

    grid: tuple[int, int]
    count: int

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.grid[0] * self.grid[1] * self.count

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return (self.grid[0] * self.grid[1],) * self.count


def time_in_turns(
    shapes: Iterable[PackShape],
    run: Callable[[PackShape], None],
    seconds: float,
    clock: Callable[[], float],
) -> list[Sample]:
    """Time steps of these shapes, each by the best of its turns.

    Every shape is seen first, small before large, after one run that may compile; a shape that
    would not be done in time, or does not fit in memory, ends this round and so leaves out all
    larger ones. Then the shapes take turns until the time is up or they get no better. A turn of a
    short step repeats it, so that other work on the machine hits short and long ones alike.

    Args:
        shapes: at least one.
        run: makes a step and waits for the device; may raise `torch.OutOfMemoryError`.
        seconds: limit of it all; exceeded by one step at most, or by what is compiled. Where it is
            not above 0 the smallest shape is seen once.
        clock: seconds.

    Raises:
        torch.OutOfMemoryError: not even the smallest shape fits.
    """
    deadline, turn = clock() + seconds, _TURN_SHARE * seconds
    ordered = sorted(shapes, key=lambda shape: (shape.tokens, shape.grid))
    best = _first_round(ordered, run, deadline, turn, clock)
    stale = rounds = 0
    while stale < _STALE_ROUNDS and rounds < MAX_ROUNDS:
        before = sum(best.values())
        for shape, old in best.items():
            if clock() + max(old, turn) > deadline:
                return _samples(best)
            best[shape] = min(old, _turn_of(shape, run, turn, clock))
        stale = stale + 1 if sum(best.values()) > (1 - _GAIN) * before else 0
        rounds += 1
    return _samples(best)


def _first_round(
    shapes: list[PackShape],
    run: Callable[[PackShape], None],
    deadline: float,
    turn: float,
    clock: Callable[[], float],
) -> dict[PackShape, float]:
    best: dict[PackShape, float] = {}
    per_token = 0.0
    for shape in shapes:
        expected = per_token * shape.tokens
        if best and clock() + expected + max(expected, turn) > deadline:
            break
        try:
            best[shape] = _turn_of(shape, run, 0.0, clock)
            if clock() + max(best[shape], turn) <= deadline:
                best[shape] = _turn_of(shape, run, turn, clock)
        except torch.OutOfMemoryError:
            best.pop(shape, None)
            if not best:
                raise
            break
        per_token = best[shape] / shape.tokens
    return best


def _turn_of(
    shape: PackShape, run: Callable[[PackShape], None], turn: float, clock: Callable[[], float]
) -> float:
    """Mean seconds of a step, over as many as fill a turn of so many seconds; at least one."""
    started = now = clock()
    steps = 0
    while steps == 0 or now + (now - started) / steps <= started + turn:
        run(shape)
        steps += 1
        now = clock()
        if now <= started:
            break  # a step that the clock cannot see
    return max((now - started) / steps, 1e-9)


def _samples(best: dict[PackShape, float]) -> list[Sample]:
    return [Sample(shape.tokens, shape.lengths, seconds) for shape, seconds in best.items()]
