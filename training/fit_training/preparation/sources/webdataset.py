"""WebDataset: tar shards whose members of one name, up to the first dot, are one sample.

The class of an image is its sample's `.cls` (a number or a name as text), else `label`, `class` or
`cls` of its `.json`, else the first folder of its path. Shards are read where they lie, by an index
of offsets made when they are opened. Leaves headers and decoding to `photographs`.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fit_training.preparation.photographs import (
    Entry,
    PhotographSource,
    class_of_path,
    is_photograph,
)
from fit_training.preparation.sources.window import open_window

LABEL_NAMES = ("label", "class", "cls")


@dataclass(frozen=True)
class _Member:
    """One image of a shard: where its bytes are, in bytes from the shard's start."""

    name: str
    class_name: str | None
    shard: int
    offset: int
    length: int


class WebDataset(PhotographSource):
    """The images of tar shards, shard by shard in the order of their members.

    Raises `ValueError` for a shard that is no tar, is compressed or ends too early.
    """

    def __init__(
        self, path: Path, shards: Sequence[Path], class_names: Sequence[str] | None = None
    ) -> None:
        self._shards = list(shards)
        self._members = [
            member
            for number, shard in enumerate(self._shards)
            for member in _images_of(shard, number)
        ]
        self._descriptors = [os.open(shard, os.O_RDONLY) for shard in self._shards]
        try:
            entries = [Entry(member.name, member.class_name) for member in self._members]
            super().__init__(path, entries, class_names)
        except BaseException:
            self.close()
            raise

    def fingerprint(self) -> str:
        """Digest of every image's name, class and length in bytes."""
        digest = hashlib.sha256()
        for member in self._members:
            digest.update(f"{member.name}\0{member.class_name}\0{member.length}\0".encode())
        return digest.hexdigest()

    def _stream(self, entry: int) -> IO[bytes]:
        member = self._members[entry]
        return open_window(self._descriptors[member.shard], member.offset, member.length)

    def close(self) -> None:
        """Close the shards."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def _images_of(shard: Path, number: int) -> Iterator[_Member]:
    images: list[tarfile.TarInfo] = []
    labels: dict[str, str | None] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                name = info.name.removeprefix("./")
                sample, extension = _split(name)
                if not info.isreg():
                    continue
                if is_photograph(name):
                    images.append(info)
                elif extension in ("cls", "json") and (file := archive.extractfile(info)):
                    label = _label(file.read(), extension)
                    if extension == "cls" or sample not in labels:
                        labels[sample] = label
    except tarfile.TarError as error:
        raise ValueError(f"photographs: {shard} is no uncompressed tar: {error}") from error
    for info in images:
        name = info.name.removeprefix("./")
        class_name = labels.get(_split(name)[0]) or class_of_path(name)
        yield _Member(name, class_name, number, info.offset_data, info.size)


def _split(name: str) -> tuple[str, str]:
    """Return (sample, extension): the extension begins at the first dot of the last part."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _label(data: bytes, extension: str) -> str | None:
    """Return the class that a `.cls` or `.json` member names; None if it names none."""
    text = data.decode("utf-8", errors="replace")
    if extension == "cls":
        return text.strip() or None
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    found = [values[name] for name in LABEL_NAMES if isinstance(values.get(name), int | str)]
    return str(found[0]).strip() or None if found else None
