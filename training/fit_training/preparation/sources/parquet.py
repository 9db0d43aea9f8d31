"""Parquet files of photographs as on the Hugging Face hub: columns `image` and `label`.

`image` is a struct of `bytes` and `path`, or bytes alone; the class is in `label`, `class` or
`cls`, a number or a name; the names of numbers come from the file's own metadata (`ClassLabel`).
Parquet has no access to one row, so the chosen images are copied, once an opening, into an unnamed
temporary file (TMPDIR says where). Leaves headers and decoding to `photographs`.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from fit_training.preparation.photographs import Entry, PhotographSource, chosen_classes
from fit_training.preparation.sources.window import open_window

LABEL_COLUMNS = ("label", "class", "cls")
IMAGE_COLUMN = "image"
_ROWS_AT_ONCE = 64


class PhotographParquet(PhotographSource):
    """The rows of the chosen classes, file by file.

    Raises `ValueError` for a file that is no parquet, has no image or no label column, or when the
    package pyarrow is missing.
    """

    def __init__(
        self, path: Path, files: Sequence[Path], class_names: Sequence[str] | None = None
    ) -> None:
        self._files = list(files)
        tables = [_Table(file) for file in self._files]
        order = next((table.label_names for table in tables if table.label_names), None)
        present = {name for table in tables for name in table.classes() if name is not None}
        chosen = {*chosen_classes(class_names, present, path, order), None}
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._places: list[tuple[int, int]] = []
        try:
            entries = [
                self._copied(name, class_name, data)
                for table in tables
                for name, class_name, data in table.rows()
                if class_name in chosen
            ]
            self._copy.flush()
            super().__init__(path, entries, class_names, order)
        except BaseException:
            self.close()
            raise

    def _copied(self, name: str, class_name: str | None, data: bytes) -> Entry:
        self._places.append((self._copy.tell(), len(data)))
        self._copy.write(data)
        return Entry(name, class_name)

    def fingerprint(self) -> str:
        """Digest of every file's name and length, and of every image's length in bytes."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        for _, length in self._places:
            digest.update(f"{length}\0".encode())
        return digest.hexdigest()

    def _stream(self, entry: int) -> IO[bytes]:
        offset, length = self._places[entry]
        return open_window(self._copy.fileno(), offset, length)

    def close(self) -> None:
        """Remove the copy."""
        self._copy.close()


class _Table:
    """One parquet file: which column is which, and its rows."""

    def __init__(self, file: Path) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ValueError(
                f"photographs: {file} needs the package pyarrow: pip install 'fit-serve[train]'"
            ) from error
        self._file = file
        try:
            self._parquet: Any = parquet.ParquetFile(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"photographs: {file} is no parquet file: {error}") from error
        schema = self._parquet.schema_arrow
        labels = [name for name in LABEL_COLUMNS if name in schema.names]
        if IMAGE_COLUMN not in schema.names or not labels:
            raise ValueError(
                f"photographs: {file} has the columns {schema.names}, not {IMAGE_COLUMN} and "
                f"one of {list(LABEL_COLUMNS)}"
            )
        self._label = labels[0]
        self.label_names = _class_label_names(schema.metadata or {}, self._label)

    def classes(self) -> Iterator[str | None]:
        """The class of every row, images unread."""
        for batch in self._parquet.iter_batches(columns=[self._label]):
            yield from map(self._class_name, batch.column(0).to_pylist())

    def rows(self) -> Iterator[tuple[str, str | None, bytes]]:
        """(name, class, bytes) of every row; no bytes if the row has none."""
        columns = [IMAGE_COLUMN, self._label]
        number = 0
        for batch in self._parquet.iter_batches(_ROWS_AT_ONCE, columns=columns):
            for row in batch.to_pylist():
                image = row[IMAGE_COLUMN]
                held = image if isinstance(image, dict) else {"bytes": image}
                name = held.get("path") or f"{self._file.stem}/{number:06d}"
                yield name, self._class_name(row[self._label]), held.get("bytes") or b""
                number += 1

    def _class_name(self, value: Any) -> str | None:
        if isinstance(value, int) and self.label_names is not None:
            known = 0 <= value < len(self.label_names)
            return self.label_names[value] if known else None
        return None if value is None else str(value).strip() or None


def _class_label_names(metadata: dict[bytes, bytes], column: str) -> list[str] | None:
    """Return the names that `datasets` wrote for a column of numbers, if it did."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
