"""Everything a run needs to go on, in one file, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

_PATTERN = "checkpoint-*.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `checkpoint-STEP.pt` (temporary file, fsync, rename), then drop all but the newest."""
    path = folder / f"checkpoint-{step:08d}.pt"
    unfinished = folder / f".{path.name}.tmp"
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    for old in sorted(folder.glob(_PATTERN))[:-keep]:
        old.unlink()
    return path


def load_newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint of a folder; None if there is none."""
    found = sorted(folder.glob(_PATTERN))
    if not found:
        return None
    return torch.load(found[-1], map_location="cpu", weights_only=True)
