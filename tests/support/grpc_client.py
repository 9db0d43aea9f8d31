"""The gRPC door on an engine, and a stub to knock at it with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry

from fit_serve.grpc_api import DoorConfig, GrpcDoor
from fit_serve.grpc_api.v1.generation_pb2_grpc import ImageGenerationStub
from fit_serve.service import Engine, GenerationService
from fit_serve.telemetry import Telemetry
from support.fake_engine import LIMITS


@dataclass(frozen=True)
class Knocker:
    """A channel to a door, and the stub on it."""

    door: GrpcDoor
    channel: grpc.aio.Channel
    stub: ImageGenerationStub


@asynccontextmanager
async def knocking(engine: Engine, config: DoorConfig | None = None) -> AsyncIterator[Knocker]:
    """A started door, and a client of it."""
    telemetry = Telemetry(CollectorRegistry(), LIMITS.name)
    service = GenerationService(engine, LIMITS, telemetry)
    door = GrpcDoor(service, config or DoorConfig())
    await door.start()
    try:
        options = [("grpc.max_receive_message_length", -1)]
        address = f"127.0.0.1:{door.port}"
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield Knocker(door, channel, ImageGenerationStub(channel))
    finally:
        await door.stop()
        service.close()
