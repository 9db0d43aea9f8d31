"""The calls of `fit_serve.v1.ImageGeneration` on the service.

Each call is a task of the event loop; when a client cancels, gRPC cancels the task, and that
cancels the sequences in the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from grpc import aio

from fit_serve.errors import ServeError
from fit_serve.grpc_api.call_scope import call_scope
from fit_serve.grpc_api.convert import event_of, request_of, response_of
from fit_serve.grpc_api.v1 import generation_pb2 as pb
from fit_serve.grpc_api.v1.generation_pb2_grpc import ImageGenerationServicer
from fit_serve.request import GenerationRequest
from fit_serve.service import GenerationService
from fit_serve.streaming import stream_generation

Context = aio.ServicerContext[Any, Any]


class GenerationServicer(ImageGenerationServicer):
    """Parses, calls the service, answers."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service

    async def Generate(  # noqa: D102
        self, request: pb.GenerateRequest, context: Context
    ) -> pb.GenerateResponse:
        async with call_scope("Generate", context):
            asked = self._parsed(request, context)
            return response_of(await self._service.generate(asked))
        raise AssertionError("a call that failed was not ended")

    async def GenerateStream(  # noqa: D102
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateEvent]:
        async with call_scope("GenerateStream", context):
            asked = self._parsed(request, context)
            async with aclosing(stream_generation(self._service, asked)) as events:
                async for event in events:
                    yield event_of(event, asked)

    def _parsed(self, message: pb.GenerateRequest, context: Context) -> GenerationRequest:
        try:
            return request_of(message, self._service.limits, context.time_remaining())
        except ServeError:
            self._service.telemetry.request_rejected("invalid")
            raise
