"""What the served model can do, and the refusal of everything else.

This module knows the facts of one model (names of its classes, sizes, ranges) and turns a request
that breaks them into an `InvalidRequest` which names field, value and limit; what a client left out
it fills in. It knows no weights and no transport. Whether there is room *now* the engine says.
"""

import difflib
import math
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from fit_serve.errors import InvalidRequest
from fit_serve.quality import EXACT, QUALITIES
from fit_serve.request import NUM_SEEDS, GenerationRequest

NUM_DRAWN_SEEDS = 2**32
"""Seeds drawn for those who give none: JavaScript and jq read integers beyond 2^53 wrongly."""
NUM_NEAR_MATCHES = 5
CLASS_WANTED = "the name (a string) or the id (an integer) of a class"
PROMPT_WANTED = "a string that says what to draw; it may be empty"
LONGEST_CLASS_NAME = 200
"""Characters of a class name that are looked at: near matches cost time with its length."""

T = TypeVar("T")


@dataclass(frozen=True)
class Defaults:
    """What the model uses where a request says nothing."""

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    sampler: str
    quality: str = EXACT


@dataclass(frozen=True)
class ModelLimits:
    """What one model can be asked for.

    `size_multiple`, `min_side` and `default_side` (of a square where a protocol lets the size be
    ours) are pixels, `max_tokens` is per image, where one token covers
    `size_multiple` x `size_multiple` pixels. `class_names[i]` names class i; a name may hold
    synonyms between commas, as ImageNet's do. `max_prompt_characters` is that of a model which
    reads prompts, and has no classes; None for any other.
    """

    name: str
    class_names: tuple[str, ...]
    size_multiple: int
    min_side: int
    max_tokens: int
    samplers: tuple[str, ...]
    defaults: Defaults
    default_side: int = 256
    max_prompt_characters: int | None = None
    output_formats: tuple[str, ...] = ("png", "jpeg", "webp")
    max_num_inference_steps: int = 250
    max_num_images: int = 16
    max_guidance_scale: float = 20.0
    max_priority: int = 100
    max_deadline_s: float = 86_400.0

    @property
    def reads_prompts(self) -> bool:
        """Whether a request says what to draw by a prompt, not by a class."""
        return self.max_prompt_characters is not None

    def class_label(self, named: int | str) -> int:
        """Give the id of a class called by its id or its name.

        Case, spaces, underscores and hyphens of a name do not matter. A decimal string that is no
        name is an id. Raises `InvalidRequest` with near matches.
        """
        if isinstance(named, str):
            key = _comparable(named[:LONGEST_CLASS_NAME])
            labels = self._labels_by_name.get(key, ())
            if len(labels) == 1:
                return labels[0]
            if labels:
                raise self._ambiguous_class(named, labels)
            if re.fullmatch(r"[0-9]{1,9}", named) is None:
                raise self._unknown_class(named, key)
            named = int(named)
        if not 0 <= named < len(self.class_names):
            raise InvalidRequest(
                f"class {named} does not exist: ids are 0 to {len(self.class_names) - 1}",
                param="class",
                code="unknown_class",
            )
        return named

    def complete(
        self,
        class_named: int | str | None,
        height: int,
        width: int,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        quality: str | None = None,
        priority: int | None = None,
        deadline_s: float | None = None,
        output_format: str | None = None,
        output_compression: int | None = None,
    ) -> GenerationRequest:
        """Make a request of what a client said; None is the model's default, a seed is drawn.

        Checks class, prompts and quality only: `check` is for the rest. Raises `InvalidRequest`.
        """
        self._check_subject(class_named, prompt, negative_prompt)
        defaults = self.defaults
        wanted = _or(quality, defaults.quality)
        one_of("quality", wanted, tuple(QUALITIES))
        return GenerationRequest(
            request_id=f"gen-{uuid.uuid4().hex}",
            class_label=None if class_named is None else self.class_label(class_named),
            height=height,
            width=width,
            seed=_or(seed, secrets.randbelow(NUM_DRAWN_SEEDS)),
            num_images=_or(num_images, 1),
            num_inference_steps=_or(num_inference_steps, defaults.num_inference_steps),
            guidance_scale=_or(guidance_scale, defaults.guidance_scale),
            guidance_interval=_or(guidance_interval, self._interval(wanted)),
            sampler=_or(sampler, defaults.sampler),
            quality=wanted,
            priority=_or(priority, 0),
            deadline_s=deadline_s,
            output_format=_or(output_format, self.output_formats[0]),
            output_compression=output_compression,
            prompt=prompt,
            negative_prompt=_or(negative_prompt, ""),
        )

    def check(self, request: GenerationRequest) -> None:
        """Raise `InvalidRequest` if the model cannot do what is asked."""
        negative = request.negative_prompt or None
        self._check_subject(request.class_label, request.prompt, negative)
        if request.class_label is not None:
            self.class_label(request.class_label)
        self._check_size(request.height, request.width)
        within("num_images", request.num_images, 1, self.max_num_images)
        within("num_inference_steps", request.num_inference_steps, 1, self.max_num_inference_steps)
        within("guidance_scale", request.guidance_scale, 1.0, self.max_guidance_scale)
        low, high = request.guidance_interval
        within("guidance_interval", low, 0.0, 1.0)
        within("guidance_interval", high, 0.0, 1.0)
        if not low < high:
            raise InvalidRequest(
                f"guidance_interval [{low}, {high}] is empty: the lower sigma comes first "
                "(to do without guidance, set guidance_scale to 1)",
                param="guidance_interval",
            )
        within("seed", request.seed, 0, NUM_SEEDS - 1)
        within("priority", request.priority, -self.max_priority, self.max_priority)
        if request.deadline_s is not None:
            within("deadline_ms", 1e3 * request.deadline_s, 1, 1e3 * self.max_deadline_s)
        one_of("sampler", request.sampler, self.samplers)
        one_of("quality", request.quality, tuple(QUALITIES))
        one_of("output_format", request.output_format, self.output_formats)
        self._check_compression(request)

    def _check_compression(self, request: GenerationRequest) -> None:
        compression = request.output_compression
        if compression is None:
            return
        within("output_compression", compression, 0, 100)
        if request.output_format == "png" and compression != 100:
            raise InvalidRequest(
                f"output_compression {compression} is for jpeg and webp; a png loses nothing",
                param="output_compression",
            )

    def _check_subject(
        self, class_named: int | str | None, prompt: str | None, negative_prompt: str | None
    ) -> None:
        """Refuse a class where prompts are read, a prompt where classes are drawn, and neither."""
        if self.max_prompt_characters is None:
            for field, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
                if text is not None:
                    raise InvalidRequest(
                        f"{field} is not for {self.name}, which draws classes; "
                        + ("give class" if class_named is None else f"leave {field} out"),
                        param=field,
                    )
            if class_named is None:
                raise InvalidRequest(f"class is required: {CLASS_WANTED}", param="class")
            return
        if class_named is not None:
            raise InvalidRequest(
                f"class is not for {self.name}, which reads prompts; "
                + ("give prompt" if prompt is None else "leave class out"),
                param="class",
            )
        if prompt is None:
            raise InvalidRequest(f"prompt is required: {PROMPT_WANTED}", param="prompt")
        for field, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if text is not None and len(text) > self.max_prompt_characters:
                raise InvalidRequest(
                    f"{field} has {len(text)} characters; the limit is "
                    f"{self.max_prompt_characters}",
                    param=field,
                    code="prompt_too_long",
                )

    def _interval(self, quality: str) -> tuple[float, float]:
        """The model's guidance interval, cut where the preset guides no more."""
        low, high = self.defaults.guidance_interval
        cut = max(low, QUALITIES[quality].lowest_guided_sigma)
        return (cut, high) if cut < high else (low, high)

    def _check_size(self, height: int, width: int) -> None:
        for field, side in (("height", height), ("width", width)):
            if side < self.min_side:
                raise InvalidRequest(
                    f"{field} {shown_number(side)} is below the limit of {self.min_side} pixels",
                    param=field,
                )
            below = side // self.size_multiple * self.size_multiple
            if side != below:
                raise InvalidRequest(
                    f"{field} {shown_number(side)} is not a multiple of {self.size_multiple}; the "
                    f"nearest that are: {shown_number(below)} and "
                    f"{shown_number(below + self.size_multiple)}",
                    param=field,
                )
        rows, columns = height // self.size_multiple, width // self.size_multiple
        if rows * columns > self.max_tokens:
            fitting_height, fitting_width = self.largest_like(rows, columns)
            raise InvalidRequest(
                f"height {shown_number(height)} x width {shown_number(width)} makes "
                f"{shown_number(rows * columns)} tokens of {self.size_multiple} x "
                f"{self.size_multiple} pixels; the limit is {self.max_tokens} "
                f"({fitting_height} x {fitting_width} would fit)",
                param="height" if height >= width else "width",
                code="image_too_large",
            )

    def largest_like(self, rows: int, columns: int) -> tuple[int, int]:
        """Give the largest height and width within the limit, shaped like this grid of tokens."""
        smallest = self.min_side // self.size_multiple
        # Exact integers: the sides of a refused request can be too large for a float.
        fitting_rows = max(smallest, math.isqrt(self.max_tokens * rows // columns))
        fitting_rows = min(fitting_rows, self.max_tokens // smallest)
        fitting_columns = max(smallest, math.isqrt(self.max_tokens * columns // rows))
        fitting_columns = min(fitting_columns, self.max_tokens // fitting_rows)
        return fitting_rows * self.size_multiple, fitting_columns * self.size_multiple

    @cached_property
    def _labels_by_name(self) -> Mapping[str, tuple[int, ...]]:
        """Comparable name -> the classes it means; a full name wins over a synonym."""
        full: dict[str, tuple[int, ...]] = {}
        synonyms: dict[str, tuple[int, ...]] = {}
        for label, name in enumerate(self.class_names):
            key = _comparable(name)
            full[key] = (*full.get(key, ()), label)
            for part in {_comparable(part) for part in name.split(",")} - {""}:
                synonyms[part] = (*synonyms.get(part, ()), label)
        return synonyms | full

    def _unknown_class(self, named: str, key: str) -> InvalidRequest:
        names = self._labels_by_name
        containing = [name for name in names if len(key) > 2 and key in name]
        near = difflib.get_close_matches(key, names, n=NUM_NEAR_MATCHES)
        labels = [label for name in dict.fromkeys([*near, *containing]) for label in names[name]]
        matches = [self.class_names[label] for label in dict.fromkeys(labels)][:NUM_NEAR_MATCHES]
        hint = f"; did you mean {_either(matches)}?" if matches else ""
        return InvalidRequest(
            f"class {shown_text(named)} is not one of the {len(self.class_names)} classes of "
            f"{self.name}{hint}",
            param="class",
            code="unknown_class",
        )

    def _ambiguous_class(self, named: str, labels: Sequence[int]) -> InvalidRequest:
        choices = _either([f"{label} ({self.class_names[label]})" for label in labels])
        return InvalidRequest(
            f"class {shown_text(named)} means several classes; use an id: {choices}",
            param="class",
            code="ambiguous_class",
        )


def within(field: str, value: float, low: float, high: float) -> None:
    """Raise `InvalidRequest` unless low <= value <= high. NaN is never within."""
    if not low <= value <= high:
        side = "below" if value < low else "above" if value > high else "outside"
        raise InvalidRequest(
            f"{field} {shown_number(value)} is {side} the limits {low} to {high}", param=field
        )


def one_of(field: str, value: str, choices: Sequence[str]) -> None:
    """Raise `InvalidRequest` unless the value is one of the choices."""
    if value not in choices:
        raise InvalidRequest(
            f"{field} {shown_text(value)} is not one of: {', '.join(choices)}", param=field
        )


def shown_number(value: float) -> str:
    """Write a number for a message; long integers by their size (Python refuses to print some)."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"of {value.bit_length()} bits"
    return str(value)


def shown_text(value: str, longest: int = 60) -> str:
    """Quote a client's text for a message: on one line, cut, and always encodable."""
    cut = value if len(value) <= longest else value[: longest - 1] + "…"
    printable = "".join(character if character.isprintable() else "?" for character in cut)
    return f"'{printable}'"


def _comparable(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _either(choices: Sequence[str]) -> str:
    return " or ".join(choices)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
