"""One flat dict of tensors out of whatever it was released in.

Knows files, folders, wrapper keys and prefixes; not what network the tensors belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fit_models.checkpoint import indexed_files, map_tensors
from fit_models.released.container import Container, container_of
from fit_models.released.pickle_file import load_pickle

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
INDEX_SUFFIX = ".safetensors.index.json"
WRAPPERS = ("model", "ema", "state_dict", "model_ema")
PREFIX = "module."


@dataclass(frozen=True)
class ReleasedWeights:
    """Tensors by name, and how they were found.

    Attributes:
        files: all that was read.
        container: of all of them.
        tensors: floating point, dense, on the CPU; memory-mapped where the container allows.
        stripped: wrapper keys and prefixes that were taken off, from the outside inward.
        with_attributes: names of tensors that had attributes of Python, which are dropped.
    """

    files: tuple[Path, ...]
    container: Container
    tensors: dict[str, Tensor]
    stripped: tuple[str, ...]
    with_attributes: tuple[str, ...]


def read_released(
    source: Path, allow_pickle: bool = False, wrapper: str | None = None
) -> ReleasedWeights:
    """Read a released file, a folder with one, or a folder with shards and their index.

    Args:
        source: file or folder.
        allow_pickle: read torch pickles too, as tensors and plain containers only.
        wrapper: the key the weights are under, where a pickle has several.

    Raises:
        ValueError: no such file, not a format we read, broken, a pickle that is not allowed, or
            something in it is not a dense tensor of floating point.
    """
    files = released_files(source)
    containers = [container_of(path) for path in files]
    for path, container in zip(files, containers, strict=True):
        if container.is_pickle and not allow_pickle:
            raise ValueError(
                f"weights: {path} is a {container.value}, whatever its name, and pickles can hold "
                "code; --allow-pickle reads it as tensors only"
            )
    if len(files) > 1 and any(container.is_pickle for container in containers):
        raise ValueError(f"weights: the shards in {source} must all be safetensors files")
    held: Any = (
        load_pickle(files[0], containers[0]) if containers[0].is_pickle else map_tensors(files)
    )
    flat, stripped = _unwrap(held, wrapper, files[0])
    flat, prefixes = _strip_prefix(flat)
    flat = {name: value for name, value in flat.items() if not str(name).endswith(_INDEX)}
    tensors = {name: _dense(name, tensor, files[0]) for name, tensor in flat.items()}
    return ReleasedWeights(
        files=tuple(files),
        container=containers[0],
        tensors=_unshared(tensors),
        stripped=(*stripped, *prefixes),
        with_attributes=tuple(name for name, tensor in flat.items() if vars(tensor)),
    )


def released_files(source: Path) -> list[Path]:
    """The file, or those in a folder, that together hold the weights.

    Raises:
        ValueError: there is none, or more than one choice.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"weights: no such file or folder: {source}")
    indices = sorted(source.glob(f"*{INDEX_SUFFIX}"))
    if len(indices) == 1:
        files = indexed_files(indices[0])
        if not files:
            raise ValueError(f"weights: {indices[0]} names no shard")
        return files
    found = indices or sorted(p for p in source.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise ValueError(
            f"weights: {source} must hold one file of weights ({', '.join(SUFFIXES)}) or one index "
            f"of shards; found {names}; name the file itself"
        )
    return found


# Buffers of offsets in MDT's and DiffiT's blocks: a closed form, which networks make themselves.
_INDEX = "relative_position_index"


def _unwrap(held: Any, wrapper: str | None, path: Path) -> tuple[Mapping[str, Any], list[str]]:
    if not isinstance(held, Mapping) or not held:
        raise ValueError(f"weights: {path} holds a {type(held).__name__}, not a dict of tensors")
    wrappers = [key for key in WRAPPERS if isinstance(held.get(key), Mapping)]
    if wrapper is not None:
        if not isinstance(held.get(wrapper), Mapping):
            keys = ", ".join(str(key) for key in list(held)[:5])
            raise ValueError(f"wrapper: {path} has no dict under {wrapper!r}; its keys: {keys}")
        wrappers = [wrapper]
    if len(wrappers) > 1:
        raise ValueError(
            f"weights: {path} holds several sets of weights: {', '.join(wrappers)}; "
            "choose one with --wrapper"
        )
    return (held[wrappers[0]], wrappers) if wrappers else (held, [])


def _strip_prefix(flat: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Take off what training wrappers put before every name, if it is before every name."""
    if flat and all(isinstance(name, str) and name.startswith(PREFIX) for name in flat):
        return {name.removeprefix(PREFIX): value for name, value in flat.items()}, [PREFIX]
    return dict(flat), []


def _dense(name: Any, value: Any, path: Path) -> Tensor:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise ValueError(
            f"weights: {name!r} in {path} is a {type(value).__name__}, not a named tensor"
        )
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise ValueError(f"weights: {name} in {path} is not a dense tensor")
    if not value.is_floating_point() and value.dtype != torch.uint8:
        raise ValueError(
            f"weights: {name} in {path} is {value.dtype}, neither floating point nor packed bytes"
        )
    return value.detach()


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a tensor that begins where another does memory of its own: files hold each once."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors
