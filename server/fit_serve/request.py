"""What is asked for and what comes back, in the only form known behind the transports.

This module holds plain immutable values. It knows no transport, no engine and no tensor library;
whether a model can do what is asked is the business of `limits.py`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fit_serve.quality import EXACT

if TYPE_CHECKING:
    import numpy

NUM_SEEDS = 2**63
"""Seeds are 0 ... 2^63 - 1: what a signed 64-bit integer holds, in every language of a client."""


@dataclass(frozen=True)
class SequenceRequest:
    """One image to make: everything that decides its pixels, an id, and when it is wanted.

    `height` and `width` are pixels. `guidance_interval` is the closed range of sigma (noise level,
    1 is noise, 0 is the image) in which guidance is applied. `quality` is a name of
    `fit_serve.quality.QUALITIES`. Lower `priority` runs earlier; `deadline_s` counts from the
    moment of submission, None is never. A model that reads prompts has a `prompt` and no
    `class_label`, any other the reverse.
    """

    sequence_id: str
    class_label: int | None
    height: int
    width: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    sampler: str
    quality: str = EXACT
    priority: int = 0
    deadline_s: float | None = None
    prompt: str | None = None
    negative_prompt: str = ""


@dataclass(frozen=True)
class GenerationRequest:
    """What a client asked for: one or several images that differ only in their seed.

    `request_id` is made by us and unique in this process, because cancelling goes by it.
    Defaults are those of the protocol; a transport fills in the model's own (`ModelLimits`).
    `output_compression` is the quality of a JPEG or WebP, 0 ... 100; None is that of the format.
    `class_label` and `prompt` are as in `SequenceRequest`.
    """

    request_id: str
    class_label: int | None
    height: int
    width: int
    seed: int
    num_images: int = 1
    num_inference_steps: int = 25
    guidance_scale: float = 4.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    sampler: str = "euler"
    quality: str = EXACT
    priority: int = 0
    deadline_s: float | None = None
    output_format: str = "png"
    output_compression: int | None = None
    prompt: str | None = None
    negative_prompt: str = ""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image: image i has (seed + i) mod 2^63, so it can be made alone."""
        return tuple((self.seed + index) % NUM_SEEDS for index in range(self.num_images))

    def image_index(self, sequence_id: str) -> int:
        """Which image a sequence of this request makes."""
        return int(sequence_id.removeprefix(f"{self.request_id}-"))

    def sequences(self) -> tuple[SequenceRequest, ...]:
        """One sequence per image, in the order of the images."""
        return tuple(
            SequenceRequest(
                sequence_id=f"{self.request_id}-{index}",
                class_label=self.class_label,
                height=self.height,
                width=self.width,
                seed=seed,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                guidance_interval=self.guidance_interval,
                sampler=self.sampler,
                quality=self.quality,
                priority=self.priority,
                deadline_s=self.deadline_s,
                prompt=self.prompt,
                negative_prompt=self.negative_prompt,
            )
            for index, seed in enumerate(self.seeds)
        )


@dataclass(frozen=True)
class Progress:
    """How far a sequence has come, in evaluations of the network."""

    sequence_id: str
    evaluations_done: int
    evaluations_total: int


@dataclass(frozen=True)
class SequenceTimings:
    """Where the time of one sequence went, in seconds: waiting, denoising, decoding."""

    queued_s: float
    run_s: float
    decode_s: float


@dataclass(frozen=True)
class SequenceResult:
    """A finished image: `pixels` is uint8 [height, width, 3], RGB."""

    sequence_id: str
    pixels: "numpy.ndarray"
    timings: SequenceTimings


@dataclass(frozen=True)
class GenerationTimings:
    """Where the time of a request went, in seconds.

    Images of a request run side by side, so each part is the longest over its images and the
    parts of a request for several images need not add up to `total_s`.
    """

    queued_s: float
    run_s: float
    decode_s: float
    encode_s: float
    total_s: float


@dataclass(frozen=True)
class GenerationResult:
    """A finished request: the encoded images in order, with all that made them.

    `class_name` is None for a model that reads prompts.
    """

    request: GenerationRequest
    model: str
    class_name: str | None
    images: tuple[bytes, ...]
    media_type: str
    timings: GenerationTimings

    @property
    def subject(self) -> str:
        """What the images show: the name of the class, or the prompt."""
        return self.class_name if self.class_name is not None else self.request.prompt or ""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image, in order."""
        return self.request.seeds

    @property
    def height(self) -> int:
        """Height of the images in pixels."""
        return self.request.height

    @property
    def width(self) -> int:
        """Width of the images in pixels."""
        return self.request.width
