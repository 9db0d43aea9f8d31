"""A generation as server-sent events: accepted, progress, and completed or error."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request

from fit_serve.http_api.answers import answer_fields
from fit_serve.http_api.disconnect import unless_disconnected
from fit_serve.http_api.event_stream import EventStream, ServerSentEvent, ends_with_error
from fit_serve.request import GenerationRequest, Progress
from fit_serve.service import GenerationService
from fit_serve.streaming import Accepted, Event, stream_generation


async def stream_answer(
    request: Request, service: GenerationService, asked: GenerationRequest
) -> EventStream:
    """Begin a generation and answer with its events.

    What is refused raises its `ServeError`, for nothing has been sent yet.
    """
    events = stream_generation(service, asked)

    async def first() -> Event:
        return await anext(events)

    accepted = await unless_disconnected(request, first())
    return EventStream(ends_with_error(_told(accepted, events, asked)))


async def _told(
    first: Event, events: AsyncGenerator[Event], asked: GenerationRequest
) -> AsyncGenerator[ServerSentEvent]:
    async with aclosing(events):
        yield await _told_one(first, asked)
        async for event in events:
            yield await _told_one(event, asked)


async def _told_one(event: Event, asked: GenerationRequest) -> ServerSentEvent:
    match event:
        case Accepted():
            facts: dict[str, object] = {"id": event.request_id, "num_images": asked.num_images}
            return ServerSentEvent("accepted", facts)
        case Progress():
            facts = {
                "image_index": asked.image_index(event.sequence_id),
                "evaluations_done": event.evaluations_done,
                "evaluations_total": event.evaluations_total,
            }
            return ServerSentEvent("progress", facts)
    return ServerSentEvent("completed", await asyncio.to_thread(answer_fields, event))
