"""A zip of labelled photographs: CLASS/name.webp members beside one manifest.csv.

Knows the archive's layout, the choice of classes and how to open one photo. Knows nothing of
crops, latents or features.
"""

import csv
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

MANIFEST = "manifest.csv"
REQUIRED_COLUMNS = ("path", "class", "width", "height")


@dataclass(frozen=True)
class Photograph:
    """One member of the archive; `label` counts within the chosen classes, sides are in pixels."""

    path: str
    label: int
    width: int
    height: int


class PhotographArchive:
    """The photos of the chosen classes, in the manifest's order; use it as a context manager.

    `class_names` gives the labels 0, 1, 2, ...; without it every class of the manifest is taken, in
    alphabetical order. Raises `ValueError` for a missing archive, manifest, column or class.
    """

    def __init__(self, path: Path, class_names: Sequence[str] | None = None) -> None:
        if not path.is_file():
            raise ValueError(f"photographs: no such archive: {path}")
        if not zipfile.is_zipfile(path):
            raise ValueError(f"photographs: not a zip archive: {path}")
        self._zip = zipfile.ZipFile(path)
        try:
            rows = self._manifest(path)
            self.class_names = _chosen(class_names, {row["class"] for row in rows}, path)
        except ValueError:
            self._zip.close()
            raise
        labels = {name: label for label, name in enumerate(self.class_names)}
        self.photographs = tuple(
            Photograph(row["path"], labels[row["class"]], int(row["width"]), int(row["height"]))
            for row in rows
            if row["class"] in labels
        )

    def _manifest(self, path: Path) -> list[dict[str, str]]:
        if MANIFEST not in self._zip.namelist():
            raise ValueError(f"photographs: {path} has no {MANIFEST}")
        with self._zip.open(MANIFEST) as raw:
            reader = csv.DictReader(io.TextIOWrapper(raw, "utf-8", newline=""))
            missing = [name for name in REQUIRED_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"photographs: {MANIFEST} in {path} lacks the columns {missing}")
            return list(reader)

    def open(self, photograph: Photograph) -> Image.Image:
        """Return the decoded RGB image of one photo."""
        with self._zip.open(photograph.path) as member:
            return Image.open(io.BytesIO(member.read())).convert("RGB")

    def __enter__(self) -> Self:
        """Return the archive itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the zip file."""
        self._zip.close()


def _chosen(wanted: Sequence[str] | None, present: set[str], path: Path) -> tuple[str, ...]:
    if wanted is None:
        return tuple(sorted(present))
    unknown = [name for name in wanted if name not in present]
    if unknown:
        raise ValueError(f"class_names: {unknown} not among the {len(present)} classes of {path}")
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"class_names: a class is named twice in {list(wanted)}")
    return tuple(wanted)
