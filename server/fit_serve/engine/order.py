"""Who goes first: one moment per sequence, fixed when it is accepted; the earliest goes first.

Because a sequence's moment never changes while those of newcomers grow with the clock, everybody is
the earliest at last: nobody starves, whatever comes. A level of priority is worth a fixed time of
waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

from fit_serve.engine.sequence import Sequence

POLICIES = ("fcfs", "deadline", "shortest")


@dataclass(frozen=True)
class Order:
    """A scheduling policy.

    Attributes:
        policy: "fcfs": by arrival. "deadline": by the last moment to start alone and be in time
            (earliest slack first); a sequence without a deadline counts as one with `patience_s`.
            "shortest": by predicted work; for comparison, for it starves the long.
        priority_step_s: waiting that one level of priority outweighs.
        patience_s: see above.
    """

    policy: str = "fcfs"
    priority_step_s: float = 10.0
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy {self.policy!r} is unknown; known: {', '.join(POLICIES)}")
        for name in ("priority_step_s", "patience_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")

    def moment(self, sequence: Sequence) -> float:
        """Where a sequence stands in the line, in seconds of the engine's clock."""
        waits = sequence.request.priority * self.priority_step_s
        if self.policy == "shortest":
            return sequence.alone_s + waits
        if self.policy == "fcfs":
            return sequence.submitted_s + waits
        deadline_s = sequence.deadline_s
        if deadline_s is None:
            deadline_s = sequence.submitted_s + self.patience_s
        return deadline_s - sequence.alone_s + waits
