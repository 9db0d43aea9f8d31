"""The loop: take in, schedule, run, retire. One step of it fits on a screen.

Runs in one thread that owns scheduler and runner; everything from outside comes through the inbox,
everything that ends goes out through `on_end`, exactly once per sequence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

from fit_serve.engine.runner import StepReport
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence
from fit_serve.errors import Cancelled, EngineFailed, ServeError

_log = logging.getLogger(__name__)


class StepRunner(Protocol):
    """What the loop needs of a runner; tests bring one without a network."""

    def run(self, sequences: list[Sequence], /) -> StepReport: ...  # noqa: D102
    def take(self, sequence: Sequence, /) -> Tensor: ...  # noqa: D102
    def forget(self, sequences: list[Sequence], /) -> None: ...  # noqa: D102


class EngineListener(Protocol):
    """Who is told what the loop does; called from the engine's thread, so it must be quick."""

    def on_step(self, report: StepReport, seconds: float) -> None:
        """Tell of a finished step."""

    def on_progress(self, sequence: Sequence) -> None:
        """Tell that a sequence has moved by one evaluation."""

    def on_denoised(self, sequence: Sequence, tokens: Tensor) -> None:
        """Hand over the latent tokens of a finished sequence."""

    def on_failed(self, sequence: Sequence, error: ServeError) -> None:
        """Tell that a sequence ended without a picture."""


class Engine:
    """Owns the sequences between admission and the end of denoising.

    A step that fails ends its sequences and nobody else's. An error anywhere else is a bug of ours:
    the loop ends, everything it holds is told, and only a restart helps.

    Attributes:
        busy_since_s: when the current step began, on `clock`; None between steps.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        listener: EngineListener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self.busy_since_s: float | None = None
        self._runner = runner
        self._listener = listener
        self._clock = clock
        self._inbox: deque[Sequence] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False

    def put(self, sequences: Iterable[Sequence]) -> None:
        """Hand sequences in, from any thread.

        Raises:
            EngineFailed: the loop has been told to stop, or has died.
        """
        with self._changed:
            if self._is_stopping:
                raise EngineFailed("the engine has stopped")
            self._inbox.extend(sequences)
            self._changed.notify()

    def stop(self) -> None:
        """End the loop after the current step; what it still holds ends as cancelled."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def loop(self) -> None:
        """Run steps until stopped; sleeps while there is nothing to do."""
        end: ServeError = EngineFailed("the step loop died; the log has the cause")
        try:
            while self._wait_for_work():
                self.step()
            end = Cancelled("the engine was stopped")
        except Exception:
            _log.critical("the step loop died", exc_info=True)
        finally:
            self.stop()
            for sequence in (*self.scheduler.drop_all(), *self._take_inbox()):
                self._listener.on_failed(sequence, end)

    def step(self) -> None:
        """Take in, drop what was cancelled, run everybody once, retire who is done."""
        self.scheduler.add(self._take_inbox())
        self._drop(self.scheduler.remove_cancelled(), Cancelled("the request was cancelled"))
        sequences = self.scheduler.schedule()
        if not sequences:
            return
        started = self._clock()
        for sequence in sequences:
            if sequence.started_s is None:
                sequence.started_s = started
        self.busy_since_s = started
        try:
            if (report := self._run(sequences)) is not None:
                self._listener.on_step(report, self._clock() - started)
                self._advance(sequences)
        finally:
            self.busy_since_s = None

    def _run(self, sequences: list[Sequence]) -> StepReport | None:
        """One evaluation of everybody; None if it failed, and then they have been told."""
        try:
            return self._runner.run(sequences)
        except Exception:  # whatever a step dies of, the loop goes on
            _log.exception("a step with %d sequences failed", len(sequences))
            self.scheduler.retire(sequences)
            self._drop(sequences, EngineFailed("the step failed; the log has the cause"))
            return None

    def _advance(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            sequence.position += 1
            self._listener.on_progress(sequence)
        for sequence in sequences:
            if sequence.is_finished:
                tokens = self._runner.take(sequence)
                self.scheduler.retire([sequence])
                sequence.finished_s = self._clock()
                self._listener.on_denoised(sequence, tokens)

    def _drop(self, sequences: list[Sequence], error: ServeError) -> None:
        """Tell first: forgetting might fail, an answer must not."""
        for sequence in sequences:
            self._listener.on_failed(sequence, error)
        if sequences:
            self._runner.forget(sequences)

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when there will be nothing more."""
        with self._changed:
            while not (self._inbox or self._has_work() or self._is_stopping):
                self._changed.wait()
            return not self._is_stopping

    def _take_inbox(self) -> list[Sequence]:
        with self._changed:
            taken = list(self._inbox)
            self._inbox.clear()
            return taken

    def _has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)
