"""What `POST /generate` reads and writes, and its translation to a `GenerationRequest`.

Types are strict: a number in quotes, a boolean for a number or an unknown field is refused, with
a message that names field, value and what is allowed. Ranges depend on the model and are checked
by `ModelLimits`, for every transport alike.
"""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from fit_serve.errors import InvalidRequest
from fit_serve.http_api.json_body import json_kind
from fit_serve.limits import ModelLimits, shown_text
from fit_serve.quality import QUALITIES
from fit_serve.request import NUM_SEEDS, GenerationRequest

MAX_EXAMPLES = 100
"""Class names shown in the schema: all of a small model's, not the thousand of ImageNet."""


class GenerateBody(BaseModel):
    """A request for images of one class. Optional fields may be left out or null."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    class_: Annotated[
        str | int,
        Field(alias="class", description="Name or id of a class of the model."),
    ]
    height: Annotated[int, Field(description="Height of the image in pixels.")]
    width: Annotated[int, Field(description="Width of the image in pixels.")]
    num_images: Annotated[
        int | None,
        Field(description="How many images; image i has seed + i. More than one answers JSON."),
    ] = None
    num_inference_steps: Annotated[
        int | None, Field(description="Steps of the sampler; more is slower and finer.")
    ] = None
    guidance_scale: Annotated[
        float | None, Field(description="Strength of classifier-free guidance; 1 is none.")
    ] = None
    guidance_interval: Annotated[
        list[float] | None,
        Field(
            min_length=2,
            max_length=2,
            description="Range [low, high] of the noise level (1 noise, 0 image) with guidance.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(description="0 to 2^63 - 1; same request, same image. Absent: drawn, and returned."),
    ] = None
    sampler: Annotated[str | None, Field(description="Update rule of a step.")] = None
    quality: Annotated[
        str | None,
        Field(description="exact, or less work for a picture near to it: balanced, fast."),
    ] = None
    priority: Annotated[
        int | None, Field(description="Lower runs earlier; 0 if absent. Nobody starves.")
    ] = None
    deadline_ms: Annotated[
        float | None,
        Field(
            description="Milliseconds from arrival after which the answer is not wanted; refused "
            "at once if it cannot be kept."
        ),
    ] = None
    output_format: Annotated[
        Literal["png", "jpeg", "webp"] | None, Field(description="File format; png if absent.")
    ] = None


def parse_generate(fields: Mapping[str, object], limits: ModelLimits) -> GenerationRequest:
    """Translate the fields of a body, filling in the defaults of the model.

    Raises `InvalidRequest` for wrong types, unknown fields and an unknown class.
    """
    try:
        body = GenerateBody.model_validate(dict(fields))
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)) from None
    interval = body.guidance_interval
    return limits.complete(
        body.class_,
        body.height,
        body.width,
        seed=body.seed,
        num_images=body.num_images,
        num_inference_steps=body.num_inference_steps,
        guidance_scale=body.guidance_scale,
        guidance_interval=None if interval is None else (interval[0], interval[1]),
        sampler=body.sampler,
        quality=body.quality,
        priority=body.priority,
        deadline_s=None if body.deadline_ms is None else body.deadline_ms / 1e3,
        output_format=body.output_format,
    )


def generate_schema(limits: ModelLimits) -> dict[str, object]:
    """Give the JSON schema of the body with the limits and defaults of the model in it."""
    schema = GenerateBody.model_json_schema(by_alias=True)
    side: dict[str, object] = {"minimum": limits.min_side, "multipleOf": limits.size_multiple}
    defaults = limits.defaults
    facts: dict[str, dict[str, object]] = {
        "class": {"examples": list(limits.class_names[:MAX_EXAMPLES])},
        "height": side,
        "width": side,
        "num_images": {"minimum": 1, "maximum": limits.max_num_images, "default": 1},
        "num_inference_steps": {
            "minimum": 1,
            "maximum": limits.max_num_inference_steps,
            "default": defaults.num_inference_steps,
        },
        "guidance_scale": {
            "minimum": 1,
            "maximum": limits.max_guidance_scale,
            "default": defaults.guidance_scale,
        },
        "guidance_interval": {"default": list(defaults.guidance_interval)},
        "seed": {"minimum": 0, "maximum": NUM_SEEDS - 1},
        "sampler": {"enum": [*limits.samplers, None], "default": defaults.sampler},
        "quality": {"enum": [*QUALITIES, None], "default": defaults.quality},
        "priority": {
            "minimum": -limits.max_priority,
            "maximum": limits.max_priority,
            "default": 0,
        },
        "deadline_ms": {"minimum": 1, "maximum": 1e3 * limits.max_deadline_s},
        "output_format": {"default": "png"},
    }
    for field, more in facts.items():
        schema["properties"][field].update(more)
    schema["description"] += (
        f" At most {limits.max_tokens} tokens, of {limits.size_multiple} x {limits.size_multiple} "
        "pixels each, an image."
    )
    schema["examples"] = [{"class": limits.class_names[0], "height": 128, "width": 192}]
    return schema


_EXPECTED: Mapping[str, str] = MappingProxyType(
    {
        "class": "the name (a string) or the id (an integer) of a class",
        "height": "an integer",
        "width": "an integer",
        "num_images": "an integer",
        "num_inference_steps": "an integer",
        "guidance_scale": "a finite number",
        "guidance_interval": "an array of two finite numbers, [low, high]",
        "seed": "an integer",
        "sampler": "a string",
        "quality": "a string",
        "priority": "an integer",
        "deadline_ms": "a finite number",
        "output_format": "one of: png, jpeg, webp",
    }
)


def _refusal(errors: Sequence[ErrorDetails]) -> InvalidRequest:
    """Say what is wrong with the fields: a misspelt one first, for it explains a missing one."""
    error = min(errors, key=lambda candidate: candidate["type"] != "extra_forbidden")
    field, *inner = error["loc"]
    assert isinstance(field, str), error
    if error["type"] == "extra_forbidden":
        return _unknown_field(field)
    if error["type"] == "missing":
        return InvalidRequest(f"{field} is required: {_EXPECTED[field]}", param=field)
    at = "".join(f" (at index {index})" for index in inner if isinstance(index, int))
    shown = _shown(error["input"])
    return InvalidRequest(f"{field} must be {_EXPECTED[field]}, not {shown}{at}", param=field)


def _unknown_field(field: str) -> InvalidRequest:
    known = [info.alias or name for name, info in GenerateBody.model_fields.items()]
    near = difflib.get_close_matches(field[:60], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the fields are: {', '.join(known)}"
    return InvalidRequest(f"unknown field {shown_text(field)}; {hint}", param=field)


def _shown(value: object) -> str:
    """Write a JSON value for a message; arrays and objects, which may be large, by kind."""
    match value:
        case str():
            return shown_text(value)
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case list():
            return f"an array of {len(value)}"
    return json_kind(value)
