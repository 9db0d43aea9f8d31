"""What OpenAI's clients get back: the images, what they cost, and events of a stream."""

import time
from base64 import b64encode
from collections.abc import Callable

from pydantic import BaseModel, Field

from fit_serve.http_api.openai_body import AskedImages
from fit_serve.request import GenerationResult


class ImageData(BaseModel):
    """One image, in one of two forms; `seed` is ours."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int


class UsageDetails(BaseModel):
    """Tokens of a text and of images."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Latent tokens times images; a class has no text."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: UsageDetails
    output_tokens_details: UsageDetails


class ImagesAnswer(BaseModel):
    """The answer of `POST /v1/images/generations`."""

    created: int = Field(description="Seconds since 1970, UTC.")
    data: list[ImageData]
    background: str = "opaque"
    output_format: str
    size: str
    quality: str
    usage: Usage
    id: str
    model: str
    inference_time_s: float


def images_answer(
    asked: AskedImages, result: GenerationResult, tokens: int, store: Callable[[bytes], str]
) -> dict[str, object]:
    """All images in one object.

    Args:
        asked: the request.
        result: what came of it.
        tokens: latent tokens of one image.
        store: keeps a file and gives its URL.
    """
    answer = ImagesAnswer(
        created=int(time.time()),
        data=[
            _image_data(asked, image, seed, store)
            for image, seed in zip(result.images, result.seeds, strict=True)
        ],
        output_format=result.request.output_format,
        size=size_of(asked),
        quality=asked.quality,
        usage=usage_of(tokens * len(result.images)),
        id=result.request.request_id,
        model=result.model,
        inference_time_s=round(result.timings.total_s, 6),
    )
    return answer.model_dump()


def size_of(asked: AskedImages) -> str:
    """WIDTHxHEIGHT."""
    return f"{asked.request.width}x{asked.request.height}"


def usage_of(image_tokens: int) -> Usage:
    """What so many latent tokens are called."""
    return Usage(
        input_tokens=0,
        output_tokens=image_tokens,
        total_tokens=image_tokens,
        input_tokens_details=UsageDetails(text_tokens=0, image_tokens=0),
        output_tokens_details=UsageDetails(text_tokens=0, image_tokens=image_tokens),
    )


def event_fields(asked: AskedImages, kind: str, image: bytes, index: int) -> dict[str, object]:
    """What every event of a stream says of an image."""
    return {
        "type": kind,
        "b64_json": b64encode(image).decode("ascii"),
        "created_at": int(time.time()),
        "size": size_of(asked),
        "quality": asked.quality,
        "background": "opaque",
        "output_format": asked.request.output_format,
        "image_index": index,
    }


def _image_data(
    asked: AskedImages, image: bytes, seed: int, store: Callable[[bytes], str]
) -> ImageData:
    if asked.response_format == "url":
        return ImageData(url=store(image), seed=seed)
    return ImageData(b64_json=b64encode(image).decode("ascii"), seed=seed)
