"""The gRPC server beside the HTTP one, in the same event loop: its life, health and reflection."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fit_serve.grpc_api.servicer import GenerationServicer
from fit_serve.grpc_api.v1 import generation_pb2
from fit_serve.grpc_api.v1.generation_pb2_grpc import add_ImageGenerationServicer_to_server
from fit_serve.service import GenerationService

SERVICE = generation_pb2.DESCRIPTOR.services_by_name["ImageGeneration"].full_name
MAX_REQUEST_BYTES = 64 * 1024
"""As over HTTP: a request is a few numbers."""
LAST_ANSWERS_S = 5.0
"""Seconds that answers get to reach slow clients after the drain."""
HEALTH_INTERVAL_S = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DoorConfig:
    """Where to listen; `port` 0 takes a free one. `reflection` tells clients of the contract."""

    host: str = "127.0.0.1"
    port: int = 0
    reflection: bool = True


class GrpcDoor:
    """Answers gRPC calls with one service; to be started and stopped in the event loop.

    Attributes:
        port: where it listens; known once it has started.
    """

    def __init__(self, service: GenerationService, config: DoorConfig) -> None:
        self._service = service
        self._config = config
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._watching: asyncio.Task[None] | None = None
        self._server: aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen and answer.

        Raises:
            ValueError: the address cannot be taken.
        """
        # Receiving is bounded, sending is not: pictures are larger than the 4 MiB of the default.
        options = [
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        server = aio.server(options=options)
        add_ImageGenerationServicer_to_server(GenerationServicer(self._service), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._config.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        address = _address(self._config.host, self._config.port)
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise ValueError(
                f"host {self._config.host}, grpc_port {self._config.port}: cannot listen there"
            ) from error
        await self._tell_health()
        await server.start()
        self._server = server
        self._watching = asyncio.create_task(self._watch())
        _log.info("gRPC on %s", _address(self._config.host, self.port))

    async def stop(self) -> None:
        """Refuse new calls, let answers under way go out, and end."""
        if self._watching is not None:
            self._watching.cancel()
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(LAST_ANSWERS_S)

    async def _watch(self) -> None:
        """Pass on what the engine says of itself: while it drains, health is NOT_SERVING."""
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            await self._tell_health()

    async def _tell_health(self) -> None:
        engine = self._service.engine
        serves = engine.alive() and engine.ready()
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if serves else statuses.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
