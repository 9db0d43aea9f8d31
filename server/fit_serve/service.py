"""The use case that every transport calls: a request in, encoded images out.

The service checks a request against the model's limits, hands its sequences to the engine, waits,
and encodes the pixels in threads of its own, so that neither the event loop nor the engine does.
It counts the one end of every request. It knows no transport, no device and no tensor.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from fit_serve.errors import (
    Cancelled,
    DeadlineExceeded,
    DeadlineInfeasible,
    EngineFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServeError,
)
from fit_serve.images import MEDIA_TYPES, encode_image
from fit_serve.limits import ModelLimits
from fit_serve.request import (
    GenerationRequest,
    GenerationResult,
    GenerationTimings,
    Progress,
    SequenceRequest,
    SequenceResult,
)
from fit_serve.telemetry import Telemetry

OnProgress = Callable[[Progress], None]

RETRY_AFTER_SHUTDOWN_S = 5.0

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What the service and the probes need of an engine; `EngineHandle` is the real one."""

    def submit(
        self, sequences: Sequence[SequenceRequest], on_progress: OnProgress | None = None
    ) -> list[Future[SequenceResult]]:
        """Take all sequences or none, without waiting.

        Raises `Overloaded`, `NotReady` or `InvalidRequest`. `on_progress` is called from a thread
        of the engine.
        """
        ...

    def cancel(self, sequence_ids: Iterable[str]) -> None:
        """End the futures of these sequences with `Cancelled`; ignores ended and unknown ones."""
        ...

    def ready(self) -> bool:
        """Say whether requests are taken: started, and not draining."""
        ...

    def alive(self) -> bool:
        """Say whether the step loop moves; False means that only a restart helps."""
        ...


@dataclass(frozen=True)
class ServiceConfig:
    """How the service works; `request_timeout_s` None lets requests take as long as they want."""

    software: str = "fit-serve"
    request_timeout_s: float | None = None
    encode_workers: int = 2


class GenerationService:
    """Answers generation requests with one engine that serves one model."""

    def __init__(
        self,
        engine: Engine,
        limits: ModelLimits,
        telemetry: Telemetry,
        config: ServiceConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the parts. Encoding threads begin with the first image; `close` ends them."""
        self.engine = engine
        self.limits = limits
        self.telemetry = telemetry
        self._config = config or ServiceConfig()
        self._clock = clock
        self._accepted: dict[str, Sequence[SequenceRequest]] = {}  # that have not ended
        self._encoders = ThreadPoolExecutor(
            self._config.encode_workers, thread_name_prefix="fit-encode"
        )

    async def generate(
        self,
        request: GenerationRequest,
        on_progress: OnProgress | None = None,
        on_accepted: Callable[[], None] | None = None,
    ) -> GenerationResult:
        """Make the images of a request; raises a `ServeError`.

        Cancelling the task that runs this cancels the sequences in the engine, and so does
        `cancel`. `on_accepted` is called once, when it can no longer be refused.
        """
        arrived = self._clock()
        sequences = request.sequences()
        futures = self._admit(request, sequences, on_progress)
        self._accepted[request.request_id] = sequences
        if on_accepted is not None:
            on_accepted()
        timer = asyncio.timeout(self._config.request_timeout_s)
        try:
            async with timer:
                results = await _all_of(futures)
                result = await self._encode(request, results, arrived)
        except (Exception, asyncio.CancelledError) as error:
            self.engine.cancel([sequence.sequence_id for sequence in sequences])
            reason, told = self._failure(request, error, timer.expired())
            self.telemetry.request_finished(reason, self._clock() - arrived)
            raise told from error
        finally:
            self._accepted.pop(request.request_id, None)
        times = result.timings
        self.telemetry.request_finished(
            "completed", times.total_s, times.queued_s, times.run_s, times.decode_s, times.encode_s
        )
        return result

    def cancel(self, request_id: str) -> bool:
        """End a request with `Cancelled`; its tokens are free at the next step.

        Returns whether there is such a request, accepted and not ended.
        """
        sequences = self._accepted.pop(request_id, None)
        if sequences is None:
            return False
        self.engine.cancel([sequence.sequence_id for sequence in sequences])
        return True

    def close(self) -> None:
        """Stop the encoding threads, after the images they hold."""
        self._encoders.shutdown()

    def _admit(
        self,
        request: GenerationRequest,
        sequences: Sequence[SequenceRequest],
        on_progress: OnProgress | None,
    ) -> list[Future[SequenceResult]]:
        try:
            self.limits.check(request)
            return self.engine.submit(sequences, on_progress)
        except ServeError as error:
            self.telemetry.request_rejected(_rejected_reason(error))
            raise

    async def _encode(
        self, request: GenerationRequest, results: Sequence[SequenceResult], arrived: float
    ) -> GenerationResult:
        """Encode every image, side by side, and add up the times."""
        began = self._clock()
        loop = asyncio.get_running_loop()
        images = await asyncio.gather(
            *(
                loop.run_in_executor(
                    self._encoders,
                    encode_image,
                    result.pixels,
                    request.output_format,
                    self._parameters(request, seed),
                    self._config.software,
                    request.output_compression,
                )
                for result, seed in zip(results, request.seeds, strict=True)
            )
        )
        ended = self._clock()
        return GenerationResult(
            request=request,
            model=self.limits.name,
            class_name=self._class_name(request),
            images=tuple(images),
            media_type=MEDIA_TYPES[request.output_format],
            timings=GenerationTimings(
                queued_s=max(result.timings.queued_s for result in results),
                run_s=max(result.timings.run_s for result in results),
                decode_s=max(result.timings.decode_s for result in results),
                encode_s=ended - began,
                total_s=ended - arrived,
            ),
        )

    def _parameters(self, request: GenerationRequest, seed: int) -> dict[str, object]:
        """What to ask for to get this one image again: written into the image."""
        subject: dict[str, object] = {
            "class": self._class_name(request),
            "class_label": request.class_label,
        }
        if request.prompt is not None:
            subject = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        return {
            "model": self.limits.name,
            **subject,
            "height": request.height,
            "width": request.width,
            "seed": seed,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "guidance_interval": list(request.guidance_interval),
            "sampler": request.sampler,
            "quality": request.quality,
        }

    def _class_name(self, request: GenerationRequest) -> str | None:
        label = request.class_label
        return None if label is None else self.limits.class_names[label]

    def _failure(
        self,
        request: GenerationRequest,
        error: Exception | asyncio.CancelledError,
        expired: bool,
    ) -> tuple[str, ServeError | asyncio.CancelledError]:
        """Give the `finished_reason` of a request that did not complete, and what to raise."""
        if expired:
            limit = self._config.request_timeout_s
            return "timed_out", DeadlineExceeded(f"the request ran into the limit of {limit} s")
        match error:
            case asyncio.CancelledError():
                return "cancelled", error
            case Cancelled() if request.request_id not in self._accepted:
                return "cancelled", Cancelled("the request was cancelled")
            case Cancelled():
                # We did not ask for it: the engine stops what is left when its drain runs out.
                message = "the server shut down before this request was done"
                return "cancelled", NotReady(message, RETRY_AFTER_SHUTDOWN_S)
            case DeadlineExceeded():
                return "timed_out", error
            case ServeError():
                return "failed", error
        _log.error("the engine or the encoder raised what it never should", exc_info=error)
        return "failed", EngineFailed("the server failed on this request; its log has the cause")


async def _all_of(futures: Sequence[Future[SequenceResult]]) -> list[SequenceResult]:
    """Wait for every future; raises what the first failed one raised."""
    return await asyncio.gather(*(_followed(future) for future in futures))


def _followed(future: Future[SequenceResult]) -> asyncio.Future[SequenceResult]:
    """Give an awaitable of a future of the engine, which stays the engine's to end.

    Shielded, for when we stop waiting the future must not be cancelled under the engine's hands;
    then nobody looks at its end, which asyncio would report as an exception never retrieved.
    """
    follower = asyncio.wrap_future(future)
    follower.add_done_callback(lambda done: done.cancelled() or done.exception())
    return asyncio.shield(follower)


def _rejected_reason(error: ServeError) -> str:
    match error:
        case DeadlineInfeasible():
            return "late"
        case Overloaded():
            return "overloaded"
        case InvalidRequest():
            return "invalid"
    return "not_ready"
