"""A folder of finished pictures, so that a long run goes on where it was stopped.

Knows files and what they are named by; not what the pictures are for.

    pictures.json                      how the pictures were made
    256x256/class0007-seed123.png      one picture
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fit_serve.request import SequenceRequest, SequenceResult

if TYPE_CHECKING:
    import numpy

    from fit_serve.app import Assembly

FACTS = "pictures.json"


class PictureFolder:
    """Pictures of one model and one way of sampling.

    `facts` are the model and the sampling, in values that JSON has. Raises `ValueError` if the
    folder holds pictures that were made otherwise.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder = folder
        facts = json.loads(json.dumps(facts))
        file = folder / FACTS
        if file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            for name in sorted({*kept, *facts}):
                if kept.get(name) != facts.get(name):
                    raise ValueError(
                        f"pictures: those in {folder} were made with {name} {kept.get(name)!r}, "
                        f"not {facts.get(name)!r}; take another folder"
                    )
            return
        folder.mkdir(parents=True, exist_ok=True)
        _write_at_once(file, (json.dumps(facts, indent=1) + "\n").encode())

    def path_of(self, request: SequenceRequest) -> Path:
        """Where a sequence's picture is, or will be."""
        name = f"class{request.class_label:04d}-seed{request.seed}.png"
        return self._folder / f"{request.height}x{request.width}" / name

    def missing(self, requests: Sequence[SequenceRequest]) -> list[SequenceRequest]:
        """Those of which there is no picture yet."""
        return [request for request in requests if not self.path_of(request).is_file()]

    def keep(self, request: SequenceRequest, pixels: "numpy.ndarray") -> None:
        """Write a picture, uint8 [height, width, 3]; it is there as a whole or not at all."""
        import io

        from PIL import Image

        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG", compress_level=3)
        path = self.path_of(request)
        path.parent.mkdir(exist_ok=True)
        _write_at_once(path, content.getvalue())


class StoredPictures(Sequence["numpy.ndarray"]):
    """Pictures that are read when they are looked at: uint8 [height, width, 3]."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> "numpy.ndarray": ...
    @overload
    def __getitem__(self, index: slice) -> "StoredPictures": ...
    def __getitem__(self, index: int | slice) -> "numpy.ndarray | StoredPictures":
        """One picture, or a part of them that is not read yet."""
        import numpy
        from PIL import Image

        if isinstance(index, slice):
            return StoredPictures(self._files[index])
        with Image.open(self._files[index]) as image:
            return numpy.array(image.convert("RGB"))


def make_missing(
    assembly: "Assembly", requests: Sequence[SequenceRequest], folder: PictureFolder
) -> StoredPictures:
    """Make and keep the pictures that the folder lacks; all of them, in order of the requests.

    The engine is not started when there is nothing to make.
    """
    import typer

    from fit_serve.cli.pictures import make_pictures

    missing = folder.missing(requests)
    if there := len(requests) - len(missing):
        typer.echo(f"{there} of {len(requests)} pictures are there", err=True)
    by_id = {request.sequence_id: request for request in missing}

    def keep(result: SequenceResult) -> None:
        folder.keep(by_id[result.sequence_id], result.pixels)

    if missing:
        make_pictures(assembly, missing, keep)
    return StoredPictures([folder.path_of(request) for request in requests])


def _write_at_once(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
