"""The files of one checkpoint: on the disk once written, and named with size and SHA-256.

`run.json` holds all that is no tensor. Tensors lie in `state.safetensors`, or, in a run of several
processes, in one `slices-00000.safetensors` per process (`slice_storage.py`). `checksums.json` has
size and SHA-256 of all of them. None is a pickle. Knows nothing of which checkpoints there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STATE, RUN, CHECKSUMS = "state.safetensors", "run.json", "checksums.json"
_SLICES = re.compile(r"slices-\d{5}\.safetensors")

Write = Callable[[bytes | memoryview], None]
FileSum = dict[str, Any]
"""A file's line in `checksums.json`: `bytes` and `sha256`."""


def slices_name(rank: int) -> str:
    """The file of one process's slices."""
    return f"slices-{rank:05d}.safetensors"


def write_file(path: Path, content: Callable[[Write], None]) -> FileSum:
    """Write a file and sync it.

    Args:
        path: of the file.
        content: is given a function and calls it with the file's bytes, piece by piece.

    Raises:
        OSError: it could not be written.
    """
    digest, size = hashlib.sha256(), 0

    with path.open("wb") as file:

        def write(data: bytes | memoryview) -> None:
            nonlocal size
            file.write(data)
            digest.update(data)
            size += len(data)

        content(write)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_rest(folder: Path, run: Mapping[str, Any], sums: Mapping[str, FileSum]) -> None:
    """Write `run.json` and, last, the checksums of it and of the tensors' files; sync the folder.

    Args:
        folder: of the checkpoint.
        run: all that is no tensor.
        sums: of the files with tensors, by name.

    Raises:
        OSError: one could not be written.
    """
    sums = {**sums, RUN: write_file(folder / RUN, lambda write: write(_as_json(run)))}
    write_file(folder / CHECKSUMS, lambda write: write(_as_json(sums)))
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_run(path: Path) -> dict[str, Any]:
    """Read all that is no tensor."""
    return json.loads((path / RUN).read_text(encoding="utf-8"))


def tensor_files(path: Path) -> list[Path]:
    """The files with tensors.

    Raises:
        ValueError: as `read_checksums`.
    """
    return [path / name for name in sorted(read_checksums(path)) if name != RUN]


def read_checksums(path: Path) -> dict[str, FileSum]:
    """Read what the files of a checkpoint should be.

    Raises:
        ValueError: the checksums are missing or unreadable, or a file is missing.
    """
    try:
        sums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        found = {name: dict(entry) for name, entry in sums.items()}
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no {CHECKSUMS}") from None
    except (OSError, ValueError, AttributeError, TypeError):
        raise ValueError(f"{path}: {CHECKSUMS} cannot be read") from None
    tensors = found.keys() - {RUN}
    is_plain = tensors == {STATE} or (tensors and all(map(_SLICES.fullmatch, tensors)))
    if RUN not in found or not is_plain:
        raise ValueError(f"{path}: {CHECKSUMS} cannot be read")
    for name, entry in found.items():
        if not (path / name).is_file():
            raise ValueError(f"{path}: there is no {name}")
        if entry.keys() != {"bytes", "sha256"}:
            raise ValueError(f"{path}: {CHECKSUMS} cannot be read")
    return found


def check_files(path: Path) -> None:
    """Read every file of a checkpoint and compare it with its checksum.

    Raises:
        ValueError: a file is missing, unreadable, or not the one that was written.
    """
    for name, entry in read_checksums(path).items():
        try:
            size, digest = _measure(path / name)
        except OSError as error:
            raise ValueError(f"{path}: {name} cannot be read: {error.strerror}") from error
        if size != entry["bytes"] or digest != entry["sha256"]:
            raise ValueError(f"{path}: {name} is not what was written ({size} bytes)")


def has_its_size(path: Path) -> bool:
    """Whether a checkpoint is complete, without reading its tensors."""
    try:
        sums = read_checksums(path)
    except ValueError:
        return False
    return all((path / name).stat().st_size == sums[name]["bytes"] for name in sums)


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()
