"""`POST /generate`: parse, call the service, answer; and stop if the client goes away."""

import asyncio

from fastapi import APIRouter, HTTPException, Request, Response

from fit_serve.errors import InvalidRequest
from fit_serve.http_api.answers import (
    EVENTS,
    GenerateAnswer,
    image_answer,
    json_answer,
    wants_events,
    wants_json,
)
from fit_serve.http_api.disconnect import unless_disconnected
from fit_serve.http_api.error_body import ErrorBody
from fit_serve.http_api.generation_events import stream_answer
from fit_serve.http_api.json_body import read_json_object
from fit_serve.http_api.schemas import generate_schema, parse_generate
from fit_serve.images import MEDIA_TYPES
from fit_serve.service import GenerationService

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_HEADERS = {
    "x-request-id": "Echo of a valid x-request-id of the client, else a new one.",
    "x-seed": "Seed of the first image.",
    "x-inference-time-ms": "Time from the first to the last step, in milliseconds.",
    "server-timing": "Milliseconds of queue, inference, decode, encode and total.",
}
REFUSALS = {
    400: "A field is missing, unknown, of the wrong type or out of the limits of the model.",
    413: "The body is longer than 64 KiB.",
    415: "The body is not declared as application/json.",
    429: "The queue is full; come back after `Retry-After` seconds.",
    499: "The request was cancelled, by `DELETE /requests/{id}`.",
    500: "The server failed.",
    503: "Starting, draining or dead; come back after `Retry-After` seconds.",
    504: "The request ran into the time limit of the server.",
}


def build_generations(service: GenerationService) -> APIRouter:
    """Build the route on a service."""
    router = APIRouter(tags=["generation"])

    async def generate(request: Request) -> Response:
        try:
            asked = parse_generate(await read_json_object(request), service.limits)
        except (InvalidRequest, HTTPException):
            service.telemetry.request_rejected("invalid")
            raise
        accept = request.headers.get("accept", "")
        if wants_events(accept):
            return await stream_answer(request, service, asked)
        result = await unless_disconnected(request, service.generate(asked))
        if asked.num_images > 1 or wants_json(accept):
            return await asyncio.to_thread(json_answer, result)
        return image_answer(result)

    router.add_api_route(
        "/generate",
        generate,
        methods=["POST"],
        summary="Make images of one class, of any size",
        description=(
            "Answers with the bytes of the image; with `Accept: application/json`, or for more "
            "than one image, with JSON that holds them in base64; with `Accept: "
            "text/event-stream`, with events: accepted, progress, and completed or error."
        ),
        response_class=Response,
        responses={
            200: {
                "model": GenerateAnswer,
                "description": "The image, or JSON with the images.",
                "content": {
                    **dict.fromkeys(MEDIA_TYPES.values(), _BINARY),
                    EVENTS: {"schema": {"type": "string"}},
                },
                "headers": {
                    name: {"description": meaning, "schema": {"type": "string"}}
                    for name, meaning in _HEADERS.items()
                },
            },
            **{
                status: {"model": ErrorBody, "description": meaning}
                for status, meaning in REFUSALS.items()
            },
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": generate_schema(service.limits)}},
            }
        },
    )
    return router
