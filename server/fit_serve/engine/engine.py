"""The loop: take in, schedule, launch, retire. One step of it fits on a screen.

Runs in one thread that owns scheduler and runner; everything from outside comes through the inbox,
everything that ends goes out through the listener, exactly once per sequence. With an executor
beside it the loop plans step k + 1 while step k runs: positions move when a step is launched, and
what it brought is told when it is done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fit_serve.engine.packer import StepReport
from fit_serve.engine.runner import StepResult
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence
from fit_serve.engine.step_clock import StepClock
from fit_serve.engine.step_executor import InlineExecutor, StepExecutor
from fit_serve.errors import Cancelled, DeadlineExceeded, EngineFailed, ServeError

_log = logging.getLogger(__name__)


class StepRunner(Protocol):
    """What the loop needs of a runner; tests bring one without a network."""

    def prepare(self, sequences: list[Sequence], /) -> Any: ...  # noqa: D102
    def execute(self, step: Any, /) -> StepResult: ...  # noqa: D102
    def forget(self, sequences: list[Sequence], /) -> None: ...  # noqa: D102
    def release(self) -> None: ...  # noqa: D102


class EngineListener(Protocol):
    """Who is told what the loop does; called from the engine's thread, so it must be quick."""

    def on_step(self, report: StepReport, seconds: float) -> None:
        """Tell of a finished step."""

    def on_progress(self, sequence: Sequence, position: int) -> None:
        """Tell that a sequence has come to this evaluation."""

    def on_denoised(self, sequence: Sequence, tokens: Tensor, clock: StepClock) -> None:
        """Hand over the latent tokens of a finished sequence."""

    def on_failed(self, sequence: Sequence, error: ServeError) -> None:
        """Tell that a sequence ended without a picture."""


@dataclass(frozen=True)
class _Launched:
    """A step under way: who is in it, and where each will have come to."""

    positions: dict[Sequence, int]
    future: Future[StepResult]
    launched_s: float


class Engine:
    """Owns the sequences between admission and the end of denoising.

    A step that fails ends its sequences and nobody else's. An error anywhere else is a bug of ours:
    the loop ends, everything it holds is told, and only a restart helps.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        listener: EngineListener,
        clock: Callable[[], float] = time.monotonic,
        executor: StepExecutor | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._listener = listener
        self._clock = clock
        self._executor = executor or InlineExecutor()
        self._inbox: deque[Sequence] = deque()
        self._launched: deque[_Launched] = deque()
        self._alive: set[Sequence] = set()
        self._changed = threading.Condition()
        self._is_stopping = False

    @property
    def busy_since_s(self) -> float | None:
        """When the oldest step under way began, on the engine's clock; None between steps."""
        try:
            return self._launched[0].launched_s
        except IndexError:  # asked from other threads, so looking first would not help
            return None

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
        """End the loop after the steps under way; what it still holds ends as cancelled."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def loop(self) -> None:
        """Run steps until stopped; sleeps while there is nothing to do."""
        end: ServeError = EngineFailed("the step loop died; the log has the cause")
        try:
            while self._wait_for_work():
                self.step()
            self._retire(0)
            end = Cancelled("the engine was stopped")
        except Exception:
            _log.critical("the step loop died", exc_info=True)
        finally:
            self.stop()
            self._executor.close()
            held = dict.fromkeys([*self.scheduler.drop_all(), *self._alive, *self._take_inbox()])
            for sequence in held:
                self._listener.on_failed(sequence, end)

    def step(self) -> None:
        """Take in, drop who gave up, launch everybody's turn, retire what is done."""
        self._take_in()
        sequences = self.scheduler.schedule()
        if sequences:
            self._launch(sequences)
        self._retire(self._executor.depth if sequences else 0)
        if not self._launched:
            self._runner.release()

    def _take_in(self) -> None:
        new, now = self._take_inbox(), self._clock()
        self._alive.update(new)
        self.scheduler.add(new)
        gone = self.scheduler.remove_where(lambda s: s.is_cancelled or _is_late(s, now))
        for sequence in gone:
            self._end(sequence, _reason(sequence))
        if gone:
            self._runner.forget(gone)

    def _launch(self, sequences: list[Sequence]) -> None:
        now = self._clock()
        for sequence in sequences:
            if sequence.started_s is None:
                sequence.started_s = now
        turns = {sequence: sequence.next_turn() for sequence in sequences}
        future: Future[StepResult] = Future()
        launched = _Launched({s: turn.end for s, turn in turns.items()}, future, now)
        self._launched.append(launched)
        try:
            prepared = self._runner.prepare(sequences)
        except Exception as error:
            future.set_exception(error)
        else:
            running = self._executor.submit(self._runner.execute, prepared)
            running.add_done_callback(lambda done: _pass_on(done, future))
        for sequence, turn in turns.items():
            sequence.advance(turn)
        self.scheduler.remove(s for s in sequences if s.is_finished)

    def _retire(self, depth: int) -> None:
        """Wait until at most `depth` steps are under way, and tell what the others brought."""
        while len(self._launched) > depth:
            launched = self._launched[0]
            try:
                result = launched.future.result()
                seconds = result.clock.wait()
            except Exception:  # whatever a step dies of, the loop goes on
                _log.exception("a step with %d sequences failed", len(launched.positions))
                self._fail(list(launched.positions))
            else:
                self._tell(launched, result, seconds)
            self._launched.popleft()

    def _tell(self, launched: _Launched, result: StepResult, seconds: float) -> None:
        self._listener.on_step(result.report, seconds)
        for sequence, turn, change in result.changes:
            assert sequence.rule is not None
            sequence.rule.observe(turn, float(change))
        for sequence, position in launched.positions.items():
            if sequence in self._alive:
                self._listener.on_progress(sequence, position)
        finished = [s for s in result.finished if s in self._alive]
        for sequence in finished:
            self._alive.discard(sequence)
            sequence.finished_s = self._clock()
            self._listener.on_denoised(sequence, result.finished[sequence], result.clock)
        if finished:
            self._runner.forget(finished)

    def _fail(self, sequences: list[Sequence]) -> None:
        """Tell first: forgetting might fail, an answer must not."""
        self.scheduler.remove(sequences)
        for sequence in sequences:
            self._end(sequence, EngineFailed("the step failed; the log has the cause"))
        self._runner.forget(sequences)

    def _end(self, sequence: Sequence, error: ServeError) -> None:
        """Tell that it ended without a picture, if nobody has been told anything yet."""
        if sequence in self._alive:
            self._alive.discard(sequence)
            self._listener.on_failed(sequence, error)

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when there will be nothing more."""
        with self._changed:
            while not (self._inbox or self._launched or self._is_stopping):
                if not self.scheduler.is_empty():
                    break
                self._changed.wait()
            return not self._is_stopping

    def _take_inbox(self) -> list[Sequence]:
        with self._changed:
            taken = list(self._inbox)
            self._inbox.clear()
            return taken


def _is_late(sequence: Sequence, now_s: float) -> bool:
    return sequence.deadline_s is not None and now_s > sequence.deadline_s


def _reason(sequence: Sequence) -> ServeError:
    if sequence.is_cancelled:
        return Cancelled("the request was cancelled")
    limit = sequence.request.deadline_s
    assert limit is not None
    return DeadlineExceeded(f"deadline_ms: not done after {1e3 * limit:g} ms")


def _pass_on(done: Future[StepResult], to: Future[StepResult]) -> None:
    error = done.exception()
    if error is None:
        to.set_result(done.result())
    else:
        to.set_exception(error)
