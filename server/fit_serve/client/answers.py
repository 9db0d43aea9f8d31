"""What a client gets: pictures, and the events that tell of them on the way."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        data: the file.
        output_format: png, jpeg or webp.
        seed: makes this picture alone, with the same request.
        height, width: pixels.
    """

    data: bytes
    output_format: str
    seed: int
    height: int
    width: int

    def save(self, path: str | Path) -> Path:
        """Write the file; where the path has no suffix, that of its format is added."""
        path = Path(path)
        path = path if path.suffix else path.with_suffix(f".{self.output_format}")
        path.write_bytes(self.data)
        return path

    def image(self) -> Image:
        """The picture decoded, as Pillow has it."""
        from PIL import Image

        return Image.open(io.BytesIO(self.data))


@dataclass(frozen=True)
class Accepted:
    """The request is in the queue; `cancel` takes this id."""

    id: str


@dataclass(frozen=True)
class Progress:
    """How far a picture has come, in evaluations of the network."""

    image_index: int
    evaluations_done: int
    evaluations_total: int


@dataclass(frozen=True)
class Preview:
    """What a picture looks like so far; it may be smaller than the picture."""

    image_index: int
    data: bytes
    media_type: str


@dataclass(frozen=True)
class Completed:
    """The pictures in order, and all that made them: the fields of the JSON answer."""

    pictures: tuple[Picture, ...]
    fields: Mapping[str, Any]


Event = Accepted | Progress | Preview | Completed


def pictures_of(fields: Mapping[str, Any]) -> tuple[Picture, ...]:
    """The pictures of a JSON answer."""
    return tuple(
        Picture(
            b64decode(image["b64_json"]),
            image["output_format"],
            image["seed"],
            fields["height"],
            fields["width"],
        )
        for image in fields["images"]
    )


def event_of(name: str, data: Mapping[str, Any]) -> Event | None:
    """An event of a stream; None for kinds that are not known here."""
    match name:
        case "accepted":
            return Accepted(data["id"])
        case "progress":
            return Progress(
                data["image_index"], data["evaluations_done"], data["evaluations_total"]
            )
        case "preview":
            return Preview(data["image_index"], b64decode(data["b64_json"]), data["media_type"])
        case "completed":
            return Completed(pictures_of(data), data)
    return None
