"""Labelled photographs, wherever they are kept: what every reader in `sources` offers.

Knows the choice of classes and which photographs can be used. Leaves bytes to `decoding` and
containers to the readers; knows nothing of crops, latents or features.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from PIL import Image

from fit_training.preparation.decoding import (
    BrokenPhotographError,
    decoded,
    refuse_size,
    upright_size,
    while_reading,
)

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_HEADER_THREADS = 8


@dataclass(frozen=True)
class Photograph:
    """One photograph; `label` counts within the chosen classes, sides are in pixels, upright."""

    path: str
    label: int
    width: int
    height: int


@dataclass(frozen=True)
class SkippedPhotograph:
    """A photograph that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """What a reader found: a name, a class (None if nothing says it), a size if something says it.

    `size` is (width, height) in pixels; without it the image's header is asked.
    """

    path: str
    class_name: str | None
    size: tuple[int, int] | None = None


class PhotographSource(ABC):
    """The photographs of the chosen classes, in the container's order; a context manager.

    A reader hands its entries to this constructor and gives the bytes of one in `_stream`.

    Attributes:
        class_names: as chosen; else in the order the container knows, else alphabetical (names that
            are all numbers by value). The labels are 0, 1, 2, ... in this order.
        photographs: those that can be used, as far as their headers tell.
        skipped: those that cannot, and entries without a class.

    Raises `ValueError` for an unknown class, or when no photograph can be used.
    """

    def __init__(
        self,
        where: Path,
        entries: Sequence[Entry],
        class_names: Sequence[str] | None = None,
        known_order: Sequence[str] | None = None,
    ) -> None:
        present = {entry.class_name for entry in entries if entry.class_name is not None}
        self.class_names = chosen_classes(class_names, present, where, known_order)
        labels: dict[str | None, int] = {name: i for i, name in enumerate(self.class_names)}
        paths = distinct(entry.path for entry in entries)
        self._entry_of = dict(zip(paths, range(len(entries)), strict=True))
        self._entries = entries
        skipped = [
            SkippedPhotograph(path, "nothing says its class")
            for path, entry in zip(paths, entries, strict=True)
            if entry.class_name is None
        ]
        chosen = [path for path, i in self._entry_of.items() if entries[i].class_name in labels]
        photographs = []
        with ThreadPoolExecutor(_HEADER_THREADS) as threads:
            for path, size in zip(chosen, threads.map(self._size, chosen), strict=True):
                if isinstance(size, str):
                    skipped.append(SkippedPhotograph(path, size))
                else:
                    label = labels[entries[self._entry_of[path]].class_name]
                    photographs.append(Photograph(path, label, *size))
        if not photographs:
            raise ValueError(none_usable(where, skipped))
        self.photographs = tuple(photographs)
        self.skipped = tuple(skipped)

    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal digest that changes with the photographs: their names and, cheaply, bytes."""

    @abstractmethod
    def _stream(self, entry: int) -> IO[bytes]:
        """Open the bytes of one entry, seekable; several threads may read several at once."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files."""

    def open(self, photograph: Photograph) -> Image.Image:
        """Decode one photograph: RGB, upright by its EXIF orientation, on white if transparent.

        Threads may call it side by side. Raises `BrokenPhotographError` for bytes that are no whole
        image, and for one of another size than `photograph` says.
        """
        with while_reading(), self._stream(self._entry_of[photograph.path]) as stream:
            image = decoded(stream)
        if image.size != (photograph.width, photograph.height):
            raise BrokenPhotographError(
                f"is {image.width}x{image.height}, not {photograph.width}x{photograph.height}"
            )
        return image

    def _size(self, path: str) -> tuple[int, int] | str:
        """Return (width, height) of an upright photograph, or why it cannot be used."""
        entry = self._entry_of[path]
        try:
            with while_reading():
                size = self._entries[entry].size
                if size is None:
                    with self._stream(entry) as stream:
                        size = upright_size(stream)
                refuse_size(size)
        except BrokenPhotographError as error:
            return str(error)
        return size

    def __enter__(self) -> Self:
        """Return the source itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()


def chosen_classes(
    wanted: Sequence[str] | None,
    present: set[str],
    where: Path,
    known_order: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Return the class names in label order; raises `ValueError` for an unknown or double one."""
    if wanted is None:
        if known_order is not None:
            return tuple(known_order)
        numbers = all(name.isdecimal() for name in present)
        return tuple(sorted(present, key=(lambda name: (int(name), name)) if numbers else str))
    present = present | set(known_order or ())
    unknown = [name for name in wanted if name not in present]
    if unknown:
        raise ValueError(f"class_names: {unknown} not among the {len(present)} classes of {where}")
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"class_names: a class is named twice in {list(wanted)}")
    return tuple(wanted)


def distinct(paths: Iterable[str]) -> list[str]:
    """Name every photograph once: the second `a.jpg` becomes `a.jpg#2`, and so on."""
    seen: set[str] = set()
    names = []
    for path in paths:
        name, count = path, 1
        while name in seen:
            count += 1
            name = f"{path}#{count}"
        seen.add(name)
        names.append(name)
    return names


def class_of_path(path: str) -> str | None:
    """Return the first folder of a path, its class; None for a file in no folder."""
    folder, slash, _ = path.partition("/")
    return folder if slash else None


def is_photograph(path: str) -> bool:
    """Whether a file's name is that of an image, and neither hidden nor macOS's bookkeeping."""
    parts = path.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return False
    return Path(parts[-1]).suffix.lower() in IMAGE_SUFFIXES


def none_usable(where: Path, skipped: Sequence[SkippedPhotograph]) -> str:
    """Say that a source has no photograph to work with, and what is wrong with the first."""
    if not skipped:
        return f"photographs: {where} holds no image in a class"
    first = skipped[0]
    return (
        f"photographs: none of the {len(skipped)} in {where} can be used; "
        f"the first, {first.path}: {first.reason}"
    )
