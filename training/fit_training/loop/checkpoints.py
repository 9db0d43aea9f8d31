"""Everything a run needs to go on, as folders that are there whole or not at all.

`checkpoint-00000400/` is written under a hidden name, synced and renamed, and leaves under a hidden
name too, so that a process may be killed anywhere. In a run of several processes each writes its
own slices, and the main one does all else. Knows which checkpoints there are and which stay, and a
nested state as `tensor_tree` takes it; the files in one are `checkpoint_files.py`'s. Knows nothing
of what is in it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fit_training.loop.checkpoint_files import (
    CHECKSUMS,
    STATE,
    FileSum,
    check_files,
    has_its_size,
    read_run,
    sync_folder,
    tensor_files,
    write_file,
    write_rest,
)
from fit_training.loop.processes import Processes
from fit_training.loop.slices import read_slices, write_slices
from fit_training.loop.tensor_file import write_tensors
from fit_training.loop.tensor_tree import join_tree, split_tree

ALONE = Processes(torch.device("cpu"))
_NAME = re.compile(r"checkpoint-(\d{8,})")
_HIDDEN = ".checkpoint-*"
_log = logging.getLogger(__name__)


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
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    score: float | None = None,
    processes: Processes = ALONE,
) -> Path:
    """Write the checkpoint of a step, then remove those that need not stay.

    The newest `keep` stay, and the one with the lowest score. Later steps than this one are left
    alone: they are damaged, or the run would have gone on from there.

    Args:
        folder: of the run; all processes see it.
        step: optimizer steps so far.
        state: what `split_tree` takes. Its tensors may lie in slices; none is gathered.
        keep: at least 1.
        score: validation loss; lower is better.
        processes: of the run; all must ask.

    Returns:
        the checkpoint's folder.

    Raises:
        OSError: a process could not write, as on a full disk; it is raised in all of them. Nothing
            is left of the checkpoint and every earlier one stays.
        ValueError: the state holds what cannot be saved.
    """
    path = checkpoint_path(folder, step)
    unfinished = folder / f".{path.name}.unfinished"
    tensors, rest = split_tree(state)
    run = {"step": step, "score": score, "state": rest}
    try:
        processes.on_main(lambda: _make_empty(unfinished))
        sums = _write_tensors(unfinished, tensors, processes)
        processes.on_main(lambda: _publish(unfinished, path, run, sums))
    except OSError as error:
        kept = [one.name for one in checkpoint_paths(folder) if has_its_size(one)]
        text = f"{path.name} could not be written in {folder} ({error.strerror or error})"
        raise OSError(
            error.errno, f"{text}; {kept[-1] if kept else 'no checkpoint'} is kept"
        ) from error
    finally:
        if processes.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
    processes.on_main(lambda: _remove_old(folder, step, keep))
    return path


def load_newest_checkpoint(folder: Path, processes: Processes = ALONE) -> dict[str, Any] | None:
    """Read the newest checkpoint that is good; None if there is none at all.

    The main process looks for it and warns of each damaged one it passes over; all must ask.

    Args:
        folder: of the run.
        processes: in a run of several, tensors come in slices, as `read_slices` says.

    Raises:
        ValueError: there are checkpoints, but every one is damaged.
    """
    path = processes.on_main(lambda: _newest_good(folder))
    return None if path is None else _read(path, processes)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint, tensors whole and on the CPU, whatever number of processes wrote it.

    Raises:
        ValueError: a file is missing, unreadable, or not the one that was written.
    """
    check_files(path)
    return _read(path, ALONE)


def remove_unfinished(folder: Path) -> None:
    """Remove what an interrupted process left; for the one process that writes to the folder."""
    for path in folder.glob(_HIDDEN):
        if path.is_dir():
            shutil.rmtree(path)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _write_tensors(
    folder: Path, tensors: dict[str, Tensor], processes: Processes
) -> dict[str, FileSum]:
    if processes.world_size > 1:
        return write_slices(folder, tensors, processes)
    return {STATE: write_file(folder / STATE, lambda write: write_tensors(tensors, write))}


def _publish(unfinished: Path, path: Path, run: dict[str, Any], sums: dict[str, FileSum]) -> None:
    """Finish a checkpoint whose tensors are written, and give it its name."""
    write_rest(unfinished, run, sums)
    _discard(path)  # written at the same step before
    os.rename(unfinished, path)
    sync_folder(path.parent)


def _newest_good(folder: Path) -> Path | None:
    paths = checkpoint_paths(folder)
    for path in reversed(paths):
        try:
            check_files(path)
        except ValueError as error:
            _log.warning("a checkpoint is damaged and passed over: %s", error)
        else:
            return path
    if paths:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"output: every checkpoint in {folder} is damaged: {names}")
    return None


def _read(path: Path, processes: Processes) -> dict[str, Any]:
    files = tensor_files(path)
    if processes.world_size == 1 and files == [path / STATE]:
        tensors = load_file(path / STATE)
    else:
        tensors = read_slices(files, processes)
    return join_tree(tensors, read_run(path)["state"])


def _remove_old(folder: Path, step: int, keep: int) -> None:
    earlier = [path for path in checkpoint_paths(folder) if _step(path) <= step]
    whole = [path for path in earlier if has_its_size(path)]
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


def _score(path: Path) -> float | None:
    try:
        score = read_run(path)["score"]
    except (ValueError, KeyError, TypeError):
        return None
    return score if isinstance(score, int | float) and math.isfinite(score) else None


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])
