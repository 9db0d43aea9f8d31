"""What is written is there as a whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_existing(destination: Path) -> None:
    """Refuse to write over anything but an empty folder.

    Raises:
        ValueError: something is there.
    """
    if destination.is_dir() and not destination.is_symlink() and not any(destination.iterdir()):
        return
    if destination.exists() or destination.is_symlink():
        raise ValueError(f"destination: {destination} already exists")


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Give a path to write to, beside the destination, which takes its place at the end.

    After an error the destination is as it was and nothing is left beside it.

    Raises:
        ValueError: the destination exists and is not an empty folder.
    """
    refuse_existing(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        yield workplace / destination.name
        refuse_existing(destination)
        if destination.is_dir():
            destination.rmdir()
        (workplace / destination.name).rename(destination)
    finally:
        shutil.rmtree(workplace)
