"""Who is let in: room in the queue, and deadlines that can be kept.

A refusal is made before anything is queued and says what was predicted. Knows sequences and the
cost model; not threads, futures or tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

from fit_serve.engine.batching import StepLimits
from fit_serve.engine.cost_model import CostModel
from fit_serve.engine.forecast import Job, seconds_until_done
from fit_serve.engine.order import Order
from fit_serve.engine.sequence import Sequence
from fit_serve.errors import DeadlineInfeasible, InvalidRequest, Overloaded, ServeError

_SHORTEST_RETRY_S = 1.0


class Admission:
    """Checks newcomers against those who are there."""

    def __init__(
        self,
        limits: StepLimits,
        order: Order,
        max_queued_requests: int,
        cost_model: Callable[[], CostModel | None],
        after_steps_s: Callable[[Sequence], float],
    ) -> None:
        """Take the parts.

        `cost_model` gives the present one, None if nothing was ever measured; `after_steps_s` the
        seconds a sequence takes after its last step (decoding).
        """
        self._limits = limits
        self._order = order
        self._max_queued_requests = max_queued_requests
        self._cost_model = cost_model
        self._after_steps_s = after_steps_s

    def prepare(self, sequences: Items[Sequence], now_s: float) -> None:
        """Write moments and predictions into newcomers."""
        cost_model = self._cost_model()
        for sequence in sequences:
            sequence.submitted_s = now_s
            if sequence.request.deadline_s is not None:
                sequence.deadline_s = now_s + sequence.request.deadline_s
            if cost_model is not None:
                sequence.alone_s = seconds_until_done(
                    [self._job(sequence)], self._limits, cost_model
                )[0] + self._after_steps_s(sequence)

    def check(self, newcomers: Items[Sequence], present: Items[Sequence], now_s: float) -> None:
        """Refuse newcomers for whom there is no room, or no time.

        Args:
            newcomers: prepared by `prepare`.
            present: everybody who is accepted and not done.
            now_s: on the engine's clock.

        Raises:
            InvalidRequest: there are more of them than may ever wait, or one would be late even
                alone.
            Overloaded: the queue has no room for all of them, or they would make somebody late who
                was promised to be in time.
            DeadlineInfeasible: one of them would be late.
        """
        self._check_room(newcomers, present)
        if any(s.deadline_s is not None for s in (*newcomers, *present)):
            self._check_deadlines(newcomers, present, now_s)

    def _check_room(self, newcomers: Items[Sequence], present: Items[Sequence]) -> None:
        limit, count = self._max_queued_requests, len(newcomers)
        if count > limit:
            raise InvalidRequest(f"{count} images at once; the limit is {limit}", "num_images")
        waiting = sum(s.started_s is None for s in present)
        if waiting + count <= limit:
            return
        seconds = sorted(self._seconds_left(present))
        ends_awaited = min(waiting + count - limit, len(seconds))
        raise Overloaded(
            f"{waiting} sequences are waiting, {count} more were asked for; the limit is {limit}",
            retry_after_s=max(_SHORTEST_RETRY_S, seconds[ends_awaited - 1] if seconds else 0.0),
        )

    def _check_deadlines(
        self, newcomers: Items[Sequence], present: Items[Sequence], now_s: float
    ) -> None:
        """What a step under way still takes is not known: newcomers count it in full."""
        cost_model = self._cost_model()
        if cost_model is None:
            return
        tokens = sum(s.num_tokens * 2 for s in present)
        under_way_s = cost_model.tokens_step_seconds(min(tokens, self._limits.tokens))
        together = self._seconds_left([*present, *newcomers])
        own = [under_way_s + seconds for seconds in together[len(present) :]]
        for sequence, seconds in zip(newcomers, own, strict=True):
            if _misses(sequence, now_s + seconds):
                raise _infeasible(sequence, seconds)
        if not any(s.deadline_s is not None for s in present):
            return
        before = self._seconds_left(present)
        for sequence, alone, shared in zip(present, before, together, strict=False):
            if _misses(sequence, now_s + shared) and not _misses(sequence, now_s + alone):
                raise Overloaded(
                    "accepting this would make a request late that was promised to be in time",
                    retry_after_s=max(_SHORTEST_RETRY_S, min(before)),
                )

    def _seconds_left(self, sequences: Items[Sequence]) -> list[float]:
        """Predicted seconds until each is decoded; 0 where nothing was ever measured."""
        cost_model = self._cost_model()
        if cost_model is None:
            return [0.0] * len(sequences)
        seconds = seconds_until_done([self._job(s) for s in sequences], self._limits, cost_model)
        return [
            until_done + self._after_steps_s(sequence)
            for until_done, sequence in zip(seconds, sequences, strict=True)
        ]

    def _job(self, sequence: Sequence) -> Job:
        turns = sequence.remaining_turns
        tokens = sequence.remaining_tokens
        branches = tokens / (turns * sequence.num_tokens) if turns else 1.0
        return Job(self._order.moment(sequence), sequence.num_tokens, branches, turns)


def _misses(sequence: Sequence, moment_s: float) -> bool:
    return sequence.deadline_s is not None and moment_s > sequence.deadline_s


def _infeasible(sequence: Sequence, predicted_s: float) -> ServeError:
    limit_s = sequence.request.deadline_s
    assert limit_s is not None
    if sequence.alone_s > limit_s:
        return InvalidRequest(
            f"deadline_ms {1e3 * limit_s:.0f} cannot be kept even on an idle server: predicted are "
            f"{1e3 * sequence.alone_s:.0f} ms",
            param="deadline_ms",
            code="deadline_infeasible",
        )
    return DeadlineInfeasible(limit_s, predicted_s)
