"""A folder of photographs: CLASS/name.ext, with any folders between class and file.

Knows the file system. Leaves classes, headers and decoding to `photographs`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fit_training.preparation.photographs import (
    Entry,
    PhotographSource,
    class_of_path,
    is_photograph,
)


class PhotographFolder(PhotographSource):
    """All images below a folder, in the order of their paths; images in no class are skipped."""

    def __init__(self, path: Path, class_names: Sequence[str] | None = None) -> None:
        self._folder = path
        found = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        self._paths = sorted(name for name in found if is_photograph(name))
        entries = [Entry(name, class_of_path(name)) for name in self._paths]
        super().__init__(path, entries, class_names)

    def fingerprint(self) -> str:
        """Digest of every file's path and length in bytes."""
        digest = hashlib.sha256()
        for name in self._paths:
            digest.update(f"{name}\0{(self._folder / name).stat().st_size}\0".encode())
        return digest.hexdigest()

    def _stream(self, entry: int) -> IO[bytes]:
        return (self._folder / self._paths[entry]).open("rb")

    def close(self) -> None:
        """Nothing is held open."""
