"""A folder of prepared latents without photographs: shards of random tokens and their index."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fit_training.preparation.latent_shards import LatentFolder, LatentImage, shard_name

CLASS_NAMES = ("ant", "bee", "cat", "dog")
FEATURE_CHANNELS = 6
_GRIDS = ((1, 2), (2, 3), (3, 2), (3, 3), (1, 4), (2, 2))
_LABELS = [0] * 12 + [1] * 6 + [2] * 4 + [3] * 2
# (label, rows, columns): classes of 12, 6, 4 and 2 images, in grids of 2 to 9 tokens.
IMAGES = tuple((label, *_GRIDS[i % 6]) for i, label in enumerate(_LABELS))


def write_toy_latents(
    folder: Path,
    images: Sequence[tuple[int, int, int]] = IMAGES,
    num_shards: int = 2,
    seed: int = 0,
    class_names: Sequence[str] = CLASS_NAMES,
    photos: Sequence[int] | None = None,
    **described: Any,
) -> Path:
    """Write `images` of 4 latent channels and patches of 2 into shards, and return the folder.

    A class has its own mean, so that there is something to learn. Every image is of a photograph of
    its own unless `photos` has a number for each. The index also says what is `described`.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    numbers = range(len(images)) if photos is None else photos
    for photo, (label, rows, columns) in zip(numbers, images, strict=True):
        n = rows * columns
        tokens = 2.0 * torch.randn(n, 16, generator=generator) + label + 0.5
        features = torch.randn(n, FEATURE_CHANNELS, generator=generator)
        made.append(LatentImage(tokens, features, (rows, columns), label, photo, flip=False))
    classes = [
        {"label": label, "name": name.title(), "text": name}
        for label, name in enumerate(class_names)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    description = {"patch_size": 2, "split": "train", "classes": classes, **described}
    latents = LatentFolder(folder, description)
    size = -(-len(made) // num_shards)
    for part in range(num_shards):
        latents.add(shard_name(0, part), 0, made[part * size : (part + 1) * size])
    return folder
