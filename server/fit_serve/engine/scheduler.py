"""Which sequences run in the next step, within a budget of tokens. Decides; touches no tensor.

First come, first served: the oldest waiting sequence is admitted as soon as it fits, and nobody
younger passes it, so nobody starves. What is admitted runs to its end; size, steps, position,
guidance and sampler never decide who may share a step.

The two other policies are what other servers do and exist for comparison only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from fit_serve.engine.sequence import Sequence


class Scheduler:
    """Waiting and running sequences; not thread-safe: the engine's thread owns it."""

    def __init__(
        self, max_num_batched_tokens: int, max_num_seqs: int, batching: str = "packed"
    ) -> None:
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs if batching != "serial" else 1
        self.batching = batching
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Put sequences at the end of the queue."""
        self.waiting.extend(sequences)

    def remove_cancelled(self) -> list[Sequence]:
        """Take out what was cancelled, waiting or running; its tokens are free from now on."""
        # Looked at once: other threads set the mark, and one set in between must not lose anybody.
        gone = [s for s in (*self.running, *self.waiting) if s.is_cancelled]
        if gone:
            marked = set(gone)
            self.waiting = deque(s for s in self.waiting if s not in marked)
            self.running = [s for s in self.running if s not in marked]
        return gone

    def schedule(self) -> list[Sequence]:
        """Admit what fits and return everything that runs in this step.

        The budget holds the most expensive remaining evaluation of every running sequence, so a
        sequence that goes from one branch to two never has to wait in the middle. A sequence larger
        than the budget runs when nothing else does.
        """
        tokens = sum(s.max_tokens for s in self.running)
        while self.waiting and len(self.running) < self.max_num_seqs:
            candidate = self.waiting[0]
            alone = not self.running
            if not alone and tokens + candidate.max_tokens > self.max_num_batched_tokens:
                break
            if not alone and not self._may_share(candidate):
                break
            self.running.append(self.waiting.popleft())
            tokens += candidate.max_tokens
        return list(self.running)

    def retire(self, sequences: Iterable[Sequence]) -> None:
        """Take out sequences that have ended, done or failed."""
        ended = set(sequences)
        self.running = [s for s in self.running if s not in ended]

    def drop_all(self) -> list[Sequence]:
        """Empty the scheduler; returns everything it held."""
        held = [*self.running, *self.waiting]
        self.running, self.waiting = [], deque()
        return held

    def _may_share(self, candidate: Sequence) -> bool:
        return self.batching != "equal-shape" or candidate.grid == self.running[0].grid
