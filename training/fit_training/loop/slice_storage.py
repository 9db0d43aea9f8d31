"""Slices of tensors in safetensors files, one file per process, for `torch.distributed.checkpoint`.

A file's header names, for every tensor in it, where its slice begins in the whole one: the
`DCP_SHARDING_INFO` of torch's own safetensors storage, whose classes are neither synced nor the
same from one version of torch to the next. There is no `.metadata`, which would be a pickle: a
reader takes names, shapes and places from the headers. A file without that line holds whole
tensors, so `state.safetensors` can be read in slices too. Knows nothing of what a tensor means.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from fit_training.loop.checkpoint_files import FileSum, slices_name, write_file
from fit_training.loop.tensor_file import read_forms, write_tensors

_PLACES, _BEGIN = "DCP_SHARDING_INFO", "saved_offsets"
Value = TypeVar("Value")


class SliceWriter(StorageWriter):
    """Writes and syncs what the plan gives this process, as one file.

    Attributes:
        sums: of all processes' files, by name; in the main process, once all have written.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / slices_name(rank)
        self.sums: dict[str, FileSum] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """There is nothing to reset: a writer writes once."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """There is nothing to set up: the folder is there."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Leave the plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the file, slice by slice from whatever device, if there is anything to write.

        Raises:
            OSError: it could not be written.
            ValueError: a tensor has a dtype the format does not know.
        """
        tensors: dict[str, Tensor] = {}
        places: dict[str, dict[str, list[int]]] = {}
        for item in plan.items:
            name, tensor = item.index.fqn, planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            assert item.tensor_data is not None
            assert name not in tensors, "a process holds two slices of one tensor"
            tensors[name] = tensor
            places[name] = {_BEGIN: list(item.tensor_data.chunk.offsets)}
        if not tensors:
            return _done([])
        about = {_PLACES: json.dumps(places)}
        entry = write_file(self._path, lambda write: write_tensors(tensors, write, about))
        return _done([WriteResult(item.index, 0, (self._path.name, entry)) for item in plan.items])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Take over the sums of all files; the metadata is in their headers."""
        self.sums = dict(result.storage_data for written in results for result in written)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """A writer is never chosen by a path."""
        return False


class SliceReader(StorageReader):
    """Reads from any number of files only what a process asks for.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is none of safetensors.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._metadata = Metadata({})
        self._files: dict[MetadataIndex, Path] = {}
        for path in files:
            self._read_header(path)

    def forms(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of every whole tensor, by name."""
        return {
            name: (stored.size, stored.properties.dtype)
            for name, stored in self._metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """There is nothing to reset: a reader reads the files it was made for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the headers say."""
        return self._metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """There is nothing to set up: headers are read at the start."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Leave the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what the plan asks for into the tensors it names."""
        wanted: dict[Path, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            wanted[self._files[item.storage_index]].append(item)
        for path, items in wanted.items():
            with safe_open(path, framework="pt") as file:
                for item in items:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(_read(file, item))
                    planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """A reader is never chosen by a path."""
        return False

    def _read_header(self, path: Path) -> None:
        about, forms = read_forms(path)
        places = json.loads(about.get(_PLACES, "{}"))
        for name, (size, dtype) in forms.items():
            begin = torch.Size(places[name][_BEGIN] if places else [0] * len(size))
            end = torch.Size([at + length for at, length in zip(begin, size, strict=True)])
            stored = self._metadata.state_dict_metadata.setdefault(
                name, TensorStorageMetadata(TensorProperties(dtype), end, [])
            )
            assert isinstance(stored, TensorStorageMetadata)
            stored.size = torch.Size([max(pair) for pair in zip(stored.size, end, strict=True)])
            stored.chunks.append(ChunkStorageMetadata(begin, size))
            self._files[MetadataIndex(name, begin)] = path


def _read(file: Any, item: ReadItem) -> Tensor:
    name = item.storage_index.fqn
    if not item.lengths:
        return file.get_tensor(name)
    pairs = zip(item.storage_offsets, item.lengths, strict=True)
    return file.get_slice(name)[tuple(slice(begin, begin + length) for begin, length in pairs)]


def _done(value: Value) -> Future[Value]:
    future: Future[Value] = Future()
    future.set_result(value)
    return future
