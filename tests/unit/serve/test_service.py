"""Every accepted request ends exactly once; a refused one never reaches the engine."""

import asyncio
import io
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from fit_serve import service as service_module
from fit_serve.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServeError,
)
from fit_serve.request import GenerationRequest, Progress
from fit_serve.service import GenerationService, ServiceConfig
from fit_serve.telemetry import FINISHED_REASONS, Telemetry
from support.fake_engine import LIMITS, TIMINGS, FakeEngine, gradient

ASKED = GenerationRequest("gen-1", class_label=1, height=32, width=48, seed=5)


class House:
    """A service on a fake engine, and what it counted."""

    def __init__(self, engine: FakeEngine, config: ServiceConfig | None = None) -> None:
        self.engine = engine
        self.registry = CollectorRegistry()
        telemetry = Telemetry(self.registry, LIMITS.name)
        self.service = GenerationService(engine, LIMITS, telemetry, config)

    def ended(self) -> dict[str, float]:
        counts = {
            reason: self._sample("fit_request_success_total", finished_reason=reason)
            for reason in FINISHED_REASONS
        }
        return {reason: count for reason, count in counts.items() if count}

    def rejected(self, reason: str) -> float:
        return self._sample("fit_requests_rejected_total", reason=reason)

    def _sample(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, {"model_name": LIMITS.name, **labels})
        assert value is not None
        return value


@pytest.fixture
def house() -> Iterator[House]:
    built = House(FakeEngine())
    yield built
    built.service.close()


@pytest.fixture
def patient() -> Iterator[House]:
    built = House(FakeEngine(patient=True))
    yield built
    built.service.close()


async def submitted(task: asyncio.Task[object]) -> None:
    """Let the task run until its sequences are in the engine."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()


async def test_images_come_in_the_order_of_their_seeds(house: House) -> None:
    result = await house.service.generate(replace(ASKED, num_images=3))
    assert result.seeds == (5, 6, 7)
    for image, seed in zip(result.images, result.seeds, strict=True):
        pixels = numpy.asarray(Image.open(io.BytesIO(image)))
        assert numpy.array_equal(pixels, gradient(32, 48, seed))
    assert (result.timings.queued_s, result.timings.run_s) == (TIMINGS.queued_s, TIMINGS.run_s)
    assert result.media_type == "image/png"
    assert house.ended() == {"completed": 1}


async def test_an_image_carries_what_makes_it_again_alone(house: House) -> None:
    result = await house.service.generate(replace(ASKED, num_images=2))
    text = Image.open(io.BytesIO(result.images[1])).info["parameters"]
    for part in ('"seed": 6', '"class": "sunflower"', '"height": 32', '"model": "fake-fit"'):
        assert part in text


async def test_progress_is_passed_on(house: House) -> None:
    seen: list[Progress] = []
    await house.service.generate(ASKED, seen.append)
    assert seen == [Progress("gen-1-0", 1, ASKED.num_inference_steps)]


async def test_encoding_leaves_the_event_loop_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def encode(*_: object) -> bytes:
        threads.append(threading.current_thread())
        return b"image"

    monkeypatch.setattr(service_module, "encode_image", encode)
    await house.service.generate(ASKED)
    assert [thread.name.startswith("fit-encode") for thread in threads] == [True]


async def test_what_the_model_cannot_do_never_reaches_the_engine(house: House) -> None:
    with pytest.raises(InvalidRequest):
        await house.service.generate(replace(ASKED, height=33))
    assert house.engine.submitted == []
    assert (house.rejected("invalid"), house.ended()) == (1, {})


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [(Overloaded("full", 2.0), "overloaded"), (NotReady("starting", 2.0), "not_ready")],
)
async def test_a_refusal_of_the_engine_is_counted_and_passed_on(
    house: House, refusal: ServeError, reason: str
) -> None:
    house.engine.refusal = refusal
    with pytest.raises(type(refusal)):
        await house.service.generate(ASKED)
    assert (house.rejected(reason), house.ended()) == (1, {})


async def test_cancelling_the_wait_stops_the_sequences(patient: House) -> None:
    task = asyncio.create_task(patient.service.generate(replace(ASKED, num_images=2)))
    await submitted(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert patient.engine.unfinished == []
    assert patient.ended() == {"cancelled": 1}


async def test_one_failed_image_stops_its_siblings(patient: House) -> None:
    task = asyncio.create_task(patient.service.generate(replace(ASKED, num_images=3)))
    await submitted(task)
    patient.engine.fail("gen-1-1", EngineFailed("out of memory"))
    with pytest.raises(EngineFailed, match="out of memory"):
        await task
    assert patient.engine.unfinished == []
    assert patient.ended() == {"failed": 1}


async def test_a_bug_of_the_engine_is_our_fault_and_keeps_its_detail_to_the_log(
    patient: House, caplog: pytest.LogCaptureFixture
) -> None:
    task = asyncio.create_task(patient.service.generate(ASKED))
    await submitted(task)
    patient.engine.fail("gen-1-0", RuntimeError("secret"))
    with pytest.raises(EngineFailed) as caught:
        await task
    assert "secret" not in caught.value.message
    assert "secret" in caplog.text
    assert patient.ended() == {"failed": 1}


async def test_a_shutdown_that_does_not_wait_is_told_to_the_client(patient: House) -> None:
    task = asyncio.create_task(patient.service.generate(ASKED))
    await submitted(task)
    patient.engine.fail("gen-1-0", Cancelled("drained"))
    with pytest.raises(NotReady, match="shut down"):
        await task
    assert patient.ended() == {"cancelled": 1}


async def test_a_request_that_takes_too_long_is_stopped_and_told() -> None:
    slow = House(FakeEngine(patient=True), ServiceConfig(request_timeout_s=0.01))
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        await slow.service.generate(ASKED)
    assert slow.engine.unfinished == []
    assert slow.ended() == {"timed_out": 1}


async def test_among_many_every_request_ends_exactly_once(patient: House) -> None:
    engine, service = patient.engine, patient.service
    asked = [replace(ASKED, request_id=f"gen-{i}", num_images=1 + i % 3) for i in range(40)]
    tasks = [asyncio.create_task(service.generate(request)) for request in asked]
    await submitted(tasks[-1])
    for index, (request, task) in enumerate(zip(asked, tasks, strict=True)):
        names = [sequence.sequence_id for sequence in request.sequences()]
        if index % 4 == 0:
            task.cancel()
        elif index % 4 == 1:
            engine.fail(names[0], EngineFailed("boom"))
        else:
            for name in names:
                engine.finish(name)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert engine.unfinished == []
    assert patient.ended() == {"completed": 20, "failed": 10, "cancelled": 10}
    assert sum(patient.ended().values()) == len(asked)
