"""The folder of token-packed latents: shards of tensors and one index.json.

Knows the file format, writes it atomically and checks it. Knows nothing of photographs or networks.

A shard `shard-VV-NNNNN.safetensors` (variant VV, part NNNNN) holds n images end to end:
`tokens` [sum N, C] float16 (in the order of `fit_models.patches`), `features` [sum N, D] float16,
`grid` [n, 2] int32 (rows, columns in tokens, N = rows * columns), `label`, `photo` [n] int32 and
`flip` [n] int8. A folder made without a feature network has no `features`. Photos that turned out
broken are in no shard; the index lists them under `skipped`, by the shard they would be in.

Dimension key: N tokens of one image, n images of a shard, C channels of a token, D of a feature.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

INDEX = "index.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LatentImage:
    """One image of a shard: tokens [N, C], features [N, D] or None, grid (rows, columns)."""

    tokens: Tensor
    features: Tensor | None
    grid: tuple[int, int]
    label: int
    photo: int
    flip: bool


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_name(variant: int, part: int) -> str:
    """Return the file name of one shard."""
    return f"shard-{variant:02d}-{part:05d}.safetensors"


class LatentFolder:
    """A folder being filled: the index so far, and shards added to it one by one.

    `description` is what the index says beside the shards. A folder begun with the same description
    is continued; with another one, `ValueError` is raised.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any]) -> None:
        self.folder = folder
        self._description = {"format_version": FORMAT_VERSION, **description}
        self._rows: dict[str, dict[str, Any]] = {}
        self._skipped: dict[str, dict[str, str]] = {}
        if not (folder / INDEX).is_file():
            return
        begun = read_index(folder)
        for name, value in self._description.items():
            if begun.get(name) != value:
                raise ValueError(f"destination: {folder} was begun with other {name}")
        self._rows = {row["file"]: row for row in begun["shards"]}
        self._skipped = begun.get("skipped", {})

    @property
    def num_images(self) -> int:
        """Images in all finished shards."""
        return sum(row["num_images"] for row in self._rows.values())

    @property
    def skipped(self) -> dict[int, str]:
        """Photos that turned out broken, in the order of their numbers, and why."""
        found = {int(p): why for shard in self._skipped.values() for p, why in shard.items()}
        return dict(sorted(found.items()))

    def holds(self, name: str) -> bool:
        """Whether a shard is finished, still there and whole: its sha256 is the index's."""
        if name not in self._rows:
            return name in self._skipped  # not one of its photos was whole
        path = self.folder / name
        return path.is_file() and file_sha256(path) == self._rows[name]["sha256"]

    def add(
        self,
        name: str,
        variant: int,
        images: Sequence[LatentImage],
        skipped: Mapping[int, str] | None = None,
    ) -> None:
        """Write one shard, then the index that names it; each appears whole or not at all.

        `skipped` says which photos of the shard are broken, and why. A shard of no images is no
        file, only finished.
        """
        if images:
            row = {"file": name, "variant": variant, **_write_shard(self.folder / name, images)}
            self._rows[name] = row
        if skipped:
            self._skipped[name] = {str(photo): reason for photo, reason in skipped.items()}
        rows = [self._rows[file] for file in sorted(self._rows)]
        index: dict[str, Any] = dict(self._description)
        # Of variant 0 alone, so that the figures stand still while later variants are made.
        if first := [row for row in rows if row["variant"] == 0]:
            mean, deviation = latent_statistics(first, self._description["patch_size"])
            index |= {"latent_mean": mean, "latent_std": deviation}
        if self._skipped:
            index["skipped"] = {file: self._skipped[file] for file in sorted(self._skipped)}
        index["shards"] = rows
        unfinished = self.folder / f".{INDEX}.tmp"
        unfinished.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, self.folder / INDEX)


def _write_shard(path: Path, images: Sequence[LatentImage]) -> dict[str, Any]:
    """Write one shard atomically; return its sha256, counts and sums for the index."""
    tokens = torch.cat([image.tokens for image in images])
    tensors = {
        "tokens": tokens.half(),
        "grid": torch.tensor([image.grid for image in images], dtype=torch.int32),
        "label": torch.tensor([image.label for image in images], dtype=torch.int32),
        "photo": torch.tensor([image.photo for image in images], dtype=torch.int32),
        "flip": torch.tensor([image.flip for image in images], dtype=torch.int8),
    }
    features = [image.features for image in images if image.features is not None]
    assert len(features) in (0, len(images)), "features for some images of a shard only"
    if features:
        tensors["features"] = torch.cat(features).half()
    unfinished = path.with_name(f".{path.name}.tmp")
    save_file(tensors, unfinished)
    digest = file_sha256(unfinished)
    os.replace(unfinished, path)
    return {
        "sha256": digest,
        "num_images": len(images),
        "num_tokens": tokens.shape[0],
        "sum": tokens.double().sum(dim=0).tolist(),
        "sum_of_squares": tokens.double().square().sum(dim=0).tolist(),
    }


def latent_statistics(
    rows: Sequence[Mapping[str, Any]], patch_size: int
) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of every latent channel over the given shards."""
    area = patch_size * patch_size
    count = sum(row["num_tokens"] for row in rows) * area
    sums = torch.tensor([row["sum"] for row in rows], dtype=torch.float64).sum(dim=0)
    squares = torch.tensor([row["sum_of_squares"] for row in rows], dtype=torch.float64).sum(dim=0)
    mean = sums.reshape(-1, area).sum(dim=1) / count
    variance = squares.reshape(-1, area).sum(dim=1) / count - mean.square()
    return mean.tolist(), variance.clamp_min(0).sqrt().tolist()


def read_index(folder: Path) -> dict[str, Any]:
    """Read index.json; raises `ValueError` when it is absent or of another format version."""
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f"latents: {folder} has no {INDEX}")
    index = json.loads(path.read_text(encoding="utf-8"))
    version = index.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"latents: {path} has format_version {version}, not {FORMAT_VERSION}")
    return index


def read_shard(folder: Path, row: Mapping[str, Any], verify: bool = False) -> dict[str, Tensor]:
    """Return one shard's tensors; with `verify`, raises `ValueError` if the bytes have changed."""
    path = folder / row["file"]
    if not path.is_file():
        raise ValueError(f"latents: {path} is in the index but not in the folder")
    if verify:
        digest = file_sha256(path)
        if digest != row["sha256"]:
            raise ValueError(f"latents: {path} has sha256 {digest}, not {row['sha256']}")
    return load_file(path)
