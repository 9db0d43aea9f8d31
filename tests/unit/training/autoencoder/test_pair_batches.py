"""Laws of batches: one size and kind each, and sizes and kinds as often as they should be."""

import dataclasses

import pytest
import torch

from fit_training.autoencoder.image_pairs import ImagePairs
from fit_training.autoencoder.pair_batches import DrawnFrom, draw_batch


def invented_pairs(count: int, height: int, width: int, level: int) -> ImagePairs:
    pixels = torch.full((count, 3, height, width), level, dtype=torch.uint8)
    return ImagePairs(pixels, torch.zeros(count, 4, height // 8, width // 8).half(), 255 - pixels)


def test_a_batch_has_one_size_the_asked_area_and_the_networks_range():
    pairs = [invented_pairs(5, 16, 16, 0), invented_pairs(3, 16, 32, 255)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch = draw_batch(pairs, 2048, generator, "cpu")
        assert batch.images_B3HW is not None
        height, width = batch.images_B3HW.shape[2:]
        assert batch.num_pixels == 2048
        assert batch.latents_B4hw.shape[2:] == (height // 8, width // 8)
        value = -1.0 if (height, width) == (16, 16) else 1.0
        assert batch.images_B3HW.unique().tolist() == [value]
        assert batch.decoded_B3HW.unique().tolist() == [-value]


def test_sizes_are_drawn_by_their_share_of_pixels():
    pairs = [invented_pairs(30, 16, 16, 0), invented_pairs(5, 32, 32, 255)]  # 3 : 2
    generator = torch.Generator().manual_seed(0)
    small = sum(
        draw_batch(pairs, 1024, generator, "cpu").decoded_B3HW.shape[2] == 16 for _ in range(400)
    )
    assert 200 <= small <= 280  # 240 expected, four standard deviations to either side


def test_batches_are_generated_ones_as_often_as_asked():
    def share(wanted: float, generated: list[ImagePairs]) -> float:
        drawn_from = DrawnFrom([invented_pairs(4, 16, 16, 0)], generated, wanted)
        generator = torch.Generator().manual_seed(0)
        batches = [drawn_from.draw(1024, generator, "cpu") for _ in range(400)]
        return sum(batch.images_B3HW is None for batch in batches) / 400

    without_photographs = dataclasses.replace(invented_pairs(4, 16, 32, 9), images_B3HW=None)
    assert share(0.25, [without_photographs]) == pytest.approx(0.25, abs=0.05)
    assert share(0.0, [without_photographs]) == 0
    assert share(1.0, [without_photographs]) == 1
    assert share(1.0, []) == 0
