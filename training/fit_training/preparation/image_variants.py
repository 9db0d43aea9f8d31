"""Several images from one photo: which crop, which size, flipped or not.

Knows the geometry and the random choices, which depend on (seed, photo, variant) alone. Knows
nothing of archives, networks or files.

All areas are in square pixels, all sides in pixels.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fit_training.preparation.alignment import TOKEN_PIXELS


@dataclass(frozen=True)
class VariantConfig:
    """How a photo becomes several images.

    With `augment`, variant v is a random crop that keeps at least `min_crop` of each side, resized
    to an area drawn log-uniformly from `min_area` to `max_area` but at most `max_enlargement` times
    the crop's own; odd variants are mirrored. Without it the one variant is the whole photo at its
    own size, at most `max_area`. Sides are whole tokens between `min_side` and `max_side`.
    """

    num_variants: int = 4
    augment: bool = True
    min_crop: float = 0.88
    min_area: int = 88**2
    max_area: int = 184**2
    max_enlargement: float = 1.25
    min_side: int = 48
    max_side: int = 256

    def __post_init__(self) -> None:
        """Raise `ValueError` for values out of range or excluding one another."""
        if self.num_variants < 1:
            raise ValueError(f"num_variants: {self.num_variants} is below 1")
        if not self.augment and self.num_variants != 1:
            raise ValueError(f"num_variants: {self.num_variants} without augment; the limit is 1")
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop: {self.min_crop} is not above 0 and at most 1")
        if not 0 < self.min_area <= self.max_area:
            raise ValueError(f"min_area: {self.min_area} is not between 1 and {self.max_area}")
        if self.max_enlargement <= 0:
            raise ValueError(f"max_enlargement: {self.max_enlargement} is not above 0")
        for name in ("min_side", "max_side"):
            side = getattr(self, name)
            if side < TOKEN_PIXELS or side % TOKEN_PIXELS:
                raise ValueError(f"{name}: {side} is not a positive multiple of {TOKEN_PIXELS}")
        if self.min_side > self.max_side:
            raise ValueError(f"min_side: {self.min_side} is above max_side {self.max_side}")

    def applies(self, size: tuple[int, int], variant: int) -> bool:
        """Whether a photo has this variant: each has them all."""
        return True

    def flips(self, variant: int) -> bool:
        """Whether a variant is mirrored."""
        return self.augment and variant % 2 == 1

    def pixels(self, image: Image.Image, seed: int, photo: int, variant: int) -> Tensor:
        """Render one variant of an RGB photo: uint8 [3, height, width]."""
        return render(image, choose_variant(image.size, self, seed, photo, variant))

    def options(self) -> dict[str, Any]:
        """What a folder's index says of the variants."""
        return asdict(self)


@dataclass(frozen=True)
class ImageVariant:
    """A crop (left, top, right, bottom in the photo's pixels), the size it becomes, and a flip."""

    box: tuple[float, float, float, float]
    width: int
    height: int
    flip: bool


def choose_variant(
    size: tuple[int, int], config: VariantConfig, seed: int, photo: int, variant: int
) -> ImageVariant:
    """Return crop, size and flip of one variant of a photo of the given (width, height)."""
    width, height = size
    if not config.augment:
        area = min(width * height, config.max_area)
        return ImageVariant((0, 0, width, height), *token_sides(width, height, area, config), False)
    generator = np.random.default_rng((seed, photo, variant))
    crop_width = width * generator.uniform(config.min_crop, 1)
    crop_height = height * generator.uniform(config.min_crop, 1)
    left = generator.uniform(0, width - crop_width)
    top = generator.uniform(0, height - crop_height)
    largest = min(config.max_area, config.max_enlargement * crop_width * crop_height)
    smallest = min(config.min_area, largest)
    area = math.exp(generator.uniform(math.log(smallest), math.log(largest)))
    box = (left, top, left + crop_width, top + crop_height)
    sides = token_sides(crop_width, crop_height, area, config)
    return ImageVariant(box, *sides, flip=config.flips(variant))


def token_sides(width: float, height: float, area: float, config: VariantConfig) -> tuple[int, int]:
    """Return (width, height) near the given area and aspect, whole tokens, within the limits.

    The limits move both sides together, so that only rounding and an aspect beyond
    `max_side / min_side` change the aspect.
    """
    scale = math.sqrt(area / (width * height))
    scale = max(scale, config.min_side / min(width, height))
    scale = min(scale, config.max_side / max(width, height))
    rounded = (round(side * scale / TOKEN_PIXELS) * TOKEN_PIXELS for side in (width, height))
    limited = [min(max(side, config.min_side), config.max_side) for side in rounded]
    return limited[0], limited[1]


def render(image: Image.Image, variant: ImageVariant) -> Tensor:
    """Crop, resize (bicubic with antialiasing) and flip an RGB photo: uint8 [3, height, width]."""
    size = (variant.width, variant.height)
    resized = image.resize(size, Image.Resampling.BICUBIC, box=variant.box)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    return pixels.flip(2) if variant.flip else pixels
