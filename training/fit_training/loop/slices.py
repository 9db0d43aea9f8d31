"""Tensors that lie in slices over the processes of a run, written and read without gathering any.

Each process writes its own slices and reads its own again, whatever the number of processes that
wrote them (`torch.distributed.checkpoint`). A process alone reads them whole and needs no process
group. Knows neither checkpoints nor what a tensor means; the files are `slice_storage.py`'s.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor import empty as empty_slices

from fit_training.loop.checkpoint_files import FileSum
from fit_training.loop.processes import Processes
from fit_training.loop.slice_storage import SliceReader, SliceWriter


def write_slices(
    folder: Path, tensors: dict[str, Tensor], processes: Processes
) -> dict[str, FileSum]:
    """Write the slices of every process, each its own; all must ask. What all hold is written once.

    Args:
        folder: that all processes see.
        tensors: by the same names in every process, in slices (`DTensor`) or the same in all.
        processes: of the run.

    Returns:
        in the main process the sums of all files, by name; in others nothing.

    Raises:
        OSError: a process could not write; it is raised in all of them, when none is writing.
        ValueError: a tensor has a dtype the format does not know.
    """
    writer = SliceWriter(folder, processes.rank)
    try:
        save(tensors, storage_writer=writer)
    except CheckpointException as failed:
        raise _first_error(failed) from failed
    return writer.sums


def read_slices(files: Sequence[Path], processes: Processes) -> dict[str, Tensor]:
    """Read tensors, whole in a run of one process and else in slices; all must ask.

    Args:
        files: of a checkpoint, written by any number of processes.
        processes: of the run.

    Returns:
        by name; in a run of one process on the CPU. In one of several, on the process's device,
        cut along their first dimension as `fully_shard` cuts, but for those of no dimension.

    Raises:
        ValueError: a file cannot be read.
    """
    reader = SliceReader(files)
    alone = processes.world_size == 1
    mesh = None if alone else init_device_mesh(processes.device.type, (processes.world_size,))
    tensors: dict[str, Any] = {}
    for name, (size, dtype) in reader.forms().items():
        if mesh is None:
            tensors[name] = torch.empty(size, dtype=dtype)
        elif not size:
            tensors[name] = torch.empty(size, dtype=dtype, device=processes.device)
        else:
            tensors[name] = empty_slices(
                *size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)]
            )
    try:
        with warnings.catch_warnings():
            # That there is no process group is no surprise here.
            warnings.filterwarnings("ignore", message="torch.distributed is", module="torch")
            load(tensors, storage_reader=reader, no_dist=alone)
    except CheckpointException as failed:
        raise ValueError(f"{files[0].parent}: {_first_error(failed)}") from failed
    return tensors


def _first_error(failed: CheckpointException) -> OSError | ValueError:
    """What went wrong in the first process in which something did; other errors are passed on."""
    rank, (error, _) = min(failed.failures.items(), key=lambda failure: failure[0])
    if isinstance(error, OSError):
        return OSError(error.errno, f"process {rank}: {error.strerror or error}")
    if isinstance(error, ValueError):
        return ValueError(f"process {rank}: {error}")
    raise failed
