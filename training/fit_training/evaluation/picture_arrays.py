"""Many pictures of one size in one file, as ADM's evaluator takes them: `arr_0` of an `.npz`.

Knows the file's layout; reads and writes picture by picture, so that no set need fit in memory.

Dimension key: n pictures.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

ARRAY = "arr_0"
_MEMBER = f"{ARRAY}.npy"


def write_pictures(
    path: Path, pictures: Iterable[np.ndarray], count: int, height: int, width: int
) -> None:
    """Write `count` pictures, uint8 [height, width, 3], as `arr_0` [n, height, width, 3].

    The file appears when it is complete.

    Raises:
        ValueError: a picture has another shape or type.
    """
    shape = (height, width, 3)
    part = path.with_name(f".{path.name}.part")
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    written = 0
    with (
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive,
        archive.open(_MEMBER, "w", force_zip64=True) as member,
    ):
        npy.write_array_header_1_0(member, header)  # pyright: ignore[reportArgumentType]
        for pixels in pictures:
            if pixels.shape != shape or pixels.dtype != np.uint8:
                raise ValueError(
                    f"{path.name}: a picture is {pixels.dtype} {list(pixels.shape)}, not uint8 "
                    f"{list(shape)}"
                )
            member.write(np.ascontiguousarray(pixels).tobytes())
            written += 1
    assert written == count, f"{written} pictures, not {count}"
    os.replace(part, path)


def has_pictures(path: Path) -> bool:
    """Whether the `.npz` has an `arr_0`."""
    with zipfile.ZipFile(path) as archive:
        return _MEMBER in archive.namelist()


def count_pictures(path: Path) -> int:
    """How many pictures `arr_0` has.

    Raises:
        ValueError: it is no uint8 [n, height, width, 3].
    """
    with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as member:
        return _read_shape(member, path)[0]


def read_pictures(path: Path) -> Iterator[np.ndarray]:
    """The pictures one by one, uint8 [height, width, 3].

    Raises:
        ValueError: as `count_pictures`, or the file ends early.
    """
    with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as member:
        count, *shape = _read_shape(member, path)
        size = int(np.prod(shape))
        for number in range(count):
            content = member.read(size)
            if len(content) < size:
                raise ValueError(f"{path}: {ARRAY} ends after {number} of {count} pictures")
            yield np.frombuffer(content, np.uint8).reshape(shape).copy()


def _read_shape(member: IO[bytes], path: Path) -> tuple[int, ...]:
    major, _ = npy.read_magic(member)
    read_header: Any = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    shape, fortran_order, dtype = read_header(member)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran_order:
        raise ValueError(
            f"{path}: {ARRAY} is {dtype} {list(shape)}, not uint8 [n, height, width, 3]"
        )
    return shape
