"""Messages to a `GenerationRequest`, and results to messages.

Knows the contract and the model's limits; not calls, streams or statuses.
"""

from __future__ import annotations

from fit_serve.errors import InvalidRequest
from fit_serve.grpc_api.v1 import generation_pb2 as pb
from fit_serve.limits import ModelLimits
from fit_serve.request import GenerationRequest, GenerationResult
from fit_serve.streaming import Accepted, Event


def request_of(
    message: pb.GenerateRequest, limits: ModelLimits, remaining_s: float | None = None
) -> GenerationRequest:
    """Translate a message, filling in the defaults of the model.

    Args:
        message: of the client.
        limits: of the model.
        remaining_s: seconds until the deadline of the call; None: it has none.

    Raises:
        InvalidRequest: what to draw is missing or unknown.
    """
    subject = message.WhichOneof("subject")
    if subject is None and not limits.reads_prompts:
        raise InvalidRequest(
            "class_name or class_label is required: the name or the id of a class",
            param="class_name",
        )
    is_class = subject in ("class_name", "class_label")
    interval = message.guidance_interval
    has_interval = message.HasField("guidance_interval")
    deadline_s = message.deadline_ms / 1e3 if message.HasField("deadline_ms") else None
    return limits.complete(
        getattr(message, subject) if is_class and subject else None,
        message.height,
        message.width,
        prompt=message.prompt if subject == "prompt" else None,
        negative_prompt=_given(message, "negative_prompt"),
        seed=_given(message, "seed"),
        num_images=_given(message, "num_images"),
        num_inference_steps=_given(message, "num_inference_steps"),
        guidance_scale=_given(message, "guidance_scale"),
        guidance_interval=(interval.low, interval.high) if has_interval else None,
        sampler=_given(message, "sampler"),
        quality=_given(message, "quality"),
        priority=_given(message, "priority"),
        deadline_s=_earlier(deadline_s, remaining_s, limits.max_deadline_s),
        output_format=_given(message, "output_format"),
        output_compression=_given(message, "output_compression"),
    )


def response_of(result: GenerationResult) -> pb.GenerateResponse:
    """Everything that was made, and what made it."""
    request, timings = result.request, result.timings
    low, high = request.guidance_interval
    return pb.GenerateResponse(
        id=request.request_id,
        model=result.model,
        image_class=None
        if request.class_label is None
        else pb.ImageClass(id=request.class_label, name=result.class_name or ""),
        prompt=request.prompt,
        negative_prompt=None if request.prompt is None else request.negative_prompt,
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        guidance_interval=pb.GuidanceInterval(low=low, high=high),
        sampler=request.sampler,
        quality=request.quality,
        media_type=result.media_type,
        images=[
            pb.Image(data=image, seed=seed)
            for image, seed in zip(result.images, result.seeds, strict=True)
        ],
        timings=pb.Timings(
            queue_ms=1e3 * timings.queued_s,
            inference_ms=1e3 * timings.run_s,
            decode_ms=1e3 * timings.decode_s,
            encode_ms=1e3 * timings.encode_s,
            total_ms=1e3 * timings.total_s,
        ),
    )


def event_of(event: Event, request: GenerationRequest) -> pb.GenerateEvent:
    """One event of a stream."""
    if isinstance(event, Accepted):
        return pb.GenerateEvent(accepted=pb.Accepted(id=event.request_id))
    if isinstance(event, GenerationResult):
        return pb.GenerateEvent(completed=response_of(event))
    return pb.GenerateEvent(
        progress=pb.Progress(
            image_index=request.image_index(event.sequence_id),
            evaluations_done=event.evaluations_done,
            evaluations_total=event.evaluations_total,
        )
    )


def _given(message: pb.GenerateRequest, field: str):
    """The value of an optional field, None where the client left it out."""
    return getattr(message, field) if message.HasField(field) else None


def _earlier(deadline_s: float | None, remaining_s: float | None, longest_s: float) -> float | None:
    """The earlier of both; a call's deadline beyond all that can be asked for is none."""
    if remaining_s is None or remaining_s > longest_s:
        return deadline_s
    return remaining_s if deadline_s is None else min(deadline_s, remaining_s)
