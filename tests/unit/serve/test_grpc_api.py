"""`fit_serve.v1.ImageGeneration` as a client sees it: pictures, progress, statuses, leaving."""

import asyncio
import io
from pathlib import Path
from typing import Any

import grpc
import numpy
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from fit_serve.errors import (
    ERROR_FORMS,
    DeadlineInfeasible,
    EngineFailed,
    NotReady,
    Overloaded,
    ServeError,
)
from fit_serve.grpc_api import DoorConfig
from fit_serve.grpc_api.v1 import generation_pb2 as pb
from fit_serve.request import Progress
from support.fake_engine import LIMITS, FakeEngine, gradient
from support.grpc_client import Knocker, knocking
from support.repository import ROOT

SERVICE = "fit_serve.v1.ImageGeneration"


def asked(**more: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(class_name="Car Side", height=32, width=48, seed=7, **more)  # type: ignore[arg-type]


async def failure(call: grpc.aio.UnaryUnaryCall) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> dict[type, object]:
    """What `google.rpc.Status` carries, by type."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    found: dict[type, object] = {}
    for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
        detail = getattr(error_details_pb2, kind)()
        for packed in status.details:
            if packed.Unpack(detail):
                found[type(detail)] = detail
    return found


async def wait_until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def test_the_answer_has_the_picture_and_all_that_made_it() -> None:
    async with knocking(FakeEngine()) as at:
        answer = await at.stub.Generate(asked(output_format="webp"))
    assert answer.media_type == "image/webp"
    assert (answer.model, answer.height, answer.width) == (LIMITS.name, 32, 48)
    assert (answer.image_class.id, answer.image_class.name) == (2, "car_side")
    assert answer.sampler == LIMITS.defaults.sampler
    assert answer.guidance_scale == LIMITS.defaults.guidance_scale
    assert (answer.guidance_interval.low, answer.guidance_interval.high) == (0.1, 0.9)
    assert (answer.timings.queue_ms, answer.timings.inference_ms) == (250.0, 500.0)
    assert [image.seed for image in answer.images] == [7]


async def test_pictures_are_those_of_their_seeds() -> None:
    async with knocking(FakeEngine()) as at:
        answer = await at.stub.Generate(asked(num_images=3))
    for index, image in enumerate(answer.images):
        pixels = numpy.asarray(Image.open(io.BytesIO(image.data)))
        assert numpy.array_equal(pixels, gradient(32, 48, 7 + index))


async def test_a_class_is_called_by_name_or_by_id() -> None:
    engine = FakeEngine()
    async with knocking(engine) as at:
        await at.stub.Generate(pb.GenerateRequest(class_label=2, height=32, width=32))
        await at.stub.Generate(pb.GenerateRequest(class_name="2", height=32, width=32))
        await at.stub.Generate(pb.GenerateRequest(class_label=0, height=32, width=32))
    assert [s.class_label for s in engine.submitted] == [2, 2, 0]


async def test_a_stream_tells_of_every_image_and_ends_with_the_pictures() -> None:
    engine = FakeEngine(patient=True)
    async with knocking(engine) as at:
        call = at.stub.GenerateStream(asked(num_images=2))
        accepted = await call.read()
        first = await call.read()
        second = await call.read()
        for name in engine.unfinished:
            engine.finish(name)
        last = await call.read()
        assert await call.read() == grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]
    assert accepted.accepted.id == last.completed.id
    assert {e.progress.image_index for e in (first, second)} == {0, 1}
    assert first.progress.evaluations_done == 1
    assert first.progress.evaluations_total == LIMITS.defaults.num_inference_steps
    assert len(last.completed.images) == 2


async def test_a_slow_reader_gets_the_latest_of_each_image() -> None:
    class Chatty(FakeEngine):
        def submit(self, sequences, on_progress=None):
            futures = super().submit(sequences, on_progress)
            assert on_progress is not None
            for done in range(2, 20):
                on_progress(Progress(sequences[0].sequence_id, done, 20))
            return futures

    async with knocking(Chatty()) as at:
        events = [event async for event in at.stub.GenerateStream(asked())]
    assert [e.WhichOneof("event") for e in events] == ["accepted", "progress", "completed"]
    assert events[1].progress.evaluations_done == 19


@pytest.mark.parametrize(
    ("message", "field", "reason"),
    [
        (pb.GenerateRequest(height=32, width=32), "class_name", "invalid_request_error"),
        (
            pb.GenerateRequest(class_name="zebra", height=32, width=32),
            "class",
            "unknown_class",
        ),
        (pb.GenerateRequest(class_label=0, width=32), "height", "invalid_request_error"),
        (asked(num_images=0), "num_images", "invalid_request_error"),
        (asked(guidance_scale=float("nan")), "guidance_scale", "invalid_request_error"),
        (asked(deadline_ms=float("nan")), "deadline_ms", "invalid_request_error"),
        (asked(sampler="ddim"), "sampler", "invalid_request_error"),
        (
            asked(guidance_interval=pb.GuidanceInterval(low=0.5, high=0.5)),
            "guidance_interval",
            "invalid_request_error",
        ),
    ],
)
async def test_bad_input_names_the_field(
    message: pb.GenerateRequest, field: str, reason: str
) -> None:
    engine = FakeEngine()
    async with knocking(engine) as at:
        error = await failure(at.stub.Generate(message))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    found = details(error)
    info = found[error_details_pb2.ErrorInfo]
    bad = found[error_details_pb2.BadRequest]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert info.reason == reason
    assert bad.field_violations[0].field == field
    assert field.split("_")[0] in str(error.details())
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("refusal", "code", "seconds"),
    [
        (Overloaded("full", 2.5), grpc.StatusCode.RESOURCE_EXHAUSTED, 3),
        (DeadlineInfeasible(1.0, 9.0), grpc.StatusCode.RESOURCE_EXHAUSTED, 8),
        (NotReady("starting", 5.0), grpc.StatusCode.UNAVAILABLE, 5),
    ],
)
async def test_a_refusal_says_when_to_come_back(
    refusal: ServeError, code: grpc.StatusCode, seconds: int
) -> None:
    async with knocking(FakeEngine(refusal=refusal)) as at:
        error = await failure(at.stub.Generate(asked()))
        streamed = at.stub.GenerateStream(asked())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await streamed.read()
    assert error.code() == caught.value.code() == code
    retry = details(error)[error_details_pb2.RetryInfo]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.seconds == seconds


def test_every_error_has_a_status_of_grpc() -> None:
    for form in ERROR_FORMS.values():
        assert form.grpc_status in grpc.StatusCode.__members__


async def test_a_bug_is_an_internal_error_without_its_details() -> None:
    async with knocking(FakeEngine(refusal=EngineFailed("the step failed"))) as at:
        error = await failure(at.stub.Generate(asked()))
        assert error.code() == grpc.StatusCode.INTERNAL

    class Broken(FakeEngine):
        def submit(self, sequences, on_progress=None):
            raise RuntimeError("secret")

    async with knocking(Broken()) as at:
        error = await failure(at.stub.Generate(asked()))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(error.details())


@pytest.mark.parametrize("streams", [False, True])
async def test_cancelling_a_call_frees_its_sequences(streams: bool) -> None:
    engine = FakeEngine(patient=True)
    async with knocking(engine) as at:
        method = at.stub.GenerateStream if streams else at.stub.Generate
        call = method(asked(num_images=2))
        if streams:
            await call.read()
        await wait_until(lambda: len(engine.submitted) == 2)
        call.cancel()
        await wait_until(lambda: not engine.unfinished)
        assert sorted(engine.stopped) == sorted(s.sequence_id for s in engine.submitted)


async def test_the_deadline_of_a_call_is_that_of_its_pictures() -> None:
    engine = FakeEngine()
    async with knocking(engine) as at:
        await at.stub.Generate(asked(), timeout=30)
        await at.stub.Generate(asked(deadline_ms=5000), timeout=30)
        await at.stub.Generate(asked(deadline_ms=50_000), timeout=30)
        await at.stub.Generate(asked(deadline_ms=50_000))
        await at.stub.Generate(asked())
    first, told, call, no_call, none = (s.deadline_s for s in engine.submitted)
    assert first is not None
    assert 25 < first < 31
    assert told == 5
    assert call is not None
    assert 25 < call < 31
    assert no_call == 50
    assert none is None


async def test_ids_are_echoed_or_given() -> None:
    async with knocking(FakeEngine()) as at:
        call = at.stub.Generate(asked(), metadata=(("x-request-id", "mine-1"),))
        await call
        assert dict(await call.initial_metadata())["x-request-id"] == "mine-1"
        call = at.stub.Generate(asked(), metadata=(("x-request-id", "not plain!"),))
        await call
        assert str(dict(await call.initial_metadata())["x-request-id"]).startswith("req-")


async def test_a_request_longer_than_the_cap_is_refused_unread() -> None:
    engine = FakeEngine()
    async with knocking(engine) as at:
        error = await failure(at.stub.Generate(asked(sampler="x" * 70_000)))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert engine.submitted == []


def health_stub(at: Knocker) -> Any:
    return health_pb2_grpc.HealthStub(at.channel)


async def health_of(at: Knocker, service: str = "") -> int:
    answer = await health_stub(at).Check(health_pb2.HealthCheckRequest(service=service))
    return answer.status


async def test_health_follows_the_engine_and_says_when_it_drains() -> None:
    engine = FakeEngine()
    serving = health_pb2.HealthCheckResponse
    async with knocking(engine) as at:
        assert await health_of(at) == serving.SERVING
        assert await health_of(at, SERVICE) == serving.SERVING
        error = await failure(
            health_stub(at).Check(health_pb2.HealthCheckRequest(service="nothing"))
        )
        assert error.code() == grpc.StatusCode.NOT_FOUND
        watch = health_stub(at).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == serving.SERVING
        engine.is_ready = False
        assert (await watch.read()).status == serving.NOT_SERVING
        watch.cancel()


async def reflected(at: Knocker) -> set[str]:
    channel: Any = at.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asking = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    async for answer in stub.ServerReflectionInfo(asking):
        return {service.name for service in answer.list_services_response.service}
    raise AssertionError("no answer")


async def test_reflection_tells_the_contract_and_can_be_off() -> None:
    async with knocking(FakeEngine()) as at:
        assert {SERVICE, "grpc.health.v1.Health"} <= await reflected(at)
    async with knocking(FakeEngine(), DoorConfig(reflection=False)) as at:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflected(at)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_taken_port_is_said_in_one_line() -> None:
    async with knocking(FakeEngine()) as at:
        with pytest.raises(ValueError, match=f"grpc_port {at.door.port}"):
            async with knocking(FakeEngine(), DoorConfig(port=at.door.port)):
                pass


def test_the_generated_code_is_that_of_the_contract(tmp_path: Path) -> None:
    from grpc_tools import protoc

    contract = "fit_serve/grpc_api/v1/generation.proto"
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{ROOT / 'server'}", *outs, contract]) == 0
    made = sorted(tmp_path.rglob("*.py*"))
    assert len(made) == 3
    for file in made:
        committed = ROOT / "server" / file.relative_to(tmp_path)
        assert committed.read_text() == file.read_text(), "run make proto"
