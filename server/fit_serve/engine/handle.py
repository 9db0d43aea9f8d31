"""The outside of the engine: submit, follow, cancel, from any thread.

Admission happens here, before anything is queued: a refusal is immediate and says why. Every
accepted sequence ends exactly once, in its future.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from concurrent.futures import Future
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.device import use_fast_float32_matmul
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.decoder import Decoder
from fit_serve.engine.engine import Engine
from fit_serve.engine.runner import Runner, StepReport
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence, plan_sequence
from fit_serve.errors import EngineFailed, InvalidRequest, NotReady, Overloaded, ServeError
from fit_serve.request import Progress, SequenceRequest, SequenceResult, SequenceTimings
from fit_serve.telemetry import Telemetry

_log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]
_CPU_TOKENS, _GPU_TOKENS = 4096, 16_384
_SPEED_MEMORY = 0.9


@dataclass(frozen=True)
class EngineState:
    """How full the engine is: sequences running and waiting, and the tokens still to be computed."""

    running: int
    waiting: int
    remaining_tokens: int


@dataclass
class _Accepted:
    """An accepted sequence and who waits for it."""

    sequence: Sequence
    future: Future[SequenceResult]
    on_progress: OnProgress | None


class EngineHandle:
    """An engine in its own thread, with a decoder beside it."""

    def __init__(
        self,
        bundle: Bundle,
        config: EngineConfig | None = None,
        telemetry: Telemetry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config or EngineConfig()
        self.bundle = bundle
        self._telemetry = telemetry
        self._clock = clock
        self._runner = Runner(bundle, self.config)
        self.max_num_batched_tokens = self.config.max_num_batched_tokens or (
            _CPU_TOKENS if self._runner.device.type == "cpu" else _GPU_TOKENS
        )
        scheduler = Scheduler(
            self.max_num_batched_tokens, self.config.max_num_seqs, self.config.batching
        )
        self._engine = Engine(scheduler, self._runner, self, clock)
        self._decoder: Decoder | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._lock = threading.Lock()
        self._accepted: dict[str, _Accepted] = {}
        self._phase = "starting"
        self._tokens_per_s = 0.0
        self._counted = (0, 0, 0, 0)

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads and make one small picture, so that the first client does not wait."""
        model = self.bundle.model_config
        self._decoder = Decoder(
            self.bundle.autoencoder,
            model.patch_size,
            self.config.decode_workers,
            self._on_decoded,
        )
        self._thread.start()
        self._phase = "ready"
        side = 4 * self.bundle.pixels_per_token
        warm_up = SequenceRequest("warm-up", 0, side, side, 0, 2, 2.0, (0.0, 1.0), "euler")
        self.submit([warm_up])[0].result()

    def ready(self) -> bool:
        """Whether sequences are accepted."""
        return self._phase == "ready" and self.alive()

    def alive(self) -> bool:
        """False only when a restart would help: the loop is dead, or stuck in one step."""
        if self._phase in ("starting", "stopped"):
            return True
        since = self._engine.busy_since_s
        stuck = since is not None and self._clock() - since > self.config.wedge_timeout_s
        return self._thread.is_alive() and not stuck

    def drain(self, timeout_s: float) -> None:
        """Accept nothing more; wait until everything accepted has ended, at most `timeout_s`."""
        if self._phase == "ready":
            self._phase = "draining"
        deadline = self._clock() + timeout_s
        for future in [a.future for a in self._snapshot()]:
            left = deadline - self._clock()
            if left <= 0:
                break
            try:
                future.exception(timeout=left)
            except TimeoutError:
                break

    def stop(self) -> None:
        """End the threads; what is still running ends as failed, what is denoised is decoded."""
        self._phase = "stopped"
        self._engine.stop()
        if self._thread.ident is not None:
            self._thread.join()
        if self._decoder is not None:
            self._decoder.close()

    def state(self) -> EngineState:
        """Read from any thread; a moment old at most."""
        sequences = [a.sequence for a in self._snapshot()]
        running = [s for s in sequences if s.started_s is not None and s.finished_s is None]
        waiting = [s for s in sequences if s.started_s is None]
        return EngineState(
            running=len(running),
            waiting=len(waiting),
            remaining_tokens=sum(s.remaining_tokens for s in (*running, *waiting)),
        )

    # --- requests -----------------------------------------------------------------------------

    def submit(
        self, sequences: Items[SequenceRequest], on_progress: OnProgress | None = None
    ) -> list[Future[SequenceResult]]:
        """Accept all sequences or none.

        Args:
            sequences: one per image.
            on_progress: called from the engine's thread after each evaluation; must be quick.

        Returns:
            one future per sequence; ends with a result or a `ServeError`.

        Raises:
            InvalidRequest: a sequence cannot be planned.
            NotReady: starting, draining or stopped.
            Overloaded: the queue has no room.
        """
        try:
            planned = [plan_sequence(r, self.bundle.pixels_per_token) for r in sequences]
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        if not self.ready():
            raise NotReady(f"the engine is {self._phase}", retry_after_s=5.0)
        with self._lock:
            self._refuse_if_full(len(planned))
            accepted = [_Accepted(s, Future(), on_progress) for s in planned]
            for a in accepted:
                if a.sequence.sequence_id in self._accepted:
                    raise InvalidRequest(f"sequence_id {a.sequence.sequence_id!r} is in use")
            for a in accepted:
                a.sequence.submitted_s = self._clock()
                a.future.set_running_or_notify_cancel()
                self._accepted[a.sequence.sequence_id] = a
        self._engine.put(planned)
        return [a.future for a in accepted]

    def cancel(self, sequence_ids: Iterable[str]) -> None:
        """Free the tokens of these sequences at the next step; ended ones are left alone."""
        with self._lock:
            for sequence_id in sequence_ids:
                if (accepted := self._accepted.get(sequence_id)) is not None:
                    accepted.sequence.is_cancelled = True
        self._engine.wake()

    def _refuse_if_full(self, count: int) -> None:
        waiting = sum(a.sequence.started_s is None for a in self._accepted.values())
        limit = self.config.max_queued_requests
        if waiting + count <= limit:
            return
        work = sum(a.sequence.remaining_tokens for a in self._accepted.values())
        seconds = work / self._tokens_per_s if self._tokens_per_s else 1.0
        share = (waiting + count - limit) / max(len(self._accepted), 1)
        raise Overloaded(
            f"{waiting} sequences are waiting and {count} more were asked for; the limit is {limit}",
            retry_after_s=max(1.0, seconds * min(share, 1.0)),
        )

    def _snapshot(self) -> list[_Accepted]:
        with self._lock:
            return list(self._accepted.values())

    # --- what the engine tells (its thread), and the decoder (its threads) ----------------------

    def _run(self) -> None:
        if self.config.num_threads:
            torch.set_num_threads(self.config.num_threads)
        if self._runner.device.type == "cpu":
            use_fast_float32_matmul()
        self._engine.loop()

    def on_step(self, report: StepReport, seconds: float) -> None:
        """Count a step."""
        speed = report.real_tokens / max(seconds, 1e-9)
        self._tokens_per_s = (
            _SPEED_MEMORY * self._tokens_per_s + (1 - _SPEED_MEMORY) * speed
            if self._tokens_per_s
            else speed
        )
        if self._telemetry is None:
            return
        self._telemetry.step_finished(
            report.real_tokens,
            report.padded_tokens,
            report.num_sequences,
            report.num_resolutions,
            seconds,
        )
        rope, modulation = self._runner.rope, self._runner.modulation
        now = (rope.hits, rope.misses, modulation.hits, modulation.misses)
        new = tuple(a - b for a, b in zip(now, self._counted, strict=True))
        self._counted = now
        self._telemetry.rope_cache(new[0], new[1], rope.num_bytes)
        self._telemetry.modulation_cache(new[2], new[3])

    def on_progress(self, sequence: Sequence) -> None:
        """Pass on how far a sequence has come."""
        accepted = self._accepted.get(sequence.sequence_id)
        if accepted is not None and accepted.on_progress is not None:
            accepted.on_progress(
                Progress(sequence.sequence_id, sequence.position, len(sequence.evaluations))
            )

    def on_denoised(self, sequence: Sequence, tokens: Tensor) -> None:
        """Queue a finished latent for decoding."""
        assert self._decoder is not None
        self._decoder.put(sequence, tokens)

    def on_failed(self, sequence: Sequence, error: ServeError) -> None:
        """End a sequence without a picture."""
        self._end(sequence).set_exception(error)

    def _on_decoded(
        self, sequence: Sequence, outcome: numpy.ndarray | Exception, seconds: float
    ) -> None:
        future = self._end(sequence)
        if isinstance(outcome, Exception):
            _log.error("decoding %s failed", sequence.sequence_id, exc_info=outcome)
            failure = EngineFailed("decoding failed; the log has the cause")
            failure.__cause__ = outcome
            future.set_exception(failure)
            return
        assert sequence.started_s is not None
        assert sequence.finished_s is not None
        timings = SequenceTimings(
            queued_s=sequence.started_s - sequence.submitted_s,
            run_s=sequence.finished_s - sequence.started_s,
            decode_s=seconds,
        )
        future.set_result(SequenceResult(sequence.sequence_id, outcome, timings))

    def _end(self, sequence: Sequence) -> Future[SequenceResult]:
        with self._lock:
            return self._accepted.pop(sequence.sequence_id).future
