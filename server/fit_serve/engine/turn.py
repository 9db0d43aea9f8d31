"""What one sequence does in one engine step: an evaluation by the network, then some without it.

Numbers only, fixed when the step is planned; knows no tensor and no sequence.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reuse:
    """An evaluation whose prediction is read off the line through the last two computed ones.

    Attributes:
        position: which evaluation.
        last, before: weights of the last computed prediction and of the one before.
    """

    position: int
    last: float
    before: float


@dataclass(frozen=True)
class Turn:
    """One evaluation by the network and the reused ones that follow at once.

    Attributes:
        position: which evaluation the network does.
        branches: 2 with guidance, else 1.
        reused: evaluations done after it without the network.
        shifts: whether its prediction takes its place beside the last one; otherwise it replaces
            it, being one at the same noise level.
    """

    position: int
    branches: int
    reused: tuple[Reuse, ...] = ()
    shifts: bool = True

    @property
    def end(self) -> int:
        """The evaluation that comes next."""
        return self.position + 1 + len(self.reused)
