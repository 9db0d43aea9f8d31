"""FiT's own rule of what becomes of a photograph (arXiv:2402.12376, arXiv:2410.13925).

A photograph becomes up to four images: resized to at most max_side^2 square pixels with its aspect
kept, and, when both sides are longer than max_side, the centre crop of ADM (arXiv:2105.05233) as
well; either as it is and mirrored. Nothing is random and nothing is enlarged.

Knows geometry and resampling. Knows nothing of sources, networks or files.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fit_training.preparation.alignment import TOKEN_PIXELS

NUM_VARIANTS = 4  # resized, resized and mirrored, cropped, cropped and mirrored


@dataclass(frozen=True)
class FitRule:
    """The side S that limits area and crop, in pixels; without `mixed` only variant 0 is made."""

    max_side: int = 256
    mixed: bool = True

    def __post_init__(self) -> None:
        """Raise `ValueError` unless `max_side` is whole tokens."""
        if self.max_side < TOKEN_PIXELS or self.max_side % TOKEN_PIXELS:
            raise ValueError(
                f"max_side: {self.max_side} is not a positive multiple of {TOKEN_PIXELS}"
            )

    @property
    def num_variants(self) -> int:
        """How many images a photograph becomes at most."""
        return NUM_VARIANTS if self.mixed else 1

    def applies(self, size: tuple[int, int], variant: int) -> bool:
        """Whether a photograph of (width, height) has this variant: a crop needs both sides > S."""
        return variant < 2 or min(size) > self.max_side

    def flips(self, variant: int) -> bool:
        """Whether a variant is mirrored."""
        return variant % 2 == 1

    def pixels(self, image: Image.Image, seed: int, photo: int, variant: int) -> Tensor:
        """Render one variant: uint8 [3, height, width]. Seed and photo change nothing."""
        del seed, photo
        assert self.applies(image.size, variant)
        if variant < 2:
            size = resized_sides(image.size, self.max_side)
            if size != image.size:
                image = image.resize(size, Image.Resampling.BICUBIC)
        else:
            image = centre_crop(image, self.max_side)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.flip(2) if self.flips(variant) else pixels

    def options(self) -> dict[str, Any]:
        """What a folder's index says of the rule."""
        return {"rule": "fit", "max_side": self.max_side, "mixed": self.mixed}


def resized_sides(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Return (width, height) in whole tokens, at most `max_side`^2 in area, never enlarged.

    From S^2 pixels on the sides become S sqrt(W / H) and S sqrt(H / W); then, or below at once,
    both are floored to whole tokens, here in integers, so that no rounding error loses a token.
    Beyond FiT, whose data have no such shapes: a side keeps one token at the least, and then the
    other has (S / 16)^2 at the most, so that no image is longer than max_side allows.
    """
    width, height = size
    token, area = TOKEN_PIXELS, max_side * max_side
    if width * height < area:
        return width // token * token, height // token * token
    most = area // token**2
    columns = min(max(isqrt(area * width // (height * token**2)), 1), most)
    rows = min(max(isqrt(area * height // (width * token**2)), 1), most)
    return columns * token, rows * token


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """Return ADM's centre crop, side x side, of an image both of whose sides are at least that.

    Halved by boxes while the shorter side is at least twice the crop, then resized (bicubic) until
    the shorter side is the crop's, then cut from the middle.
    """
    while min(image.size) >= 2 * side:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
