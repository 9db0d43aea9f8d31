"""Which sequences run in the next step. Decides; touches no tensor.

Keeps one line of everybody who is accepted and not done, ordered once by `order.py`; every step is
chosen anew from its front by a rule of `batching.py`. A sequence that has begun may so sit out a
step for an earlier one: that costs nothing, for its state stays where it is.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from typing import NamedTuple

from fit_serve.engine.batching import BATCHINGS, StepLimits
from fit_serve.engine.order import Order
from fit_serve.engine.sequence import Sequence


class _Place(NamedTuple):
    """Where a sequence stands; equal moments keep their order of arrival."""

    moment: float
    number: int
    sequence: Sequence


class Scheduler:
    """The line and who of it has begun; not thread-safe: the engine's thread owns it."""

    def __init__(
        self, limits: StepLimits, batching: str = "packed", order: Order | None = None
    ) -> None:
        """`batching` is a name of `BATCHINGS`; `order` defaults to first come, first served."""
        self.limits = limits
        self.batching = batching
        self._choose = BATCHINGS[batching]
        self._order = order or Order()
        self._line: list[_Place] = []
        self._begun: dict[Sequence, None] = {}
        self._count = 0

    @property
    def running(self) -> list[Sequence]:
        """Who has begun and is not done, in the order they began."""
        return list(self._begun)

    @property
    def waiting(self) -> list[Sequence]:
        """Who has not begun, earliest first."""
        return [place.sequence for place in self._line if place.sequence not in self._begun]

    def is_empty(self) -> bool:
        """Whether there is nobody."""
        return not self._line

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Give sequences their place in the line."""
        for sequence in sequences:
            insort(self._line, _Place(self._order.moment(sequence), self._count, sequence))
            self._count += 1

    def schedule(self) -> list[Sequence]:
        """Who runs in this step; not empty unless the line is."""
        if not self._line:
            return []
        line = [place.sequence for place in self._line]
        chosen = self._choose(line, self._begun, self.limits)
        self._begun |= dict.fromkeys(chosen)
        return chosen

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Take out sequences that have ended, however."""
        ended = set(sequences)
        if ended:
            self._line = [place for place in self._line if place.sequence not in ended]
            self._begun = {s: None for s in self._begun if s not in ended}

    def remove_where(self, has_ended: Callable[[Sequence], bool]) -> list[Sequence]:
        """Take out and return those of whom it holds; each is looked at once.

        Other threads may mark sequences meanwhile, and a mark set in between must lose nobody.
        """
        gone = [place.sequence for place in self._line if has_ended(place.sequence)]
        self.remove(gone)
        return gone

    def drop_all(self) -> list[Sequence]:
        """Empty the scheduler; returns everybody."""
        held = [place.sequence for place in self._line]
        self._line, self._begun = [], {}
        return held
