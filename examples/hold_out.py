"""Parts a folder of photographs: `python examples/hold_out.py PHOTOGRAPHS DESTINATION`.

PHOTOGRAPHS has one folder a class. Every fifth photograph of a class is linked into
DESTINATION/val/CLASS, the others into DESTINATION/train/CLASS.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

EVERY = 5


def hold_out(photographs: Path, destination: Path) -> tuple[int, int]:
    """Link the photographs into two folders, made anew.

    Returns:
        how many are trained on, and how many held out.

    Raises:
        ValueError: there is no folder of a class, or one with fewer than `EVERY` photographs.
    """
    classes = sorted(path for path in photographs.glob("*") if path.is_dir())
    if not classes:
        raise ValueError(f"photographs: {photographs} has no folder CLASS/ with photographs")
    parts = {}
    for folder in classes:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if len(files) < EVERY:
            raise ValueError(f"photographs: {folder} has {len(files)}; at least {EVERY} are needed")
        parts[folder.name] = files
    counts = {"train": 0, "val": 0}
    for part in counts:
        shutil.rmtree(destination / part, ignore_errors=True)
    for name, files in parts.items():
        for number, file in enumerate(files):
            part = "val" if number % EVERY == EVERY - 1 else "train"
            link = destination / part / name / f"{number:05d}{file.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
            counts[part] += 1
    return counts["train"], counts["val"]


if __name__ == "__main__":
    try:
        trained, held_out = hold_out(Path(sys.argv[1]), Path(sys.argv[2]))
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{trained} photographs to train on, {held_out} held out\n")
