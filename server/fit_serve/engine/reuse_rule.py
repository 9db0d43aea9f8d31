"""When a sequence may do without the network: two rules, each the state of one sequence.

`PlannedReuse` follows a plan made before the first step. `ChangeReuse` watches how fast the
prediction changes, as TeaCache does with the network's input (arXiv:2411.19108), and reuses it
until the change it expects adds up to a threshold. It looks at changes two turns old, never newer,
so that what it decides does not depend on whether steps are planned ahead of their results.

Knows noise levels and numbers; not tensors, engines or other sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fit_models.diffusion.step_cache import LONGEST_REUSE

_LAG = 2  # turns between a prediction and the first decision it may enter


class ReuseRule(Protocol):
    """How many evaluations after a computed one do without the network."""

    @property
    def watches(self) -> bool:
        """Whether it wants to be told how the prediction changes."""
        ...

    def count(self, position: int, turn: int) -> int:
        """For the computed evaluation `position`, which is the sequence's turn number `turn`."""
        ...

    def computed_left(self, position: int) -> list[int]:
        """Evaluations from `position` on that the network may still be asked for."""
        ...

    def observe(self, turn: int, change: float) -> None:
        """Learn the relative change of the prediction between turn `turn` - 1 and this one."""
        ...


@dataclass(frozen=True)
class PlannedReuse:
    """A plan, made by `fit_models.diffusion.step_cache.plan_evaluations`."""

    computed: tuple[bool, ...]

    @property
    def watches(self) -> bool:
        """It has seen all it needs."""
        return False

    def count(self, position: int, turn: int) -> int:
        """Evaluations up to the next one that is computed."""
        following = position + 1
        while following < len(self.computed) and not self.computed[following]:
            following += 1
        return following - position - 1

    def computed_left(self, position: int) -> list[int]:
        """What the plan computes."""
        return [i for i in range(position, len(self.computed)) if self.computed[i]]

    def observe(self, turn: int, change: float) -> None:
        """Nothing to learn."""


@dataclass
class ChangeReuse:
    """Reuse while the expected relative change since the last computed prediction stays small.

    Attributes:
        sigmas, scales: noise level and guidance scale of every evaluation.
        threshold: relative change that may add up before the network is asked again.
    """

    sigmas: Sequence[float]
    scales: Sequence[float]
    threshold: float
    _at: dict[int, int] = field(default_factory=dict)
    _rates: dict[int, float] = field(default_factory=dict)

    @property
    def watches(self) -> bool:
        """It decides by it."""
        return True

    def count(self, position: int, turn: int) -> int:
        """At most `LONGEST_REUSE`, and never across a change of the guidance scale."""
        self._at[turn] = position
        known = [number for number in self._rates if number <= turn - _LAG]
        if not known:
            return 0
        rate = self._rates[max(known)]
        reused = 0
        for following in range(position + 1, min(position + 1 + LONGEST_REUSE, len(self.sigmas))):
            gap = abs(self.sigmas[following] - self.sigmas[position])
            if self.scales[following] != self.scales[position] or rate * gap > self.threshold:
                break
            reused += 1
        return reused

    def computed_left(self, position: int) -> list[int]:
        """Any of them: what will be reused is not known yet."""
        return list(range(position, len(self.sigmas)))

    def observe(self, turn: int, change: float) -> None:
        """A change per unit of noise level; one across a change of the scale says nothing."""
        if turn not in self._at or turn - 1 not in self._at:
            return
        now, before = self._at[turn], self._at[turn - 1]
        gap = abs(self.sigmas[now] - self.sigmas[before])
        if gap > 0 and self.scales[now] == self.scales[before]:
            self._rates[turn] = change / gap
