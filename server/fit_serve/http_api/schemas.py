"""What `POST /generate` reads and writes, and its translation to a `GenerationRequest`.

Types are strict: a number in quotes, a boolean for a number or an unknown field is refused, with
a message that names field, value and what is allowed. Ranges depend on the model and are checked
by `ModelLimits`, for every transport alike.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError

from fit_serve.http_api.field_errors import Body, refusal
from fit_serve.limits import CLASS_WANTED, ModelLimits
from fit_serve.quality import QUALITIES
from fit_serve.request import NUM_SEEDS, GenerationRequest

MAX_EXAMPLES = 100
"""Class names shown in the schema: all of a small model's, not the thousand of ImageNet."""


class GenerateBody(Body):
    """A request for images of one subject. Optional fields may be left out or null."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    expected: ClassVar[dict[str, str]] = {
        "class": CLASS_WANTED,
        "guidance_interval": "an array of two finite numbers, [low, high]",
    }

    class_: Annotated[
        str | int | None,
        Field(alias="class", description="Name or id of a class of the model."),
    ] = None
    prompt: Annotated[str | None, Field(description="What to draw, in words.")] = None
    negative_prompt: Annotated[
        str | None, Field(description="What guidance leads away from; nothing if absent.")
    ] = None
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
    output_compression: Annotated[
        int | None, Field(description="Quality of a jpeg or webp: 0 is smallest, 100 is best.")
    ] = None


def parse_generate(fields: Mapping[str, object], limits: ModelLimits) -> GenerationRequest:
    """Translate the fields of a body, filling in the defaults of the model.

    Raises `InvalidRequest` for wrong types, unknown fields and an unknown class.
    """
    try:
        body = GenerateBody.model_validate(dict(fields))
    except ValidationError as error:
        raise refusal(error.errors(include_url=False), GenerateBody) from None
    interval = body.guidance_interval
    return limits.complete(
        body.class_,
        body.height,
        body.width,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
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
        output_compression=body.output_compression,
    )


def generate_schema(limits: ModelLimits) -> dict[str, object]:
    """Give the JSON schema of the body with the limits and defaults of the model in it."""
    schema = GenerateBody.model_json_schema(by_alias=True)
    side: dict[str, object] = {"minimum": limits.min_side, "multipleOf": limits.size_multiple}
    defaults = limits.defaults
    facts: dict[str, dict[str, object]] = {
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
        "output_compression": {"minimum": 0, "maximum": 100},
    }
    for field, more in facts.items():
        schema["properties"][field].update(more)
    subject = _say_subject(schema, limits)
    schema["description"] += (
        f" At most {limits.max_tokens} tokens, of {limits.size_multiple} x {limits.size_multiple} "
        "pixels each, an image."
    )
    example = "a heron at dawn" if limits.reads_prompts else limits.class_names[0]
    schema["examples"] = [{subject: example, "height": 128, "width": 192}]
    return schema


def _say_subject(schema: dict[str, Any], limits: ModelLimits) -> str:
    """Leave in a schema what says what to draw from this model; returns the required field."""
    properties = schema["properties"]
    if limits.reads_prompts:
        subject, others = "prompt", ("class",)
        kind: dict[str, object] = {"type": "string"}
        properties["negative_prompt"] |= {"maxLength": limits.max_prompt_characters, "default": ""}
        more: dict[str, object] = {"maxLength": limits.max_prompt_characters}
    else:
        subject, others = "class", ("prompt", "negative_prompt")
        kind = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
        more = {"examples": list(limits.class_names[:MAX_EXAMPLES])}
    told = {key: properties[subject][key] for key in ("title", "description")}
    properties[subject] = {**kind, **told, **more}
    for other in others:
        del properties[other]
    schema["required"] = [subject, *schema["required"]]
    return subject
