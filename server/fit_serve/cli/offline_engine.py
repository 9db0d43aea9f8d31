"""An engine that makes one picture after the other with a solver that owns its loop.

For `fit-serve generate --sampler dopri5` alone: adaptive solvers have no place in the shared batch.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from fit_models.bundle import Bundle
from fit_models.diffusion.guidance import Guidance
from fit_models.families import VELOCITY, caption_reading, prediction_of, samplers_of
from fit_models.offline import sample_offline
from fit_serve.errors import InvalidRequest
from fit_serve.request import Progress, SequenceRequest, SequenceResult, SequenceTimings


class OfflineEngine:
    """Takes what an `EngineHandle` takes; cannot stop in the middle of a picture."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="offline")

    def submit(
        self,
        sequences: Sequence[SequenceRequest],
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Future[SequenceResult]]:
        """Queue the pictures; progress is told once per finished picture.

        Raises:
            InvalidRequest: the solver follows a velocity, and the network predicts noise or reads
                prompts.
        """
        config = self._bundle.model_config
        if caption_reading(config) is not None:
            raise InvalidRequest(
                f"sampler {sequences[0].sampler!r} is for models that draw classes; those of "
                f"{self._bundle.name} are {', '.join(samplers_of(config))}",
                param="sampler",
            )
        for request in sequences:
            if prediction_of(config) != VELOCITY:
                raise InvalidRequest(
                    f"sampler {request.sampler!r} follows a velocity and {self._bundle.name} "
                    f"predicts noise; its samplers are {', '.join(samplers_of(config))}",
                    param="sampler",
                )
        return [self._pool.submit(self._make, request, on_progress) for request in sequences]

    def cancel(self, sequence_ids: Iterable[str]) -> None:
        """Nothing to free: a picture runs to its end."""

    def ready(self) -> bool:
        """Whether pictures are taken."""
        return True

    def alive(self) -> bool:
        """Whether a restart would not help."""
        return True

    def start(self) -> None:
        """Nothing to warm up."""

    def stop(self) -> None:
        """Finish what runs and end the thread."""
        self._pool.shutdown()

    def _make(
        self, request: SequenceRequest, on_progress: Callable[[Progress], None] | None
    ) -> SequenceResult:
        started = time.monotonic()
        assert request.class_label is not None
        pixels = sample_offline(
            self._bundle,
            request.class_label,
            request.height,
            request.width,
            request.seed,
            Guidance(request.guidance_scale, request.guidance_interval),
            request.sampler,
            request.num_inference_steps,
        )
        if on_progress is not None:
            on_progress(Progress(request.sequence_id, 1, 1))
        timings = SequenceTimings(0.0, time.monotonic() - started, 0.0)
        return SequenceResult(request.sequence_id, pixels.permute(1, 2, 0).cpu().numpy(), timings)
