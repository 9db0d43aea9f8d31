"""A zip of photographs: CLASS/name.ext members, with or without a manifest.csv.

The manifest has the columns `path`, `class`, `width`, `height` and decides which members count, in
which order. Leaves classes, headers and decoding to `photographs`.
"""

import csv
import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fit_training.preparation.photographs import (
    Entry,
    PhotographSource,
    class_of_path,
    is_photograph,
)

MANIFEST = "manifest.csv"
REQUIRED_COLUMNS = ("path", "class", "width", "height")


class PhotographZip(PhotographSource):
    """The members the manifest lists; without one every image, in the order of their paths.

    Raises `ValueError` for a file that is no zip and a manifest without a column.
    """

    def __init__(self, path: Path, class_names: Sequence[str] | None = None) -> None:
        if not zipfile.is_zipfile(path):
            raise ValueError(f"photographs: not a zip archive: {path}")
        self._path = path
        self._zip = zipfile.ZipFile(path)
        try:
            self._has_manifest = MANIFEST in self._zip.namelist()
            entries = _listed(self._zip, path) if self._has_manifest else _members(self._zip)
            self._members = [entry.path for entry in entries]
            super().__init__(path, entries, class_names)
        except ValueError:
            self._zip.close()
            raise

    def fingerprint(self) -> str:
        """Digest of the file; without a manifest, of every member's name and checksum."""
        digest = hashlib.sha256()
        if self._has_manifest:
            with self._path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        for name in self._members:
            member = self._zip.getinfo(name)
            digest.update(f"{name}\0{member.CRC}\0{member.file_size}\0".encode())
        return digest.hexdigest()

    def _stream(self, entry: int) -> IO[bytes]:
        return self._zip.open(self._members[entry])

    def close(self) -> None:
        """Close the zip file."""
        self._zip.close()


def _members(archive: zipfile.ZipFile) -> list[Entry]:
    names = sorted({name for name in archive.namelist() if is_photograph(name)})
    return [Entry(name, class_of_path(name)) for name in names]


def _listed(archive: zipfile.ZipFile, path: Path) -> list[Entry]:
    with archive.open(MANIFEST) as raw:
        reader = csv.DictReader(io.TextIOWrapper(raw, "utf-8", newline=""))
        missing = [name for name in REQUIRED_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"photographs: {MANIFEST} in {path} lacks the columns {missing}")
        return [
            Entry(row["path"], row["class"], (int(row["width"]), int(row["height"])))
            for row in reader
        ]
