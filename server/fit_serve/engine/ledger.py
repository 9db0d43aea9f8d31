"""Who waits for which sequence: what is accepted ends exactly once, in its future.

Knows futures and callbacks; not phases, steps, budgets or pixels. Safe to call from any thread, and
calls nobody back while it holds its lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from concurrent.futures import Future
from dataclasses import dataclass

from fit_serve.engine.sequence import Sequence
from fit_serve.errors import InvalidRequest, ServeError
from fit_serve.request import Progress, SequenceResult

_log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class _Entry:
    sequence: Sequence
    future: Future[SequenceResult]
    on_progress: OnProgress | None


class Ledger:
    """The accepted sequences that have not ended yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def open(
        self, sequences: Items[Sequence], on_progress: OnProgress | None
    ) -> list[Future[SequenceResult]]:
        """Enter all sequences or none; one future each, which only this ledger can end.

        Raises:
            InvalidRequest: an id is given twice, or belongs to a sequence that has not ended.
        """
        entries = [_Entry(s, Future(), on_progress) for s in sequences]
        new = {entry.sequence.sequence_id: entry for entry in entries}
        with self._lock:
            if len(new) < len(entries) or new.keys() & self._entries.keys():
                ids = ", ".join(s.sequence_id for s in sequences)
                raise InvalidRequest(f"sequence ids must be unique; one is in use: {ids}")
            self._entries |= new
        for entry in entries:
            entry.future.set_running_or_notify_cancel()  # so that no client can end it
        return [entry.future for entry in entries]

    def sequences(self) -> list[Sequence]:
        """What has not ended, oldest first."""
        return [entry.sequence for entry in self._snapshot()]

    def futures(self) -> list[Future[SequenceResult]]:
        """The futures that have not ended, oldest first."""
        return [entry.future for entry in self._snapshot()]

    def cancel(self, sequence_ids: Iterable[str]) -> None:
        """Mark sequences as cancelled; those that have ended are left alone."""
        with self._lock:
            for sequence_id in sequence_ids:
                if (entry := self._entries.get(sequence_id)) is not None:
                    entry.sequence.is_cancelled = True

    def tell_progress(self, sequence: Sequence, position: int) -> None:
        """Tell who waits how far a sequence has come; an error of theirs is theirs alone."""
        with self._lock:
            entry = self._entries.get(sequence.sequence_id)
        if entry is None or entry.sequence is not sequence or entry.on_progress is None:
            return
        try:
            entry.on_progress(Progress(sequence.sequence_id, position, len(sequence.evaluations)))
        except Exception:  # a client's bug must not end the step loop
            _log.exception("on_progress of %s failed", sequence.sequence_id)

    def finish(self, sequence: Sequence, result: SequenceResult) -> None:
        """End a sequence with its picture; nothing happens if it has ended already."""
        if (future := self._close(sequence)) is not None:
            future.set_result(result)

    def fail(self, sequence: Sequence, error: ServeError) -> None:
        """End a sequence without a picture; nothing happens if it has ended already."""
        if (future := self._close(sequence)) is not None:
            future.set_exception(error)

    def _close(self, sequence: Sequence) -> Future[SequenceResult] | None:
        """Whoever takes the entry out ends its future, so nobody does it twice."""
        with self._lock:
            entry = self._entries.get(sequence.sequence_id)
            if entry is None or entry.sequence is not sequence:
                return None
            del self._entries[sequence.sequence_id]
        return entry.future

    def _snapshot(self) -> list[_Entry]:
        with self._lock:
            return list(self._entries.values())
