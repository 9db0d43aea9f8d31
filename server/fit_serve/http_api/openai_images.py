"""`POST /v1/images/generations` and the images it stores, as OpenAI's clients know them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from fit_serve.errors import InvalidRequest, NotFound
from fit_serve.http_api.answers import image_answer
from fit_serve.http_api.disconnect import unless_disconnected
from fit_serve.http_api.error_body import ErrorBody
from fit_serve.http_api.event_stream import EventStream, ServerSentEvent, ends_with_error
from fit_serve.http_api.generations import REFUSALS
from fit_serve.http_api.json_body import read_json_object
from fit_serve.http_api.openai_answers import ImagesAnswer, event_fields, images_answer, usage_of
from fit_serve.http_api.openai_body import AskedImages, ImagesBody, asked_images, parse_body
from fit_serve.http_api.stored_images import StoredImages
from fit_serve.images import MEDIA_TYPES
from fit_serve.limits import shown_text
from fit_serve.request import GenerationResult
from fit_serve.service import GenerationService
from fit_serve.streaming import Event, stream_generation

COMPLETED = "image_generation.completed"


def build_openai_images(service: GenerationService, stored: StoredImages) -> APIRouter:
    """Build the routes on a service."""
    router = APIRouter(prefix="/v1/images", tags=["OpenAI"])

    async def generations(request: Request) -> Response:
        try:
            body = parse_body(await read_json_object(request))
            check_model(body.model, service)
            asked = asked_images(body, service.limits)
        except (InvalidRequest, NotFound, HTTPException):
            service.telemetry.request_rejected("invalid")
            raise
        if asked.stream:
            return await _stream(request, service, asked)
        result = await unless_disconnected(request, service.generate(asked.request))
        if asked.response_format == "file":
            return image_answer(result)

        def store(image: bytes) -> str:
            image_id = stored.put(image, result.media_type)
            return str(request.url_for("content", image_id=image_id))

        tokens = tokens_of(asked, service)
        if asked.response_format == "url":
            return JSONResponse(images_answer(asked, result, tokens, store))
        fields = await asyncio.to_thread(images_answer, asked, result, tokens, store)
        return JSONResponse(fields)

    async def content(image_id: str) -> Response:
        image = stored.get(image_id)
        if image is None:
            raise NotFound(
                f"there is no image {shown_text(image_id)}, or it is kept no more",
                param="image_id",
                code="image_not_found",
            )
        return Response(image.data, media_type=image.media_type)

    router.add_api_route(
        "/generations",
        generations,
        methods=["POST"],
        summary="Make images, as OpenAI's clients ask for them",
        description="The prompt of a model of classes is the name or the id of a class.",
        response_class=Response,
        responses={
            200: {
                "model": ImagesAnswer,
                "description": "The images; events with `stream`, bytes for a `file`.",
                "content": {
                    "text/event-stream": {"schema": {"type": "string"}},
                    **{
                        kind: {"schema": {"type": "string", "format": "binary"}}
                        for kind in MEDIA_TYPES.values()
                    },
                },
            },
            404: {"model": ErrorBody, "description": "No such model."},
            **{s: {"model": ErrorBody, "description": text} for s, text in REFUSALS.items()},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ImagesBody.model_json_schema()}},
            }
        },
    )
    router.add_api_route(
        "/{image_id}/content",
        content,
        summary="The bytes of an image that was answered by URL",
        response_class=Response,
        responses={
            200: {
                "description": "The file.",
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary"}}
                    for kind in MEDIA_TYPES.values()
                },
            },
            404: {"model": ErrorBody, "description": "No such image, or kept no more."},
        },
    )
    return router


def check_model(named: str | None, service: GenerationService) -> None:
    """Raise `NotFound` unless the model is served here; None is ours."""
    if named is not None and named != service.limits.name:
        raise NotFound(
            f"model {shown_text(named)} is not served here; {service.limits.name} is",
            param="model",
            code="model_not_found",
        )


def tokens_of(asked: AskedImages, service: GenerationService) -> int:
    """Latent tokens of one image."""
    return asked.request.height * asked.request.width // service.limits.size_multiple**2


async def _stream(request: Request, service: GenerationService, asked: AskedImages) -> EventStream:
    """Begin, and answer with events; what is refused raises, for nothing has been sent yet."""
    events = stream_generation(service, asked.request)

    async def first() -> Event:
        return await anext(events)

    await unless_disconnected(request, first())
    told = _told(events, asked, tokens_of(asked, service))
    return EventStream(ends_with_error(told))


async def _told(
    events: AsyncGenerator[Event], asked: AskedImages, tokens: int
) -> AsyncGenerator[ServerSentEvent]:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, GenerationResult):
                for index, image in enumerate(event.images):
                    fields = await asyncio.to_thread(event_fields, asked, COMPLETED, image, index)
                    usage = usage_of(tokens).model_dump()
                    yield ServerSentEvent(COMPLETED, {**fields, "usage": usage})
