"""What a conversion found and did, as plain values for people and for `conversion.json`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fit_models.checkpoint import converted
from fit_models.families import family_of
from fit_models.released.recognition import Recognised
from fit_models.released.state_dict import ReleasedWeights

REPORT = "conversion.json"


def describe_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Number, elements and dtypes of tensors, and which are largest and smallest."""
    by_size = sorted(tensors, key=lambda name: tensors[name].numel())
    return {
        "tensors": len(tensors),
        "elements": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": dict(Counter(dtype_name(tensor.dtype) for tensor in tensors.values())),
        "largest": {by_size[-1]: list(tensors[by_size[-1]].shape)},
        "smallest": {by_size[0]: list(tensors[by_size[0]].shape)},
    }


def describe_source(
    weights: ReleasedWeights, recognised: Recognised, dtype: torch.dtype | None
) -> dict[str, Any]:
    """The report on a bundle: its source by content, what matched, and what was taken as given."""
    return {
        "files": {path.name: sha256_of(path) for path in weights.files},
        "container": weights.container.value,
        "stripped": list(weights.stripped),
        "attributes_dropped": list(weights.with_attributes),
        **describe_tensors(weights.tensors),
        "written_dtype": "as in the source" if dtype is None else dtype_name(dtype),
        "family": family_of(recognised.config).name,
        "size": recognised.size,
        "config": recognised.config.to_dict(),
        "not_in_shapes": ["num_heads", "rope", "time_shifting", "guided_channels"],
    }


def dtype_name(dtype: torch.dtype) -> str:
    """As `float32`."""
    return str(dtype).removeprefix("torch.")


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(
    source: Mapping[str, Tensor], written: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Sequence[str]:
    """Names of which what was written is not, bit for bit, what the source becomes in a dtype."""
    if source.keys() != written.keys():
        return sorted(source.keys() ^ written.keys())
    return [
        name
        for name, tensor in source.items()
        if not _same_bits(converted(tensor, dtype), written[name])
    ]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
