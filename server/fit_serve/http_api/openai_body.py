"""What `POST /v1/images/generations` reads, and its translation to a `GenerationRequest`.

OpenAI's fields (its OpenAPI document, 2.3.0) and those that other image servers added. Null is
"not given", unknown fields are passed over, a known field with a bad value is refused. The prompt
of a model of classes is a name or an id; one that reads prompts takes it as it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from fit_serve.errors import InvalidRequest
from fit_serve.http_api.field_errors import Body, refusal
from fit_serve.limits import ModelLimits, shown_text
from fit_serve.quality import QUALITIES
from fit_serve.request import GenerationRequest

MAX_IMAGES = 10
MAX_PARTIAL_IMAGES = 3
AUTO = "auto"
PRESETS: Mapping[str, str] = MappingProxyType(
    {"low": "fast", "medium": "balanced", "standard": "balanced", "high": "exact", "hd": "exact"}
)
"""OpenAI's words for quality -> ours, which may be said as well."""

_RENAMED = {
    "height": "size",
    "width": "size",
    "class": "prompt",
    "num_images": "n",
}


class ImagesBody(Body):
    """A request for images, as OpenAI's clients write it."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    prompt: Annotated[
        str | None,
        Field(description="What to draw; for a model of classes the name or the id of a class."),
    ] = None
    negative_prompt: Annotated[
        str | None,
        Field(description="What guidance leads away from; passed over by a model of classes."),
    ] = None
    model: Annotated[str | None, Field(description="A model of this server.")] = None
    n: Annotated[int | None, Field(description="How many images.")] = None
    size: Annotated[
        str | None, Field(description="WIDTHxHEIGHT in pixels, or auto: the size of training.")
    ] = None
    quality: Annotated[
        str | None, Field(description="auto, low, medium, high, standard, hd; or of ours.")
    ] = None
    response_format: Annotated[
        Literal["url", "b64_json", "file"] | None,
        Field(description="b64_json if absent; file answers with the bytes of the one image."),
    ] = None
    output_format: Annotated[
        Literal["png", "jpeg", "webp"] | None, Field(description="File format; png if absent.")
    ] = None
    output_compression: Annotated[
        int | None, Field(description="Quality of a jpeg or webp, 0 to 100.")
    ] = None
    background: Annotated[
        Literal["opaque", "auto", "transparent"] | None,
        Field(description="transparent is refused: no model here makes it."),
    ] = None
    moderation: Annotated[
        Literal["low", "auto"] | None, Field(description="Accepted, of no effect.")
    ] = None
    style: Annotated[
        Literal["vivid", "natural"] | None, Field(description="Accepted, of no effect.")
    ] = None
    user: Annotated[str | None, Field(description="Accepted, of no effect.")] = None
    stream: Annotated[bool | None, Field(description="Answer with events.")] = None
    partial_images: Annotated[
        int | None, Field(description="Previews of each image in a stream, 0 to 3.")
    ] = None
    seed: Annotated[int | None, Field(description="Image i has seed + i.")] = None
    num_inference_steps: Annotated[int | None, Field(description="Steps of the sampler.")] = None
    guidance_scale: Annotated[float | None, Field(description="1 is none.")] = None
    true_cfg_scale: Annotated[
        float | None, Field(description="Another name of guidance_scale.")
    ] = None
    class_labels: Annotated[
        list[int] | None, Field(description="The id of a class, instead of a prompt.")
    ] = None
    width: Annotated[int | None, Field(description="Instead of size, with height.")] = None
    height: Annotated[int | None, Field(description="Instead of size, with width.")] = None


@dataclass(frozen=True)
class AskedImages:
    """What a client asked for, and how it wants to be answered."""

    request: GenerationRequest
    response_format: Literal["url", "b64_json", "file"]
    stream: bool
    partial_images: int
    quality: str


def parse_body(fields: Mapping[str, object]) -> ImagesBody:
    """Check the types of the fields; raises `InvalidRequest`."""
    try:
        return ImagesBody.model_validate(dict(fields))
    except ValidationError as error:
        raise refusal(error.errors(include_url=False), ImagesBody) from None


def asked_images(body: ImagesBody, limits: ModelLimits) -> AskedImages:
    """Translate a body, filling in the defaults of the model; raises `InvalidRequest`."""
    if body.background == "transparent":
        raise InvalidRequest(
            "background 'transparent' is not one of: opaque, auto", param="background"
        )
    n = _number("n", body.n, 1, 1, MAX_IMAGES)
    partial_images = _number("partial_images", body.partial_images, 0, 0, MAX_PARTIAL_IMAGES)
    response_format = body.response_format or "b64_json"
    if response_format == "file" and (n > 1 or body.stream):
        raise InvalidRequest(
            "response_format 'file' answers with one image and no stream", param="response_format"
        )
    width, height = _size(body, limits)
    try:
        request = limits.complete(
            None if limits.reads_prompts and body.class_labels is None else _subject(body),
            height,
            width,
            prompt=body.prompt if limits.reads_prompts else None,
            negative_prompt=body.negative_prompt if limits.reads_prompts else None,
            seed=body.seed,
            num_images=n,
            num_inference_steps=body.num_inference_steps,
            guidance_scale=_either_scale(body),
            quality=_preset(body.quality),
            output_format=body.output_format,
            output_compression=body.output_compression,
        )
        limits.check(request)
    except InvalidRequest as error:
        raise _in_their_words(error) from None
    return AskedImages(
        request=request,
        response_format=response_format,
        stream=bool(body.stream),
        partial_images=partial_images,
        quality=body.quality or AUTO,
    )


def _subject(body: ImagesBody) -> str | int:
    """The class that is meant, of a model of classes."""
    if body.class_labels is not None:
        if len(body.class_labels) != 1:
            raise InvalidRequest(
                f"class_labels has {len(body.class_labels)} ids; a request is for 1 class",
                param="class_labels",
            )
        return body.class_labels[0]
    if body.prompt is None:
        raise InvalidRequest("prompt is required: a string", param="prompt")
    return body.prompt


def _size(body: ImagesBody, limits: ModelLimits) -> tuple[int, int]:
    """Width and height in pixels."""
    if body.size not in (None, AUTO):
        sides = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", body.size or "")
        if sides is None:
            raise InvalidRequest(
                f"size {shown_text(body.size or '')} is not WIDTHxHEIGHT in pixels, as "
                f"{limits.default_side}x{limits.default_side}, or auto",
                param="size",
            )
        return int(sides[1]), int(sides[2])
    for field, value, other in (
        ("width", body.width, body.height),
        ("height", body.height, body.width),
    ):
        if value is None and other is not None:
            raise InvalidRequest(f"{field} is missing: give both or size", param=field)
    return body.width or limits.default_side, body.height or limits.default_side


def _either_scale(body: ImagesBody) -> float | None:
    return body.true_cfg_scale if body.guidance_scale is None else body.guidance_scale


def _preset(quality: str | None) -> str | None:
    if quality is None or quality == AUTO:
        return None
    if quality not in PRESETS and quality not in QUALITIES:
        known = ", ".join((AUTO, *PRESETS, *QUALITIES))
        raise InvalidRequest(
            f"quality {shown_text(quality)} is not one of: {known}", param="quality"
        )
    return PRESETS.get(quality, quality)


def _number(field: str, given: int | None, default: int, low: int, high: int) -> int:
    value = default if given is None else given
    if not low <= value <= high:
        raise InvalidRequest(f"{field} {value} is outside the limits {low} to {high}", param=field)
    return value


def _in_their_words(error: InvalidRequest) -> InvalidRequest:
    """The same refusal with the field's name in OpenAI's protocol."""
    param = _RENAMED.get(error.param or "", error.param)
    message = error.message if param == error.param else f"{param}: {error.message}"
    return InvalidRequest(message, param=param, code=error.code)
