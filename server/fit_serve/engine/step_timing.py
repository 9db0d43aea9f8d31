"""How long steps of several sizes take, within a limit of seconds.

Knows shapes of packs and a clock; what a step does is a function it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from fit_serve.engine.cost_model import Sample

MAX_ROUNDS = 30
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
    larger ones. Then the shapes take turns until the time is up or they get no better.

    Args:
        shapes: at least one.
        run: makes a step and waits for the device; may raise `torch.OutOfMemoryError`.
        seconds: limit of it all; exceeded by one step at most, or by what is compiled.
        clock: seconds.

    Raises:
        torch.OutOfMemoryError: not even the smallest shape fits.
    """
    deadline = clock() + seconds
    best = _first_round(sorted(shapes, key=lambda s: (s.tokens, s.grid)), run, deadline, clock)
    stale = rounds = 0
    while stale < _STALE_ROUNDS and rounds < MAX_ROUNDS:
        before = sum(best.values())
        for shape, seconds_before in best.items():
            if clock() + seconds_before > deadline:
                return _samples(best)
            best[shape] = min(seconds_before, _time_of(shape, run, clock))
        stale = stale + 1 if sum(best.values()) > (1 - _GAIN) * before else 0
        rounds += 1
    return _samples(best)


def _first_round(
    shapes: list[PackShape],
    run: Callable[[PackShape], None],
    deadline: float,
    clock: Callable[[], float],
) -> dict[PackShape, float]:
    best: dict[PackShape, float] = {}
    per_token = 0.0
    for shape in shapes:
        if best and clock() + 2 * per_token * shape.tokens > deadline:
            break
        try:
            best[shape] = _time_of(shape, run, clock)
            if clock() + best[shape] <= deadline:
                best[shape] = _time_of(shape, run, clock)
        except torch.OutOfMemoryError:
            if not best:
                raise
            break
        per_token = best[shape] / shape.tokens
    return best


def _time_of(
    shape: PackShape, run: Callable[[PackShape], None], clock: Callable[[], float]
) -> float:
    started = clock()
    run(shape)
    return max(clock() - started, 1e-9)


def _samples(best: dict[PackShape, float]) -> list[Sample]:
    return [Sample(shape.tokens, shape.lengths, seconds) for shape, seconds in best.items()]
