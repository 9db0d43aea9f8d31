"""Files of weights as people release them: every container, wrapped and prefixed at will."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONTAINERS = ("safetensors", "zip", "legacy")


def write_released(
    path: Path, tensors: Mapping[str, Tensor], container: str = "safetensors"
) -> Path:
    """Write tensors (and for pickles whatever else) in a container; the name tells nothing."""
    if container == "safetensors":
        save_file(dict(tensors), path, metadata={"format": "pt"})
    else:
        write_pickle(path, OrderedDict(tensors), is_zip=container == "zip")
    return path


def write_pickle(path: Path, held: Any, is_zip: bool = True) -> Path:
    torch.save(held, path, _use_new_zipfile_serialization=is_zip)
    return path


def write_shards(folder: Path, tensors: Mapping[str, Tensor], count: int) -> Path:
    """Write shards whose index has a name of its own, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number in range(count):
        keys = sorted(tensors)[number::count]
        save_file({key: tensors[key] for key in keys}, folder / f"part-{number}.safetensors")
        weight_map.update(dict.fromkeys(keys, f"part-{number}.safetensors"))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model_ema.safetensors.index.json").write_text(json.dumps(index))
    return folder


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two dicts hold the same names, dtypes, shapes and bits, NaNs included."""
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype
        and a[key].shape == b[key].shape
        and torch.equal(_bytes(a[key]), _bytes(b[key]))
        for key in a
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
