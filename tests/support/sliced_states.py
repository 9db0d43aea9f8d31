"""States whose tensors lie in slices over processes, saved and read by each of them.

All functions but `whole_state` are run in every process at once, by `run_in_processes`.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from fit_training.loop.checkpoints import load_newest_checkpoint, save_checkpoint
from fit_training.loop.processes import Processes

ROWS = (1, 2, 3, 4, 5, 7)  # fewer than there are processes, and not a multiple of them


def whole_state(step: int) -> dict[str, Any]:
    """What the slices add up to, with tensors that every process holds whole."""
    weights: dict[str, Tensor] = {}
    for rows in ROWS:
        values = torch.arange(rows * 3, dtype=torch.float32).reshape(rows, 3)
        weights[f"matrix_{rows}"] = values + 100 * step
        weights[f"vector_{rows}"] = values[:, 0].bfloat16() - step
    table = torch.arange(6, dtype=torch.int64).reshape(2, 3)
    counts = {"steps": torch.tensor(float(step)), "table": table}
    return {"weights": weights, "counts": counts, "progress": [step, 0], "moments": {0: [1.5]}}


def save(folder: Path, steps: tuple[int, ...], processes: Processes) -> None:
    """Save `whole_state` of each step, its weights in slices."""
    for step in steps:
        save_checkpoint(folder, step, _sliced(step, processes), keep=3, processes=processes)


def check_newest(folder: Path, step: int, processes: Processes) -> None:
    """Read the newest checkpoint: slices of this process alone, that add up to the step's state."""
    state = load_newest_checkpoint(folder, processes)
    assert state is not None
    wanted = whole_state(step)
    assert state["progress"] == wanted["progress"]
    assert state["moments"] == wanted["moments"]
    for name, value in wanted["weights"].items():
        found = state["weights"][name]
        like = distribute_tensor(value, found.device_mesh, [Shard(0)], src_data_rank=None)
        assert torch.equal(found.to_local(), like.to_local()), name
        assert found.dtype == value.dtype
    assert isinstance(state["counts"]["table"], DTensor)
    assert torch.equal(state["counts"]["table"].full_tensor(), wanted["counts"]["table"])
    assert torch.equal(state["counts"]["steps"], wanted["counts"]["steps"])


def fill_the_disk(folder: Path, rank: int, file: str, processes: Processes) -> None:
    """Save step 1, then step 2 while one process finds the disk full at a file; save 2 again."""
    save(folder, (1,), processes)
    with pytest.MonkeyPatch.context() as patched:
        if processes.rank == rank:
            patched.setattr(os, "fsync", _full_at(file, os.fsync))
        with pytest.raises(OSError, match=r"checkpoint-00000001 is kept") as raised:
            save(folder, (2,), processes)
    assert raised.value.errno == errno.ENOSPC
    assert "checkpoint-00000002 could not be written" in str(raised.value)
    assert "No space left on device" in str(raised.value)
    if file.startswith("slices"):
        assert f"(process {rank}: No space" in str(raised.value)
    processes.any(False)  # until the main process has cleared away what was written
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-00000001"]
    check_newest(folder, 1, processes)
    save(folder, (2,), processes)
    check_newest(folder, 2, processes)


def refuse_what_cannot_be_saved(folder: Path, processes: Processes) -> None:
    """Every process hears that a tensor has a dtype that safetensors does not know."""
    state = {"w": torch.zeros(2, dtype=torch.complex128)}
    with pytest.raises(ValueError, match=r"tensor w is of torch\.complex128"):
        save_checkpoint(folder, 1, state, keep=1, processes=processes)
    processes.any(False)
    assert list(folder.iterdir()) == []


def hear_of_damage(folder: Path, processes: Processes) -> None:
    """Every process hears that there is no good checkpoint left."""
    with pytest.raises(ValueError, match="is damaged: checkpoint-00000001"):
        load_newest_checkpoint(folder, processes)


def _sliced(step: int, processes: Processes) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (processes.world_size,))
    state = whole_state(step)
    weights = {
        name: distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)
        for name, value in state["weights"].items()
    }
    return {**state, "weights": weights}


def _full_at(file: str, real: Callable[[int], None]) -> Callable[[int], None]:
    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    return full
