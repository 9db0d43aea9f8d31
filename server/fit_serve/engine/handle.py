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
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.device import use_fast_float32_matmul
from fit_models.families import family_of, samplers_of, takes_grid
from fit_serve.engine.admission import Admission
from fit_serve.engine.budget import calibration_of, step_limits
from fit_serve.engine.caption_reader import CaptionReader
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.cost_model import CostModel
from fit_serve.engine.decoder import Decoder
from fit_serve.engine.engine import Engine
from fit_serve.engine.ledger import Ledger, OnProgress
from fit_serve.engine.order import Order
from fit_serve.engine.packer import StepReport
from fit_serve.engine.runner import Runner
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence, plan_sequence
from fit_serve.engine.step_cache import StepCache
from fit_serve.engine.step_clock import StepClock
from fit_serve.engine.step_executor import ThreadExecutor
from fit_serve.engine.step_meter import StepMeter
from fit_serve.errors import EngineFailed, InvalidRequest, NotReady, ServeError
from fit_serve.request import SequenceRequest, SequenceResult, SequenceTimings
from fit_serve.telemetry import Telemetry

_log = logging.getLogger(__name__)

_RETRY_AFTER_S = 5.0


@dataclass(frozen=True)
class EngineState:
    """How full it is: sequences running and waiting, and the tokens still to be computed."""

    running: int
    waiting: int
    remaining_tokens: int


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
        self._clock = clock
        self._step_cache = StepCache(
            self.config.step_cache_rule, self.config.step_cache_order, bundle.profile
        )
        if bundle.device.type == "cpu":
            use_fast_float32_matmul()
        self._calibration = calibration_of(bundle, self.config)
        graph_tokens = None if self._calibration is None else self._calibration.max_graph_tokens
        self._runner = Runner(bundle, self.config, graph_tokens)
        self._meter = StepMeter(self._runner, telemetry)
        self._order = Order(self.config.policy, self.config.priority_step_s, self.config.patience_s)
        self.limits = step_limits(bundle, self.config, self._calibration)
        self._admission = Admission(
            self.limits,
            self._order,
            self.config.max_queued_requests,
            self._cost_model,
            self._meter.decode_seconds,
        )
        overlaps = self.config.overlap
        if overlaps is None:
            overlaps = self._runner.device.type == "cuda"
        self._engine = Engine(
            Scheduler(self.limits, self.config.batching, self._order),
            self._runner,
            self,
            clock,
            ThreadExecutor(self._use_threads) if overlaps else None,
        )
        self._decoder: Decoder | None = None
        self._reader: CaptionReader | None = None
        self._telemetry = telemetry
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._ledger = Ledger()
        self._lock = threading.Lock()  # guards the phase, and a check until its use
        self._phase = "starting"

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads and make one small picture, so that the first client does not wait.

        Raises:
            ServeError: there was no picture; the engine is stopped again.
        """
        self._decoder = Decoder(
            self.bundle.autoencoder,
            self.bundle.model_config.patch_size,
            self.config.decode_workers,
            self._on_decoded,
            1 if self.config.batch_invariant else None,
        )
        if self.bundle.text_encoder is not None:
            self._reader = CaptionReader(
                self.bundle.text_encoder,
                self.config.prompt_cache_bytes,
                self._engine.put,
                self._ledger.fail,
                self._telemetry,
                self._use_threads,
            )
        self._runner.execution.warm_up(self._runner.rope)
        self._thread.start()
        warm_up = self._warm_up_request()
        try:
            with self._lock:
                (future,) = self._accept([self._plan(warm_up)], None)
            future.result()
        except BaseException:
            self.stop()
            raise
        with self._lock:
            if self._phase == "starting":
                self._phase = "ready"

    def _warm_up_request(self) -> SequenceRequest:
        """A small picture in two steps, of a size and with a sampler that the network takes."""
        model = self.bundle.model_config
        tokens = 4 if takes_grid(4, 4, model) else family_of(model).trained_side(model)
        side, sampler = tokens * self.bundle.pixels_per_token, samplers_of(model)[0]
        label, prompt = (0, None) if self.bundle.text_encoder is None else (None, "")
        return SequenceRequest(
            "warm-up", label, side, side, 0, 2, 2.0, (0.0, 1.0), sampler, prompt=prompt
        )

    def ready(self) -> bool:
        """Whether sequences are accepted."""
        return self._phase == "ready" and self.alive()

    def alive(self) -> bool:
        """False only when a restart would help: a thread is dead, or the loop stuck in one step."""
        if self._phase in ("starting", "stopped"):
            return True
        has_decoder = self._decoder is not None and self._decoder.is_alive()
        has_reader = self._reader is None or self._reader.is_alive()
        return self._thread.is_alive() and has_decoder and has_reader and not self._is_stuck()

    def drain(self, timeout_s: float) -> None:
        """Accept nothing more; wait until everything accepted has ended, at most `timeout_s`."""
        with self._lock:
            if self._phase == "ready":
                self._phase = "draining"
        wait(self._ledger.futures(), timeout=timeout_s)

    def stop(self) -> None:
        """End the threads. What is denoised is decoded; what is not ends as cancelled.

        A step or a decoding that is stuck is not waited for longer than `wedge_timeout_s`; its
        sequences end as failed.
        """
        with self._lock:
            self._phase = "stopped"
        if self._reader is not None:
            self._reader.close(self.config.wedge_timeout_s)
        self._engine.stop()
        if self._thread.ident is not None:
            self._thread.join(0.0 if self._is_stuck() else self.config.wedge_timeout_s)
        if self._decoder is not None:
            self._decoder.close(self.config.wedge_timeout_s)
        if not self._thread.is_alive():
            self._runner.execution.close()
        for sequence in self._ledger.sequences():
            self._ledger.fail(sequence, EngineFailed("the engine was stuck when it was stopped"))

    def state(self) -> EngineState:
        """Read from any thread; a moment old at most."""
        sequences = self._ledger.sequences()
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
            InvalidRequest: a sequence cannot be planned, or there are more than may ever wait.
            NotReady: starting, draining, stopped or stuck.
            Overloaded: the queue has no room, or no time before a deadline.
        """
        self._check_subjects(sequences)
        planned = [self._plan(request) for request in sequences]
        with self._lock:
            if not self.ready():
                what = "stuck" if self._phase == "ready" else self._phase
                raise NotReady(f"the engine is {what}", retry_after_s=_RETRY_AFTER_S)
            now_s, present = self._clock(), self._ledger.sequences()
            self._admission.prepare(planned, now_s)
            self._admission.check(planned, present, now_s)
            return self._accept(planned, on_progress)

    def cancel(self, sequence_ids: Iterable[str]) -> None:
        """Free the tokens of these sequences at the next step; ended ones are left alone."""
        self._ledger.cancel(sequence_ids)

    def _plan(self, request: SequenceRequest) -> Sequence:
        try:
            side, model = self.bundle.pixels_per_token, self.bundle.model_config
            return plan_sequence(request, side, self._step_cache, model)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error

    def _check_subjects(self, requests: Items[SequenceRequest]) -> None:
        """Refuse a class that is not there, a prompt that is too long, and each for the other."""
        encoder, classes = self.bundle.text_encoder, self.bundle.model_config.num_classes
        if encoder is None:
            for label in (request.class_label for request in requests):
                if label is None or not 0 <= label < classes:
                    raise InvalidRequest(
                        f"class is {label}; it must be in 0..{classes - 1}", param="class"
                    )
            return
        for prompt, negative in {(request.prompt, request.negative_prompt) for request in requests}:
            for name, text in (("prompt", prompt), ("negative_prompt", negative)):
                if text is None:
                    raise InvalidRequest(f"{name} is required: a text", param=name)
                try:
                    encoder.token_ids(text)
                except ValueError as error:
                    raise InvalidRequest(f"{name} {error}", name, "prompt_too_long") from error

    def _accept(
        self, planned: list[Sequence], on_progress: OnProgress | None
    ) -> list[Future[SequenceResult]]:
        futures = self._ledger.open(planned, on_progress)
        try:
            (self._reader or self._engine).put(planned)
        except EngineFailed as error:  # the loop has ended a moment ago
            for sequence in planned:
                self._ledger.fail(sequence, error)
            raise NotReady("the engine has stopped", retry_after_s=_RETRY_AFTER_S) from error
        return futures

    def _cost_model(self) -> CostModel | None:
        """The calibrated one, else what the steps so far say."""
        return self._calibration.cost_model if self._calibration else self._meter.cost_model()

    def _is_stuck(self) -> bool:
        since = self._engine.busy_since_s
        return since is not None and self._clock() - since > self.config.wedge_timeout_s

    # --- what the engine tells (its thread), and the decoder (its threads) ----------------------

    def _run(self) -> None:
        self._use_threads()
        self._engine.loop()

    def _use_threads(self) -> None:
        """OpenMP's number of threads belongs to the thread that asks for it."""
        if self.config.num_threads:
            torch.set_num_threads(self.config.num_threads)

    def on_step(self, report: StepReport, seconds: float) -> None:
        """Count a step."""
        self._meter.count(report, seconds)

    def on_progress(self, sequence: Sequence, position: int) -> None:
        """Pass on how far a sequence has come."""
        self._ledger.tell_progress(sequence, position)

    def on_denoised(self, sequence: Sequence, tokens: Tensor, clock: StepClock) -> None:
        """Queue a finished latent for decoding."""
        assert self._decoder is not None
        self._decoder.put(sequence, tokens, clock.done)

    def on_failed(self, sequence: Sequence, error: ServeError) -> None:
        """End a sequence without a picture."""
        self._ledger.fail(sequence, error)

    def _on_decoded(
        self, sequence: Sequence, outcome: numpy.ndarray | Exception, seconds: float
    ) -> None:
        if isinstance(outcome, Exception):
            _log.error("decoding %s failed", sequence.sequence_id, exc_info=outcome)
            failure = EngineFailed("decoding failed; the log has the cause")
            failure.__cause__ = outcome
            self._ledger.fail(sequence, failure)
            return
        assert sequence.started_s is not None
        assert sequence.finished_s is not None
        self._meter.count_decode(sequence, seconds)
        timings = SequenceTimings(
            queued_s=sequence.started_s - sequence.submitted_s,
            run_s=sequence.finished_s - sequence.started_s,
            decode_s=seconds,
        )
        self._ledger.finish(sequence, SequenceResult(sequence.sequence_id, outcome, timings))
