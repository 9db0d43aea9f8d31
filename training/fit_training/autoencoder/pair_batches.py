"""Batches of pairs: tiles of one size and one kind, drawn at random.

Knows sizes and shares. Knows nothing of files and of what a batch is for.

Dimension key: B tiles, H and W their sides in pixels, h = H / 8 and w = W / 8 in latents.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fit_training.autoencoder.image_pairs import ImagePairs


@dataclass(frozen=True)
class DrawnFrom:
    """What batches are drawn from: pairs of photographs and, with a probability, generated ones."""

    photographs: list[ImagePairs]
    generated: list[ImagePairs] = field(default_factory=list)
    generated_share: float = 0.0

    def draw(self, batch_pixels: int, generator: torch.Generator, device: str) -> ImagePairs:
        """Draw a batch of one size and one kind, see `draw_batch`."""
        chosen = self.photographs
        if self.generated and float(torch.rand((), generator=generator)) < self.generated_share:
            chosen = self.generated
        return draw_batch(chosen, batch_pixels, generator, device)


def draw_batch(
    pairs: list[ImagePairs], batch_pixels: int, generator: torch.Generator, device: str
) -> ImagePairs:
    """Draw tiles of one size, about `batch_pixels` of area together, as float32 on `device`.

    A size is chosen with the share it has of all pixels. The generator is a CPU one.
    """
    areas = torch.tensor([group.num_pixels for group in pairs], dtype=torch.float64)
    group = pairs[int(torch.multinomial(areas, 1, generator=generator))]
    count = max(1, batch_pixels // group.decoded_B3HW[0, 0].numel())
    chosen = torch.randint(len(group.decoded_B3HW), (count,), generator=generator)

    def floats(values: Tensor) -> Tensor:
        drawn = values[chosen].to(device, torch.float32)
        return drawn.contiguous(memory_format=torch.channels_last)

    def pixels(levels: Tensor) -> Tensor:
        return floats(levels).div_(127.5).sub_(1)

    return ImagePairs(
        images_B3HW=None if group.images_B3HW is None else pixels(group.images_B3HW),
        latents_B4hw=floats(group.latents_B4hw),
        decoded_B3HW=pixels(group.decoded_B3HW),
    )
