"""A `GenerationResult` → an HTTP answer: the image itself, or JSON with images in base64.

This module knows headers, content negotiation and the shape of the JSON; it makes no image.
"""

import time
from base64 import b64encode
from collections.abc import Iterator

from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from fit_serve.request import GenerationResult, GenerationTimings

JSON = "application/json"
EVENTS = "text/event-stream"


class ClassAnswer(BaseModel):
    """A class of the model."""

    id: int
    name: str


class ImageAnswer(BaseModel):
    """One image."""

    b64_json: str = Field(description="The file in base64.")
    seed: int = Field(description="The seed that makes this image alone.")
    output_format: str


class TimingsAnswer(BaseModel):
    """Where the time went, in milliseconds; each the longest over the images."""

    queue: float
    inference: float
    decode: float
    encode: float
    total: float


class GenerateAnswer(BaseModel):
    """What was made, and everything needed to make it again."""

    id: str
    created: int = Field(description="Seconds since 1970, UTC.")
    model: str
    class_: ClassAnswer | None = Field(
        None, alias="class", description="Of a model that draws classes."
    )
    prompt: str | None = Field(None, description="Of a model that reads prompts.")
    negative_prompt: str | None = None
    height: int
    width: int
    seed: int = Field(description="The seed of the first image.")
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    sampler: str
    quality: str
    images: list[ImageAnswer]
    timings_ms: TimingsAnswer


def wants_json(accept: str) -> bool:
    """Say whether an `Accept` header asks for JSON rather than for an image.

    It does if it names `application/json` itself, at least as high as any image type it names;
    wildcards ask for nothing in particular.
    """
    qualities = dict(_media_ranges(accept))
    images = [quality for kind, quality in qualities.items() if kind.startswith("image/")]
    return qualities.get(JSON, 0.0) > 0.0 and qualities[JSON] >= max(images, default=0.0)


def wants_events(accept: str) -> bool:
    """Say whether an `Accept` header names `text/event-stream`."""
    return dict(_media_ranges(accept)).get(EVENTS, 0.0) > 0.0


def image_answer(result: GenerationResult) -> Response:
    """Answer with the bytes of the one image."""
    request = result.request
    extension = request.output_format
    name = f"{_plain(result.subject)}-{request.height}x{request.width}-{request.seed}"
    headers = {
        "content-disposition": f'inline; filename="{name}.{extension}"',
        "x-seed": str(request.seed),
        **timing_headers(result.timings),
    }
    return Response(result.images[0], media_type=result.media_type, headers=headers)


def json_answer(result: GenerationResult) -> Response:
    """Answer with metadata and all images. Base64 takes a third more bytes than the images."""
    headers = {"x-seed": str(result.request.seed), **timing_headers(result.timings)}
    return JSONResponse(answer_fields(result), headers=headers)


def answer_fields(result: GenerationResult) -> dict[str, object]:
    """The fields of a `GenerateAnswer`, as they are written in JSON."""
    request, timings = result.request, result.timings
    answer = GenerateAnswer.model_validate(
        {
            "id": request.request_id,
            "created": int(time.time()),
            "model": result.model,
            **_subject(result),
            "height": request.height,
            "width": request.width,
            "seed": request.seed,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "guidance_interval": request.guidance_interval,
            "sampler": request.sampler,
            "quality": request.quality,
            "images": [
                {
                    "b64_json": b64encode(image).decode("ascii"),
                    "seed": seed,
                    "output_format": request.output_format,
                }
                for image, seed in zip(result.images, result.seeds, strict=True)
            ],
            "timings_ms": {
                "queue": _ms(timings.queued_s),
                "inference": _ms(timings.run_s),
                "decode": _ms(timings.decode_s),
                "encode": _ms(timings.encode_s),
                "total": _ms(timings.total_s),
            },
        }
    )
    return answer.model_dump(by_alias=True, exclude_none=True)


def _subject(result: GenerationResult) -> dict[str, object]:
    """The class, or both prompts."""
    request = result.request
    if request.prompt is not None:
        return {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    return {"class": {"id": request.class_label, "name": result.class_name}}


def timing_headers(timings: GenerationTimings) -> dict[str, str]:
    """Give the time of the network as a plain number, and all parts as `server-timing`."""
    parts = {
        "queue": timings.queued_s,
        "inference": timings.run_s,
        "decode": timings.decode_s,
        "encode": timings.encode_s,
        "total": timings.total_s,
    }
    return {
        "x-inference-time-ms": str(_ms(timings.run_s)),
        "server-timing": ", ".join(f"{name};dur={_ms(part)}" for name, part in parts.items()),
    }


def _media_ranges(accept: str) -> Iterator[tuple[str, float]]:
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                quality = _quality(value.strip())
        yield kind, quality


def _quality(value: str) -> float:
    """Read a quality value (RFC 9110, 12.4.2); one that is none counts as not given."""
    digits = value.replace(".", "", 1)
    return float(value) if digits.isascii() and digits.isdigit() else 1.0


def _plain(name: str) -> str:
    """Keep of a class name or a prompt what is safe in a file name everywhere."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    return kept.strip("-")[:40] or "image"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
