"""Everything a run needs to go on, as folders that are there whole or not at all.

`checkpoint-00000400/` holds `state.safetensors` (every tensor), `run.json` (all that is no tensor)
and `checksums.json` (size and SHA-256 of the other two). It is written under a hidden name, synced
and renamed, and leaves under a hidden name too, so that a process may be killed anywhere. Knows
files and their checksums, which checkpoints stay, and a nested state as `tensor_tree` takes it.
Knows nothing of what is in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from fit_training.loop.tensor_file import write_tensors
from fit_training.loop.tensor_tree import join_tree, split_tree

STATE, RUN, CHECKSUMS = "state.safetensors", "run.json", "checksums.json"
_NAME = re.compile(r"checkpoint-(\d{8,})")
_HIDDEN = ".checkpoint-*"
_log = logging.getLogger(__name__)

Write = Callable[[bytes | memoryview], None]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"checkpoint-{step:08d}"


def checkpoint_paths(folder: Path) -> list[Path]:
    """All checkpoints of a run's folder, good or not, oldest step first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_step)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is, or was meant to be, one checkpoint rather than a run's folder."""
    return _NAME.fullmatch(path.name) is not None or (path / CHECKSUMS).exists()


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], keep: int, score: float | None = None
) -> Path:
    """Write the checkpoint of a step, then remove those that need not stay.

    The newest `keep` stay, and the one with the lowest score. Later steps than this one are left
    alone: they are damaged, or the run would have gone on from there.

    Args:
        folder: of the run.
        step: optimizer steps so far.
        state: what `split_tree` takes.
        keep: at least 1.
        score: validation loss; lower is better.

    Returns:
        the checkpoint's folder.

    Raises:
        OSError: it could not be written, as on a full disk; nothing is left of it and every earlier
            checkpoint stays.
        ValueError: the state holds what cannot be saved.
    """
    path = checkpoint_path(folder, step)
    unfinished = folder / f".{path.name}.unfinished"
    try:
        _write_all(unfinished, step, state, score)
        _discard(path)  # written at the same step before
        os.rename(unfinished, path)
        _sync_folder(folder)
    except OSError as error:
        kept = [one.name for one in checkpoint_paths(folder) if _has_its_size(one)]
        text = f"{path.name} could not be written in {folder} ({error.strerror or error})"
        raise OSError(
            error.errno, f"{text}; {kept[-1] if kept else 'no checkpoint'} is kept"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _remove_old(folder, step, keep)
    return path


def load_newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint that is good; None if there is none at all.

    Warns of each damaged one it passes over.

    Raises:
        ValueError: there are checkpoints, but every one is damaged.
    """
    paths = checkpoint_paths(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except ValueError as error:
            _log.warning("a checkpoint is damaged and passed over: %s", error)
    if paths:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"output: every checkpoint in {folder} is damaged: {names}")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint, tensors on the CPU.

    Raises:
        ValueError: a file is missing, unreadable, or not the one that was written.
    """
    for name, entry in _checksums(path).items():
        try:
            size, digest = _measure(path / name)
        except OSError as error:
            raise ValueError(f"{path}: {name} cannot be read: {error.strerror}") from error
        if size != entry["bytes"] or digest != entry["sha256"]:
            raise ValueError(f"{path}: {name} is not what was written ({size} bytes)")
    rest = json.loads((path / RUN).read_text(encoding="utf-8"))["state"]
    return join_tree(load_file(path / STATE), rest)


def remove_unfinished(folder: Path) -> None:
    """Remove what an interrupted process left; for the one process that writes to the folder."""
    for path in folder.glob(_HIDDEN):
        if path.is_dir():
            shutil.rmtree(path)


def _write_all(folder: Path, step: int, state: dict[str, Any], score: float | None) -> None:
    tensors, rest = split_tree(state)
    run = {"step": step, "score": score, "state": rest}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sums = {
        STATE: _write_file(folder / STATE, lambda write: write_tensors(tensors, write)),
        RUN: _write_file(folder / RUN, lambda write: write(_as_json(run))),
    }
    _write_file(folder / CHECKSUMS, lambda write: write(_as_json(sums)))
    _sync_folder(folder)


def _write_file(path: Path, content: Callable[[Write], None]) -> dict[str, Any]:
    """Write and sync a file; returns its line in `checksums.json`."""
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


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksums(path: Path) -> dict[str, dict[str, Any]]:
    try:
        sums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        found = {name: dict(sums[name]) for name in (STATE, RUN)}
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no {CHECKSUMS}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: {CHECKSUMS} cannot be read") from None
    for name, entry in found.items():
        if not (path / name).is_file():
            raise ValueError(f"{path}: there is no {name}")
        if entry.keys() != {"bytes", "sha256"}:
            raise ValueError(f"{path}: {CHECKSUMS} cannot be read")
    return found


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _remove_old(folder: Path, step: int, keep: int) -> None:
    earlier = [path for path in checkpoint_paths(folder) if _step(path) <= step]
    whole = [path for path in earlier if _has_its_size(path)]
    scores = {path: score for path in whole if (score := _score(path)) is not None}
    stay = {*whole[-keep:], *sorted(scores, key=lambda path: scores[path])[:1]}
    for path in earlier:
        if path not in stay:
            _discard(path)


def _discard(path: Path) -> None:
    """Remove a checkpoint, from view first."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(path, hidden)
        shutil.rmtree(hidden)


def _has_its_size(path: Path) -> bool:
    """Whether a checkpoint is complete, without reading its tensors."""
    try:
        sums = _checksums(path)
    except ValueError:
        return False
    return all((path / name).stat().st_size == sums[name]["bytes"] for name in sums)


def _score(path: Path) -> float | None:
    try:
        score = json.loads((path / RUN).read_text(encoding="utf-8"))["score"]
    except (ValueError, KeyError, TypeError):
        return None
    return score if isinstance(score, int | float) and math.isfinite(score) else None


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])
