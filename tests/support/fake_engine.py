"""An engine without network, device or thread: it makes coloured gradients, when told to.

`FakeEngine()` answers every sequence at once. `FakeEngine(patient=True)` keeps sequences until the
test calls `finish`, `fail` or `cancel`. A future that is ended twice raises, so the exactly-once
law is checked wherever this engine is used.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

import numpy

from fit_serve.errors import Cancelled, ServeError
from fit_serve.limits import Defaults, ModelLimits
from fit_serve.request import Progress, SequenceRequest, SequenceResult, SequenceTimings

CLASS_NAMES = ("airplane", "sunflower", "car_side", "sea horse", "crane, bird", "crane, machine")

LIMITS = ModelLimits(
    name="fake-fit",
    class_names=CLASS_NAMES,
    size_multiple=16,
    min_side=32,
    max_tokens=256,
    samplers=("euler", "heun"),
    defaults=Defaults(
        num_inference_steps=20,
        guidance_scale=2.5,
        guidance_interval=(0.1, 0.9),
        sampler="euler",
    ),
)

TIMINGS = SequenceTimings(queued_s=0.25, run_s=0.5, decode_s=0.125)


class FakeEngine:
    """Keeps what it was asked for in `submitted`, and the ids it was told to stop in `stopped`."""

    def __init__(self, patient: bool = False, refusal: ServeError | None = None) -> None:
        self.patient = patient
        self.refusal = refusal
        self.is_ready = True
        self.is_alive = True
        self.submitted: list[SequenceRequest] = []
        self.stopped: list[str] = []
        self._futures: dict[str, Future[SequenceResult]] = {}

    @property
    def unfinished(self) -> list[str]:
        return [name for name, future in self._futures.items() if not future.done()]

    def submit(
        self,
        sequences: Sequence[SequenceRequest],
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Future[SequenceResult]]:
        if self.refusal is not None:
            raise self.refusal
        futures = []
        for sequence in sequences:
            assert sequence.sequence_id not in self._futures, "sequence ids must be unique"
            self.submitted.append(sequence)
            future: Future[SequenceResult] = Future()
            self._futures[sequence.sequence_id] = future
            futures.append(future)
            if on_progress is not None:
                on_progress(Progress(sequence.sequence_id, 1, sequence.num_inference_steps))
            if not self.patient:
                self.finish(sequence.sequence_id)
        return futures

    def cancel(self, sequence_ids: Iterable[str]) -> None:
        for sequence_id in sequence_ids:
            self.stopped.append(sequence_id)
            future = self._futures.get(sequence_id)
            if future is not None and not future.done():
                future.set_exception(Cancelled("stopped"))

    def finish(self, sequence_id: str) -> None:
        asked = next(s for s in self.submitted if s.sequence_id == sequence_id)
        self._futures[sequence_id].set_result(
            SequenceResult(sequence_id, gradient(asked.height, asked.width, asked.seed), TIMINGS)
        )

    def fail(self, sequence_id: str, error: Exception) -> None:
        self._futures[sequence_id].set_exception(error)

    def ready(self) -> bool:
        return self.is_ready

    def alive(self) -> bool:
        return self.is_alive


def gradient(height: int, width: int, seed: int) -> numpy.ndarray:
    """A smooth picture that depends on size and seed: uint8 [height, width, 3]."""
    rows = numpy.linspace(0, 255, height)[:, None]
    columns = numpy.linspace(0, 255, width)[None, :]
    tint = numpy.full((height, width), seed % 256)
    return numpy.stack([rows + 0 * columns, columns + 0 * rows, tint], axis=-1).astype("uint8")
